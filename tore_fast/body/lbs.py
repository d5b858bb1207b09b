"""Linear blend skinning: rotations, kinematic chain, skinned vertices. Pure torch, differentiable, any
device.

In: pose and rest shape from body.py; out: posed vertices and joints.
Source: Loper et al., "SMPL: A Skinned Multi-Person Linear Model" (2015), eq. 2-4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..geometry.rotation import axis_angle_to_matrix

_CHUNK_ELEMENTS = 1 << 16  # floats of blended transforms alive at once on the no-grad CPU path (fits the L2 cache)


def pose_matrices(
    pose: Tensor,  # [B, J * 3] or [B, J, 3] axis-angle, or [B, J, 3, 3]
    joints: int,
) -> Tensor:  # [B, J, 3, 3]
    """Rotation matrices of a pose given in any of the three accepted layouts."""
    if pose.dim() == 4 and pose.shape[1:] == (joints, 3, 3):
        return pose
    if pose.dim() == 2 and pose.shape[1] == 3 * joints:
        return axis_angle_to_matrix(pose.unflatten(1, (joints, 3)))
    if pose.dim() == 3 and pose.shape[1:] == (joints, 3):
        return axis_angle_to_matrix(pose)
    raise ValueError(
        f"Body.forward: pose must be [B, {3 * joints}] or [B, {joints}, 3] axis-angle or [B, {joints}, 3, 3] "
        f"rotation matrices, got {list(pose.shape)}"
    )


def ancestor_table(parents: Sequence[int]) -> Tensor:  # [rounds, J + 1] int64
    """Row k: the joint 2^k steps above each joint, J where there is none. J itself stands for the world."""
    joints = len(parents)
    if not joints or parents[0] != -1 or any(not 0 <= p < i for i, p in enumerate(parents) if i):
        raise ValueError(f"ancestor_table: parents must be -1, then earlier joints, got {tuple(parents)}")
    above = [p if p >= 0 else joints for p in parents] + [joints]
    rows = []
    while any(a != joints for a in above):
        rows.append(above)
        above = [above[a] for a in above]
    return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), joints + 1)


def forward_kinematics(
    rotations: Tensor,  # [B, J, 3, 3] relative to the parent
    rest_joints: Tensor,  # [B, J, 3]
    ancestors: Tensor,  # [rounds, J + 1] int64, of ancestor_table
) -> tuple[Tensor, Tensor]:  # [B, J, 3, 3] world rotations, [B, J, 3] world joints
    """World rotation and place of every joint.

    Every joint's rigid motion is multiplied by that of its 1st, 2nd, 4th, ... ancestor chain: 4 batched
    products for SMPL's depth of 9 instead of one small product a joint, and no index is made on the host.
    """
    batch, joints = rotations.shape[:2]
    if ancestors.shape[0] == 0:
        return rotations, rest_joints
    world = torch.zeros(batch, 1, 3, dtype=rest_joints.dtype, device=rest_joints.device)
    places = torch.cat((rest_joints, world), 1)
    offset = (places - places[:, ancestors[0]])[:, :joints]
    last = torch.zeros(batch, joints, 1, 4, dtype=rotations.dtype, device=rotations.device)
    last[..., 3] = 1
    motion = torch.cat((torch.cat((rotations, offset[..., None]), -1), last), -2)
    eye = torch.eye(4, dtype=rotations.dtype, device=rotations.device).expand(batch, 1, 4, 4)
    motion = torch.cat((motion, eye), 1)
    for above in ancestors:
        motion = motion[:, above] @ motion
    return motion[:, :joints, :3, :3], motion[:, :joints, :3, 3]


def skin_vertices(
    vertices: Tensor,  # [B, V, 3] rest
    weights: Tensor,  # [V, J] rows sum to one
    world: Tensor,  # [B, J, 3, 3]
    joints: Tensor,  # [B, J, 3] posed
    rest_joints: Tensor,  # [B, J, 3]
) -> Tensor:  # [B, V, 3]
    """Vertices moved by the weighted mean of their joints' rigid motions.

    v' = (sum_j w_j R_j) v + sum_j w_j (t_j - R_j r_j). Where no gradient is wanted on a CPU, vertices go in
    chunks whose blended transforms stay in the cache.
    """
    shift = joints - (world @ rest_joints[..., None])[..., 0]
    motion = torch.cat((world, shift[..., None]), -1).flatten(2)  # [B, J, 12]
    grad = torch.is_grad_enabled() and (vertices.requires_grad or motion.requires_grad)
    if grad or vertices.device.type != "cpu":
        return _blend(vertices, weights, motion)
    chunk = max(256, _CHUNK_ELEMENTS // (12 * max(vertices.shape[0], 1)))
    out = torch.empty_like(vertices)
    for start in range(0, vertices.shape[1], chunk):
        rows = slice(start, start + chunk)
        out[:, rows] = _blend(vertices[:, rows], weights[rows], motion)
    return out


def _blend(vertices: Tensor, weights: Tensor, motion: Tensor) -> Tensor:
    blended = (weights @ motion).unflatten(-1, (3, 4))  # [B, V, 3, 4]
    return (blended[..., :3] @ vertices[..., None])[..., 0] + blended[..., 3]
