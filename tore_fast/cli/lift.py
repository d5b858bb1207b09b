"""`tore-fast lift keypoints.json --out DIR`: 2D keypoints of a clip to 3D poses, BVH and a stick-figure view."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from . import FAILED, UsageError, arguments, format_error, print_error

FORMATS = ("npz", "bvh", "html", "gif", "mp4")


@dataclass
class Args:
    """Lifts 2D keypoint clips to root-relative 3D poses in metres (camera axes: x right, y down, z forward)."""

    keypoints: Positional[list[Path]]
    """JSON (COCO results, AlphaPose/Halpe, OpenPose file or folder, {"keypoints": ...}), npz (keypoints) or csv."""
    model: str = "default"
    """`default` (built in), a folder written by `train hot --export`, or a registered name together with --checkpoint."""
    checkpoint: Path | None = None
    """Official weights (.pth, .bin, .safetensors) of the named model."""
    order: str = "auto"
    """Joint order: auto, coco, halpe, openpose25, openpose18 or h36m."""
    person: int | None = None
    """Track id to follow in files with several people."""
    normalise: str = "auto"
    """image, pixel or crop; auto takes what the model was trained for (else image) where the image size is known, else crop.
    What was done is printed."""
    width: float | None = None
    """Image width in pixels, if the file does not say."""
    height: float | None = None
    fps: float | None = None
    """Frame rate, if the file does not say (default 25)."""
    resample: bool = True
    """Lift at the frame rate the model was trained at, where both rates are known, and come back to the clip's."""
    out: Path = Path("out")
    """Folder for the results."""
    format: str = "npz,bvh,html"
    """Any of npz, bvh, html, gif, mp4, separated by commas."""
    overlap: float = 0.5
    """Share of frames that neighbouring windows have in common (seq2seq models)."""
    flip: bool = True
    """Average with the mirrored pass."""
    precision: str = "fp32"
    """fp32, bf16 or fp16 (autocast of the network; poses stay float32)."""
    device: str = "auto"
    """auto, cpu, cuda ..."""


def run(args: Args) -> int:
    if not args.keypoints:
        raise UsageError("no keypoint file to work on")
    if not any(p.exists() for p in args.keypoints):
        raise UsageError(f"{args.keypoints[0]}: no such file")
    from .._device import PRECISIONS, pick_device
    from ..layers.prepared import prepare
    from ..pipelines.lift import NORMALISATIONS, load_lifter

    formats = tuple(f.strip() for f in args.format.split(",") if f.strip())
    if not formats or any(f not in FORMATS for f in formats):
        raise UsageError(f"--format: expected some of {', '.join(FORMATS)}, got {args.format!r}")
    if args.normalise not in ("auto", *NORMALISATIONS):
        raise UsageError(f"--normalise: expected auto, {', '.join(NORMALISATIONS)}, got {args.normalise!r}")
    if args.precision not in PRECISIONS:
        raise UsageError(f"--precision: expected one of {', '.join(PRECISIONS)}, got {args.precision!r}")
    if not 0 <= args.overlap < 1:
        raise UsageError(f"--overlap: expected a share from 0 to below 1, got {args.overlap:g}")
    for name in ("fps", "width", "height"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"--{name}: expected a positive number, got {value:g}")
    with arguments():
        model = load_lifter(args.model, args.checkpoint).to(pick_device(args.device))
        args.out.mkdir(parents=True, exist_ok=True)
    prepare(model)
    failed = 0
    for path, stem in zip(args.keypoints, output_stems(args.keypoints, args.out)):
        try:
            print(_lift_file(args, model, path, stem, formats))
        except (ValueError, OSError) as e:
            failed += 1
            print_error(format_error(e))
    return FAILED if failed else 0


def output_stems(inputs: list[Path], out: Path) -> list[Path]:
    """OUT/NAME for every input: never an input itself, and not the same for two (a.json, a.csv -> a, a_csv, then a_2, a_3 ...)."""
    taken = {p.resolve() for p in inputs}
    stems: list[Path] = []
    for path in inputs:
        names = [
            path.stem,
            f"{path.stem}_{path.suffix[1:] or '3d'}",
            *(f"{path.stem}_{n}" for n in range(2, 3 + len(inputs))),
        ]
        free = lambda s: s not in stems and not any(Path(f"{s}.{f}").resolve() in taken for f in FORMATS)
        stems.append(next(s for s in (out / n for n in names) if free(s)))
    return stems


def _lift_file(args: Args, model, path: Path, stem: Path, formats: tuple[str, ...]) -> str:
    import numpy as np

    from ..data.keypoints import read_keypoints
    from ..geometry.skeleton import H36M17
    from ..io.atomic import write_arrays
    from ..io.bvh import write_bvh
    from ..pipelines.lift import lift_at_rate, normalise, trained_facts
    from ..vis.stick_figure import write_gif, write_html, write_mp4

    clip = read_keypoints(path, args.order, args.person)
    width, height = args.width or clip.width, args.height or clip.height
    known_fps = args.fps or clip.fps
    fps = known_fps or 25.0
    facts = trained_facts(args.model, args.checkpoint)
    how = args.normalise
    if how == "auto":
        how = facts.get("normalise", "image") if width and height else "crop"
    x = normalise(clip.keypoints, how, width, height)
    rate = facts.get("fps") if args.resample and known_fps else None
    start = time.perf_counter()
    lifted = lift_at_rate(model, x, fps, rate or fps, args.overlap, args.flip, args.precision)
    seconds = time.perf_counter() - start
    written = []
    if "npz" in formats:
        arrays = {"pose": lifted.pose, "keypoints": clip.keypoints, "normalised": x, "kept": lifted.kept}
        how_made = {"joints": np.array(H36M17.names), "fps": fps, "normalisation": how, "order": clip.order}
        write_arrays(f"{stem}.npz", {**arrays, **how_made}, compressed=True)
        written.append(f"{stem}.npz")
    if "bvh" in formats:
        written.append(str(write_bvh(f"{stem}.bvh", lifted.pose, fps)))
    if "html" in formats:
        note = f"Input order {clip.order}, normalisation {how}; root-relative, no path through the room."
        written.append(str(write_html(f"{stem}.html", lifted.pose, fps, path.name, note)))
    if "gif" in formats:
        written.append(str(write_gif(f"{stem}.gif", lifted.pose, fps)))
    if "mp4" in formats:
        written.append(str(write_mp4(f"{stem}.mp4", lifted.pose, fps)))
    lines = [
        f"{path}: {len(lifted.pose)} frames, order {clip.order}, normalisation {how}"
        + (f" ({width:g} x {height:g})" if how != "crop" else " (no image size needed)"),
        f"  {lifted.windows} windows of {model.config.frames} frames in {seconds:.2f} s ({len(lifted.pose) / seconds:.0f} frames/s)",
    ]
    if rate and rate != fps:
        lines.append(f"  lifted at {rate:g} frames/s, the model's rate, and brought back to {fps:g}")
    elif not known_fps:
        lines.append(f"  note: frame rate unknown (--fps), {fps:g} frames/s are written to the files")
    if args.normalise == "auto" and how == "crop" and facts.get("windows", {}).get("zoom", 1.0) <= 1.0:
        lines.append(
            "  note: these weights know figures as large as a image shows them; --width and --height give better poses"
        )
    if clip.filled:
        lines.append(f"  note: {clip.filled} joint positions were not detected and interpolated in time")
    if clip.note:
        lines.append(f"  note: {clip.note}")
    return "\n".join([*lines, f"  wrote {', '.join(written)}"])
