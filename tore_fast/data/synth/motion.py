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

from ...body.fit import pose_from_joints
from ...geometry.rotation import axis_angle_to_matrix, axis_rotation
from ..mocap import Motion, read_motions
from .poses import PoseBank

_PAIRS = ((1, 2), (4, 5), (7, 8), (10, 11), (13, 14), (16, 17), (18, 19), (20, 21), (22, 23))
MIRROR = [dict([*_PAIRS, *((b, a) for a, b in _PAIRS)]).get(i, i) for i in range(24)]


def load_pose_bank(paths: Sequence[str | Path], stride: int = 6) -> PoseBank:
    """Every `stride`-th frame of all motions in the files and folders given.

    Accepted: AMASS .npz files (`poses` [T, >= 66] axis-angle, z up, SMPL, SMPL-H or SMPL-X order), .npz files with
    `pose` [T, 72] (y up), and what data/mocap.py reads (folders with clips.npz + index.json, .bvh, .asf + .amc).

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
    turns = torch.from_numpy(angles[::stride])
    hands = turns[:, 66:72] if turns.shape[1] == 72 else turns.new_zeros(len(turns), 6)
    out = axis_angle_to_matrix(torch.cat((turns[:, :66], hands), 1).unflatten(1, (24, 3)))
    if key == "poses":
        out[:, 0] = axis_rotation("x", torch.tensor(-90.0)) @ out[:, 0]
    return out
