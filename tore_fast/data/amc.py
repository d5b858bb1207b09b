"""Acclaim motion capture: an .asf skeleton and its .amc motions -> bone-end positions in metres.

In: the two files (CMU and compatible). Out: `AsfSkeleton`, positions [T, B, 3], y up. Mapping to the 17 joints:
data/mocap.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

INCH = 0.0254


@dataclass
class AsfBone:
    name: str
    direction: np.ndarray = field(default_factory=lambda: np.zeros(3))
    length: float = 0.0  # file units
    axis: np.ndarray = field(default_factory=lambda: np.eye(3))  # orientation of the bone's own frame
    dof: tuple[str, ...] = ()


@dataclass(frozen=True)
class AsfSkeleton:
    """Bones in file order, the root first; `parents[i]` is the index of the bone that bone i starts at."""

    bones: list[AsfBone]
    parents: list[int]
    root_order: tuple[str, ...]  # channels of the root, e.g. ("TX", "TY", "TZ", "RX", "RY", "RZ")
    root_position: np.ndarray
    scale_m: float  # metres per file unit
    degrees: bool

    @property
    def names(self) -> list[str]:
        return [b.name for b in self.bones]


def _euler(angles: Any, order: str) -> np.ndarray:
    """Rotation by angles (radians) about the axes of `order`, the first one applied first."""
    out = Rotation.identity()
    for letter, angle in zip(order.lower(), angles):
        out = Rotation.from_euler(letter, angle) * out
    return out.as_matrix()


def read_asf(path: str | Path) -> AsfSkeleton:
    """Reads an .asf skeleton; ValueError with file and line for anything malformed."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such skeleton file")
    section, length_unit, degrees = "", 1.0, True
    root = AsfBone("root")
    bones, parent_of = [root], {}
    order: Any
    order, position, orientation, root_axis = ("TX", "TY", "TZ", "RX", "RY", "RZ"), np.zeros(3), np.zeros(3), "XYZ"
    number, row = 0, [""]
    try:
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):  # noqa: B007 (named in the error)
            row = line.split("#")[0].split()
            if not row:
                continue
            if row[0].startswith(":"):
                section = row[0].lower()
                continue
            key = row[0].lower()
            if section == ":units":
                length_unit = float(row[1]) if key == "length" else length_unit
                degrees = row[1].lower().startswith("deg") if key == "angle" else degrees
            elif section == ":root":
                if key == "order":
                    order = tuple(v.upper() for v in row[1:])
                elif key == "axis":
                    root_axis = row[1]
                elif key == "position":
                    position = np.array(row[1:4], float)
                elif key == "orientation":
                    orientation = np.array(row[1:4], float)
            elif section == ":bonedata":
                if key == "begin":
                    bones.append(AsfBone(""))
                elif key == "name":
                    bones[-1].name = row[1]
                elif key == "direction":
                    bones[-1].direction = np.array(row[1:4], float)
                elif key == "length":
                    bones[-1].length = float(row[1])
                elif key == "axis":
                    angles = np.array(row[1:4], float)
                    bones[-1].axis = _euler(np.deg2rad(angles) if degrees else angles, row[4])
                elif key == "dof":
                    bones[-1].dof = tuple(v.lower() for v in row[1:])
            elif section == ":hierarchy" and key not in ("begin", "end"):
                parent_of.update(dict.fromkeys(row[1:], row[0]))
    except (ValueError, IndexError):
        raise ValueError(f"{path}:{number}: cannot be read as ASF: {' '.join(row)}") from None
    index = {b.name: i for i, b in enumerate(bones)}
    loose = [b.name for b in bones[1:] if parent_of.get(b.name) not in index]
    if len(bones) < 2 or loose:
        raise ValueError(f"{path}: {'no bones' if len(bones) < 2 else f'bones without a place in :hierarchy: {loose}'}")
    root.axis = _euler(np.deg2rad(orientation) if degrees else orientation, root_axis)
    parents = [-1] + [index[parent_of[b.name]] for b in bones[1:]]
    return AsfSkeleton(bones, parents, order, position, INCH / length_unit, degrees)


def read_amc(path: str | Path, skeleton: AsfSkeleton) -> np.ndarray:
    """Bone-end positions [T, B, 3] in metres of an .amc motion (its root end is the root itself)."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such motion file")
    width = {b.name: len(b.dof) for b in skeleton.bones[1:]} | {"root": len(skeleton.root_order)}
    frames: list[dict[str, list[float]]] = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        row = line.split("#")[0].split()
        if not row or row[0].startswith(":"):
            continue
        if len(row) == 1 and row[0].isdigit():
            frames.append({})
            continue
        if not frames or len(row) - 1 != width.get(row[0], -1):
            raise ValueError(
                f"{path}:{number}: expected a frame number or a bone of the skeleton with its values, got {line[:60]!r}"
            )
        try:
            frames[-1][row[0]] = [float(v) for v in row[1:]]
        except ValueError:
            raise ValueError(f"{path}:{number}: expected numbers, got {line[:60]!r}") from None
    if not frames:
        raise ValueError(f"{path}: holds no frames")
    return _bone_ends(skeleton, frames)


def _column(frames: list[dict[str, list[float]]], bone: str, count: int) -> np.ndarray:
    """[T, count] values of a bone; bones without degrees of freedom are absent from the file."""
    return np.array([f.get(bone, [0.0] * count) for f in frames]).reshape(len(frames), count)


def _bone_ends(skeleton: AsfSkeleton, frames: list[dict[str, list[float]]]) -> np.ndarray:
    turn_unit = np.pi / 180 if skeleton.degrees else 1.0
    ends = np.zeros((len(frames), len(skeleton.bones), 3))
    turns = np.zeros((len(frames), len(skeleton.bones), 3, 3))
    for i, (bone, parent) in enumerate(zip(skeleton.bones, skeleton.parents)):
        channels = skeleton.root_order if i == 0 else tuple(c.upper() for c in bone.dof)
        values = _column(frames, bone.name, len(channels))
        turn = Rotation.identity(len(frames))
        for c, name in enumerate(channels):  # the first rotation is applied first
            if name.startswith("R"):
                turn = Rotation.from_euler(name[1].lower(), values[:, c : c + 1] * turn_unit) * turn
        motion = turn.as_matrix()
        local = bone.axis @ motion @ bone.axis.T
        if i == 0:
            turns[:, 0] = motion @ bone.axis
            shift = np.zeros((len(frames), 3))
            for c, name in enumerate(channels):
                if name.startswith("T") and name[1:] in ("X", "Y", "Z"):
                    shift[:, "XYZ".index(name[1])] = values[:, c]
            ends[:, 0] = shift + skeleton.root_position
        else:
            turns[:, i] = turns[:, parent] @ local
            ends[:, i] = ends[:, parent] + turns[:, i] @ (bone.direction * bone.length)
    return ends * skeleton.scale_m
