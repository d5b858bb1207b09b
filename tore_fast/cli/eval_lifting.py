"""`tore-fast eval lifting`: MPJPE, P-MPJPE, N-MPJPE, MPJVE, PCK and AUC per action and per subject."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ._report import guarded, number, rows_table, unit_of, write_json


@dataclass(kw_only=True)
class Args:
    """Errors of a pose-lifting model on Human3.6M, 3DHP or motion files (docs/lifting.md)."""

    data: str
    """Folder or file of the data set; its kind is told by looking."""
    model: str = "default"
    """`default`, a registered name (tore-fast list), or a checkpoint folder."""
    checkpoint: str | None = None
    """Weights: a folder of ours, or an official file."""
    split: Literal["train", "validation", "test"] = "test"
    """Part of the data; motion files without a split are all test material."""
    subjects: str = ""
    """Only these, separated by commas."""
    cameras: Path | None = None
    """Human3.6M: JSON of the camera parameters."""
    noise_px: float = 5.0
    """Motion capture: standard deviation of the synthetic detector's error, pixels of a 1000-pixel image."""
    views: int = 1
    """Motion capture: random cameras per clip."""
    fps: float = 0.0
    """Motion capture: resampled to this rate; 0: the one the model was trained at, else 50."""
    flip: bool = True
    """Average with the mirrored pass."""
    pipeline: Literal["auto", "seq2seq", "seq2frame"] = "auto"
    """seq2frame: only the middle frame of every window counts, for models of all frames, too (HoT, tables 1, 2, 13)."""
    frame_errors: bool = False
    """Also the errors of all, pruned and selected frames, of the middle ones, and the difference (HoT, tables 4, 5)."""
    keypoints_2d: str = ""
    """Human3.6M: cpn, sh, gt or a file of 2D key points; default: the first data_2d_h36m_*.npz by name."""
    stride: int = 0
    """Frames between windows; 0: the window, or 9 for seq2frame."""
    limit: int | None = None
    """At most so many windows, spread evenly."""
    batch_size: int = 32
    """Windows run at once."""
    device: str = "auto"
    """auto, cpu, cuda ..."""
    json: Path | None = None
    """Write the metrics here."""


def run(args: Args) -> int:
    return guarded(lambda: _evaluate(args))


def _check(args: Args) -> None:
    for flag, value, least in (("stride", args.stride, 0), ("limit", args.limit or 0, 0), ("views", args.views, 1)):
        if value < least:
            raise ValueError(f"--{flag}: expected a whole number from {least} on, got {value}")
    for flag, number_ in (("noise-px", args.noise_px), ("fps", args.fps)):
        if not number_ >= 0:
            raise ValueError(f"--{flag}: expected a number from 0 on, got {number_}")


def _evaluate(args: Args) -> int:
    import torch

    from .._device import pick_device
    from ..data.mocap import CAMERA_SEED, Motion, film
    from ..data.pose_sets import read_pose_set
    from ..eval.lifting import FrameErrors, evaluate_clips, lifted_pairs
    from ..eval.pose import PoseMeter
    from ..layers.prepared import prepare
    from ..pipelines.lift import load_lifter, trained_fps

    _check(args)
    model = load_lifter(args.model, args.checkpoint).to(pick_device(args.device))
    prepare(model)
    found = read_pose_set(args.data, args.cameras, (args.split,), args.keypoints_2d)
    items: Any = found.items[args.split]
    if args.subjects:
        items = [i for i in items if i.subject in args.subjects.split(",")]
    if not items:
        raise ValueError(
            f"--data {args.data}: no {args.split} clips" + (f" of {args.subjects}" if args.subjects else "")
        )
    facts: dict[str, Any] = {"data": args.data, "kind": found.kind, "split": args.split}
    facts["model"] = str(args.checkpoint or args.model)
    if isinstance(items[0], Motion):
        fps = args.fps or trained_fps(args.model, args.checkpoint) or 50.0
        facts |= {"fps": fps, "noise_px": args.noise_px, "views": args.views}
        items = film([m.resampled(fps) for m in items], args.noise_px, CAMERA_SEED, args.views)
    facts |= {"flip": args.flip, "stride": args.stride, "pipeline": args.pipeline}
    by_action, by_subject = PoseMeter(found.pck_joints), PoseMeter(found.pck_joints)
    start, frames = time.perf_counter(), 0
    windows: Any = (args.flip, args.stride, args.limit or 0, args.batch_size)
    kinds = FrameErrors()
    with torch.inference_mode():
        for lifted in lifted_pairs(model, items, *windows, pipeline=args.pipeline):
            by_action.add(lifted.clip.action, lifted.pose, lifted.truth)
            by_subject.add(lifted.clip.subject or "-", lifted.pose, lifted.truth)
            kinds.add(lifted)
            frames += len(lifted.pose)
        if args.frame_errors:
            if not model.config.pruned or model.config.recovery == "none":
                raise ValueError(
                    f"--frame-errors: expected a model that prunes frames and recovers them, got {args.model}"
                )
            centre = evaluate_clips(model, items, *windows, pipeline="seq2frame").result()["mpjpe"]
    seconds = time.perf_counter() - start
    metrics = {
        **by_action.result(),
        "frames": frames,
        "clips": len(items),
        "per_action": by_action.per_action(),
        "per_subject": by_subject.per_action(),
        "identity": facts,
    }
    if args.frame_errors:
        metrics["frame_errors"] = {**kinds.result(), "centre": centre}
    print(table(metrics))
    if found.kind == "3dhp":
        frames_mm, sequences_mm = metrics["mpjpe_frames"], metrics["mpjpe"]
        print(f"MPJPE over frames (as P-STMO's script) {frames_mm:.1f} mm, over sequences {sequences_mm:.1f} mm")
    if args.frame_errors:
        print("MPJPE mm: " + "  ".join(f"{k} {v:.2f}" for k, v in metrics["frame_errors"].items()))
    if found.kind == "motionbert" and all(c.metres is None for c in items):
        print("note: MotionBERT's clips hold image units: read 'mm' as thousandths of half the image's width")
    print(f"{frames} frames of {len(items)} clips in {seconds:.1f} s ({frames / seconds:.0f} frames/s)")
    write_json(metrics, args.json)
    return 0


def table(metrics: dict[str, Any]) -> str:
    """Mean over actions, then one line per action and per subject, with units."""
    names = ["mpjpe", "p_mpjpe", "n_mpjpe", "mpjve"]
    lines = [f"{n:10}{number(n, metrics[n]):>9} {unit_of(n)}" for n in (*names, "pck150", "auc")]
    for title in ("action", "subject"):
        lines += ["", rows_table(title, metrics[f"per_{title}"], names)]
    return "\n".join(lines)
