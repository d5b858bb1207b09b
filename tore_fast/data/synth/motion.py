"""Real motion as poses: AMASS-like parameter files, or 17 joints of any motion reader turned into rotations.

In: files a user has (nothing is shipped); out: a PoseBank for the generator. From joints alone the twist of a bone is
unobservable: elbows and knees are taken as hinges, straight limbs keep the rest pose's twist.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...geometry.rotation import axis_angle_to_matrix, axis_rotation, matrix_to_axis_angle
from ..mocap import Motion, read_motions
from .poses import PoseBank

_PAIRS = ((1, 2), (4, 5), (7, 8), (10, 11), (13, 14), (16, 17), (18, 19), (20, 21), (22, 23))
MIRROR = [dict([*_PAIRS, *((b, a) for a, b in _PAIRS)]).get(i, i) for i in range(24)]


def load_pose_bank(paths: Sequence[str | Path], stride: int = 6) -> PoseBank:
    """Every `stride`-th frame of all motions in the files and folders given.

    Accepted: AMASS .npz files (`poses` [T, >= 66] axis-angle, z up, SMPL, SMPL-H or SMPL-X order), .npz files with `pose`
    [T, 72] (y up), and what data/mocap.py reads (folders with clips.npz + index.json, .bvh, .asf + .amc).

    Raises:
        ValueError: a file of another kind. FileNotFoundError: no such file, or a folder without motions.
    """
    poses: list[Tensor] = []
    for path in map(Path, paths):
        folder = path.is_dir()
        archive = folder and (path / "index.json").is_file()
        files = [path] if path.suffix == ".npz" else sorted(path.rglob("*.npz")) if folder and not archive else []
        found = [_parameters(f, stride, required=not folder) for f in files]
        poses += [p for p in found if p is not None]
        if (
            archive
            or path.suffix in (".bvh", ".amc")
            or (folder and any(p.suffix in (".bvh", ".amc") for p in path.rglob("*")))
        ):
            poses += _from_motions(path, stride)
        elif not folder and not files or folder and not any(p is not None for p in found):
            raise FileNotFoundError(f"{path}: expected AMASS-like .npz, .bvh or .amc files, or a folder with them")
    return PoseBank(torch.cat(poses)) if poses else PoseBank(torch.zeros(0, 24, 3, 3))


def _from_motions(path: Path, stride: int) -> list[Tensor]:
    return [motion_rotations(m, stride) for m in read_motions(path)]


def motion_rotations(motion: Motion, stride: int = 1) -> Tensor:  # [T, 24, 3, 3]
    """Every `stride`-th frame of a motion as rotations of a body that stands y up."""
    joints = torch.from_numpy(np.ascontiguousarray(motion.joints[::stride], dtype=np.float32))
    return pose_from_joints(joints @ axis_rotation("x", torch.tensor(-90.0)).T)


def mirror_rotations(rotations: Tensor) -> Tensor:
    """Left-right mirror image of a motion [..., 24, 3, 3] (x -> -x)."""
    flip = torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=rotations.dtype))
    return flip @ rotations[..., MIRROR, :, :] @ flip


def _parameters(path: Path, stride: int, required: bool) -> Tensor | None:  # [T, 24, 3, 3]
    with np.load(path, allow_pickle=False) as file:
        key = next((k for k in ("poses", "pose") if k in file.files), None)
        if key is None and not required:
            return None
        if key is None:
            raise ValueError(
                f"{path}: expected an array 'poses' (AMASS) or 'pose', got {', '.join(file.files) or 'nothing'}"
            )
        angles = np.asarray(file[key], dtype=np.float32)
    if angles.ndim == 3 and angles.shape[2] == 3:
        angles = angles.reshape(len(angles), -1)
    if angles.ndim != 2 or angles.shape[1] < 66:
        raise ValueError(f"{path}: {key} must be [T, >= 66] axis-angle, got {list(angles.shape)}")
    angles = torch.from_numpy(angles[::stride])
    hands = angles[:, 66:72] if angles.shape[1] == 72 else angles.new_zeros(len(angles), 6)
    out = axis_angle_to_matrix(torch.cat((angles[:, :66], hands), 1).unflatten(1, (24, 3)))
    if key == "poses":
        out[:, 0] = axis_rotation("x", torch.tensor(-90.0)) @ out[:, 0]
    return out


def pose_from_joints(
    joints: Tensor,  # [N, 17, 3] Human3.6M order, y up, any unit
) -> Tensor:  # [N, 24, 3, 3]
    """Rotations relative to the parent of a body in SMPL's rest pose (T-pose, facing +z) whose limbs point alike."""
    j = joints.float()
    out = torch.eye(3).repeat(len(j), 24, 1, 1)
    pelvis = _frame(j[:, 4] - j[:, 1], j[:, 7] - j[:, 0])
    chest = _frame(j[:, 11] - j[:, 14], j[:, 8] - j[:, 7])
    out[:, 0] = pelvis
    third = axis_angle_to_matrix(matrix_to_axis_angle(pelvis.mT @ chest) / 3)
    out[:, (3, 6, 9)] = third[:, None]
    up = torch.tensor([0.0, 1.0, 0.0]).expand(len(j), 3)
    nod = _shortest(up, (chest.mT @ _unit(j[:, 10] - j[:, 8])[..., None])[..., 0])
    out[:, (12, 15)] = axis_angle_to_matrix(matrix_to_axis_angle(nod) / 2)[:, None]

    for hip, knee, ankle, slot in ((4, 5, 6, 1), (1, 2, 3, 2)):  # left, right
        thigh, shank = _unit(j[:, knee] - j[:, hip]), _unit(j[:, ankle] - j[:, knee])
        hinge = torch.linalg.cross(thigh, shank)  # knees bend about +x
        out[:, slot], out[:, slot + 3] = _limb(pelvis, thigh, shank, hinge, torch.tensor([0.0, -1.0, 0.0]), "x")
    for shoulder, elbow, wrist, slot, side in ((11, 12, 13, 16, 1.0), (14, 15, 16, 17, -1.0)):
        upper, lower = _unit(j[:, elbow] - j[:, shoulder]), _unit(j[:, wrist] - j[:, elbow])
        hinge = -side * torch.linalg.cross(upper, lower)  # left elbows bend about -y
        out[:, slot], out[:, slot + 2] = _limb(chest, upper, lower, hinge, torch.tensor([side, 0.0, 0.0]), "y")
    return out


def _limb(
    parent: Tensor, first: Tensor, second: Tensor, hinge: Tensor, rest: Tensor, axis: str
) -> tuple[Tensor, Tensor]:
    """Rotations of a limb's two joints, from bone directions in the world."""
    to_parent = parent.mT
    first, second, hinge = ((to_parent @ v[..., None])[..., 0] for v in (first, second, hinge))
    start = _shortest(rest.expand_as(first), first)
    index = "xyz".index(axis)
    # a straight limb has no hinge: keep the shortest turn there, and change over smoothly
    bent = ((hinge.norm(dim=1, keepdim=True) - 0.1) / 0.25).clamp(0, 1)
    hinge = _unit(_unit(hinge) * bent + start[..., index] * (1 - bent))
    across = _unit(hinge - (hinge * first).sum(1, keepdim=True) * first)
    along = first * rest.sum()  # the rest bone is +x, -x or -y
    x, y = (across, along) if axis == "x" else (along, across)
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
    other = torch.linalg.cross(a, torch.tensor([0.0, 0.0, 1.0]).expand_as(a))
    axis = torch.where(sine < 1e-6, _unit(other), axis / sine.clamp(min=1e-8))
    return axis_angle_to_matrix(axis * angle)
