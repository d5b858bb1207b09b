"""Where the 33 body landmarks sit on a body: a joint and an offset each, linear in the shape.

In: a Body; out: ops.LandmarkModel for the fit. The vertices of the free body were chosen by reprojection over rendered
images; those of SMPL are the public vertex indices of its key points (nose, eyes, ears, finger tips, toes, heels).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...geometry.skeleton import SMPL24
from ...ops import LandmarkModel
from ..body import Body
from .prior import load_pose_prior


class Spot(NamedTuple):
    """A landmark = (1 - share) joint + share vertex; it turns with the joint. No vertex: the joint itself."""

    joint: int
    vertex: int | None = None
    share: float = 1.0


_JOINTS = {
    11: 16, 12: 17, 13: 18, 14: 19, 15: 20, 16: 21, 23: 1, 24: 2, 25: 4, 26: 5, 27: 7, 28: 8
}  # fmt: skip
_HEAD, _WRISTS, _ANKLES, _FEET = 15, (20, 21), (7, 8), (10, 11)
_FREE = {
    0: Spot(_HEAD, 2787),
    1: Spot(_HEAD, 3930),
    2: Spot(_HEAD, 3929),
    3: Spot(_HEAD, 6144),
    4: Spot(_HEAD, 468),
    5: Spot(_HEAD, 481),
    6: Spot(_HEAD, 495),
    7: Spot(_HEAD, 6251),
    8: Spot(_HEAD, 2862),
    9: Spot(_HEAD, 3597),
    10: Spot(_HEAD, 1650),
    17: Spot(_WRISTS[0], 5014),
    18: Spot(_WRISTS[1], 1570),
    19: Spot(_WRISTS[0], 4784),
    20: Spot(_WRISTS[1], 1340),
    21: Spot(_WRISTS[0], 4746),
    22: Spot(_WRISTS[1], 1339),
    29: Spot(_ANKLES[0], 6680),
    30: Spot(_ANKLES[1], 3292),
    31: Spot(_FEET[0], 6382),
    32: Spot(_FEET[1], 3016),
}
# SMPL's public indices are finger tips, the landmarks are knuckles: a share of wrist to tip. Eye corners and mouth have
# no public index and are not used.
_SMPL = {
    0: Spot(_HEAD, 332),
    2: Spot(_HEAD, 2800),
    5: Spot(_HEAD, 6260),
    7: Spot(_HEAD, 583),
    8: Spot(_HEAD, 4071),
    17: Spot(_WRISTS[0], 2673, 0.52),
    18: Spot(_WRISTS[1], 6133, 0.52),
    19: Spot(_WRISTS[0], 2319, 0.5),
    20: Spot(_WRISTS[1], 5782, 0.5),
    21: Spot(_WRISTS[0], 2746, 0.65),
    22: Spot(_WRISTS[1], 6191, 0.65),
    29: Spot(_ANKLES[0], 3387),
    30: Spot(_ANKLES[1], 6787),
    31: Spot(_FEET[0], 3216),
    32: Spot(_FEET[1], 6617),
}
# how much a landmark counts: eyes and mouth say little together, hands and feet are noisier
_COUNTS = {**dict.fromkeys((1, 2, 3, 4, 5, 6, 9, 10), 0.4), **dict.fromkeys(range(17, 23), 0.5)}
_COUNTS |= dict.fromkeys((29, 30, 31, 32), 0.7)
HIPS = (23, 24)
# (joint, axis of the log rotation, sign of bending): knees bend about +x, the left elbow about -y, the right about +y
HINGES = ((4, 0, 1), (5, 0, 1), (18, 1, -1), (19, 1, 1))


class BodyLandmarkModel(NamedTuple):
    model: LandmarkModel
    counts: Tensor  # [33] weight of each landmark; 0 = the body has no such point


def landmark_model(body: Body, device: torch.device | str = "cpu") -> BodyLandmarkModel:
    """The 33 landmarks of `body` ("free" or a user's SMPL) with the pose prior.

    Raises:
        ValueError: a body with another skeleton (a hand).
    """
    if body.parents != SMPL24.parents:
        raise ValueError(f"fit_body: the body must have SMPL's 24 joints, got {body.name!r} with {body.num_joints}")
    spots = {k: Spot(j) for k, j in _JOINTS.items()} | (_FREE if body.name == "free" else _SMPL)
    template, dirs, joints, joint_dirs = (
        getattr(body, name).detach().double().cpu().numpy()
        for name in ("template", "shape_dirs", "joints", "joint_dirs")
    )
    shapes = dirs.shape[-1]
    offsets, offset_dirs = np.zeros((33, 3)), np.zeros((33, 3, shapes))
    counts, attach = np.zeros(33), np.zeros(33, int)
    for k, spot in spots.items():
        attach[k], counts[k] = spot.joint, _COUNTS.get(k, 1.0)
        if spot.vertex is not None:
            offsets[k] = spot.share * (template[spot.vertex] - joints[spot.joint])
            offset_dirs[k] = spot.share * (dirs[spot.vertex] - joint_dirs[spot.joint])
    parents = [max(p, 0) for p in body.parents]
    bones, bone_dirs = joints - joints[parents], joint_dirs - joint_dirs[parents]
    mean, precision = load_pose_prior()

    def constant(x: np.ndarray) -> Tensor:
        return torch.as_tensor(x, dtype=torch.float64, device=device)

    model = LandmarkModel(
        parents=body.parents,
        attach=tuple(attach.tolist()),
        offsets=constant(offsets),
        offset_dirs=constant(offset_dirs),
        bones=constant(bones),
        bone_dirs=constant(bone_dirs),
        prior_mean=mean.to(device),
        prior_precision=precision.to(device),
        limits=HINGES,
        centre=HIPS,
    )
    return BodyLandmarkModel(model, constant(counts))
