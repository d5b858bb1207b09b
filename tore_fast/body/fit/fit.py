"""fit_body: landmarks to a posed body. Analytic start, damped Gauss-Newton on the landmarks, pose prior, gate.

In: Landmarks of a net (or made by hand); out: FittedBody. Weak perspective of the crop, or one pinhole camera for all
people of an image.
"""

from __future__ import annotations

import functools
import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from ...geometry.rotation import minimal_rotation
from ...ops import FitSettings, LandmarkFit, LandmarkModel, fit_landmarks
from ...ops._dispatch import backend_reason
from ...ops._fit_args import PARTS
from .. import load_body
from ..body import Body
from .fitted import CROP_PX, HEAD, MAX_ERROR_PX, VISIBLE, FittedBody, Landmarks, middle_of, reasons_not_to_believe
from .landmarks import BodyLandmarkModel, landmark_model
from .start import fill_missing, landmarks_to_h36m17, mean_pose, pose_from_image, pose_from_joints

MIN_SIDE_PX = 1e-3  # of a crop; below it all landmarks lie on one point
_MIN_VISIBILITY = 0.05  # a landmark the net does not see still says a little
FEW = 256  # people of a batch on a GPU that are fitted on the host (an estimate: no GPU was at hand)


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
        temporal: how strongly pose and shape are drawn to `start` (1: a standard deviation of 6 degrees for the root,
            9 for the other joints). On simulated walks at 30 frames/s 0.3 took a fifth off the jitter at the same
            error, 1 a third for 1 mm, 3 half for 5 mm (the pose lags).
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
        settings = settings or FitSettings()
        return _fit_body(landmarks, camera, body, steps, start, temporal, settings, max_error_px, impl)


def fit_device(device: torch.device, people: int, impl: str) -> torch.device:
    """Where the steps run. On a GPU they are thousands of small launches however many people there are, so few people
    are fitted on the host by the compiled kernel (about 1 ms each and core) and their meshes made on the GPU."""
    host = torch.device("cpu")
    few = impl == "auto" and device.type == "cuda" and people <= FEW
    return host if few and backend_reason("cpu") is None else device


class LandmarkView(NamedTuple):
    """How the landmarks lie in units of the crop's side."""

    points: Tensor  # [B, 33, 2] crop sides from the origin
    weight: Tensor  # [B, 33] how much each counts
    seen: Tensor  # [B, 33] bool, the image point is finite
    visible: Tensor  # [B] visible landmarks
    below: Tensor  # [B] those of them that are not of the head
    side: Tensor  # [B] px
    origin: Tensor  # [B, 2] px: the principal point, or the person's middle
    stretch: Tensor  # [B, 2] that makes fy = fx
    inv_focal: Tensor | None  # [B] crop sides^-1


def _fit_body(
    landmarks: Landmarks,
    camera: Tensor | None,
    body: str | Body,
    steps: int,
    start: FittedBody | None,
    temporal: float,
    settings: FitSettings,
    max_error_px: float,
    impl: str,
) -> FittedBody:
    home = landmarks.points.device
    device = fit_device(home, len(landmarks), impl)
    landmarks = landmarks.to(device)
    body, marks = _body_and_model(body, home, device)
    dtype, batch = landmarks.points.dtype, len(landmarks)
    view = _view(landmarks, camera, marks.counts.to(dtype))
    world, finite = _world_points(landmarks)
    if view.inv_focal is not None:
        world = (_towards(view.points, view.inv_focal)[:, None] @ world[..., None])[..., 0]
    solid = (world - world[:, :1]).abs().amax((1, 2)) > 1e-4  # all world points in one place say nothing
    usable = (view.side > MIN_SIDE_PX)[:, None]
    weights = torch.stack((view.weight * view.seen * usable, view.weight * finite * solid[:, None]), -1)

    def fresh() -> Tensor:
        return _analytic_start(world, finite, solid, view.points, marks.model)

    betas = torch.zeros(batch, body.num_betas, dtype=dtype, device=device)
    anchor = anchor_betas = anchor_weight = None
    if start is None:
        rotations = fresh()
    else:
        if len(start) != batch:
            raise ValueError(f"fit_body: start has {len(start)} people, landmarks have {batch}")
        warm = start.believed.to(device)
        rotations = start.rotations.to(device, dtype)
        if not bool(warm.all()):
            rotations = torch.where(warm[:, None, None, None], rotations, fresh())
        betas = torch.where(warm[:, None], start.betas.to(betas), betas)
        if temporal > 0:
            anchor, anchor_weight = rotations, temporal * warm.to(dtype)
            # two Gaussians of the shape, about 0 and about the last one, are one
            anchor_betas = betas * (temporal / (1 + temporal))
            settings = settings._replace(shape=settings.shape * (1 + temporal))
    fit = fit_landmarks(
        view.points,
        weights,
        world,
        marks.model,
        rotations,
        betas,
        inv_focal=view.inv_focal,
        anchor=anchor,
        anchor_betas=anchor_betas,
        anchor_weight=anchor_weight,
        steps=steps,
        settings=settings,
        impl=impl,
    )
    return _result(fit, body, view, landmarks.flag, max_error_px, home)


