"""Errors of a video pose model on recorded clips, as the papers count them.

In: a host of models/{mixste,motionbert,mhformer,motionagformer}.py and `PoseClip`s. Out: `PoseMeter`s (eval/pose.py),
by action or by subject. Called by train/lifting.py on the validation split and by cli/eval_lifting.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..data.pose_clip import PoseClip
from ..geometry.windows import window_indices
from ..models.lifting._base import PrunableHost, center_pose, is_centered, lift_windows
from .pose import PoseMeter


def evaluation_windows(
    model: PrunableHost, clips: Sequence[PoseClip], stride: int = 0, limit: int = 0
) -> list[tuple[int, np.ndarray]]:
    """(clip number, frames [F]) of every window that is evaluated.

    Args:
        stride: frames between windows; 0: F, or 9 for seq2frame (1 evaluates every frame as the papers do).
        limit: at most this many windows, spread evenly over all clips; 0: all.
    """
    frames, centered = model.config.frames, is_centered(model)
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
) -> Iterator[tuple[PoseClip, Tensor, Tensor]]:
    """(clip, predicted [T, 17, 3], true [T, 17, 3]) in metres: per window (seq2seq) or per clip its middle frames
    (seq2frame).

    Frames a clip marks as not valid are left out.
    """
    model.eval()
    centered, middle = is_centered(model), (model.config.frames - 1) // 2
    device = next(model.parameters()).device
    jobs = evaluation_windows(model, clips, stride, limit)
    middles: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for start in range(0, len(jobs), batch_size):
        part = jobs[start : start + batch_size]
        x = np.stack([clips[n].with_channels(model.in_channels).keypoints[s] for n, s in part])
        lifted = lift_windows(model, torch.from_numpy(x).to(device), flip)
        poses = center_pose(lifted, model.config.frames)[:, None] if centered else lifted.pose
        for (number, slots), pose in zip(part, poses.cpu()):
            clip, wanted = clips[number], slots[middle : middle + 1] if centered else slots
            if pose.shape[0] != len(wanted):
                raise ValueError(
                    f"the model gives {pose.shape[0]} poses for {len(wanted)} frames (recover_frames); which, "
                    "nobody says"
                )
            keep = slice(None) if clip.valid is None else torch.from_numpy(clip.valid[wanted])
            pair = pose[keep], torch.from_numpy(clip.pose[wanted])[keep]
            if not len(pair[0]):
                continue
            if centered:
                middles.setdefault(number, []).append(pair)
            else:
                yield clip, *pair
    for number, pairs in middles.items():
        yield clips[number], *(torch.cat(v) for v in zip(*pairs))  # type: ignore[misc]  # two of them


def evaluate_clips(
    model: PrunableHost,
    clips: Sequence[PoseClip],
    flip: bool = True,
    stride: int = 0,
    limit: int = 0,
    batch_size: int = 32,
    pck_joints: Sequence[int] | None = None,
) -> PoseMeter:
    """Errors by action, as the papers measure them; arguments as in `lifted_pairs`.

    seq2seq: windows of F frames, all their frames count (edge padding included, as the official code does).
    seq2frame (the model returns only kept frames, incl. the centre): one window per evaluated frame, its centre counts;
    MPJVE then differences evaluated neighbours, `stride` frames apart.
    """
    meter = PoseMeter(pck_joints)
    for clip, pred, target in lifted_pairs(model, clips, flip, stride, limit, batch_size):
        meter.add(clip.action, pred, target)
    return meter
