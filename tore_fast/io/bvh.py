"""BVH motion files: read them to joint positions, write rotations of a body or lifted poses.

In: a .bvh file; local rotations and root positions; or poses [T, 17, 3] of the H36M skeleton. Out: `BvhMotion` with
`positions()` [T, J, 3] in file units, or a .bvh file for Blender, Maya and game engines (centimetres, y up, facing the
camera). Mapping to the 17 joints: data/mocap.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from ..geometry.camera import CAMERA_TO_Y_UP
from ..geometry.skeleton import H36M17
from .atomic import PendingFile

_AXES, _CM = "XYZ", 100.0


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
        turns: list[Rotation] = []
        column = 0
        for j, (parent, names) in enumerate(zip(self.parents, self.channels)):
            local, shift = Rotation.identity(len(values)), np.tile(self.offsets[j], (len(values), 1))
            for name in names:  # Euler angles apply in file order
                axis, value = _AXES.index(name[0].upper()), values[:, column]
                column += 1
                if name.endswith("position"):
                    shift[:, axis] = value + (self.offsets[j, axis] if parent < 0 else 0)
                else:
                    local = local * Rotation.from_euler(_AXES[axis], value[:, None], degrees=True)
            if parent < 0:
                where[:, j] = shift
                turns.append(local)
            else:
                where[:, j] = where[:, parent] + turns[parent].apply(shift)
                turns.append(turns[parent] * local)
        return where


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


def _numbers(row: list[str], count: int, fail: Callable[[int, str], ValueError], number: int) -> list[float]:
    if len(row) != count:
        raise fail(number, f"expected {count} numbers, got {len(row)}")
    try:
        return [float(v) for v in row]
    except ValueError:
        raise fail(number, f"expected numbers, got {' '.join(row[:6])}") from None


class BvhWriter:
    """Streams frames into a file; the number of frames must be known.

    Args:
        rest_joints: [J, 3] metres, y up (the T-pose). parents: parent per joint, -1 for the root.
        names: joint names. num_frames, fps: of the clip.
    """

    def __init__(
        self,
        path: str | Path,
        rest_joints: np.ndarray,
        parents: Sequence[int],
        names: Sequence[str],
        num_frames: int,
        fps: float,
    ):
        self.parents = tuple(int(p) for p in parents)
        if rest_joints.shape != (len(self.parents), 3) or len(names) != len(self.parents):
            raise ValueError(f"BvhWriter: rest_joints must be [{len(self.parents)}, 3] with as many names")
        self.num_frames, self.written = num_frames, 0
        self._order: list[int] = []
        self._pending = PendingFile(path)
        self._file = open(self._pending.part, "w", encoding="ascii")  # noqa: SIM115 (closed in close)
        self._file.write("HIERARCHY\n")
        self._joint(0, np.asarray(rest_joints, np.float64), list(names), 0)
        self._file.write(f"MOTION\nFrames: {num_frames}\nFrame Time: {1 / fps:.8f}\n")

    def _joint(self, i: int, rest: np.ndarray, names: list[str], depth: int) -> None:
        tab, out = "  " * depth, self._file.write
        self._order.append(i)
        parent = self.parents[i]
        offset = (rest[i] - rest[parent] if parent >= 0 else rest[i] * 0) * _CM
        out(f"{tab}{'ROOT' if parent < 0 else 'JOINT'} {names[i]}\n{tab}{{\n")
        out(f"{tab}  OFFSET {offset[0]:.6f} {offset[1]:.6f} {offset[2]:.6f}\n")
        position = "6 Xposition Yposition Zposition" if parent < 0 else "3"
        out(f"{tab}  CHANNELS {position} Zrotation Xrotation Yrotation\n")
        children = [c for c, p in enumerate(self.parents) if p == i]
        for child in children:
            self._joint(child, rest, names, depth + 1)
        if not children:
            tip = (rest[i] - rest[parent]) * _CM * 0.5
            out(f"{tab}  End Site\n{tab}  {{\n{tab}    OFFSET {tip[0]:.6f} {tip[1]:.6f} {tip[2]:.6f}\n{tab}  }}\n")
        out(f"{tab}}}\n")

    def write(self, rotations: np.ndarray, root_positions: np.ndarray) -> None:
        """Frames [F, J, 3, 3] relative to the parent and root joint positions [F, 3] metres, both in camera axes."""
        rotations = np.array(rotations, np.float64)
        rotations[:, 0] = CAMERA_TO_Y_UP @ rotations[:, 0]
        places = np.asarray(root_positions, np.float64) @ CAMERA_TO_Y_UP.T * _CM
        angles = euler_zxy(rotations)[:, self._order].reshape(len(rotations), -1)
        for place, row in zip(places, angles):
            self._file.write(" ".join(f"{v:.5f}" for v in (*place, *row)) + "\n")
        self.written += len(rotations)

    def close(self) -> None:
        """Finishes the file, which appears now; ValueError, and no file, if frames are missing."""
        self._file.close()
        if self.written != self.num_frames:
            self._pending.discard()
            raise ValueError(f"BvhWriter: promised {self.num_frames} frames, wrote {self.written}")
        self._pending.commit()

    def discard(self) -> None:
        """Gives up: no file appears."""
        self._file.close()
        self._pending.discard()


def euler_zxy(rotations: np.ndarray) -> np.ndarray:  # [..., 3, 3] -> [..., 3] degrees (z, x, y), R = Rz Rx Ry
    """Angles of R = Rz(a) Rx(b) Ry(c); at b = +-90 degrees c is 0."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Gimbal lock", UserWarning)  # one of the angles is free then: any will do
        angles = Rotation.from_matrix(rotations.reshape(-1, 3, 3)).as_euler("ZXY", degrees=True)
    return angles.reshape(*rotations.shape[:-2], 3)


