"""BVH motion files: read them to joint positions, and write lifted poses as one.

In: a .bvh file, or poses [T, 17, 3] of the H36M skeleton. Out: `BvhMotion` with `positions()` [T, J, 3] in file units, or a
.bvh file that any animation program opens. Mapping to the 17 joints: data/mocap.py. Euler angles apply in file order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..geometry.windows import H36M_JOINTS, H36M_PARENTS

_AXES = "XYZ"


@dataclass(frozen=True)
class BvhMotion:
    """A skeleton and its channel values. End sites are joints named End_<parent> without channels."""

    names: list[str]
    parents: list[int]  # -1 for the root; a parent comes before its children
    offsets: np.ndarray  # [J, 3] file units
    channels: list[tuple[str, ...]]  # per joint, e.g. ("Xposition", ..., "Zrotation")
    values: np.ndarray  # [T, sum of channels]; degrees, file units
    frame_time: float  # seconds

    @property
    def fps(self) -> float:
        return 1.0 / self.frame_time

    def positions(self, frames: slice | list[int] = slice(None)) -> np.ndarray:
        """Forward kinematics: [T, J, 3] in file units and file axes (usually y up)."""
        values = self.values[frames]
        where = np.zeros((len(values), len(self.names), 3))
        turn = np.zeros((len(values), len(self.names), 3, 3))
        column = 0
        for j, (parent, names) in enumerate(zip(self.parents, self.channels)):
            local, shift = np.broadcast_to(np.eye(3), (len(values), 3, 3)), np.tile(self.offsets[j], (len(values), 1))
            for name in names:
                axis, value = _AXES.index(name[0].upper()), values[:, column]
                column += 1
                if name.endswith("position"):
                    shift[:, axis] = value + (self.offsets[j, axis] if parent < 0 else 0)
                else:
                    local = local @ axis_rotation(axis, np.deg2rad(value))
            if parent < 0:
                where[:, j], turn[:, j] = shift, local
            else:
                where[:, j] = where[:, parent] + np.einsum("tij,tj->ti", turn[:, parent], shift)
                turn[:, j] = turn[:, parent] @ local
        return where


def axis_rotation(axis: int, angle: np.ndarray) -> np.ndarray:
    """[..., 3, 3] rotation by `angle` (radians) about axis 0, 1 or 2."""
    c, s = np.cos(angle), np.sin(angle)
    out = np.zeros((*np.shape(angle), 3, 3))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    out[..., axis, axis] = 1
    out[..., i, i], out[..., i, j], out[..., j, i], out[..., j, j] = c, -s, s, c
    return out


def read_bvh(path: str | Path) -> BvhMotion:
    """Reads a BVH file; ValueError with file and line for anything malformed."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such motion file")
    lines = path.read_text(errors="replace").splitlines()
    words = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    fail = lambda number, text: ValueError(f"{path}:{number}: {text}")
    if not words or words[0][1][0].upper() != "HIERARCHY":
        raise fail(1, "expected a BVH file that starts with HIERARCHY")
    names: list[str] = []
    parents: list[int] = []
    offsets: list[list[float]] = []
    channels: list[tuple[str, ...]] = []
    stack: list[int] = []
    at = 1
    while at < len(words) and words[at][1][0].upper() != "MOTION":
        number, row = words[at]
        key = row[0].upper()
        if key in ("ROOT", "JOINT", "END"):
            if key != "ROOT" and not stack:
                raise fail(number, f"{row[0]} outside the root")
            parents.append(stack[-1] if stack else -1)
            names.append(f"End_{names[stack[-1]]}" if key == "END" else " ".join(row[1:]))
            offsets.append([0.0, 0.0, 0.0])
            channels.append(())
        elif key == "{":
            stack.append(len(names) - 1)
        elif key == "}":
            if not stack:
                raise fail(number, "a closing brace too many")
            stack.pop()
        elif key == "OFFSET" and stack:
            offsets[stack[-1]] = _numbers(row[1:], 3, fail, number)
        elif key == "CHANNELS" and stack:
            named = tuple(row[2:])
            if len(named) != int(row[1]) or any(c[1:].lower() not in ("position", "rotation") for c in named):
                raise fail(number, f"expected CHANNELS <count> <names>, got {' '.join(row)}")
            channels[stack[-1]] = named
        else:
            raise fail(number, f"unexpected {row[0]!r} in the hierarchy")
        at += 1
    head = words[at + 1 : at + 3]
    if len(head) < 2 or head[0][1][0] != "Frames:" or head[1][1][:2] != ["Frame", "Time:"]:
        raise fail(words[min(at, len(words) - 1)][0], "expected MOTION, Frames: and Frame Time: after the hierarchy")
    count, frame_time = int(head[0][1][1]), float(head[1][1][2])
    if frame_time <= 0:
        raise fail(head[1][0], f"Frame Time must be positive, got {frame_time}")
    width = sum(map(len, channels))
    rows = words[at + 3 : at + 3 + count]
    if len(rows) < count:
        raise fail(words[-1][0], f"{count} frames announced, {len(rows)} found")
    values = [_numbers(row, width, fail, number) for number, row in rows]
    return BvhMotion(names, parents, np.array(offsets), channels, np.array(values).reshape(count, width), frame_time)


