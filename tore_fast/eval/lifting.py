"""Errors of a video pose model on recorded clips, as the papers count them.

In: a host of models/{mixste,motionbert,mhformer,motionagformer}.py and `PoseClip`s. Out: `PoseMeter`s (eval/pose.py),
by action or by subject. Called by train/lifting.py on the validation split and by cli/eval_lifting.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.pose_clip import PoseClip
from ..geometry.windows import window_indices
from ..models.lifting._base import PrunableHost, center_pose, is_centered, lift_windows, pose_frames
from .pose import PoseMeter, mpjpe, root_relative


class Lifted(NamedTuple):
    """One window's frames (seq2seq), or a clip's evaluated middle frames (seq2frame)."""

    clip: PoseClip
    pose: Tensor  # [T, 17, 3] metres
    truth: Tensor  # [T, 17, 3]
    kept: Tensor | None = None  # [T] bool: the frame stayed after pruning; None without pruning, or seq2frame


def centred(model: PrunableHost, pipeline: str = "auto") -> bool:
    """Whether only the middle frame of every window counts.

    Args:
        pipeline: auto (as the model is meant), seq2seq, or seq2frame, which models for all frames can do as well (HoT,
            tables 1, 2, 13).
    """
    meant = is_centered(model)
    if pipeline not in ("auto", "seq2seq", "seq2frame"):
        raise ValueError(f"pipeline: expected auto, seq2seq or seq2frame, got {pipeline!r}")
    if pipeline == "seq2seq" and meant:
        raise ValueError("pipeline: this model is for the middle frame of a window; expected auto or seq2frame")
    if pipeline == "seq2frame" and pose_frames(model.config) is not None:
        raise ValueError("pipeline: seq2frame needs a pose of the middle frame; this model recovers fewer frames")
    return meant or pipeline == "seq2frame"


def evaluation_windows(
    model: PrunableHost, clips: Sequence[PoseClip], stride: int = 0, limit: int = 0, pipeline: str = "auto"
) -> list[tuple[int, np.ndarray]]:
    """(clip number, frames [F]) of every window that is evaluated.

    Args:
        stride: frames between windows; 0: F, or 9 for seq2frame (1 evaluates every frame as the papers do).
        limit: at most this many windows, spread evenly over all clips; 0: all.
    """
    frames, centered = model.config.frames, centred(model, pipeline)
    jobs = []
    for number, clip in enumerate(clips):
        slots = window_indices(len(clip), frames, 1 if centered else (stride or frames))
        slots = slots[:: stride or 9] if centered else slots
        if len(slots) == 0:  # a clip shorter than F - stride: one centred window, so that it counts at all
            slots = window_indices(len(clip), frames, frames)
        jobs += [(number, s) for s in slots]
    if limit and len(jobs) > limit:
        jobs = [jobs[i] for i in np.linspace(0, len(jobs) - 1, limit).round().astype(int)]
    return jobs


def lifted_pairs(
    model: PrunableHost,
    clips: Sequence[PoseClip],
    flip: bool = True,
    stride: int = 0,
    limit: int = 0,
    batch_size: int = 32,
    pipeline: str = "auto",
) -> Iterator[Lifted]:
    """Predicted and true poses in metres: per window (seq2seq), or per clip its middle frames (seq2frame).

    Frames a clip marks as not valid are left out. A model that recovers fewer frames than it sees (`pose_frames`) is
    measured on those.
    """
    model.eval()
    centered, middle = centred(model, pipeline), (model.config.frames - 1) // 2
    device, recovered = next(model.parameters()).device, pose_frames(model.config)
    jobs = evaluation_windows(model, clips, stride, limit, pipeline)
    middles: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for start in range(0, len(jobs), batch_size):
        part = jobs[start : start + batch_size]
        x = np.stack([clips[n].with_channels(model.in_channels).keypoints[s] for n, s in part])
        lifted = lift_windows(model, torch.from_numpy(x).to(device), flip)
        poses = center_pose(lifted, model.config.frames)[:, None] if centered else lifted.pose
        for row, ((number, slots), pose) in enumerate(zip(part, poses.cpu())):
            clip = clips[number]
            at = np.arange(len(slots)) if recovered is None else recovered.numpy()
            wanted = slots[middle : middle + 1] if centered else slots[at]
            kept = None
            if lifted.index is not None and not centered:
                kept = torch.from_numpy(np.isin(at, lifted.index[row].cpu().numpy()))
            truth = torch.from_numpy(clip.pose[wanted])
            if clip.metres is not None:
                unit = torch.from_numpy(clip.metres[wanted])[:, None, None]
                pose, truth = pose * unit, truth * unit
            if clip.valid is not None:
                keep = torch.from_numpy(clip.valid[wanted])
                pose, truth, kept = pose[keep], truth[keep], None if kept is None else kept[keep]
            if not len(pose):
                continue
            if centered:
                middles.setdefault(number, []).append((pose, truth))
            else:
                yield Lifted(clip, pose, truth, kept)
    for number, pairs in middles.items():
        pose, truth = (torch.cat(v) for v in zip(*pairs))
        yield Lifted(clips[number], pose, truth)


class FrameErrors:
    """MPJPE (mm) of all, of pruned and of selected frames, mean over actions: tables 4 and 5 of HoT.

    "delta" is pruned less selected: what pruning a frame costs its pose.
    """

    def __init__(self) -> None:
        self.sums: dict[str, dict[str, list[float]]] = defaultdict(
            lambda: {k: [0.0, 0.0] for k in ("all", "pruned", "selected")}
        )

    def add(self, lifted: Lifted) -> None:
        errors = 1000 * mpjpe(root_relative(lifted.pose.double()), root_relative(lifted.truth.double()))
        kept = torch.ones(len(errors), dtype=torch.bool) if lifted.kept is None else lifted.kept
        for name, mask in (("all", torch.ones_like(kept)), ("pruned", ~kept), ("selected", kept)):
            self.sums[lifted.clip.action][name][0] += float(errors[mask].sum())
            self.sums[lifted.clip.action][name][1] += int(mask.sum())

    def result(self) -> dict[str, float]:
        """all, pruned, selected, delta; NaN where no frame was of a kind."""
        out = {}
        for name in ("all", "pruned", "selected"):
            means = [s / n for s, n in (row[name] for row in self.sums.values()) if n]
            out[name] = sum(means) / len(means) if means else float("nan")
        return {**out, "delta": out["pruned"] - out["selected"]}


def evaluate_clips(
    model: PrunableHost,
    clips: Sequence[PoseClip],
    flip: bool = True,
    stride: int = 0,
    limit: int = 0,
    batch_size: int = 32,
    pck_joints: Sequence[int] | None = None,
    pipeline: str = "auto",
) -> PoseMeter:
    """Errors by action, as the papers measure them; arguments as in `lifted_pairs`.

    seq2seq: windows of F frames, all their frames count (edge padding included, as the official code does).
    seq2frame (the model returns only kept frames, incl. the centre): one window per evaluated frame, its centre counts;
    MPJVE then differences evaluated neighbours, `stride` frames apart.
    """
    meter = PoseMeter(pck_joints)
    for lifted in lifted_pairs(model, clips, flip, stride, limit, batch_size, pipeline):
        meter.add(lifted.clip.action, lifted.pose, lifted.truth)
    return meter
