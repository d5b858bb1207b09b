"""Key points of a person who walks on the spot: [T, 17, 3] in COCO order, pixels of a 1280 x 720 image."""

from __future__ import annotations

import numpy as np

COCO_NAMES = (
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist "
    "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle"
).split()
# x to the image's right (the person's left), y down, from the middle of the hips, in lengths of the torso
_STANDING = [[0, -1.45], [0.06, -1.5], [-0.06, -1.5], [0.14, -1.48], [-0.14, -1.48]]
_STANDING += [[0.35, -1], [-0.35, -1], [0.42, -0.45], [-0.42, -0.45], [0.45, 0.05], [-0.45, 0.05]]
_STANDING += [[0.2, 0], [-0.2, 0], [0.22, 0.85], [-0.22, 0.85], [0.22, 1.7], [-0.22, 1.7]]


def walker(frames: int = 24, x: float = 640.0, y: float = 360.0, torso: float = 120.0) -> np.ndarray:
    swing = np.sin(np.arange(frames) / 4)[:, None]
    points = np.tile(np.array(_STANDING)[None], (frames, 1, 1))
    for sign, rows in ((1, (7, 9, 14, 16)), (-1, (8, 10, 13, 15))):
        points[:, list(rows), 0] += sign * swing * [0.08, 0.2, 0.1, 0.25]
        points[:, list(rows), 1] -= np.abs(swing) * [0.02, 0.06, 0.03, 0.08]
    xy = points * torso + [x, y]
    return np.concatenate([xy, np.full((frames, 17, 1), 0.9)], -1).round(2)
