"""Errors of image-to-mesh models as their official evaluations define them; averages are weighted by sample count.

In: predictions in metres with joints and vertices in one frame. Out: per-item errors [B] in the unit of the input;
protocols.py makes rows of them, synthetic.py collects a held-out set.
"""

from __future__ import annotations

from torch import Tensor

from ..geometry.procrustes import similarity_align
from ..geometry.skeleton import J14_HIPS


def mpjpe(pred: Tensor, target: Tensor, origin: tuple[int, ...] = J14_HIPS) -> Tensor:
    """[B] mean joint distance of [B, J, 3] joints, both re-centred on the mean of `origin` (hips of the 14 joints)."""
    if pred.shape != target.shape:
        raise ValueError(f"mpjpe: pred {list(pred.shape)} and target {list(target.shape)} must have one shape")
    rows = list(origin)
    pred = pred - pred[:, rows].mean(1, keepdim=True)
    target = target - target[:, rows].mean(1, keepdim=True)
    return (pred - target).norm(dim=-1).mean(-1)


def mpvpe(pred: Tensor, target: Tensor) -> Tensor:
    """[B] mean vertex distance of [B, V, 3] meshes, centred by the caller on their regressed pelvis."""
    if pred.shape != target.shape:
        raise ValueError(f"mpvpe: pred {list(pred.shape)} and target {list(target.shape)} must have one shape")
    return (pred - target).norm(dim=-1).mean(-1)


def pa_mpjpe(pred: Tensor, target: Tensor) -> Tensor:
    """[B] mean distance after the best similarity (rotation without reflection, scale, translation) per item."""
    return (similarity_align(pred, target) - target).norm(dim=-1).mean(-1)
