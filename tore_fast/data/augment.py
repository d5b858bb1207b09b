"""Augmentation of training crops as the official repositories do it, and what moves with the image.

In: [H, W, 3] pixels with a centre and scale (box side = 200 * scale pixels), joints, SMPL pose. Out: normalised crops
and targets for train/. METRO, FastMETRO, Mesh Graphormer and TORE share these rules (inherited from SPIN), odd rounding
included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from ..geometry.crop import Crop, spin_pixels
from ..geometry.skeleton import J24, SMPL24, mirror_points
from ..geometry.warp import normalise_image, warp


def mirror_pose(pose: np.ndarray) -> np.ndarray:  # [72]
    """SMPL axis-angle pose of the mirrored body."""
    out = np.array(pose, np.float64).reshape(24, 3)[list(SMPL24.mirror)]
    return (out * [1.0, -1.0, -1.0]).reshape(72)


def rotate_axis_angle(root: np.ndarray, rotation_deg: float) -> np.ndarray:  # [3]
    """Root orientation of a body whose image was turned by `rotation_deg` (as Crop turns it)."""
    turn = Rotation.from_euler("z", -rotation_deg, degrees=True)
    return (turn * Rotation.from_rotvec(root)).as_rotvec()


@dataclass(frozen=True)
class AugmentConfig:
    """Random crop changes of the official training; `hand()` for FreiHAND."""

    flip: float = 0.5  # probability; hands are never mirrored
    noise: float = 0.4  # per-channel gain U(1 - noise, 1 + noise)
    rotation_deg: float = 30.0  # N(0, rotation), clipped to twice that
    upright: float = 0.6  # probability of no rotation
    scale: float = 0.25  # N(1, scale), clipped to 1 -+ scale

    @staticmethod
    def hand() -> AugmentConfig:
        return AugmentConfig(flip=0.0, rotation_deg=90.0)


@dataclass(frozen=True)
class Augmentation:
    """One drawn change of a crop; the default changes nothing."""

    flip: bool = False
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    rotation_deg: float = 0.0
    scale: float = 1.0


def draw_augmentation(rng: np.random.Generator, config: AugmentConfig) -> Augmentation:
    """Draws one change of a training crop."""
    flip = bool(rng.random() < config.flip)
    red, green, blue = map(float, rng.uniform(1 - config.noise, 1 + config.noise, 3))
    rotation = float(np.clip(rng.normal() * config.rotation_deg, -2 * config.rotation_deg, 2 * config.rotation_deg))
    if rng.random() < config.upright:
        rotation = 0.0
    scale = float(np.clip(rng.normal() * config.scale + 1, 1 - config.scale, 1 + config.scale))
    return Augmentation(flip, (red, green, blue), rotation, scale)


def _cut(center: Any, scale: float, a: Augmentation) -> Crop:
    return Crop.of_scale(center, scale * a.scale, a.rotation_deg)


def training_crop(
    pixels: np.ndarray,
    center: Sequence[float] | np.ndarray,
    scale: float,
    augmentation: Augmentation | None = None,
    size: int = 224,
) -> np.ndarray:
    """Normalised training crop [3, size, size] float32: cut, mirror, gain clipped to 0..255, ImageNet mean and
    deviation."""
    a = augmentation or Augmentation()
    crop = warp(pixels, _cut(center, scale, a), size, "spin")
    if a.flip:
        crop = crop[:, ::-1]
    crop = (crop * a.gain).clip(0, 255)
    return normalise_image(torch.from_numpy(crop).permute(2, 0, 1)).float().contiguous().numpy()


def training_keypoints_2d(
    joints: np.ndarray,  # [24, 3] image pixels and visibility
    center: Sequence[float] | np.ndarray,
    scale: float,
    augmentation: Augmentation | None = None,
    size: int = 224,
) -> np.ndarray:  # [24, 3]
    """J24 joints in the [-1, 1] of the training crop, visibility kept."""
    a = augmentation or Augmentation()
    out = np.array(joints, np.float64)
    out[:, :2] = 2.0 * spin_pixels(joints[:, :2], _cut(center, scale, a), size) / size - 1.0
    return (mirror_points(out, J24) if a.flip else out).astype(np.float32)


def training_keypoints_3d(joints: np.ndarray, augmentation: Augmentation | None = None) -> np.ndarray:  # [24, 4]
    """J24 joints in metres (and confidence), turned in the image plane and mirrored like the crop."""
    a = augmentation or Augmentation()
    out = np.array(joints, np.float64)
    if a.rotation_deg:
        out[:, :3] = Rotation.from_euler("z", -a.rotation_deg, degrees=True).apply(out[:, :3])
    return (mirror_points(out, J24) if a.flip else out).astype(np.float32)


def training_pose(pose: np.ndarray, augmentation: Augmentation | None = None) -> np.ndarray:  # [72]
    """SMPL pose turned and mirrored like the crop."""
    a = augmentation or Augmentation()
    out = np.array(pose, np.float64)
    out[:3] = rotate_axis_angle(out[:3], a.rotation_deg)
    return (mirror_pose(out) if a.flip else out).astype(np.float32)