def write_bvh(path: str | Path, poses: np.ndarray, fps: float, root: np.ndarray | None = None) -> Path:
    """Poses [T, 17, 3] (metres; camera axes x right, y down, z forward) as a BVH file.

    Bone lengths are the clip's means, so a frame's joints land where the pose has them as far as its bones keep those
    lengths. Joints with several bones get a helper joint of zero length per bone, which lets every bone turn freely.

    Args:
        root: [T, 3] path of the pelvis in the same axes; None keeps it where joint 0 of the poses is.
    """
    poses = np.asarray(poses, np.float64)
    root = poses[:, 0] if root is None else root
    poses = poses @ CAMERA_TO_Y_UP
    lengths, rest = _rest_pose(poses)
    names, parents, places, of_joint = _helper_skeleton(lengths, rest)
    turns = [Rotation.identity(len(poses))]  # global rotation of each BVH joint
    local = np.tile(np.eye(3), (len(poses), len(names), 1, 1))
    local[:, 0] = CAMERA_TO_Y_UP  # the root does not turn; the writer takes camera axes
    for j in range(1, len(names)):
        bone = of_joint.get(j)  # the H36M joint at the end of the bone this BVH joint turns
        if bone is None:
            turns.append(turns[parents[j]])
            continue
        parent = turns[parents[j]]
        direction = poses[:, bone] - poses[:, H36M17.parents[bone]]
        turn = _shortest_turn(rest[bone], parent.inv().apply(direction))
        local[:, j] = turn.as_matrix()
        turns.append(parent * turn)
    out = BvhWriter(path, places, parents, names, len(poses), fps)
    out.write(local, root)
    out.close()
    return Path(path)


def _rest_pose(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean bone lengths [17] and unit rest directions [17, 3] (a T-pose, y up)."""
    parents = np.array(H36M17.parents)
    lengths = np.zeros(17)
    lengths[1:] = np.linalg.norm(poses[:, 1:] - poses[:, parents[1:]], axis=-1).mean(0)
    rest = np.zeros((17, 3))
    rest[[1, 14, 15, 16]], rest[[4, 11, 12, 13]] = [-1, 0, 0], [1, 0, 0]
    rest[[2, 3, 5, 6]], rest[[7, 8, 9, 10]] = [0, -1, 0], [0, 1, 0]
    return lengths, rest


def _helper_skeleton(lengths: np.ndarray, rest: np.ndarray) -> tuple[list[str], list[int], np.ndarray, dict[int, int]]:
    """BVH joints: each H36M joint, and before each bone a helper at its start that carries the bone's rotation.

    Returns:
        Names, parents, rest positions [J, 3] in metres, and the H36M joint at the end of each helper's bone.
    """
    names, parents, places = [H36M17.names[0]], [-1], [np.zeros(3)]
    of_joint: dict[int, int] = {}
    index = {0: 0}
    for joint in range(1, 17):
        above = index[H36M17.parents[joint]]
        names += [f"to_{H36M17.names[joint]}", H36M17.names[joint]]
        parents += [above, len(names) - 2]
        places += [places[above], places[above] + lengths[joint] * rest[joint]]
        of_joint[len(names) - 2] = joint
        index[joint] = len(names) - 1
    return names, parents, np.array(places), of_joint


def _shortest_turn(rest: np.ndarray, direction: np.ndarray) -> Rotation:
    """Smallest rotations that take the unit vector `rest` to each direction [T, 3] (identity for zero vectors)."""
    axis = np.cross(rest, direction)
    sine = np.linalg.norm(axis, axis=-1, keepdims=True)
    cosine = (direction @ rest)[:, None]
    across = np.cross(rest, np.eye(3)[np.argmin(np.abs(rest))])  # any axis does for the opposite direction
    unit = np.where(sine > 1e-12, axis / np.maximum(sine, 1e-12), across / np.linalg.norm(across))
    return Rotation.from_rotvec(unit * np.arctan2(sine, cosine))
