"""fit_body: landmarks to a posed body. Analytic start, damped Gauss-Newton on the landmarks, pose prior, gate.

In: Landmarks of a net (or made by hand); out: FittedBody. Weak perspective of the crop, or one pinhole camera for all
people of an image.
"""

from __future__ import annotations

import functools
import weakref

import torch
from torch import Tensor

from ...geometry.rotation import minimal_rotation
from ...ops.fit_landmarks import PARTS, FitSettings, LandmarkFit, fit_landmarks
from .. import load_body
from ..body import Body
from .fitted import CROP_PX, MAX_ERROR_PX, VISIBLE, FittedBody, Landmarks, reasons_not_to_believe
from .landmarks import BodyLandmarkModel, landmark_model
from .start import landmarks_to_h36m17, mean_pose, pose_from_image, pose_from_joints

_MIN_VISIBILITY = 0.05  # a landmark the net does not see still says a little
WARM_STEPS = 3  # enough from the previous frame


def fit_body(
    landmarks: Landmarks,
    camera: Tensor | None = None,  # [3, 3] or [B, 3, 3]
    body: str | Body = "free",
    steps: int = 8,
    start: FittedBody | None = None,
    *,
    temporal: float = 0.0,
    settings: FitSettings | None = None,
    max_error_px: float = MAX_ERROR_PX,
    impl: str = "auto",
) -> FittedBody:
    """Fits a body to 33 landmarks; people and frames are one batch. Inference only, deterministic.

    Args:
        landmarks: of B people. Landmarks that are not finite are left out.
        camera: pinhole matrix in pixels (geometry.camera.intrinsics), one for all people of an image or one a person;
            None = weak perspective. With it the world points, which the net gives as seen along the crop's axis, are
            turned to the person's direction first, and `translation` is set.
        body: "free" or a Body with SMPL's skeleton (a user's SMPL).
        steps: Gauss-Newton steps; 8 from the analytic start, 3 with `start`.
        start: the previous frame's result for the same people; rows that were not believed start afresh.
        temporal: how strongly the pose is drawn to `start` (1: a standard deviation of 6 degrees for the root, 9 for
            the other joints).
        settings: weights of the cost.
        max_error_px: reprojection error that is still believed, pixels of a 256 px crop.
        impl: as ops.fit_landmarks.

    Returns:
        FittedBody in the landmarks' dtype and device.

    Raises:
        ValueError: a shape that does not fit, a body with another skeleton, a camera without a positive focal length.

    Example:
        >>> unseen = Landmarks(torch.zeros(1, 33, 2), torch.zeros(1, 33, 3), torch.zeros(1, 33))
        >>> fit_body(unseen).reasons
        ('0 of 33 landmarks are visible, 4 are needed',)
    """
    with torch.inference_mode():
        return _fit_body(landmarks, camera, body, steps, start, temporal, settings, max_error_px, impl)


def _fit_body(landmarks, camera, body, steps, start, temporal, settings, max_error_px, impl) -> FittedBody:
    body, marks = _body_and_model(body, landmarks.points.device)
    dtype, device, batch = landmarks.points.dtype, landmarks.points.device, len(landmarks)
    world, finite = _world_points(landmarks)
    side = landmarks.crop_side().to(dtype)
    usable = torch.isfinite(side) & (side > 1e-3)
    unit = torch.where(usable, side, 1)[:, None]

    origin, inv_focal, stretch = _view(landmarks, camera, unit)
    points = (landmarks.points - origin[:, None]) * stretch[:, None] / unit[..., None]
    if inv_focal is not None:
        world = (_towards(points, inv_focal)[:, None] @ world[..., None])[..., 0]
    seen = torch.nan_to_num(landmarks.visibility, 0).clamp(0, 1)
    weight = seen.clamp(min=_MIN_VISIBILITY) * marks.counts.to(dtype)
    solid = (world - world[:, :1]).abs().amax((1, 2)) > 1e-4  # all world points in one place say nothing
    weights = torch.stack((weight * finite[0] * usable[:, None], weight * finite[1] * solid[:, None]), -1)

    betas = torch.zeros(batch, body.num_betas, dtype=dtype, device=device)
    anchor = anchor_betas = anchor_weight = None
    settings = settings or FitSettings()
    if start is None:
        rotations = _analytic_start(world, solid, points)
    else:
        if len(start) != batch:
            raise ValueError(f"fit_body: start has {len(start)} people, landmarks have {batch}")
        warm = start.believed.to(device)
        rotations = start.rotations.to(device, dtype)
        if not bool(warm.all()):
            fresh = _analytic_start(world, solid, points)
            rotations = torch.where(warm[:, None, None, None], rotations, fresh)
        betas = torch.where(warm[:, None], start.betas.to(betas), betas)
        if temporal > 0:
            anchor, anchor_weight = rotations, temporal * warm.to(dtype)
            # two Gaussians of the shape, about 0 and about the last one, are one
            anchor_betas = betas * (temporal / (1 + temporal))
            settings = settings._replace(shape=settings.shape * (1 + temporal))
    fit = fit_landmarks(
        points, weights, world, marks.model, rotations, betas, inv_focal=inv_focal, anchor=anchor,
        anchor_betas=anchor_betas, anchor_weight=anchor_weight, steps=steps, settings=settings,
        impl=impl,
    )  # fmt: skip
    return _result(fit, body, landmarks, points, weight, finite[0], side, origin, stretch, inv_focal, max_error_px)


