"""fit_landmarks: a posed body out of 2D and 3D landmarks, by damped Gauss-Newton steps over a whole batch.

In: landmarks and a start from body/fit; out: rotations, shape and camera. Kernels: csrc/cpu/fit_landmarks.cpp (one
person after the other, threads over people); elsewhere the plain torch twin, which runs on CUDA too. Both compute in
float64 with analytic derivatives.

The unknowns are a right-hand increment of every joint's rotation, the shape, and a camera (log scale, shift, log scale
of the world points). With R_j the world rotation of joint j at P_j, a landmark x below it moves by
(R_j e_i) x (x - P_j) for a turn about its i-th axis.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._dispatch import backend_reason, choose, tensor_reason
from .reference.fit_landmarks import fit_landmarks_reference

BACKENDS = ("cpu",)
PARTS = ("points", "world", "prior", "shape", "scale", "limits", "anchor")  # columns of LandmarkFit.cost
MAX_STEPS = 1000


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


class LandmarkFit(NamedTuple):
    rotations: Tensor  # [B, J, 3, 3] relative to the parent, the root in camera axes
    betas: Tensor  # [B, S]
    camera: Tensor  # [B, 4] log scale (crop sides a metre), shift x, y, log scale of the world points
    landmarks: Tensor  # [B, P, 3] of the fitted body, metres, the root joint at the origin
    cost: Tensor  # [B, 7] by PARTS


def why_not(backend: str, points: Tensor) -> str | None:
    """Why `backend` cannot fit `points`, or None."""
    return backend_reason(backend) or tensor_reason(backend, points, (torch.float32, torch.float64))


def fit_landmarks(
    points: Tensor,  # [B, P, 2]
    weights: Tensor,  # [B, P, 2]
    world: Tensor,  # [B, P, 3]
    model: LandmarkModel,
    rotations: Tensor,  # [B, J, 3, 3]
    betas: Tensor,  # [B, S]
    *,
    camera: Tensor | None = None,  # [B, 4]
    inv_focal: Tensor | None = None,  # [B]
    anchor: Tensor | None = None,  # [B, J, 3, 3]
    anchor_betas: Tensor | None = None,  # [B, S]
    anchor_weight: Tensor | None = None,  # [B]
    steps: int = 8,
    settings: FitSettings | None = None,
    impl: str = "auto",
) -> LandmarkFit:
    """Fits every person's pose, shape and camera; inference only, deterministic.

    A step that does not lower a person's cost is refused and the next one is shorter, so the cost never grows.

    Args:
        points: image points in crop sides (any origin; with `inv_focal` the principal point).
        weights: of a landmark's image point and of its world point; 0 = not seen. A point that is not finite gets 0.
        world: world points in metres about the middle of `model.centre`, camera axes x right, y down, z away.
        rotations, betas: the start. Rotations are made proper first; the identity where they cannot be.
        camera: the start's camera; None = weak perspective by least squares.
        inv_focal: 1 / focal length in crop sides; None or 0 = weak perspective. A landmark at (x, y, z) is seen at
            (scale (x, y) + shift) / (1 + inv_focal scale z), so the root is inv_focal^-1 / scale metres away.
        anchor, anchor_betas, anchor_weight: rotations and shape that the result is drawn to (the last frame, another
            estimate) and how strongly; None = no anchor, shape 0, weight 1.
        steps: Gauss-Newton steps, 0..1000.
        impl: "auto", "reference" or "cpu".

    Raises:
        ValueError: a shape or an index that does not fit, or an input that requires grad. TypeError: wrong dtype.
        BackendUnavailable: an explicit `impl` cannot run.
    """
    settings = settings or FitSettings()
    _check(points, weights, world, model, rotations, betas, camera, inv_focal, anchor, anchor_betas, anchor_weight)
    if not 0 <= steps <= MAX_STEPS:
        raise ValueError(f"fit_landmarks: steps must be 0..{MAX_STEPS}, got {steps}")
    weights_of = {"world", "prior", "shape"}
    if any(not (v >= 0 if name in weights_of else v > 0) for name, v in settings._asdict().items()):
        raise ValueError(f"fit_landmarks: settings must be positive (weights may be 0), got {settings}")
    backend = choose("fit_landmarks", impl, BACKENDS, why_not, points)
    person = (points, weights, world, rotations, betas, camera, inv_focal, anchor, anchor_betas, anchor_weight)
    if backend == "reference":
        return LandmarkFit(*fit_landmarks_reference(*person, model, steps, settings))
    limits = [v for limit in model.limits for v in limit]
    tables = (model.offsets, model.offset_dirs, model.bones, model.bone_dirs, model.prior_mean, model.prior_precision)
    out = torch.ops.tore_fast.fit_landmarks(
        *(None if t is None else t.double() for t in person), *(t.double() for t in tables), list(model.parents),
        list(model.attach), limits, list(model.centre), steps, list(settings),
    )  # fmt: skip
    return LandmarkFit(*(t.to(points.dtype) for t in out))


def _check(points, weights, world, model, rotations, betas, camera, inv_focal, anchor, anchor_betas, anchor_weight):
    if points.dim() != 3 or points.shape[2] != 2:
        raise ValueError(f"fit_landmarks: points must be [B, P, 2], got {list(points.shape)}")
    if points.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"fit_landmarks: points must be float32 or float64, got {points.dtype}")
    batch, count = points.shape[:2]
    joints, shapes = len(model.parents), model.bone_dirs.shape[-1]
    log = 3 * (joints - 1)
    expected = {
        "weights": (weights, (batch, count, 2)),
        "world": (world, (batch, count, 3)),
        "rotations": (rotations, (batch, joints, 3, 3)),
        "betas": (betas, (batch, shapes)),
        "camera": (camera, (batch, 4)),
        "inv_focal": (inv_focal, (batch,)),
        "anchor": (anchor, (batch, joints, 3, 3)),
        "anchor_betas": (anchor_betas, (batch, shapes)),
        "anchor_weight": (anchor_weight, (batch,)),
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


@torch.library.register_fake("tore_fast::fit_landmarks")
def _fake(
    points, weights, world, rotations, betas, camera, inv_focal, anchor, anchor_betas, anchor_weight, offsets, offset_dirs,
    bones, bone_dirs, prior_mean, prior_precision, parents, attach, limits, centre, steps, settings,
):  # fmt: skip
    batch, count = points.shape[:2]
    return (
        points.new_empty(rotations.shape),
        points.new_empty(betas.shape),
        points.new_empty(batch, 4),
        points.new_empty(batch, count, 3),
        points.new_empty(batch, len(PARTS)),
    )
