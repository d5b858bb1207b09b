"""Losses of video pose lifting, all on root-relative poses [B, F, 17, 3]; which model uses which is in
train/lifting.py.

Sources: MixSTE (weighted position, temporal consistency, velocity), MotionBERT (position, scale-free position,
velocity, limb and angle terms), MHFormer's helpers (symmetry, bone consistency), as their released code computes them;
units are those of the poses. `further_losses` adds the terms that the released settings leave at weight 0.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..eval.pose import mpjpe, n_mpjpe
from ..geometry.skeleton import H36M17

JOINT_WEIGHTS = (1, 1, 2.5, 2.5, 1, 2.5, 2.5, 1, 1, 1, 1.5, 1.5, 4, 4, 1.5, 4, 4)
BONES = H36M17.bones
LEFT_BONES = ((0, 4), (4, 5), (5, 6), (8, 11), (11, 12), (12, 13))
RIGHT_BONES = ((0, 1), (1, 2), (2, 3), (8, 14), (14, 15), (15, 16))
# pairs of BONES that meet in a joint
ANGLES = (
    (0, 3),
    (0, 6),
    (3, 6),
    (0, 1),
    (1, 2),
    (3, 4),
    (4, 5),
    (6, 7),
    (7, 10),
    (7, 13),
    (8, 13),
    (10, 13),
    (7, 8),
    (8, 9),
    (10, 11),
    (11, 12),
    (13, 14),
    (14, 15),
)


def weights_like(x: Tensor) -> Tensor:
    return x.new_tensor(JOINT_WEIGHTS)


def weighted_mpjpe(pred: Tensor, target: Tensor) -> Tensor:
    """mean(w * ||p - g||)."""
    return (weights_like(pred) * (pred - target).norm(dim=-1)).mean()


def temporal_consistency(pred: Tensor) -> Tensor:
    """Mean over time, joints and coordinates of w * (p[t+1] - p[t])^2: penalises any motion of the prediction."""
    if pred.shape[1] < 2:
        return pred.new_zeros(())
    return (weights_like(pred)[:, None] * pred.diff(dim=1).square()).mean()


def velocity_error(pred: Tensor, target: Tensor) -> Tensor:
    """mean ||(p[t+1] - p[t]) - (g[t+1] - g[t])||; 0 for single frames."""
    if pred.shape[1] < 2:
        return pred.new_zeros(())
    return (pred.diff(dim=1) - target.diff(dim=1)).norm(dim=-1).mean()


def mixste_loss(pred: Tensor, target: Tensor, consistency: float = 0.5, velocity: float = 2.0) -> dict[str, Tensor]:
    """Weighted position + 0.5 consistency + 2 velocity (the released coefficients; the author names 0.5 and 1.0)."""
    parts = {
        "position": weighted_mpjpe(pred, target),
        "consistency": temporal_consistency(pred),
        "velocity": velocity_error(pred, target),
    }
    return {"total": parts["position"] + consistency * parts["consistency"] + velocity * parts["velocity"], **parts}


def motionbert_loss(pred: Tensor, target: Tensor, scale: float = 0.5, velocity: float = 20.0) -> dict[str, Tensor]:
    """Position + 0.5 scale-free position + 20 velocity."""
    parts = {
        "position": mpjpe(pred, target).mean(),
        "scale_free": n_mpjpe(pred, target).mean(),
        "velocity": velocity_error(pred, target),
    }
    return {"total": parts["position"] + scale * parts["scale_free"] + velocity * parts["velocity"], **parts}


def position_loss(pred: Tensor, target: Tensor) -> dict[str, Tensor]:
    """MPJPE alone (MHFormer)."""
    value = mpjpe(pred, target).mean()
    return {"total": value, "position": value}


def bone_vectors(x: Tensor) -> Tensor:
    """[..., 16, 3] parent minus joint, in the order of BONES."""
    return x[..., [p for p, _ in BONES], :] - x[..., [j for _, j in BONES], :]


def limb_variance(pred: Tensor) -> Tensor:
    """Mean over clips and bones of the (unbiased) variance of a bone's length over time."""
    if pred.shape[1] < 2:
        return pred.new_zeros(())
    return bone_vectors(pred).norm(dim=-1).var(dim=1).mean()


def limb_error(pred: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the bone lengths."""
    return (bone_vectors(pred).norm(dim=-1) - bone_vectors(target).norm(dim=-1)).abs().mean()


def bone_angles(x: Tensor) -> Tensor:
    """[..., 18] angles (radians) between the bones of ANGLES."""
    bones = bone_vectors(x)
    a, b = bones[..., [i for i, _ in ANGLES], :], bones[..., [j for _, j in ANGLES], :]
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=-1)
    return cosine.clamp(-1 + 1e-7, 1 - 1e-7).acos()


def angle_error(pred: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the bone angles."""
    return (bone_angles(pred) - bone_angles(target)).abs().mean()


def angle_velocity_error(pred: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the bone angles' frame-to-frame change."""
    if pred.shape[1] < 2:
        return pred.new_zeros(())
    return (bone_angles(pred).diff(dim=1) - bone_angles(target).diff(dim=1)).abs().mean()


def symmetry_error(pred: Tensor) -> Tensor:
    """0.01 * sum over limb pairs of the mean difference of left and right bone length."""

    def lengths(bones: Any) -> Any:
        return (pred[..., [i for i, _ in bones], :] - pred[..., [j for _, j in bones], :]).norm(dim=-1)

    return 0.01 * (lengths(LEFT_BONES) - lengths(RIGHT_BONES)).abs().mean(dim=(0, 1)).sum()


def bone_consistency(pred: Tensor) -> Tensor:
    """0.01 * sum over bones of the mean frame-to-frame change of the bone vector."""
    if pred.shape[1] < 2:
        return pred.new_zeros(())
    return 0.01 * bone_vectors(pred).diff(dim=1).norm(dim=-1).mean(dim=(0, 1)).sum()


@dataclass(frozen=True)
class FurtherLossConfig:
    """Weights of terms on bones and angles; the released settings of all models leave them at 0."""

    limb_variance: float = 0.0
    """MotionBERT: variance of a bone's length over time."""
    limb_error: float = 0.0
    """MotionBERT: difference of the bones' lengths."""
    angle_error: float = 0.0
    """MotionBERT: difference of the angles between bones."""
    angle_velocity: float = 0.0
    """MotionBERT: difference of these angles' change from frame to frame."""
    symmetry: float = 0.0
    """Difference of left and right bones' lengths."""
    bone_consistency: float = 0.0
    """Change of the bones from frame to frame."""


def further_losses(pred: Tensor, target: Tensor, weights: FurtherLossConfig) -> dict[str, Tensor]:
    """The terms with a weight, already multiplied by it."""
    terms = {
        "limb_variance": lambda: limb_variance(pred),
        "limb_error": lambda: limb_error(pred, target),
        "angle_error": lambda: angle_error(pred, target),
        "angle_velocity": lambda: angle_velocity_error(pred, target),
        "symmetry": lambda: symmetry_error(pred),
        "bone_consistency": lambda: bone_consistency(pred),
    }
    chosen = {f.name: getattr(weights, f.name) for f in fields(weights)}
    return {name: weight * terms[name]() for name, weight in chosen.items() if weight}
