"""One video of `tore-fast predict`: HMR2.0 and CameraHMR with motion decoder and resume, other models frame by
frame."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .predict import Args


class HostRunner(NamedTuple):
    """What all videos of a run share."""

    pipeline: Any  # VideoPipeline
    masks: Callable | None  # of a folder or a function of the user's
    decoding: dict[str, Any]


def host_runner(args: Args, pipeline: Any) -> HostRunner:
    """The video pipeline of HMR2.0 or CameraHMR with its motion decoder and masks; checks every option on the way."""
    from ..models import load
    from ..models.motion.fasthmr import FastHMRMotion
    from ..pipelines.options import MASK_SOURCES, DecodeOptions, VideoOptions
    from ..pipelines.video import VideoPipeline

    decoding = {k: v for k, v in asdict(args.video).items() if k in DecodeOptions.__dataclass_fields__}
    options = VideoOptions(
        **decoding,
        batch_size=args.batch_size,
        box_rule=args.box_rule,
        masks=args.masks if args.masks in MASK_SOURCES else "auto",
        focal_px=args.focal,
        fov_deg=args.fov,
        principal_px=args.principal,
        seed=args.seed,
        precision=args.precision,
    )
    motion = None
    if args.video.motion:
        motion = load(args.video.motion)
        if not isinstance(motion, FastHMRMotion):
            raise ValueError(f"--video.motion {args.video.motion}: not a motion decoder (fasthmr_motion)")
    model = pipeline.body_model
    runner = VideoPipeline(model.network, model.body, motion, options, pipeline.device)
    return HostRunner(runner, _masks(args), decoding)


def host_video(
    args: Args, pipeline: Any, shared: HostRunner, source: Any, tracker: Any, folder: Path, formats: tuple[str, ...]
) -> tuple[list[Path], str | None]:
    """Files of one video and the error that ended it early."""
    from ..pipelines.overlay_video import write_overlay
    from ..pipelines.track_files import FORMATS

    runner, decoding = shared.pipeline, shared.decoding
    masks = shared.masks or (None if args.masks != "auto" else getattr(tracker, "masks", None))
    settings = {
        "model": args.model,
        "checkpoint": str(args.checkpoint),
        "set": args.set,
        **{k: getattr(args, k) for k in ("boxes", "detector", "detector_weights", "masks", "precision", "limit")},
        **{k: getattr(args, k) for k in ("fov", "fov_net", "focal")},
        "principal": args.principal and list(args.principal),
        "decoder_dim": runner.host.config.decoder_dim,
    }
    with args.progress(None, "frame", source.path.name) as bar:
        store = runner.encode_video(
            source, folder / ".work", tracker, masks, args.limit, settings, lambda i: bar.update(1)
        )
    stage = {**decoding, "motion": args.video.motion, "seed": args.seed, "body": args.body, "fps": source.fps}
    drop_stale(folder, stage)
    # the overlay is drawn from the .npz files
    per_track = [f for f in FORMATS if f in formats or (f == "npz" and "mp4" in formats)]
    written: list[Path] = []
    with args.progress(len(store.tracks), "track", "tracks") as bar:
        for track in store.tracks:
            written += runner.decode_track(store, track, folder, source.fps, per_track, source.time_of)
            bar.update()
    overlay = folder / "overlay.mp4"
    if "mp4" in formats and store.tracks:
        if not overlay.exists():
            files = [p for p in written if p.suffix == ".npz"]
            with args.progress(None, "frame", "overlay") as bar, runner.timing.stage("overlay"):
                write_overlay(source, files, runner.body, overlay, args.limit, lambda i: bar.update(1))
        written.append(overlay)
    for name, seconds in runner.timing.seconds.items():
        pipeline.seconds[name] = pipeline.seconds.get(name, 0.0) + seconds
    error = store.facts.get("error")
    if not store.tracks:
        error = error or f"{source.path}: no box in any frame that was read"
    return written, error


def mesh_video(
    args: Args, pipeline: Any, shared: None, source: Any, tracker: Any, folder: Path, formats: tuple[str, ...]
) -> tuple[list[Path], str | None]:
    """The same for models without a video pipeline of their own."""
    from ..pipelines.video_mesh import predict_video

    with args.progress(None, "frame", source.path.name) as bar:
        return predict_video(pipeline, source, folder, tracker, formats, args.limit, lambda i: bar.update(1))


def check_mesh_video(args: Args, formats: tuple[str, ...]) -> None:
    """ValueError for options that models without a video pipeline of their own do not have."""
    from ..pipelines.video_mesh import FORMATS

    if wrong := [f for f in formats if f not in FORMATS]:
        raise ValueError(f"--format: {wrong[0]} of a video needs a model of SMPL parameters (hmr2*, camerahmr*)")
    if args.video.motion:
        raise ValueError("--video.motion goes with HMR2.0 and CameraHMR")


def _masks(args: Args) -> Callable | None:
    """(frame number, frame, boxes) -> masks: of a folder, or a function of the user's."""
    from ..data.detect import load_callable
    from ..io.video import MaskFolder, TrackBoxes
    from ..pipelines.images import BOX_MODES
    from ..pipelines.options import MASK_SOURCES

    if args.masks in MASK_SOURCES:
        return None
    if ":" in args.masks and not Path(args.masks).exists():
        return load_callable(args.masks, "--masks")
    folder = MaskFolder(args.masks)
    only = args.boxes in BOX_MODES or len(TrackBoxes.read(args.boxes).tracks) <= 1

    def at(i: int, frame: Any, boxes: dict) -> dict:
        got = {t: folder.at(i, t, only, frame.shape[:2]) for t in boxes}
        return {t: m for t, m in got.items() if m is not None}

    return at


def drop_stale(folder: Path, settings: dict) -> None:
    """Files that were decoded with other settings would pass for finished ones: they are made again."""
    note = folder / ".work" / "decoding.json"
    from ..io.atomic import write_text

    text = json.dumps(settings)
    if note.exists() and note.read_text() != text:
        for path in [*folder.glob("track_*.*"), *folder.glob("overlay.mp4")]:
            path.unlink()
    write_text(note, text)