def _world_points(landmarks: Landmarks) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """World points about the middle of the hips, zeros where not finite; finite masks of image and world points."""
    finite = tuple(torch.isfinite(t).all(-1) for t in (landmarks.points, landmarks.world))
    world = torch.where(finite[1][..., None], landmarks.world.to(landmarks.points.dtype), 0)
    return world - world[:, 23:25].mean(1, keepdim=True), finite


def _analytic_start(world: Tensor, solid: Tensor, points: Tensor) -> Tensor:  # [B, 24, 3, 3]
    """From the world points; where they say nothing, the mean pose turned like the image points."""
    rotations = pose_from_joints(landmarks_to_h36m17(world))
    if bool(solid.all()):
        return rotations
    return torch.where(solid[:, None, None, None], rotations, pose_from_image(points))


def _view(landmarks: Landmarks, camera: Tensor | None, unit: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """Origin [B, 2] of the image points, 1 / focal length [B] in crop sides, factor [B, 2] that makes fy = fx."""
    points = landmarks.points
    batch = len(points)
    if camera is None:
        finite = torch.isfinite(points).all(-1, keepdim=True)
        middle = torch.where(finite, points, 0).sum(1) / finite.sum(1).clamp(min=1)
        return middle, None, torch.ones_like(middle)
    if camera.shape not in ((3, 3), (1, 3, 3), (batch, 3, 3)):
        raise ValueError(f"fit_body: camera must be [3, 3] or [{batch}, 3, 3], got {list(camera.shape)}")
    k = camera.to(points).expand(batch, 3, 3)
    focal = torch.stack((k[:, 0, 0], k[:, 1, 1]), -1)
    if not bool(((focal > 0) & torch.isfinite(focal)).all()):
        raise ValueError(f"fit_body: camera must have positive focal lengths, got {focal.flatten().tolist()}")
    return k[:, :2, 2], unit[:, 0] / focal[:, 0], focal[:, :1] / focal


def _towards(points: Tensor, inv_focal: Tensor) -> Tensor:  # [B, 3, 3]
    """The smallest turn that takes the optical axis to the direction of a person's hips."""
    hips = points[:, 23:25].mean(1)
    hips = torch.where(torch.isfinite(hips), hips, 0) * inv_focal[:, None]
    ray = torch.cat((hips, torch.ones_like(hips[:, :1])), 1)
    return minimal_rotation(ray.new_tensor([0.0, 0, 1]).expand_as(ray), ray)


def _result(
    fit: LandmarkFit, body, landmarks, points, weight, finite, side, origin, stretch, inv_focal, max_error_px
) -> FittedBody:
    scale, shift = fit.camera[:, :1].exp(), fit.camera[:, 1:3]
    depth = 1 if inv_focal is None else 1 + (inv_focal[:, None] * scale * fit.landmarks[..., 2])[..., None]
    drawn = (scale[..., None] * fit.landmarks[..., :2] + shift[:, None]) / depth
    miss = torch.where(finite, (drawn - torch.where(finite[..., None], points, 0)).norm(dim=-1), 0)
    count = weight * finite
    error = CROP_PX * (miss * count).sum(1) / count.sum(1).clamp(min=1e-9)
    visible = (finite & (landmarks.visibility > VISIBLE)).sum(1)
    sound = torch.isfinite(torch.cat((fit.rotations.flatten(1), fit.betas, fit.camera, fit.cost), 1)).all(1)
    reasons = reasons_not_to_believe(finite.sum(1), visible, side, landmarks.flag, error, sound, max_error_px)
    known = sound & (side > 0) & torch.isfinite(side) & (visible > 0)

    rotations = torch.where(known[:, None, None, None], fit.rotations, mean_pose(fit.rotations)[None])
    betas = torch.where(known[:, None], fit.betas, 0)
    out = body(rotations, betas)
    pelvis = out.joints[:, :1]
    lost = torch.where(known, 1.0, torch.nan)[:, None].to(scale)
    camera = torch.cat((scale * side[:, None], shift * side[:, None] / stretch + origin), 1) * lost
    translation = None
    if inv_focal is not None:
        translation = torch.cat((shift / scale, 1 / (inv_focal[:, None] * scale)), 1) * lost
    return FittedBody(
        rotations, betas, (out.vertices - pelvis).to(scale), (out.joints - pelvis).to(scale), fit.landmarks, camera,
        translation, fit.camera[:, 3].exp(), error, dict(zip(PARTS, fit.cost.unbind(1))),
        torch.tensor([not r for r in reasons], dtype=torch.bool, device=scale.device), reasons,
    )  # fmt: skip


_models: weakref.WeakKeyDictionary[Body, BodyLandmarkModel] = weakref.WeakKeyDictionary()


@functools.lru_cache(maxsize=4)
def _free(device: str) -> tuple[Body, BodyLandmarkModel]:
    body = load_body("free").to(device)
    return body, landmark_model(body, device)


def _body_and_model(body: str | Body, device: torch.device) -> tuple[Body, BodyLandmarkModel]:
    if body == "free":
        return _free(str(device))
    if isinstance(body, str):
        raise ValueError(f"fit_body: body must be 'free' or a Body (load_body('smpl', path)), got {body!r}")
    if body not in _models or _models[body].counts.device != device:
        _models[body] = landmark_model(body, device)
    return body.to(device), _models[body]
