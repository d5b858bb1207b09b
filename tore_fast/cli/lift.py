"""`tore-fast lift keypoints.json --out DIR`: 2D keypoints of a clip to 3D poses, BVH and a stick-figure view."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from . import UsageError, arguments, format_error, one_line, print_error
from ._options import ModelArgs, OutArgs, RunArgs, report_failures

FORMATS = ("npz", "bvh", "html", "gif", "mp4")


@dataclass(kw_only=True)
class Args(ModelArgs, RunArgs, OutArgs):
    """Lifts 2D key-point clips to root-relative 3D poses in metres (camera axes: x right, y down, z forward).

    Keys of the npz: docs/results.md. OUT/results.json says which file came from which input.
    """

    keypoints: Annotated[Positional[list[Path]], tyro.conf.arg(metavar="KEYPOINT ...")]
    """JSON (COCO, AlphaPose, OpenPose, MMPose, Ultralytics, MediaPipe, {"keypoints": ...}), a folder of it with a file
    a frame,
    npz (VideoPose3D, detectron2, keypoints), npy or csv; docs/lifting.md lists them."""
    format: str = "npz,bvh,html"
    """Any of npz, bvh, html, gif, mp4, separated by commas."""
    order: str = "auto"
    """Joint order: auto, h36m, coco, halpe, openpose25, openpose18, mediapipe, wholebody or smpl."""
    person: str | None = None
    """Track to follow in files with several people (default: the one in most frames), or all: files NAME_0, NAME_1
    ..."""
    smooth: str = "none"
    """none, one-euro or gaussian: smooths the poses over time; docs/lifting.md has the errors."""
    normalise: str = "auto"
    """image, pixel or crop; auto takes what the model was trained for (else image) where the image size is known, else
    crop.
    What was done is printed."""
    width: float | None = None
    """Image width in pixels, if the file does not say; points in 0..1 need it."""
    height: float | None = None
    """Image height in pixels, if the file does not say."""
    fps: float | None = None
    """Frame rate, if the file does not say (default 25)."""
    resample: bool = True
    """Lift at the frame rate the model was trained at, where both rates are known, and come back to the clip's."""
    overlap: float = 0.5
    """Share of frames that neighbouring windows have in common (seq2seq models)."""
    flip: bool = True
    """Average with the mirrored pass."""


def run(args: Args) -> int:
    if not args.keypoints:
        raise UsageError("no key-point file to work on")
    if not any(os.path.exists(p) for p in args.keypoints):
        raise UsageError(f"{args.keypoints[0]}: no such file")
    from .._device import PRECISIONS, pick_device
    from ..geometry.smooth import SMOOTHERS
    from ..layers.prepared import prepare
    from ..pipelines.lift import NORMALISATIONS, load_lifter
    from ..pipelines.names import output_names, write_index
    from ..pipelines.results import parse_formats

    with arguments():
        args.check_limit()
        formats = parse_formats(args.format, FORMATS)
    if args.normalise not in ("auto", *NORMALISATIONS):
        raise UsageError(f"--normalise: expected auto, {', '.join(NORMALISATIONS)}, got {args.normalise!r}")
    if args.precision not in PRECISIONS:
        raise UsageError(f"--precision: expected one of {', '.join(PRECISIONS)}, got {args.precision!r}")
    if args.smooth not in SMOOTHERS:
        raise UsageError(f"--smooth: expected one of {', '.join(SMOOTHERS)}, got {args.smooth!r}")
    if not 0 <= args.overlap < 1:
        raise UsageError(f"--overlap: expected a share from 0 to below 1, got {args.overlap:g}")
    for name in ("fps", "width", "height"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"--{name}: expected a positive number, got {value:g}")
    with arguments():
        fields = {} if args.model == "default" and not args.set else args.config_fields()
        model = load_lifter(args.model, args.checkpoint, **fields).to(pick_device(args.device))
    prepare(model)
    entries: list[dict[str, Any]] = []
    with args.folder() as out, args.progress(len(args.keypoints), "clip") as bar:
        with arguments("--out"):
            names = output_names(args.keypoints, out, [f".{f}" for f in FORMATS])
        for path, name in zip(args.keypoints, names):
            entry: dict[str, Any] = {"name": name, "source": str(path), "files": []}
            try:
                for stem, clip in _people(args, path, out / name):
                    found, text = _lift_clip(args, model, path, stem, clip, formats)
                    entry["files"] += found.pop("files")
                    if args.person != "all":
                        entry |= found
                    else:
                        entry.setdefault("clips", []).append(found)
                    if not args.json:
                        print(text)
            except (ValueError, OSError, RuntimeError, MemoryError) as e:
                entry["error"] = format_error(e) if str(path) in str(e) else f"{path}: {format_error(e)}"
                print_error(entry["error"])
            entries.append(entry)
            bar.update()
        facts = {"verb": "lift", "model": str(args.checkpoint or args.model)}
        if any(e["files"] for e in entries):
            index = write_index(out, entries, facts)
            args.say({**facts, "index": str(index), "items": entries}, f"listed in {index}")
    return report_failures(sum("error" in e for e in entries), len(entries))


