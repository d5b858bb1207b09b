"""Errors of lifted 3D poses: MPJPE, P-MPJPE, N-MPJPE, MPJVE, PCK, AUC, per action.

In: poses [..., J, 3] in any unit of length, root-relative where the metric says so. Out: errors in that unit, per frame
or averaged. Protocols of Human3.6M and MPI-INF-3DHP; `PoseMeter` collects a whole test set. Called by train/lifting.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from ..geometry.procrustes import similarity_align


def root_relative(x: Tensor, root: int = 0) -> Tensor:
    """Poses with joint `root` at the origin."""
    return x - x[..., root : root + 1, :]


def joint_errors(pred: Tensor, target: Tensor) -> Tensor:
    """[..., J] distance of each joint."""
    _same("joint_errors", pred, target)
    return (pred - target).norm(dim=-1)


def mpjpe(pred: Tensor, target: Tensor) -> Tensor:
    """[...] mean per-joint position error of each frame (protocol 1 for root-relative poses)."""
    return joint_errors(pred, target).mean(dim=-1)


def p_mpjpe(pred: Tensor, target: Tensor) -> Tensor:
    """[...] MPJPE after similarity Procrustes alignment of each frame (protocol 2)."""
    _same("p_mpjpe", pred, target)
    aligned = similarity_align(pred.reshape(-1, *pred.shape[-2:]), target.reshape(-1, *target.shape[-2:]))
    return mpjpe(aligned.view_as(pred), target)


def n_mpjpe(pred: Tensor, target: Tensor) -> Tensor:
    """[...] MPJPE after scaling each predicted frame by <pred, target> / <pred, pred>."""
    _same("n_mpjpe", pred, target)
    scale = (pred * target).sum(dim=(-1, -2)) / pred.square().sum(dim=(-1, -2))
    return mpjpe(scale[..., None, None] * pred, target)


def mpjve(pred: Tensor, target: Tensor) -> Tensor:
    """[..., T-1] mean per-joint error of the frame-to-frame difference; pred and target [..., T, J, 3].

    Give clips as leading dimensions; a flat list of clips (as MixSTE's evaluation does) differences across their
    borders.
    """
    _same("mpjve", pred, target)
    return (pred.diff(dim=-3) - target.diff(dim=-3)).norm(dim=-1).mean(dim=-1)


def pck(errors_mm: Tensor, threshold_mm: float = 150.0) -> Tensor:
    """Percentage of joint errors strictly below the threshold (3DHP counts the first 14 of its joints)."""
    return 100.0 * (errors_mm < threshold_mm).double().mean()


def auc(errors_mm: Tensor, step_mm: float = 5.0, last_mm: float = 150.0) -> Tensor:
    """Mean PCK over the thresholds 0, 5, ..., 150 mm."""
    thresholds = torch.arange(0.0, last_mm + step_mm / 2, step_mm, dtype=errors_mm.dtype)
    return torch.stack([pck(errors_mm, float(t)) for t in thresholds]).mean()


class PoseMeter:
    """Collects frames of a test set by action; `result()` averages per action, then over the actions (H36M convention).

    Units: poses in metres, results in millimetres (MPJVE: mm per frame) and percent.
    """

    METRICS = ("mpjpe", "p_mpjpe", "n_mpjpe", "mpjve")

    def __init__(self, pck_joints: Sequence[int] | None = None) -> None:
        """pck_joints: joints that PCK and AUC count (data/h36m.py names 3DHP's 14); None counts all."""
        self.pck_joints = None if pck_joints is None else list(pck_joints)
        self.sums: dict[str, dict[str, list[float]]] = defaultdict(lambda: {m: [0.0, 0.0] for m in self.METRICS})
        self.errors: list[Tensor] = []

    def add(self, action: str, pred: Tensor, target: Tensor) -> None:
        """One clip [T, J, 3] in metres; both are made root-relative, as HoT and MHFormer evaluate."""
        pred, target = (root_relative(x.double()) * 1000.0 for x in (pred, target))
        values = {"mpjpe": mpjpe(pred, target), "p_mpjpe": p_mpjpe(pred, target), "n_mpjpe": n_mpjpe(pred, target)}
        values["mpjve"] = mpjve(pred, target)
        for name, value in values.items():
            self.sums[action][name][0] += float(value.sum())
            self.sums[action][name][1] += value.numel()
        errors = joint_errors(pred, target)
        self.errors.append((errors if self.pck_joints is None else errors[..., self.pck_joints]).reshape(-1))

    def per_action(self) -> dict[str, dict[str, float]]:
        """Action -> metric -> mean over its frames."""
        return {a: {m: s / max(n, 1.0) for m, (s, n) in row.items()} for a, row in sorted(self.sums.items())}

    def result(self) -> dict[str, float]:
        """Mean over actions of each metric; PCK and AUC over all collected frames."""
        rows = self.per_action()
        if not rows:
            raise ValueError("PoseMeter: no clip was added")
        out = {m: sum(r[m] for r in rows.values()) / len(rows) for m in self.METRICS}
        errors = torch.cat(self.errors)
        total, count = (sum(self.sums[a]["mpjpe"][i] for a in rows) for i in (0, 1))
        out["mpjpe_frames"] = total / max(count, 1.0)  # every frame counts alike, whatever its action
        return out | {"pck150": float(pck(errors)), "auc": float(auc(errors))}


def _same(name: str, pred: Tensor, target: Tensor) -> None:
    if pred.shape != target.shape or pred.shape[-1] != 3:
        raise ValueError(
            f"{name}: pred and target must both be [..., J, 3], got {list(pred.shape)} and {list(target.shape)}"
        )
