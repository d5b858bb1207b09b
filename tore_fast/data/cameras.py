"""Cameras for pose lifting: normalised 2D, world <-> camera, synthetic static cameras, detector-like noise.

In: world joints in metres (z up) or pixels. Out: camera-space joints in metres (x right, y down, z forward) and
normalised 2D keypoints. Used by data/h36m.py, data/mocap.py and pipelines/lift.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation


def normalise_2d(pixels: np.ndarray, width: float, height: float) -> np.ndarray:
    """Pixels [..., 2+] -> x in [-1, 1], y scaled alike (aspect kept): x / w * 2 - 1, y / w * 2 - h / w. Extra channels
    stay."""
    if width <= 0 or height <= 0:
        raise ValueError(f"normalise_2d: width and height must be positive, got {width} x {height}")
    out = np.array(pixels, dtype=np.result_type(pixels, np.float32))
    out[..., 0] = out[..., 0] / width * 2 - 1
    out[..., 1] = out[..., 1] / width * 2 - height / width
    return out


def crop_scale_2d(pixels: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Whole clip [T, J, 2+] scaled so that its largest extent spans [-scale, scale], centred on its bounding box.

    With a third channel (confidence), points of confidence 0 do not count. MotionBERT's second normalisation.
    """
    out = np.array(pixels, dtype=np.result_type(pixels, np.float32))
    valid = out[..., 2] > 0 if out.shape[-1] > 2 else np.ones(out.shape[:-1], bool)
    if not valid.any():
        raise ValueError("crop_scale_2d: no keypoint with confidence above 0")
    low, high = out[valid][:, :2].min(0), out[valid][:, :2].max(0)
    extent = float((high - low).max())
    if extent <= 0:
        raise ValueError("crop_scale_2d: all keypoints coincide")
    out[..., :2] = (out[..., :2] - (low + high) / 2) / (extent / 2) * scale
    return out


def world_to_camera(x: np.ndarray, orientation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """R^T (x - t) for a camera of this orientation (unit quaternion w, x, y, z) and position; x [..., 3]."""
    return (x - translation) @ Rotation.from_quat(orientation, scalar_first=True).as_matrix()


@dataclass(frozen=True)
class StaticCamera:
    """A pinhole camera that does not move. `rotation` [3, 3] maps world to camera axes."""

    rotation: np.ndarray
    position: np.ndarray  # metres, world
    focal: float  # in half widths: normalised 2D = focal * X / Z

    def to_camera(self, world: np.ndarray) -> np.ndarray:
        """World joints [..., 3] -> camera space."""
        return ((world - self.position) @ self.rotation.T).astype(world.dtype)

    def project(self, camera: np.ndarray) -> np.ndarray:
        """Camera-space joints [..., 3] -> normalised 2D [..., 2]; points behind the camera are an error of the
        caller."""
        return (self.focal * camera[..., :2] / camera[..., 2:]).astype(camera.dtype)


def look_at(position: np.ndarray, target: np.ndarray, focal: float) -> StaticCamera:
    """Upright camera at `position` that sees `target` in its centre (world z up; camera x right, y down, z forward)."""
    forward = np.asarray(target, np.float64) - position
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    return StaticCamera(np.stack([right, np.cross(forward, right), forward]), np.asarray(position, np.float64), focal)


def random_camera(rng: np.random.Generator, target: np.ndarray) -> StaticCamera:
    """Static camera around `target` (metres, z up): 3.5-5.5 m away, 1-2 m high, any azimuth, focal 2.29 half widths."""
    azimuth, distance, height = rng.uniform(0, 2 * np.pi), rng.uniform(3.5, 5.5), rng.uniform(1.0, 2.0)
    offset = np.array([np.cos(azimuth), np.sin(azimuth), 0.0]) * distance
    position = np.array([target[0], target[1], 0.0]) + offset + np.array([0.0, 0.0, height])
    aim = np.asarray(target, np.float64) + rng.normal(0, 0.1, 3)
    return look_at(position, aim, focal=2.29)


def detector_noise(
    rng: np.random.Generator,
    shape: tuple[int, ...],  # (T, J, 2)
    sigma_px: float = 5.0,
    width_px: float = 1000.0,
    correlation: float = 0.9,
) -> np.ndarray:
    """Additive error of a 2D detector in normalised units: per joint a slow part (AR(1), `correlation`) plus jitter.

    The two parts have equal variance and together the standard deviation `sigma_px`; joints differ by a factor 0.6-1.4.
    """
    if not 0 <= correlation < 1:
        raise ValueError(f"detector_noise: correlation must be in [0, 1), got {correlation}")
    white = rng.standard_normal((2, *shape))
    slow = np.empty(shape)
    slow[0] = white[0, 0]
    for t in range(1, shape[0]):
        slow[t] = correlation * slow[t - 1] + np.sqrt(1 - correlation**2) * white[0, t]
    per_joint = rng.uniform(0.6, 1.4, (1, *shape[1:-1], 1))
    return ((slow + white[1]) / np.sqrt(2) * per_joint * sigma_px * 2 / width_px).astype(np.float32)
