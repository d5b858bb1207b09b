"""Analytic start: joint rotations whose limbs point like given joints, in one pass and without iterations.

In: 17 Human3.6M joints of any motion, or 33 world landmarks; out: rotations for data/synth/motion.py and the fit. From
joints alone the twist of a bone is unobservable: elbows and knees are taken as hinges, straight limbs keep the rest
pose's twist.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...geometry.procrustes import kabsch
from ...geometry.rotation import axis_angle_to_matrix, matrix_to_axis_angle
from .prior import load_pose_prior

# Human3.6M joint -> mean of landmarks; 7 (torso) and 10 (head top) are made in landmarks_to_h36m17
_HIPS, _SHOULDERS, _EARS = (23, 24), (11, 12), (7, 8)
_SIDES = {1: 24, 2: 26, 3: 28, 4: 23, 5: 25, 6: 27, 9: 0, 11: 11, 12: 13, 13: 15, 14: 12, 15: 14, 16: 16}
# left leg, right leg, left arm, right arm: Human3.6M joints, SMPL joints, direction of the rest bone
_TOP, _MIDDLE, _END = [4, 1, 11, 14], [5, 2, 12, 15], [6, 3, 13, 16]
_UPPER, _LOWER = [1, 2, 16, 17], [4, 5, 18, 19]
_REST = ((0.0, -1.0, 0.0), (0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (-1.0, 0.0, 0.0))
_BENDS = (1.0, 1.0, -1.0, 1.0)
HEAD_TOP = 0.5  # of shoulders-to-ears beyond the ears


def landmarks_to_h36m17(points: Tensor) -> Tensor:  # [..., 33, D] -> [..., 17, D]
    """Human3.6M's 17 joints out of the 33 landmarks: torso = middle, head top half of shoulders-to-ears above the
    ears."""
    hips, shoulders, ears = (points[..., list(pair), :].mean(-2) for pair in (_HIPS, _SHOULDERS, _EARS))
    rows = {0: hips, 7: (hips + shoulders) / 2, 8: shoulders, 10: ears + HEAD_TOP * (ears - shoulders)}
    rows |= {joint: points[..., landmark, :] for joint, landmark in _SIDES.items()}
    return torch.stack([rows[i] for i in range(17)], -2)


def mean_pose(like: Tensor) -> Tensor:  # [24, 3, 3]
    """The prior's mean pose, upright and facing the camera; dtype and device of `like`."""
    rest = axis_angle_to_matrix(load_pose_prior()[0].to(like).unflatten(0, (-1, 3)))
    root = torch.diag(like.new_tensor([1.0, -1.0, -1.0]))  # y up, facing +z -> camera axes
    return torch.cat((root[None], rest))


def pose_from_image(points: Tensor) -> Tensor:  # [B, 33, 2], y down -> [B, 24, 3, 3]
    """The mean pose turned in the image like hips to shoulders, facing the camera or away from it by left and right."""
    points = torch.nan_to_num(points, 0, 0, 0)
    up = points[:, list(_SHOULDERS)].mean(1) - points[:, list(_HIPS)].mean(1)
    left = (points[:, [23, 11]] - points[:, [24, 12]]).sum(1)
    up = torch.where((up.norm(dim=1) > 1e-6)[:, None], up, up.new_tensor([0.0, -1.0]))
    up = up / up.norm(dim=1, keepdim=True)
    across = torch.stack((-up[:, 1], up[:, 0]), 1)  # to the right of `up`
    x = torch.cat((across, torch.zeros_like(across[:, :1])), 1)
    x = torch.where(((across * left).sum(1) < 0)[:, None], -x, x)
    y = torch.cat((up, torch.zeros_like(up[:, :1])), 1)
    root = torch.stack((x, y, torch.linalg.cross(x, y)), -1)
    return torch.cat((root[:, None], mean_pose(points)[1:].expand(len(points), -1, -1, -1)), 1)


def fill_missing(world: Tensor, finite: Tensor, template: Tensor) -> Tensor:  # [B, 33, 3], [B, 33], [33, 3]
    """Points that are not finite taken from a template turned and moved onto those that are (least squares)."""
    weight = finite.to(world)[..., None]
    total = weight.sum(1, keepdim=True).clamp(min=1)
    here, there = (weight * world).sum(1, keepdim=True) / total, (weight * template).sum(1, keepdim=True) / total
    turn = kabsch(template - there, (world - here) * weight)
    return torch.where(finite[..., None], world, (template - there) @ turn.mT + here)


