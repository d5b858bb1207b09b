"""Simulated landmarks: bodies posed by the synthetic prior or by motions, seen through a camera, with errors like a
net's."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tore_fast.body import Body, load_body
from tore_fast.body.fit import Landmarks
from tore_fast.body.fit.landmarks import landmark_model
from tore_fast.body.lbs import forward_kinematics
from tore_fast.data.synth.draw import Draw
from tore_fast.data.synth.poses import sample_pose


class Simulated(NamedTuple):
    landmarks: Landmarks
    rotations: Tensor  # [B, 24, 3, 3]
    betas: Tensor  # [B, 10]
    joints: Tensor  # [B, 24, 3] pelvis at the origin
    camera: Tensor  # [B, 3] weak perspective
    translation: Tensor  # [B, 3]


def body_points(rotations: Tensor, betas: Tensor, body: Body | None = None) -> tuple[Tensor, Tensor]:
    """Landmarks [B, 33, 3] and joints of a body about the pelvis, rigid on their joints (float64)."""
    body = body or load_body("free")
    m = landmark_model(body).model
    rest = (body.joints.double() + torch.einsum("jcs,bs->bjc", body.joint_dirs.double(), betas)).contiguous()
    world, joints = forward_kinematics(rotations, rest, body.ancestors)
    offset = m.offsets + torch.einsum("pcs,bs->bpc", m.offset_dirs, betas)
    points = joints[:, list(m.attach)] + (world[:, list(m.attach)] @ offset[..., None])[..., 0]
    return points - joints[:, :1], joints - joints[:, :1]


def simulate(
    batch: int,
    seed: int = 0,
    *,
    noise_px: float = 0.0,
    noise_m: float = 0.0,
    flatten: float = 1.0,
    focal: float | None = None,
    side: float = 256.0,
    difficulty: float = 1.0,
    rotations: Tensor | None = None,
    body: Body | None = None,
) -> Simulated:
    """People about 200 px tall near (320, 240).

    Args:
        noise_px, noise_m: standard deviation of the image and world points; world noise is larger in depth.
        flatten: factor of the world points' depth, as nets flatten people.
        focal: px; None = weak perspective.
    """
    draw = Draw(batch, seed, "simulated landmarks")
    rotations = sample_pose(draw, difficulty).double() if rotations is None else rotations.double()
    betas = draw.normal(10, std=0.8).clamp(-2, 2).double()
    points, joints = body_points(rotations, betas, body)
    scale = draw.uniform(low=100, high=130).double()
    place = torch.tensor([320.0, 240.0], dtype=torch.float64) + draw.uniform(2, low=-120, high=120).double()
    translation = torch.full((batch, 3), torch.nan, dtype=torch.float64)
    if focal is None:
        image = scale[:, None, None] * points[..., :2] + place[:, None]
    else:
        centre = torch.tensor([320.0, 240.0], dtype=torch.float64)
        translation = torch.cat(((place - centre) / scale[:, None], (focal / scale)[:, None]), 1)
        seen = points + translation[:, None]
        image = focal * seen[..., :2] / seen[..., 2:] + centre
    world = points * torch.tensor([1.0, 1.0, flatten], dtype=torch.float64)
    image = image + noise_px * draw.normal(33, 2).double()
    world = world + noise_m * draw.normal(33, 3).double() * torch.tensor([1.0, 1.0, 1.5], dtype=torch.float64)
    sides = torch.full((batch,), side, dtype=torch.float64)
    marks = Landmarks(image, world, torch.ones(batch, 33, dtype=torch.float64), None, sides)
    return Simulated(marks, rotations, betas, joints, torch.cat((scale[:, None], place), 1), translation)


def to(marks: Landmarks, dtype: torch.dtype) -> Landmarks:
    return Landmarks(*(None if t is None else t.to(dtype) for t in vars(marks).values()))
