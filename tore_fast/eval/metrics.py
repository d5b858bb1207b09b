"""Errors of image-to-mesh models as their official evaluations define them; averages are weighted by sample count.

In: predictions in metres with joints and vertices in one frame. Out: per-item errors [B] in the unit of the input; a
`MeshErrors` collects a test set and prints millimetres.
"""

from __future__ import annotations

import torch
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


class MeshErrors:
    """Running MPJPE, PA-MPJPE and MPVPE of a test set, in millimetres (sums stay on the device until `result`)."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def update(
        self,
        pred_joints: Tensor,  # [B, J, 3] metres
        joints: Tensor,
        pred_vertices: Tensor | None = None,  # [B, V, 3] pelvis-centred
        vertices: Tensor | None = None,
        has_mesh: Tensor | None = None,  # [B]
    ) -> None:
        """Adds a batch; vertex errors count only for items with `has_mesh`."""
        self._add("mpjpe_mm", mpjpe(pred_joints, joints), None)
        self._add("pa_mpjpe_mm", pa_mpjpe(pred_joints, joints), None)
        if pred_vertices is not None:
            self._add("mpvpe_mm", mpvpe(pred_vertices, vertices), has_mesh)

    def _add(self, name: str, errors: Tensor, has: Tensor | None) -> None:
        keep = torch.ones_like(errors) if has is None else (has > 0).to(errors)
        errors = torch.where(keep > 0, errors, 0.0)
        self._sums[name] = self._sums.get(name, 0) + errors.sum().double()
        self._counts[name] = self._counts.get(name, 0) + keep.sum().double()

    def result(self) -> dict[str, float]:
        """Means over all items seen, millimetres; NaN where no item had a label."""
        return {k: 1000 * float(s / self._counts[k]) for k, s in self._sums.items()}
