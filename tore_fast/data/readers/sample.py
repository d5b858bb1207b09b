"""Records to model inputs: the official test crop, and training samples with the official augmentation.

In: Record of this folder, rules of data/augment.py. Out: arrays for a model (images normalised, [3, H, W]) and for
losses.
"""

from __future__ import annotations

import numpy as np

from ...geometry.skeleton import J24
from ..augment import (
    AugmentConfig,
    draw_augmentation,
    training_crop,
    training_keypoints_2d,
    training_keypoints_3d,
    training_pose,
)
from .joint_sets import to_j24
from .record import DataError, Record

_PELVIS = J24.index("Pelvis")


def evaluation_crop(record: Record, image_size: int | tuple[int, int]) -> np.ndarray:  # [3, H, W] float32
    """The crop a model is evaluated on: the record's box, no augmentation.

    A square size is cut around the longer side of the box, as METRO, FastMETRO and TORE do. A tall size (256 x 192) is
    a square crop around the box widened to that aspect ratio, minus its side columns, as 4D-Humans does.
    """
    if record.center is None or record.scale <= 0:
        raise DataError(f"{record.name}: no person box")
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if width > height:
        raise ValueError(f"evaluation_crop: image_size must be square or taller than wide, got {height} x {width}")
    scale = record.scale
    if width < height and record.box_size is not None:
        box_width, box_height = record.box_size
        scale = max(float(box_height), float(box_width) * height / width) / 200.0
    crop = training_crop(record.image, record.center, scale, None, height)
    side = (height - width) // 2
    return np.ascontiguousarray(crop[:, :, side : side + width])


def training_sample(
    record: Record, rng: np.random.Generator, config: AugmentConfig | None = None, image_size: int = 224
) -> dict[str, np.ndarray]:
    """One augmented training item with the keys the losses of train/losses.py want.

    Returns:
        image [3, S, S]; joints_2d [J, 3] in [-1, 1] with visibility; joints_3d [J, 4] metres, root at the origin, with
        confidence; pose, betas; has_2d, has_3d, has_smpl (float 0 or 1). J is 24 (J24) for bodies, 21 for hands; labels
        that the record lacks are zeros with their flag 0.
    """
    hand = record.is_hand
    config = config or (AugmentConfig.hand() if hand else AugmentConfig())
    if hand and config.flip:
        raise ValueError(
            "training_sample: hands are never mirrored (the models are for right hands); use AugmentConfig.hand()"
        )
    assert record.center is not None  # checked above
    change = draw_augmentation(rng, config)
    count = 21 if hand else 24
    points_2d, points_3d = np.zeros((count, 3), np.float32), np.zeros((count, 4), np.float32)
    if record.keypoints_2d is not None:
        points_2d = record.keypoints_2d if hand else to_j24(record.keypoints_2d, record.keypoints_2d_set)
    if record.keypoints_3d is not None:
        points_3d = np.array(record.keypoints_3d if hand else to_j24(record.keypoints_3d, record.keypoints_3d_set))
        points_3d[:, :3] -= points_3d[0 if hand else _PELVIS, :3]
    pose = np.zeros(48 if hand else 72, np.float32) if record.pose is None else record.pose
    return {
        "image": training_crop(record.image, record.center, record.scale, change, image_size),
        "joints_2d": training_keypoints_2d(points_2d, record.center, record.scale, change, image_size),
        "joints_3d": training_keypoints_3d(points_3d, change),
        "pose": training_pose(pose, change),
        "betas": np.zeros(10, np.float32) if record.betas is None else np.asarray(record.betas, np.float32),
        "has_2d": np.asarray((points_2d[:, 2] > 0).any(), np.float32),
        "has_3d": np.asarray((points_3d[:, 3] > 0).any(), np.float32),
        "has_smpl": np.asarray(record.has_smpl, np.float32),
    }
