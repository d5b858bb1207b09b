"""Rotations: 6D, matrices, axis-angle, quaternions (w, x, y, z), turns about an axis, swing and twist.

All functions take float32 or float64 tensors with any leading axes, are differentiable and keep the dtype; vectors are
columns, so a matrix R takes v to R v. Angles are in radians unless the argument is called `degrees`. NumPy code uses
scipy.spatial.transform.Rotation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LAYOUTS_6D = ("columns", "interleaved")


def _pair_of_6d(x: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    if layout not in LAYOUTS_6D:
        raise ValueError(f"rot6d_to_matrix: layout must be one of {LAYOUTS_6D}, got {layout!r}")
    if x.shape[-1] != 6:
        raise ValueError(f"rot6d_to_matrix: x must end in 6 numbers, got shape {list(x.shape)}")
    if layout == "columns":
        return x[..., :3], x[..., 3:]
    return x[..., 0::2], x[..., 1::2]


def rot6d_to_matrix(x: Tensor, layout: str = "columns") -> Tensor:  # [..., 6] -> [..., 3, 3]
    """Gram-Schmidt of two 3-vectors, the first two columns of the matrix (Zhou et al. 2019).

    Args:
        layout: "columns", the first column, then the second (HMR2.0, CameraHMR); "interleaved", the rows of the [3, 2]
            matrix of both columns (SPIN, TCFormer).

    Raises:
        ValueError: unknown layout, or a last axis of other than 6 numbers.

    Example:
        >>> rot6d_to_matrix(torch.tensor([1.0, 0, 0, 0, 1.0, 0])).equal(torch.eye(3))
        True
        >>> rot6d_to_matrix(torch.tensor([1.0, 0, 0, 1.0, 0, 0]), "interleaved").equal(torch.eye(3))
        True
    """
    a1, a2 = _pair_of_6d(x, layout)
    b1 = F.normalize(a1, dim=-1, eps=1e-12)
    b2 = F.normalize(a2 - (b1 * a2).sum(-1, keepdim=True) * b1, dim=-1, eps=1e-12)
    return torch.stack((b1, b2, torch.linalg.cross(b1, b2)), dim=-1)


def matrix_to_rot6d(matrix: Tensor, layout: str = "columns") -> Tensor:  # [..., 3, 3] -> [..., 6]
    """First two columns, the inverse of `rot6d_to_matrix`."""
    if layout not in LAYOUTS_6D:
        raise ValueError(f"matrix_to_rot6d: layout must be one of {LAYOUTS_6D}, got {layout!r}")
    if layout == "columns":
        return torch.cat((matrix[..., 0], matrix[..., 1]), dim=-1)
    return matrix[..., :2].flatten(-2)


def axis_rotation(axis: str, degrees: Tensor) -> Tensor:  # [...] -> [..., 3, 3]
    """Rotation about one coordinate axis, "x", "y" or "z"."""
    if axis not in ("x", "y", "z"):
        raise ValueError(f"axis_rotation: axis must be 'x', 'y' or 'z', got {axis!r}")
    a = torch.deg2rad(degrees)
    c, s, zero, one = a.cos(), a.sin(), torch.zeros_like(a), torch.ones_like(a)
    rows = {
        "x": (one, zero, zero, zero, c, -s, zero, s, c),
        "y": (c, zero, s, zero, one, zero, -s, zero, c),
        "z": (c, -s, zero, s, c, zero, zero, zero, one),
    }[axis]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def random_rotation(normal: Tensor) -> Tensor:  # [..., 4] standard normal -> [..., 3, 3]
    """Uniformly distributed rotations from normal quadruples (as quaternions)."""
    return quaternion_to_matrix(normal)


def skew(v: Tensor) -> Tensor:  # [..., 3] -> [..., 3, 3]
    """Cross-product matrix: skew(v) @ u = v x u."""
    x, y, z = v.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack((o, -z, y, z, o, -x, -y, x, o), dim=-1).reshape(*v.shape[:-1], 3, 3)


def rodrigues(axis: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # [..., 3], [...], [...] -> [..., 3, 3]
    """Rotation about the unit `axis` by the angle with this cosine and sine: I + sin K + (1 - cos) K^2."""
    k = skew(axis)
    eye = torch.eye(3, dtype=axis.dtype, device=axis.device)
    return eye + sin[..., None, None] * k + (1 - cos)[..., None, None] * (k @ k)


def axis_angle_to_matrix(v: Tensor) -> Tensor:  # [..., 3] radians -> [..., 3, 3]
    """Rodrigues' formula; exact and differentiable at zero (series below 1e-4 rad)."""
    if v.shape[-1:] != (3,):
        raise ValueError(f"axis_angle_to_matrix: v must be [..., 3], got {list(v.shape)}")
    angle2 = (v * v).sum(-1)
    small = angle2 < 1e-8
    safe = torch.where(small, torch.ones_like(angle2), angle2)
    angle = safe.sqrt()
    sinc = torch.where(small, 1 - angle2 / 6, angle.sin() / angle)
    cosc = torch.where(small, 0.5 - angle2 / 24, (1 - angle.cos()) / safe)
    k = skew(v)
    eye = torch.eye(3, dtype=v.dtype, device=v.device)
    return eye + sinc[..., None, None] * k + cosc[..., None, None] * (k @ k)


