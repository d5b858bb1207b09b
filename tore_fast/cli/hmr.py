"""`tore-fast hmr`: people in a video (or a folder of frames) to body motion files."""

from __future__ import annotations

from dataclasses import dataclass, field

from . import FAILED, arguments, complain, note_random_weights


@dataclass
class Args:
    """Body motion of the people in a video: npz (AMASS-like), BVH, animated GLB per track, an mp4 with the bodies drawn in.

    Boxes of tracked people come from any tracker as a file, or from a detector; without either the whole frame counts as
    one person.
    An interrupted run goes on where it stopped when started again with the same --out.
    """

    video: str
    """Video file, or folder of frames."""
    model: str
    """Host: checkpoint folder of tore_fast, official .ckpt, or a model name (random weights: for tests)."""
    out: str = "out/hmr"
    motion: str | None = None
    """Checkpoint folder of the motion decoder (fasthmr_motion); none: the host's own poses."""
    boxes: str | None = None
    """CSV frame,track,x0,y0,x1,y1 or JSON {"track": [[frame,x0,y0,x1,y1],...]}."""
    detector: str | None = None
    """Instead of boxes: MODULE:CALLABLE (frame [H, W, 3] -> boxes [N, 4 or 5]), or torchvision:MODEL (extra `detect`)."""
    detector_weights: str | None = None
    """Weights file of a torchvision detector."""
    masks: str | None = None
    """Folder of person masks: FRAME.png or TRACK/FRAME.png; or MODULE:CALLABLE (frame number, frame, {track: box}) ->
    {track: [H, W] mask}."""
    mask_source: str = "auto"
    """auto (the given masks), ellipse (in every box) or none."""
    keep_tokens: int | None = None
    """Merge tokens down to this many (Mask-ToMe; the paper's 90); none: as the model was saved."""
    merge_per_block: int | None = None
    """With --keep-tokens, at most so many merges per block; none: as the model was saved (40)."""
    format: str = "npz"
    """Comma-separated: npz, bvh, glb, mp4."""
    fov: float | None = None
    """Vertical field of view in degrees."""
    fov_net: str | None = None
    """HumanFoV's file, for a CameraHMR host that comes without it."""
    focal: float | None = None
    """Focal length in pixels."""
    principal: tuple[float, float] | None = None
    """Principal point x y in pixels; default: the image's centre."""
    fps: float | None = None
    """Frames per second; default: the file's, 30 for folders."""
    body: str = "free"
    """free, or a SMPL model file."""
    batch_size: int = 32
    chunk: int = 64
    """Frames between two saved states."""
    overlap: int = 0
    """Frames shared by neighbouring clips of the motion decoder (27 hides seams)."""
    denoising_steps: int = 1
    """Calls of the motion decoder's denoiser per clip; one that was trained for the last timestep (--loss.last-step 1) knows only 1."""
    seed: int = 0
    noise: str = "seeded"
    """seeded or zeros."""
    ik: str = "adaptive"
    """adaptive, or naive (bones as predicted) inverse kinematics after the motion decoder."""
    max_gap: int = 15
    """Frames without a box that are interpolated; a longer gap cuts the track."""
    betas_mode: str = "median"
    """median over the track, or per_frame."""
    box_rule: str = "hmr2"
    """hmr2 or tight (CameraHMR's demo)."""
    rotmats: bool = False
    """Also store rotation matrices."""
    limit: int | None = None
    """Stop after this many frames."""
    device: str = "auto"
    precision: str = "fp32"
    """fp32, bf16 or fp16 for the networks."""
    quiet: bool = field(default=False)


