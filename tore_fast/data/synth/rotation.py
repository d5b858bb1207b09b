"""Rotations about the coordinate axes, and rotation matrices back to axis-angle."""

from __future__ import annotations

import torch
from torch import Tensor


def turn(axis: str, degrees: Tensor) -> Tensor:  # [...] -> [..., 3, 3]
    """Rotation about one coordinate axis."""
    a = torch.deg2rad(degrees)
    c, s, zero, one = a.cos(), a.sin(), torch.zeros_like(a), torch.ones_like(a)
    rows = {
        "x": (one, zero, zero, zero, c, -s, zero, s, c),
        "y": (c, zero, s, zero, one, zero, -s, zero, c),
        "z": (c, -s, zero, s, c, zero, zero, zero, one),
    }[axis]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def random_rotation(normal: Tensor) -> Tensor:  # [..., 4] standard normal -> [..., 3, 3]
    """Uniform rotations from normal quadruples (as quaternions)."""
    return quaternion_to_matrix(normal / normal.norm(dim=-1, keepdim=True).clamp(min=1e-8))


def quaternion_to_matrix(q: Tensor) -> Tensor:  # [..., 4] w, x, y, z of length one -> [..., 3, 3]
    w, x, y, z = q.unbind(-1)
    rows = (
        1 - 2 * (y * y + z * z),
        2 * (x * y - w * z),
        2 * (x * z + w * y),
        2 * (x * y + w * z),
        1 - 2 * (x * x + z * z),
        2 * (y * z - w * x),
        2 * (x * z - w * y),
        2 * (y * z + w * x),
        1 - 2 * (x * x + y * y),
    )
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def matrix_to_axis_angle(m: Tensor) -> Tensor:  # [..., 3, 3] -> [..., 3] radians, length <= pi
    """Through the quaternion's largest component, so that half turns (a person seen from the front) stay exact."""
    d = m.diagonal(dim1=-2, dim2=-1)
    x, y, z = d.unbind(-1)
    one = torch.ones_like(x)
    squares = torch.stack((one + x + y + z, one + x - y - z, one - x + y - z, one - x - y + z), -1)  # 4 q_i^2
    a, b, c = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    p, q, r = m[..., 1, 0] + m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 2, 1] + m[..., 1, 2]
    rows = torch.stack(
        (  # 4 q_i q_j
            torch.stack((squares[..., 0], a, b, c), -1),
            torch.stack((a, squares[..., 1], p, q), -1),
            torch.stack((b, p, squares[..., 2], r), -1),
            torch.stack((c, q, r, squares[..., 3]), -1),
        ),
        -2,
    )
    best = squares.argmax(-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    quat = rows.gather(-2, best)[..., 0, :]
    quat = quat / quat.norm(dim=-1, keepdim=True)
    quat = torch.where(quat[..., :1] < 0, -quat, quat)
    sine = quat[..., 1:].norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(sine, quat[..., :1])
    return quat[..., 1:] * torch.where(sine < 1e-7, torch.full_like(sine, 2.0), angle / sine.clamp(min=1e-12))