def _numbers(row: list[str], count: int, fail, number: int) -> list[float]:
    if len(row) != count:
        raise fail(number, f"expected {count} numbers, got {len(row)}")
    try:
        return [float(v) for v in row]
    except ValueError:
        raise fail(number, f"expected numbers, got {' '.join(row[:6])}") from None


def write_bvh(path: str | Path, poses: np.ndarray, fps: float, root: np.ndarray | None = None) -> Path:
    """Poses [T, 17, 3] (metres; camera axes x right, y down, z forward) as a BVH file in centimetres, y up.

    Bone lengths are the clip's means, so a frame's joints land where the pose has them as far as its bones keep those
    lengths. Joints with several bones get a helper joint of zero length per bone, which lets every bone turn freely.

    Args:
        root: [T, 3] path of the pelvis in the same axes; None keeps it where joint 0 of the poses is.
    """
    poses = np.asarray(poses, np.float64) * [1, -1, -1]
    root = poses[:, 0] if root is None else np.asarray(root, np.float64) * [1, -1, -1]
    lengths, rest = _rest_pose(poses)
    names, parents, offsets, of_joint = _helper_skeleton(lengths, rest)
    turns = {0: np.broadcast_to(np.eye(3), (len(poses), 3, 3))}  # global rotation of each BVH joint
    angles = np.zeros((len(poses), len(names), 3))
    for j in range(1, len(names)):
        bone = of_joint.get(j)  # the H36M joint at the end of the bone this BVH joint turns
        if bone is None:
            turns[j] = turns[parents[j]]
            continue
        direction = poses[:, bone] - poses[:, H36M_PARENTS[bone]]
        parent = turns[parents[j]]
        local = _shortest_turn(rest[bone], np.einsum("tji,tj->ti", parent, direction))
        angles[:, j] = _euler_zyx(local)
        turns[j] = parent @ local
    return _write(path, names, parents, offsets, 100 * root, np.rad2deg(angles), fps)


