"""One recorded clip for pose lifting, whatever data set it came from: 2D in, 3D out, in the H36M joint order.

Made by data/h36m.py (Human3.6M, MotionBERT, MPI-INF-3DHP files) and data/mocap.py (motion files through synthetic
cameras); cut into windows by geometry/windows.py; used by train/lifting.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class PoseClip:
    subject: str
    action: str
    camera: str
    keypoints: np.ndarray  # [T, 17, 2 or 3] float32, normalised 2D (+ confidence)
    pose: np.ndarray  # [T, 17, 3] float32, root-relative camera space, metres (joint 0 is 0)
    valid: np.ndarray | None = None  # [T] bool, frames that are evaluated; None: all
    metres: np.ndarray | None = (
        None  # [T] metres in one unit of `pose`, where it is not in metres; evaluation applies it
    )

    def __post_init__(self) -> None:
        t = len(self.keypoints)
        if (
            self.keypoints.shape[:2] != (t, 17)
            or self.keypoints.shape[2] not in (2, 3)
            or self.pose.shape != (t, 17, 3)
        ):
            raise ValueError(
                f"{self.subject}/{self.action}/{self.camera}: keypoints must be [T, 17, 2 or 3] and pose [T, 17, 3], "
                f"got {list(self.keypoints.shape)} and {list(self.pose.shape)}"
            )

    def __len__(self) -> int:
        return len(self.pose)

    def with_channels(self, channels: int) -> PoseClip:
        """The clip with 2 (x, y) or 3 (x, y, confidence; 1 where the data has none) input channels."""
        have = self.keypoints.shape[2]
        if have == channels:
            return self
        if have == 3:
            return replace(self, keypoints=self.keypoints[..., :2])
        ones = np.ones((*self.keypoints.shape[:2], 1), np.float32)
        return replace(self, keypoints=np.concatenate([self.keypoints, ones], axis=-1))


def root_relative(pose: np.ndarray) -> np.ndarray:
    """float32 poses with joint 0 at the origin."""
    return (pose - pose[..., :1, :]).astype(np.float32)
