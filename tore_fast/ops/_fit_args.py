"""What fit_landmarks takes: the people, the body with its landmarks and prior, the settings; and their checks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PARTS = ("points", "world", "prior", "shape", "scale", "limits", "anchor")  # columns of LandmarkFit.cost
MAX_STEPS = 1000
_WEIGHTS = ("world", "prior", "shape")  # settings that may be 0


class LandmarkInputs(NamedTuple):
    """The people, in the order of the op's schema; see ops.fit_landmarks."""

    points: Tensor  # [B, P, 2]
    weights: Tensor  # [B, P, 2]
    world: Tensor  # [B, P, 3]
    rotations: Tensor  # [B, J, 3, 3]
    betas: Tensor  # [B, S]
    camera: Tensor | None  # [B, 4]
    inv_focal: Tensor | None  # [B]
    anchor: Tensor | None  # [B, J, 3, 3]
    anchor_betas: Tensor | None  # [B, S]
    anchor_weight: Tensor | None  # [B]


class LandmarkModel(NamedTuple):
    """A kinematic tree with landmarks rigidly on its joints, linear in the shape, and a pose prior."""

    parents: tuple[int, ...]  # J: -1 for the root, then earlier joints
    attach: tuple[int, ...]  # P: the joint of every landmark
    offsets: Tensor  # [P, 3] landmark - joint in the rest pose, metres
    offset_dirs: Tensor  # [P, 3, S] its change with the shape
    bones: Tensor  # [J, 3] joint - parent in the rest pose (the root's row is not used)
    bone_dirs: Tensor  # [J, 3, S]
    prior_mean: Tensor  # [3 (J - 1)] log rotations of joints 1..
    prior_precision: Tensor  # [3 (J - 1), 3 (J - 1)] symmetric
    limits: tuple[tuple[int, int, int], ...]  # (joint, axis, sign): sign * log rotation[axis] should not be negative
    centre: tuple[int, int]  # the two landmarks whose middle is the origin of `world`


def in_float64(model: LandmarkModel) -> LandmarkModel:
    return LandmarkModel(
        parents=model.parents,
        attach=model.attach,
        offsets=model.offsets.double(),
        offset_dirs=model.offset_dirs.double(),
        bones=model.bones.double(),
        bone_dirs=model.bone_dirs.double(),
        prior_mean=model.prior_mean.double(),
        prior_precision=model.prior_precision.double(),
        limits=model.limits,
        centre=model.centre,
    )


class FitSettings(NamedTuple):
    """Standard deviations and weights of the cost; lengths of image points are in crop sides, of the rest in metres.

    The cost is  sum w k log(1 + |du / sigma_point|^2 / k) + world sum w k log(1 + |dx / sigma|^2 / k)
    + prior (log R - m)' P (log R - m) + shape |betas - anchor_betas|^2 + (log c / sigma_scale)^2
    + sum (limit excess / sigma_limit)^2 + anchor_weight sum (turn from the anchor / sigma)^2,  k = 2 robust^2.
    """

    sigma_point: float = 0.012
    sigma_xy: float = 0.08
    sigma_z: float = 0.11
    robust: float = 3.0
    world: float = 0.5
    prior: float = 4.0
    shape: float = 1.0
    sigma_scale: float = 0.1
    sigma_limit: float = 0.06
    beta_limit: float = 3.0
    max_turn: float = 0.6  # radians a joint and step
    sigma_root: float = 0.1  # of the anchor, radians
    sigma_anchor: float = 0.15
    damping: float = 0.01  # Marquardt's factor at the start


def check(inputs: LandmarkInputs, model: LandmarkModel) -> None:
    """Shapes, dtypes, devices and indices.

    Raises:
        ValueError, TypeError: see ops.fit_landmarks.
    """
    points = inputs.points
    if points.dim() != 3 or points.shape[2] != 2:
        raise ValueError(f"fit_landmarks: points must be [B, P, 2], got {list(points.shape)}")
    if points.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"fit_landmarks: points must be float32 or float64, got {points.dtype}")
    batch, count = points.shape[:2]
    joints, shapes = len(model.parents), model.bone_dirs.shape[-1]
    log = 3 * (joints - 1)
    shapes_of: dict[str, tuple[int, ...]] = {
        "weights": (batch, count, 2),
        "world": (batch, count, 3),
        "rotations": (batch, joints, 3, 3),
        "betas": (batch, shapes),
        "camera": (batch, 4),
        "inv_focal": (batch,),
        "anchor": (batch, joints, 3, 3),
        "anchor_betas": (batch, shapes),
        "anchor_weight": (batch,),
    }
    expected = {name: (getattr(inputs, name), shape) for name, shape in shapes_of.items()}
    expected |= {
        "model.offsets": (model.offsets, (count, 3)),
        "model.offset_dirs": (model.offset_dirs, (count, 3, shapes)),
        "model.bones": (model.bones, (joints, 3)),
        "model.bone_dirs": (model.bone_dirs, (joints, 3, shapes)),
        "model.prior_mean": (model.prior_mean, (log,)),
        "model.prior_precision": (model.prior_precision, (log, log)),
    }
    for name, (value, shape) in expected.items():
        if value is None:
            continue
        if value.shape != shape:
            raise ValueError(f"fit_landmarks: {name} must be {list(shape)}, got {list(value.shape)}")
        if not value.is_floating_point():
            raise TypeError(f"fit_landmarks: {name} must be floating point, got {value.dtype}")
        if value.device != points.device:
            raise ValueError(f"fit_landmarks: {name} is on {value.device}, points on {points.device}")
        if torch.is_grad_enabled() and value.requires_grad:
            raise ValueError(f"fit_landmarks: not differentiable, but {name} requires grad; pass {name}.detach()")
    if torch.is_grad_enabled() and points.requires_grad:
        raise ValueError("fit_landmarks: not differentiable, but points requires grad; pass points.detach()")
    if joints < 2 or model.parents[0] != -1 or any(not 0 <= p < j for j, p in enumerate(model.parents) if j):
        raise ValueError(f"fit_landmarks: model.parents must be -1, then earlier joints, got {model.parents}")
    if len(model.attach) != count or any(not 0 <= j < joints for j in model.attach):
        raise ValueError(f"fit_landmarks: model.attach must be {count} joints below {joints}, got {model.attach}")
    if any(not 0 <= k < count for k in model.centre):
        raise ValueError(f"fit_landmarks: model.centre must be landmarks below {count}, got {model.centre}")
    if any(not (1 <= j < joints and 0 <= axis < 3 and sign in (-1, 1)) for j, axis, sign in model.limits):
        raise ValueError(
            f"fit_landmarks: model.limits must be (joint 1..{joints - 1}, axis 0..2, -1 or 1), got {model.limits}"
        )


def check_settings(steps: int, settings: FitSettings) -> None:
    """Raises ValueError for steps or settings out of range."""
    if not 0 <= steps <= MAX_STEPS:
        raise ValueError(f"fit_landmarks: steps must be 0..{MAX_STEPS}, got {steps}")
    if any(not (v >= 0 if name in _WEIGHTS else v > 0) for name, v in settings._asdict().items()):
        raise ValueError(f"fit_landmarks: settings must be positive (weights may be 0), got {settings}")