def _rest_pose(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean bone lengths [17] and unit rest directions [17, 3] (a T-pose, y up)."""
    parents = np.array(H36M_PARENTS)
    lengths = np.zeros(17)
    lengths[1:] = np.linalg.norm(poses[:, 1:] - poses[:, parents[1:]], axis=-1).mean(0)
    rest = np.zeros((17, 3))
    rest[[1, 14, 15, 16]], rest[[4, 11, 12, 13]] = [-1, 0, 0], [1, 0, 0]
    rest[[2, 3, 5, 6]], rest[[7, 8, 9, 10]] = [0, -1, 0], [0, 1, 0]
    return lengths, rest


def _helper_skeleton(lengths, rest):
    """BVH joints: each H36M joint, and before each bone a zero-length helper that carries the bone's rotation."""
    names, parents, offsets, of_joint, index = ["pelvis"], [-1], [np.zeros(3)], {}, {0: 0}
    for joint in range(1, 17):
        names.append(f"to_{H36M_JOINTS[joint]}")
        parents.append(index[H36M_PARENTS[joint]])
        offsets.append(np.zeros(3))
        of_joint[len(names) - 1] = joint
        names.append(H36M_JOINTS[joint])
        parents.append(len(names) - 2)
        offsets.append(100 * lengths[joint] * rest[joint])
        index[joint] = len(names) - 1
    return names, parents, offsets, of_joint


def _shortest_turn(rest: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """[T, 3, 3] smallest rotation that takes the unit vector `rest` to each direction (identity for zero vectors)."""
    norm = np.linalg.norm(direction, axis=-1, keepdims=True)
    d = np.where(norm > 1e-12, direction / np.maximum(norm, 1e-12), rest)
    cross, dot = np.cross(rest, d), (d @ rest)[:, None, None]
    skew = np.zeros((len(d), 3, 3))
    skew[:, 0, 1], skew[:, 0, 2], skew[:, 1, 2] = -cross[:, 2], cross[:, 1], -cross[:, 0]
    skew -= skew.transpose(0, 2, 1)
    out = np.eye(3) + skew + skew @ skew / np.maximum(1 + dot, 1e-9)
    half_turn = np.cross(rest, np.eye(3)[np.argmin(np.abs(rest))])
    half_turn /= np.linalg.norm(half_turn)
    opposite = 2 * np.outer(half_turn, half_turn) - np.eye(3)
    return np.where(dot < -1 + 1e-9, opposite, out)


def _euler_zyx(r: np.ndarray) -> np.ndarray:
    """[T, 3] angles (z, y, x) with r = Rz Ry Rx."""
    y = np.arcsin(np.clip(-r[:, 2, 0], -1, 1))
    locked = np.abs(r[:, 2, 0]) > 1 - 1e-9
    z = np.where(locked, np.arctan2(-r[:, 0, 1], r[:, 1, 1]), np.arctan2(r[:, 1, 0], r[:, 0, 0]))
    x = np.where(locked, 0.0, np.arctan2(r[:, 2, 1], r[:, 2, 2]))
    return np.stack([z, y, x], axis=1)


def _write(path, names, parents, offsets, root, angles, fps) -> Path:
    children = {i: [j for j, p in enumerate(parents) if p == i] for i in range(len(names))}
    order: list[int] = []
    lines = ["HIERARCHY"]

    def put(j: int, depth: int) -> None:
        tab, offset = "\t" * depth, " ".join(f"{v:.6f}" for v in offsets[j])
        order.append(j)
        lines.extend([f"{tab}{'ROOT' if depth == 0 else 'JOINT'} {names[j]}", f"{tab}{{", f"{tab}\tOFFSET {offset}"])
        shift = "6 Xposition Yposition Zposition" if depth == 0 else "3"
        lines.append(f"{tab}\tCHANNELS {shift} Zrotation Yrotation Xrotation")
        for child in children[j]:
            put(child, depth + 1)
        if not children[j]:
            lines.extend([f"{tab}\tEnd Site", f"{tab}\t{{", f"{tab}\t\tOFFSET 0 0 0", f"{tab}\t}}"])
        lines.append(f"{tab}}}")

    put(0, 0)
    lines += ["MOTION", f"Frames: {len(root)}", f"Frame Time: {1 / fps:.8f}"]
    rows = np.concatenate([root, angles[:, order].reshape(len(root), -1)], axis=1)
    lines += [" ".join(f"{v:.5f}" for v in row) for row in rows]
    path = Path(path)
    path.write_text("\n".join(lines) + "\n")
    return path