def _world_points(landmarks: Landmarks) -> tuple[Tensor, Tensor]:
    """World points about the middle of the hips, zeros where not finite; which are finite."""
    finite = torch.isfinite(landmarks.world).all(-1)
    world = torch.where(finite[..., None], landmarks.world.to(landmarks.points.dtype), 0)
    hips = finite[:, 23:25].all(1)[:, None, None]  # without them the net's own origin stays: the middle of the hips
    return world - torch.where(hips, world[:, 23:25].mean(1, keepdim=True), 0), finite


def _analytic_start(
    world: Tensor, finite: Tensor, solid: Tensor, points: Tensor, model: LandmarkModel
) -> Tensor:  # [B, 24, 3, 3]
    """From the world points; where they say nothing, the mean pose turned like the image points."""
    if not bool(finite.all()):
        count = len(model.attach)
        nothing, nowhere = world.new_zeros(1, count, 2), world.new_zeros(1, count, 3)
        shape = world.new_zeros(1, model.bone_dirs.shape[-1])
        mean = fit_landmarks(nothing, nothing, nowhere, model, mean_pose(world)[None], shape, steps=0)
        world = fill_missing(world, finite, mean.landmarks[0])
    rotations = pose_from_joints(landmarks_to_h36m17(world))
    if bool(solid.all()):
        return rotations
    return torch.where(solid[:, None, None, None], rotations, pose_from_image(points))


def _view(landmarks: Landmarks, camera: Tensor | None, counts: Tensor) -> LandmarkView:
    points = landmarks.points
    batch = len(points)
    side = landmarks.crop_side().to(points.dtype)
    side = torch.where(torch.isfinite(side), side, 0)
    unit = torch.where(side > MIN_SIDE_PX, side, 1)[:, None]
    if camera is None:
        origin, inv_focal = middle_of(points), None
        stretch = torch.ones_like(origin)
    else:
        if camera.shape not in ((3, 3), (1, 3, 3), (batch, 3, 3)):
            raise ValueError(f"fit_body: camera must be [3, 3] or [{batch}, 3, 3], got {list(camera.shape)}")
        k = camera.to(points).expand(batch, 3, 3)
        focal = torch.stack((k[:, 0, 0], k[:, 1, 1]), -1)
        if not bool(((focal > 0) & torch.isfinite(focal)).all()):
            raise ValueError(f"fit_body: camera must have positive focal lengths, got {focal.flatten().tolist()}")
        origin, inv_focal, stretch = k[:, :2, 2], unit[:, 0] / focal[:, 0], focal[:, :1] / focal
    seen = torch.isfinite(points).all(-1)
    visibility = torch.nan_to_num(landmarks.visibility, 0).clamp(0, 1)
    return LandmarkView(
        points=(points - origin[:, None]) * stretch[:, None] / unit[..., None],
        weight=visibility.clamp(min=_MIN_VISIBILITY) * counts,
        seen=seen,
        visible=(seen & (visibility > VISIBLE)).sum(1),
        below=(seen & (visibility > VISIBLE))[:, HEAD:].sum(1),
        side=side,
        origin=origin,
        stretch=stretch,
        inv_focal=inv_focal,
    )


