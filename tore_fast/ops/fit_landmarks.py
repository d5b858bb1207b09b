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
from ._fit_args import PARTS, FitSettings, LandmarkInputs, LandmarkModel, check, check_settings
from .reference.fit_landmarks import fit_landmarks_reference

BACKENDS = ("cpu",)


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
    person = LandmarkInputs(
        points, weights, world, rotations, betas, camera, inv_focal, anchor, anchor_betas, anchor_weight
    )
    check(person, model)
    check_settings(steps, settings)
    if choose("fit_landmarks", impl, BACKENDS, why_not, points) == "reference":
        return LandmarkFit(*fit_landmarks_reference(person, model, steps, settings))
    limits = [v for limit in model.limits for v in limit]
    tables = (model.offsets, model.offset_dirs, model.bones, model.bone_dirs, model.prior_mean, model.prior_precision)
    out = torch.ops.tore_fast.fit_landmarks(
        *(None if t is None else t.double() for t in person), *(t.double() for t in tables), list(model.parents),
        list(model.attach), limits, list(model.centre), steps, list(settings),
    )  # fmt: skip
    return LandmarkFit(*(t.to(points.dtype) for t in out))


@torch.library.register_fake("tore_fast::fit_landmarks")
def _fake(
    points: Tensor, weights: Tensor, world: Tensor, rotations: Tensor, betas: Tensor, *rest: object
) -> tuple[Tensor, ...]:
    batch, count = points.shape[:2]
    return (
        points.new_empty(rotations.shape),
        points.new_empty(betas.shape),
        points.new_empty(batch, 4),
        points.new_empty(batch, count, 3),
        points.new_empty(batch, len(PARTS)),
    )