def matrix_to_quaternion(m: Tensor) -> Tensor:  # [..., 3, 3] -> [..., 4] (w, x, y, z), w >= 0
    """Unit quaternion from the best conditioned of the four formulas (largest component first)."""
    m00, m11, m22 = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    squares = torch.stack((1 + m00 + m11 + m22, 1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22), -1)
    a, b, c = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    d, e, f = m[..., 1, 0] + m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 2, 1] + m[..., 1, 2]
    s0, s1, s2, s3 = squares.unbind(-1)
    rows = torch.stack((s0, a, b, c, a, s1, d, e, b, d, s2, f, c, e, f, s3), -1).reshape(*m.shape[:-2], 4, 4)
    pick = squares.argmax(-1)[..., None, None].expand(*m.shape[:-2], 1, 4)
    q = F.normalize(rows.gather(-2, pick).squeeze(-2), dim=-1)
    return torch.where(q[..., :1] < 0, -q, q)


def quaternion_to_matrix(q: Tensor) -> Tensor:  # [..., 4] (w, x, y, z), any length -> [..., 3, 3]
    """Rotation matrix of the normalised quaternion."""
    w, x, y, z = F.normalize(q, dim=-1).unbind(-1)
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
    return torch.stack(rows, -1).reshape(*q.shape[:-1], 3, 3)


def matrix_to_axis_angle(m: Tensor) -> Tensor:  # [..., 3, 3] -> [..., 3] radians, length <= pi
    """Axis times angle; stable near 0 and near pi (through quaternions)."""
    q = matrix_to_quaternion(m)
    sin_half = q[..., 1:].norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(sin_half, q[..., :1])
    small = sin_half < 1e-6
    scale = torch.where(small, torch.full_like(sin_half, 2.0), angle / torch.where(small, 1.0, sin_half))
    return q[..., 1:] * scale


def geodesic_angle(a: Tensor, b: Tensor) -> Tensor:  # [..., 3, 3] x 2 -> [...] radians
    """Angle of a^T b in [0, pi]; atan2 form, accurate for tiny angles."""
    r = a.transpose(-1, -2) @ b
    vec = torch.stack((r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]), -1)
    trace = r.diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.atan2(vec.norm(dim=-1), trace - 1)


def minimal_rotation(a: Tensor, b: Tensor, eps: float = 1e-8) -> Tensor:  # [..., 3] x 2 -> [..., 3, 3]
    """Smallest rotation that turns the direction of a into that of b (HybrIK's swing; identity for opposite vectors'
    axis 0).

    eps enters the divisions as in HybrIK, so nearly parallel bones stay finite.
    """
    lengths = a.norm(dim=-1) * b.norm(dim=-1) + eps
    axis = torch.linalg.cross(a, b)
    norm = axis.norm(dim=-1)
    return rodrigues(axis / (norm + eps)[..., None], (a * b).sum(-1) / lengths, norm / lengths)


def swing_twist(rotation: Tensor, bone: Tensor) -> tuple[Tensor, Tensor]:  # [..., 3, 3], [..., 3] -> matrix, [..., 2]
    """Splits R = swing * twist about `bone`: (swing [..., 3, 3], (cos, sin) of the twist angle [..., 2]).

    Source: HybrIK (swing = minimal rotation bone -> R bone, twist = swing^T R).
    """
    bone = F.normalize(bone, dim=-1)
    swing = minimal_rotation(bone, (rotation @ bone[..., None])[..., 0])
    twist = swing.transpose(-1, -2) @ rotation
    vec = torch.stack(
        (twist[..., 2, 1] - twist[..., 1, 2], twist[..., 0, 2] - twist[..., 2, 0], twist[..., 1, 0] - twist[..., 0, 1]),
        -1,
    )
    cos = (twist.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    sin = (vec * bone).sum(-1) / 2
    return swing, F.normalize(torch.stack((cos, sin), -1), dim=-1)