def _towards(points: Tensor, inv_focal: Tensor) -> Tensor:  # [B, 3, 3]
    """The smallest turn that takes the optical axis to the direction of a person."""
    place = middle_of(points) * inv_focal[:, None]
    ray = torch.cat((place, torch.ones_like(place[:, :1])), 1)
    return minimal_rotation(ray.new_tensor([0.0, 0, 1]).expand_as(ray), ray)


def _result(
    fit: LandmarkFit, body: Body, view: LandmarkView, flag: Tensor | None, max_error_px: float, home: torch.device
) -> FittedBody:
    scale, shift, side = fit.camera[:, :1].exp(), fit.camera[:, 1:3], view.side[:, None]
    drawn = scale[..., None] * fit.landmarks[..., :2] + shift[:, None]
    if view.inv_focal is not None:
        drawn = drawn / (1 + (view.inv_focal[:, None] * scale * fit.landmarks[..., 2])[..., None])
    miss = torch.where(view.seen, (drawn - view.points).norm(dim=-1), 0)
    count = view.weight * view.seen
    error = CROP_PX * (miss * count).sum(1) / count.sum(1).clamp(min=1e-9)
    sound = torch.isfinite(torch.cat((fit.rotations.flatten(1), fit.betas, fit.camera, fit.cost), 1)).all(1)
    usable = view.side > MIN_SIDE_PX
    have = view.seen.sum(1)
    reasons = reasons_not_to_believe(have, view.visible, usable, flag, error, sound, max_error_px, view.below)
    known = sound & usable & (view.visible > 0)

    rotations = torch.where(known[:, None, None, None], fit.rotations, mean_pose(fit.rotations)[None])
    betas = torch.where(known[:, None], fit.betas, 0)
    lost = torch.where(known, 1.0, torch.nan)[:, None].to(scale)
    camera = torch.cat((scale * side, shift * side / view.stretch + view.origin), 1) * lost
    translation = None
    if view.inv_focal is not None:
        translation = (torch.cat((shift / scale, 1 / (view.inv_focal[:, None] * scale)), 1) * lost).to(home)
    believed = torch.tensor([not r for r in reasons], dtype=torch.bool)
    rotations, betas = rotations.to(home), betas.to(home)
    out = body(rotations, betas)
    pelvis = out.joints[:, :1]
    return FittedBody(
        rotations=rotations,
        betas=betas,
        vertices=(out.vertices - pelvis).to(rotations.dtype),
        joints=(out.joints - pelvis).to(rotations.dtype),
        landmarks=fit.landmarks.to(home),
        camera=camera.to(home),
        translation=translation,
        world_scale=fit.camera[:, 3].exp().to(home),
        error_px=error.to(home),
        cost={name: part.to(home) for name, part in zip(PARTS, fit.cost.unbind(1))},
        believed=believed.to(home),
        reasons=reasons,
    )


_models: weakref.WeakKeyDictionary[Body, dict[torch.device, BodyLandmarkModel]] = weakref.WeakKeyDictionary()


@functools.lru_cache(maxsize=4)
def _free(device: torch.device) -> Body:
    return load_body("free").to(device)


def _body_and_model(
    body: str | Body, home: torch.device, device: torch.device
) -> tuple[Body, BodyLandmarkModel]:  # the body at home, its landmarks on the device
    if isinstance(body, str):
        if body != "free":
            raise ValueError(f"fit_body: body must be 'free' or a Body (load_body('smpl', path)), got {body!r}")
        body = _free(home)
    models = _models.setdefault(body, {})
    if device not in models:
        models[device] = landmark_model(body, device)
    return body.to(home), models[device]