def run(args: Args) -> int:
    from pathlib import Path

    from tqdm import tqdm

    from .._device import pick_device
    from ..data.detect import BoxTracker, load_callable, load_detector
    from ..io.video import MaskFolder, TrackBoxes, open_video, why_no_mp4
    from ..pipelines.options import VideoOptions
    from ..pipelines.overlay_video import write_overlay
    from ..pipelines.track_files import FORMATS
    from ..pipelines.video import VideoPipeline

    formats = [f.strip() for f in args.format.split(",") if f.strip()]
    with arguments():
        device = pick_device(args.device)
        bad = [f for f in formats if f not in (*FORMATS, "mp4")]
        if bad or not formats:
            raise ValueError(f"--format: expected a list of {', '.join(FORMATS)}, mp4, got {args.format!r}")
        if "mp4" in formats and (reason := why_no_mp4()):
            raise ValueError(f"--format: {reason}")
        if args.boxes and args.detector:
            raise ValueError("--boxes or --detector, not both")
        if args.limit is not None and args.limit < 1:
            raise ValueError(f"--limit: expected at least 1, got {args.limit}")
        if args.merge_per_block is not None and args.keep_tokens is None:
            raise ValueError("--merge-per-block goes with --keep-tokens")
        # the overlay is drawn from the .npz files
        per_track = [f for f in FORMATS if f in formats or (f == "npz" and "mp4" in formats)]
        source = open_video(args.video, args.fps)
        boxes = TrackBoxes.read(args.boxes) if args.boxes else None
        called = args.masks and ":" in args.masks and not Path(args.masks).exists()
        folder = MaskFolder(args.masks) if args.masks and not called else None
        options = VideoOptions(
            batch_size=args.batch_size,
            chunk_frames=args.chunk,
            box_rule=args.box_rule,
            masks=args.mask_source,
            focal_px=args.focal,
            fov_deg=args.fov,
            principal_px=args.principal,
            overlap=args.overlap,
            noise=args.noise,
            seed=args.seed,
            betas_mode=args.betas_mode,
            rotmats=args.rotmats,
            precision=args.precision,
            denoising_steps=args.denoising_steps,
            ik_mode=args.ik,
            max_gap=args.max_gap,
        )
        pipeline = VideoPipeline.from_checkpoint(
            args.model, args.motion, args.body, options, device, args.keep_tokens, args.merge_per_block, args.fov_net
        )
        note_random_weights(args.model, "motions")
        only = boxes is None or len(boxes.tracks) <= 1
        tracker = None if boxes is None else (lambda i, frame: boxes.at(i))
        if args.detector:
            tracker = BoxTracker(load_detector(args.detector, args.detector_weights, device))

        def folder_masks(i, frame, found):
            got = {t: folder.at(i, t, only, frame.shape[:2]) for t in found}
            return {t: m for t, m in got.items() if m is not None}

        out = Path(args.out)
        masks = (
            folder_masks
            if folder
            else load_callable(args.masks, "--masks")
            if called
            else tracker.masks
            if args.detector
            else None
        )
        settings = {
            "model": args.model,
            "keep": args.keep_tokens,
            "per_block": args.merge_per_block,
            "boxes": args.boxes,
            "mask_folder": args.masks,
            "detector": args.detector,
            "detector_weights": args.detector_weights,
            "principal": args.principal and list(args.principal),
            "precision": args.precision,
            "fov": args.fov,
            "fov_net": args.fov_net,
            "focal": args.focal,
            "limit": args.limit,
        }
        with tqdm(desc="frames", unit="frame", disable=args.quiet or None) as bar:
            store = pipeline.encode_video(
                source, out / ".work", tracker, masks, args.limit, settings, lambda i: bar.update(1)
            )
        decoding = {
            "motion": args.motion,
            "overlap": args.overlap,
            "steps": args.denoising_steps,
            "seed": args.seed,
            "noise": args.noise,
            "ik": args.ik,
            "max_gap": args.max_gap,
            "body": args.body,
            "rotmats": args.rotmats,
            "betas_mode": args.betas_mode,
            "fps": source.fps,
        }
        _drop_stale(out, decoding)
        written = []
        for track in tqdm(store.tracks, desc="tracks", disable=args.quiet or None):
            written += pipeline.decode_track(store, track, out, source.fps, per_track)
        if "mp4" in formats and store.tracks and not (out / "overlay.mp4").exists():
            files = [p for p in written if p.suffix == ".npz"]
            with (
                tqdm(desc="overlay", unit="frame", disable=args.quiet or None) as bar,
                pipeline.timing.stage("overlay"),
            ):
                write_overlay(source, files, pipeline.body, out / "overlay.mp4", args.limit, lambda i: bar.update(1))
    if not store.tracks:
        complain("no box in any frame that was read")
        return FAILED
    backbone, kept = pipeline.host.backbone, pipeline.host.backbone.merging
    tokens = f"{kept.keep or 'listed'} tokens kept" if kept is not None else "all tokens"
    decoder = "motion decoder" if pipeline.motion is not None else "host poses"
    print(f"{pipeline.name}, {len(backbone.blocks)} blocks, {tokens}, {decoder}, {args.precision}, {device}")
    print(pipeline.timing.table())
    for path in [*written, *([out / "overlay.mp4"] if "mp4" in formats else [])]:
        print(path)
    return 0


def _drop_stale(out, settings: dict) -> None:
    """Files that were decoded with other settings would pass for finished ones: they are made again."""
    import json

    note = out / ".work" / "decoding.json"
    text = json.dumps(settings)
    if note.exists() and note.read_text() != text:
        for path in [*out.glob("track_*.*"), *out.glob("overlay.mp4")]:
            path.unlink()
    note.write_text(text)