def pose_from_joints(
    joints: Tensor,  # [N, 17, 3] Human3.6M order, y up, any unit
) -> Tensor:  # [N, 24, 3, 3]
    """Rotations relative to the parent of a body in SMPL's rest pose (T-pose, facing +z) whose limbs point alike."""
    j = joints if joints.dtype == torch.float64 else joints.float()
    out = torch.eye(3, dtype=j.dtype, device=j.device).repeat(len(j), 24, 1, 1)
    pelvis = _frame(j[:, 4] - j[:, 1], j[:, 7] - j[:, 0])
    chest = _frame(j[:, 11] - j[:, 14], j[:, 8] - j[:, 7])
    out[:, 0] = pelvis
    third = axis_angle_to_matrix(matrix_to_axis_angle(pelvis.mT @ chest) / 3)
    out[:, (3, 6, 9)] = third[:, None]
    up = j.new_tensor([0.0, 1.0, 0.0]).expand(len(j), 3)
    nod = _shortest(up, (chest.mT @ _unit(j[:, 10] - j[:, 8])[..., None])[..., 0])
    out[:, (12, 15)] = axis_angle_to_matrix(matrix_to_axis_angle(nod) / 2)[:, None]

    # the four limbs at once: left leg, right leg, left arm, right arm
    upper, lower = _unit(j[:, _MIDDLE] - j[:, _TOP]), _unit(j[:, _END] - j[:, _MIDDLE])
    bends = j.new_tensor(_BENDS)[:, None]  # knees bend about +x, the left elbow about -y
    parent = torch.stack((pelvis, pelvis, chest, chest), 1)
    out[:, _UPPER], out[:, _LOWER] = _limbs(parent, upper, lower, bends * torch.linalg.cross(upper, lower))
    return out


def _limbs(parent: Tensor, first: Tensor, second: Tensor, hinge: Tensor) -> tuple[Tensor, Tensor]:
    """Rotations [N, 4, 3, 3] of the limbs' two joints, from bone directions in the world [N, 4, 3]."""
    to_parent = parent.mT
    first, second, hinge = ((to_parent @ v[..., None])[..., 0] for v in (first, second, hinge))
    rest = first.new_tensor(_REST)
    arm = torch.tensor([[False], [False], [True], [True]], device=first.device)
    start = _shortest(rest.expand_as(first), first)
    # a straight limb has no hinge: keep the shortest turn there, and change over smoothly
    bent = ((hinge.norm(dim=-1, keepdim=True) - 0.1) / 0.25).clamp(0, 1)
    straight = torch.where(arm, start[..., 1], start[..., 0])
    hinge = _unit(_unit(hinge) * bent + straight * (1 - bent))
    across = _unit(hinge - (hinge * first).sum(-1, keepdim=True) * first)
    along = first * rest.sum(-1, keepdim=True)  # the rest bone is +x, -x or -y
    x, y = torch.where(arm, along, across), torch.where(arm, across, along)
    rotation = torch.stack((x, y, torch.linalg.cross(x, y)), -1)
    bend = _shortest(rest.expand_as(first), (rotation.mT @ second[..., None])[..., 0])
    return rotation, bend


def _unit(v: Tensor) -> Tensor:
    return v / v.norm(dim=-1, keepdim=True).clamp(min=1e-8)


def _frame(left: Tensor, up: Tensor) -> Tensor:  # [N, 3], [N, 3] -> [N, 3, 3] columns x = left, y = up, z = front
    x = _unit(left)
    y = _unit(up - (up * x).sum(-1, keepdim=True) * x)
    return torch.stack((x, y, torch.linalg.cross(x, y)), -1)


def _shortest(a: Tensor, b: Tensor) -> Tensor:  # [N, 3], [N, 3] unit vectors -> [N, 3, 3]
    """The smallest rotation that takes a to b; opposite vectors turn about any perpendicular axis."""
    axis = torch.linalg.cross(a, b)
    sine = axis.norm(dim=-1, keepdim=True)
    angle = torch.atan2(sine, (a * b).sum(-1, keepdim=True))
    other = torch.linalg.cross(a, a.new_tensor([0.0, 0.0, 1.0]).expand_as(a))
    axis = torch.where(sine < 1e-6, _unit(other), axis / sine.clamp(min=1e-8))
    return axis_angle_to_matrix(axis * angle)
