"""Linear blend skinning: rotations, kinematic chain, skinned vertices. Pure torch, differentiable, any device.

In: pose and rest shape from body.py; out: posed vertices and joints.
Source: Loper et al., "SMPL: A Skinned Multi-Person Linear Model" (2015), eq. 2-4.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 1 << 16  # floats of blended transforms alive at once on the no-grad CPU path (fits the L2 cache)


def axis_angle_to_matrix(
    axis_angle: Tensor,  # [..., 3] radians
) -> Tensor:  # [..., 3, 3]
    """Rotation matrices by Rodrigues' formula; smooth (value and gradient) at zero."""
    if axis_angle.shape[-1:] != (3,):
        raise ValueError(f"axis_angle_to_matrix: axis_angle must be [..., 3], got {list(axis_angle.shape)}")
    x, y, z = axis_angle.unbind(-1)
    square = (axis_angle * axis_angle).sum(-1)
    small = square < 1e-8
    safe = torch.where(small, torch.ones_like(square), square)
    angle = safe.sqrt()
    a = torch.where(small, 1 - square / 6, torch.sin(angle) / angle)[..., None, None]
    b = torch.where(small, 0.5 - square / 24, (1 - torch.cos(angle)) / safe)[..., None, None]
    zero = torch.zeros_like(x)
    k = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3))
    eye = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    return eye + a * k + b * (k @ k)


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
        f"Body.forward: pose must be [B, {3 * joints}] or [B, {joints}, 3] axis-angle or [B, {joints}, 3, 3] rotation "
        f"matrices, got {list(pose.shape)}"
    )


def chain_levels(parents: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """Joints by depth below the root: ((joints, their parents), ...). A level is one batched product."""
    if not parents or parents[0] != -1 or any(not 0 <= p < i for i, p in enumerate(parents) if i):
        raise ValueError(f"chain_levels: parents must be -1 first and then earlier joints, got {parents}")
    depth = [0] * len(parents)
    for i, p in enumerate(parents[1:], 1):
        depth[i] = depth[p] + 1
    levels = []
    for d in range(1, max(depth) + 1):
        joints = tuple(i for i, x in enumerate(depth) if x == d)
        levels.append((joints, tuple(parents[i] for i in joints)))
    return tuple(levels)


def forward_kinematics(
    rotations: Tensor,  # [B, J, 3, 3] relative to the parent
    rest_joints: Tensor,  # [B, J, 3]
    levels: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...],
) -> tuple[Tensor, Tensor]:  # [B, J, 3, 3] world rotations, [B, J, 3] world joints
    """World rotation and place of every joint, root to leaves."""
    order, world, place = [0], [rotations[:, :1]], [rest_joints[:, :1]]
    for joints, parents in levels:
        slots = [order.index(p) for p in parents]
        above_r, above_t = torch.cat(world, 1)[:, slots], torch.cat(place, 1)[:, slots]
        offset = rest_joints[:, joints] - rest_joints[:, parents]
        world.append(above_r @ rotations[:, joints])
        place.append(above_t + (above_r @ offset[..., None])[..., 0])
        order += joints
    back = [order.index(j) for j in range(len(order))]
    return torch.cat(world, 1)[:, back], torch.cat(place, 1)[:, back]


def skin_vertices(
    vertices: Tensor,  # [B, V, 3] rest
    weights: Tensor,  # [V, J] rows sum to one
    world: Tensor,  # [B, J, 3, 3]
    joints: Tensor,  # [B, J, 3] posed
    rest_joints: Tensor,  # [B, J, 3]
) -> Tensor:  # [B, V, 3]
    """Vertices moved by the weighted mean of their joints' rigid motions.

    v' = (sum_j w_j R_j) v + sum_j w_j (t_j - R_j r_j). Where no gradient is wanted on a CPU, vertices go in chunks
    whose blended transforms stay in the cache.
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
