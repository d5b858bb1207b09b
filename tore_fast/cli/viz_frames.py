"""`tore-fast viz frames`: which frames a HoT or TPC model keeps, the groups behind them, its poses beside the truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from . import arguments
from ._options import OutArgs


@dataclass(kw_only=True)
class Args(OutArgs):
    """Draws frames_kept.png (HoT, figures 7 and 9), frames_groups.png (10) and frames_poses.png (11, 14)."""

    data: str
    """Human3.6M, 3DHP, MotionBERT or motion files, as in eval lifting."""
    model: str = "default"
    """`default`, a registered name of a model that prunes frames, or a checkpoint folder."""
    checkpoint: str | None = None
    """Weights: a folder of ours, or an official file."""
    split: Literal["train", "validation", "test"] = "test"
    cameras: Path | None = None
    """Human3.6M: JSON of the camera parameters."""
    keypoints_2d: str = ""
    """Human3.6M: cpn, sh, gt or a file."""
    samples: int = 140
    """Windows, spread evenly over the data."""
    window: int = 0
    """Which of them frames_groups.png and frames_poses.png show."""
    noise_px: float = 5.0
    """Motion capture: deviation of the synthetic detector's error, pixels of a 1000-pixel image."""


def run(args: Args) -> int:
    from ..vis.overlay import save_png

    with arguments():
        panels, facts = _draw(args)
    with args.folder() as folder:
        for name, canvas in panels.items():
            save_png(canvas, folder / f"frames_{name}.png")
        paths = [str(folder / f"frames_{name}.png") for name in panels]
    args.say({"images": paths, **facts}, "\n".join(paths))
    return 0


def _draw(args: Args) -> tuple[dict[str, Any], dict[str, Any]]:
    import numpy as np
    import torch

    from ..data.mocap import CAMERA_SEED, Motion, film
    from ..data.pose_sets import read_pose_set
    from ..eval.lifting import evaluation_windows
    from ..layers.tpc import gather_frames
    from ..models.lifting._base import pose_frames
    from ..pipelines.lift import load_lifter, trained_fps
    from ..vis.frames import group_panel, kept_panel, pose_panel

    if args.samples < 1 or not 0 <= args.window < args.samples:
        raise ValueError(f"--samples, --window: expected 0 <= window < samples, got {args.window} and {args.samples}")
    model: Any = load_lifter(args.model, args.checkpoint)
    if not model.config.pruned:
        raise ValueError(f"--model {args.model}: prunes no frames; expected hot_* or tpc_* (tore-fast list --tag hot)")
    items: Any = read_pose_set(args.data, args.cameras, (args.split,), args.keypoints_2d).items[args.split]
    if not items:
        raise ValueError(f"--data {args.data}: no {args.split} clips")
    if isinstance(items[0], Motion):
        fps = trained_fps(args.model, args.checkpoint) or 50.0
        items = film([m.resampled(fps) for m in items], args.noise_px, CAMERA_SEED)
    jobs = evaluation_windows(model, items, limit=args.samples)
    tokens: list[Any] = []
    handle = model.selector.register_forward_pre_hook(lambda module, given: tokens.append(given[0]))
    frames, kept, rows = model.config.frames, np.zeros((len(jobs), model.config.frames), bool), {}
    try:
        with torch.inference_mode():
            for n, (number, slots) in enumerate(jobs):
                x = torch.from_numpy(items[number].with_channels(model.in_channels).keypoints[slots])[None]
                lifted = model(x)
                kept[n, lifted.index[0].numpy()] = True
                if n == min(args.window, len(jobs) - 1):
                    rows = {"lifted": lifted, "clip": items[number], "slots": slots, "tokens": tokens[-1]}
    finally:
        handle.remove()
    index = rows["lifted"].index
    panels = {"kept": kept_panel(kept)}
    truth = rows["clip"].pose[rows["slots"]]
    if model.config.pruning == "tpc":
        near = torch.cdist(rows["tokens"].double(), gather_frames(rows["tokens"], index).double())[0].argmin(1)
        near[index[0]] = torch.arange(index.shape[1])
        panels["groups"] = group_panel(truth, near.numpy(), index[0].numpy())
    pose = (rows["lifted"].pose[0] - rows["lifted"].pose[0, :, :1]).numpy()
    at = pose_frames(model.config)
    have = index[0].numpy() if len(pose) == index.shape[1] else np.arange(frames) if at is None else at.numpy()
    full = np.full((frames, *pose.shape[1:]), np.nan)
    full[have] = pose
    shown = have[np.linspace(0, len(have) - 1, min(14, len(have))).round().astype(int)]
    panels["poses"] = pose_panel(np.nan_to_num(full), truth, index[0].numpy(), shown.tolist())
    return panels, {"windows": len(jobs), "share_kept": kept.mean(0).tolist()}