def _people(args: Args, path: Path, stem: Path) -> list[tuple[Path, Any]]:
    """(file name without suffix, clip) of everybody who is lifted."""
    from ..data.keypoints import read_keypoints, read_people

    if args.person != "all":
        return [(stem, read_keypoints(path, args.order, args.person, args.width, args.height))]
    clips = read_people(path, args.order, args.width, args.height)
    return [(stem.with_name(f"{stem.name}_{k}") if len(clips) > 1 else stem, clip) for k, clip in enumerate(clips)]


def _lift_clip(args: Args, model: Any, path: Path, stem: Path, clip: Any, formats: tuple[str, ...]) -> tuple[dict, str]:
    """(facts for the index, text for the user) of one person."""
    import numpy as np

    from ..geometry.skeleton import H36M17
    from ..geometry.smooth import smooth
    from ..io.atomic import write_arrays
    from ..io.bvh import write_bvh
    from ..pipelines.lift import lift_at_rate, normalise_keypoints, trained_facts
    from ..vis.stick_figure import write_gif, write_html, write_mp4

    width, height = args.width or clip.width, args.height or clip.height
    known_fps = args.fps or clip.fps
    fps = known_fps or 25.0
    facts = trained_facts(args.model, args.checkpoint)
    how = args.normalise
    if how == "auto":
        how = facts.get("normalise", "image") if width and height else "crop"
    points, frames = clip.keypoints[: args.limit], clip.frames[: args.limit]
    x = normalise_keypoints(points, how, width, height)
    rate = facts.get("fps") if args.resample and known_fps else None
    start = time.perf_counter()
    lifted = lift_at_rate(model, x, fps, rate or fps, args.overlap, args.flip, args.precision)
    lifted = lifted._replace(pose=smooth(lifted.pose, fps, args.smooth))
    seconds = time.perf_counter() - start
    written = []
    if "npz" in formats:
        arrays = {
            "source": str(path),
            "track": clip.person or "",
            "frame": frames,
            "smoothing": args.smooth,
            "mocap_framerate": fps,
            "joints_3d": lifted.pose,
        }
        arrays |= {"joint_names": np.array(H36M17.names), "keypoints": points, "normalised": x, "kept": lifted.kept}
        write_arrays(f"{stem}.npz", {**arrays, "normalisation": how, "order": clip.order}, compressed=True)
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
        one_line(f"{path}{f', person {clip.person}' if clip.person else ''}")
        + f": {len(lifted.pose)} frames from {frames[0]} "
        f"on, order {clip.order}, normalisation {how}"
        + (f" ({width:g} x {height:g})" if how != "crop" else " (no image size needed)"),
        f"  {lifted.windows} windows of {model.config.frames} frames in {seconds:.2f} s "
        f"({len(lifted.pose) / seconds:.0f} frames/s)",
    ]
    if rate and rate != fps:
        lines.append(f"  lifted at {rate:g} frames/s, the model's rate, and brought back to {fps:g}")
    elif not known_fps:
        lines.append(f"  note: frame rate unknown (--fps), {fps:g} frames/s are written to the files")
    if args.normalise == "auto" and how == "crop" and facts.get("windows", {}).get("zoom", 1.0) <= 1.0:
        lines.append(
            "  note: these weights know figures as large as an image shows them; --width and --height give better poses"
        )
    lines += [one_line(f"  note: {note}") for note in clip.notes]
    text = "\n".join([*lines, one_line(f"  wrote {', '.join(written)}")])
    facts = {"frames": len(lifted.pose), "first_frame": int(frames[0]), "fps": fps, "order": clip.order}
    facts |= {"track": clip.person, "filled": clip.filled, "assumed": list(clip.assumed), "notes": list(clip.notes)}
    return {"files": [Path(w).name for w in written], **facts}, text
