"""BVH files: a skeleton's rest offsets and rotations per frame, for Blender, Maya, game engines.

In: local rotations [F, J, 3, 3] and root positions of pipelines/video.py (camera axes: y down, z forward); out:
centimetres, y up, facing the camera, channels Zrotation Xrotation Yrotation. Written frame by frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

CAMERA_TO_Y_UP = np.diag([1.0, -1.0, -1.0])
_CM = 100.0


def euler_zxy(rotations: np.ndarray) -> np.ndarray:  # [..., 3, 3] -> [..., 3] degrees (z, x, y), R = Rz Rx Ry
    """Angles of R = Rz(a) Rx(b) Ry(c); at b = +-90 degrees c is set to 0."""
    r = np.asarray(rotations, np.float64)
    sin_b = np.clip(r[..., 2, 1], -1, 1)
    locked = np.abs(sin_b) > 1 - 1e-9
    a = np.where(locked, np.arctan2(r[..., 1, 0], r[..., 0, 0]), np.arctan2(-r[..., 0, 1], r[..., 1, 1]))
    c = np.where(locked, 0.0, np.arctan2(-r[..., 2, 0], r[..., 2, 2]))
    return np.degrees(np.stack((a, np.arcsin(sin_b), c), -1))


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
        self._file = open(path, "w", encoding="ascii")  # noqa: SIM115 (closed in close)
        self._file.write("HIERARCHY\n")
        self._joint(0, np.asarray(rest_joints, np.float64), list(names), 0)
        self._file.write(f"MOTION\nFrames: {num_frames}\nFrame Time: {1 / fps:.8f}\n")

    def _joint(self, i: int, rest: np.ndarray, names: list[str], depth: int) -> None:
        tab, out = "  " * depth, self._file.write
        self._order.append(i)
        parent = self.parents[i]
        offset = (rest[i] - rest[parent] if parent >= 0 else rest[i] * 0) * _CM
        out(f"{tab}{'ROOT' if parent < 0 else 'JOINT'} {names[i]}\n{tab}{{\n")
        out(f"{tab}  OFFSET {offset[0]:.5f} {offset[1]:.5f} {offset[2]:.5f}\n")
        position = "6 Xposition Yposition Zposition" if parent < 0 else "3"
        out(f"{tab}  CHANNELS {position} Zrotation Xrotation Yrotation\n")
        children = [c for c, p in enumerate(self.parents) if p == i]
        for child in children:
            self._joint(child, rest, names, depth + 1)
        if not children:
            tip = (rest[i] - rest[parent]) * _CM * 0.5
            out(f"{tab}  End Site\n{tab}  {{\n{tab}    OFFSET {tip[0]:.5f} {tip[1]:.5f} {tip[2]:.5f}\n{tab}  }}\n")
        out(f"{tab}}}\n")

    def write(self, rotations: np.ndarray, root_positions: np.ndarray) -> None:
        """Frames [F, J, 3, 3] and root joint positions [F, 3] metres, both in camera axes."""
        rotations = np.array(rotations, np.float64)
        rotations[:, 0] = CAMERA_TO_Y_UP @ rotations[:, 0]
        places = np.asarray(root_positions, np.float64) @ CAMERA_TO_Y_UP.T * _CM
        angles = euler_zxy(rotations)[:, self._order].reshape(len(rotations), -1)
        for place, row in zip(places, angles):
            self._file.write(" ".join(f"{v:.5f}" for v in (*place, *row)) + "\n")
        self.written += len(rotations)

    def close(self) -> None:
        self._file.close()
        if self.written != self.num_frames:
            raise ValueError(f"BvhWriter: promised {self.num_frames} frames, wrote {self.written}")
