"""Training crops of the official repositories: box around a person, augmentation, and what moves with the image.

In: [H, W, 3] pixels with a centre and scale (box side = 200 * scale pixels), joints, SMPL pose. Out: normalised crops and
targets for train/. METRO, FastMETRO, Mesh Graphormer and TORE share these rules (inherited from SPIN), odd rounding included.
Inference crops, which need none of this, are in data/person_crop.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from ..geometry.skeleton import J24, SMPL24, mirror_points
from .person_crop import BOX_MARGIN, IMAGENET_MEAN, IMAGENET_STD

BOX_SIDE_PX = 200.0  # box side of scale 1


def box_center_scale(box: tuple[float, float, float, float], margin: float = BOX_MARGIN) -> tuple[np.ndarray, float]:
    """Centre (x, y) and scale of a box (x0, y0, x1, y1), its longer side widened by `margin`."""
    x0, y0, x1, y1 = box
    return np.array([(x0 + x1) / 2, (y0 + y1) / 2]), margin * max(x1 - x0, y1 - y0) / BOX_SIDE_PX


def crop_matrix(center, scale: float, size: int, rotation_deg: float = 0.0) -> np.ndarray:  # [3, 3]
    """Homogeneous map from image to crop pixels; the crop turns by `rotation_deg` about its middle."""
    side = BOX_SIDE_PX * scale
    k = size / side
    # exactly upstream's order of operations: corners are truncated to whole pixels later, so the last bit matters
    dx, dy = (size * (-float(c) / side + 0.5) for c in center)
    t = np.array([[k, 0, dx], [0, k, dy], [0, 0, 1.0]])
    if rotation_deg:
        a, half = np.deg2rad(-rotation_deg), size / 2
        turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1.0]])
        to, back = np.eye(3), np.eye(3)
        to[:2, 2], back[:2, 2] = -half, half
        t = back @ turn @ to @ t
    return t


def transform_points(points: np.ndarray, center, scale: float, size: int, rotation_deg: float = 0.0) -> np.ndarray:
    """Integer crop pixels [N, 2] of image points [N, 2]: truncated towards zero, then plus one (upstream counts from 1)."""
    t = crop_matrix(center, scale, size, rotation_deg)
    return (np.asarray(points, np.float64) @ t[:2, :2].T + t[:2, 2]).astype(np.int64) + 1


def normalize_points(points: np.ndarray, size: int) -> np.ndarray:
    """Crop pixels to the [-1, 1] of the 2D losses."""
    return 2.0 * points / size - 1.0


def crop_image(pixels: np.ndarray, center, scale: float, size: int, rotation_deg: float = 0.0) -> np.ndarray:
    """Square crop [size, size, 3] float64 in 0..255.

    The box is cut at whole pixels (truncated), zero outside the image, turned by bilinear sampling about its middle if
    asked, then resized bilinearly without antialiasing.

    Raises:
        ValueError: pixels not [H, W, 3], or a box of no pixels.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"crop_image: pixels must be [H, W, 3], got {list(pixels.shape)}")
    inverse = np.linalg.inv(crop_matrix(center, scale, size))
    upper_left = (inverse @ [0, 0, 1.0])[:2].astype(np.int64)
    lower_right = (inverse @ [size, size, 1.0])[:2].astype(np.int64)
    if (lower_right <= upper_left).any():
        raise ValueError(f"crop_image: scale {scale} at {list(center)} gives a box without pixels")
    pad = 0
    if rotation_deg:
        diagonal = lower_right - upper_left
        pad = int(np.linalg.norm(diagonal) / 2 - diagonal[1] / 2)
    x0, y0 = upper_left - pad
    x1, y1 = lower_right + pad
    height, width = pixels.shape[:2]
    window = np.zeros((y1 - y0, x1 - x0, 3), pixels.dtype)
    sx0, sy0, sx1, sy1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if sx0 < sx1 and sy0 < sy1:
        window[sy0 - y0 : sy1 - y0, sx0 - x0 : sx1 - x0] = pixels[sy0:sy1, sx0:sx1]
    inner = np.array(window.shape[:2]) - 2 * pad
    rows, cols = (((np.arange(size) + 0.5) * (n / size) - 0.5).clip(0, n - 1) for n in inner)
    if not pad:
        return _resize(window, rows, cols)
    # only the pixels that the resize reads are turned: 448 x 448 at most, whatever the box
    need_y, need_x = (np.unique(np.concatenate(_neighbours(v, n)[:2])) for v, n in zip((rows, cols), inner))
    turned = _rotate(window, rotation_deg, need_y + pad, need_x + pad)
    return _resize(turned, rows, cols, inner, need_y, need_x)


def _neighbours(v: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whole places below and above v in 0..n-1, and how far v lies towards the upper one."""
    low = np.minimum(v.astype(np.int64), max(n - 2, 0))
    return low, np.minimum(low + 1, n - 1), v - low


def _resize(
    image: np.ndarray, rows, cols, extent=None, have_y=None, have_x=None
) -> np.ndarray:  # [len(rows), len(cols), 3]
    """Bilinear samples at rows x cols of an image of `extent`, of which `image` holds the lines have_y and have_x (None: all)."""
    height, width = image.shape[:2] if extent is None else extent
    y0, y1, fy = _neighbours(rows, height)
    x0, x1, fx = _neighbours(cols, width)
    if have_y is not None:
        y0, y1, x0, x1 = (np.searchsorted(h, v) for h, v in ((have_y, y0), (have_y, y1), (have_x, x0), (have_x, x1)))
    fy, fx = fy[:, None, None], fx[:, None]
    upper, lower = image[y0], image[y1]
    top = upper[:, x0] * (1 - fx) + upper[:, x1] * fx
    return top * (1 - fy) + (lower[:, x0] * (1 - fx) + lower[:, x1] * fx) * fy


def _rotate(
    image: np.ndarray, degrees: float, rows: np.ndarray, cols: np.ndarray
) -> np.ndarray:  # [len(rows), len(cols), 3]
    """Pixels rows x cols of the image turned counter-clockwise about its middle pixel, zero outside."""
    h, w = image.shape[:2]
    a, cx, cy = np.deg2rad(degrees), (w - 1) / 2, (h - 1) / 2
    y, x = rows[:, None] - cy, cols - cx
    from_x, from_y = np.cos(a) * x - np.sin(a) * y + cx, np.sin(a) * x + np.cos(a) * y + cy
    # places in 1/32 pixel, as OpenCV's fixed-point warp takes them; one black pixel around for the border
    from_x, from_y = (np.floor(v * 32 + 0.5) / 32 + 1 for v in (from_x, from_y))
    return _sample(np.pad(image, ((1, 1), (1, 1), (0, 0))), from_y, from_x)


def _sample(image: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Bilinear samples at (y, x); places outside take the border."""
    h, w = image.shape[:2]
    y0, y1, fy = _neighbours(y.clip(0, h - 1), h)
    x0, x1, fx = _neighbours(x.clip(0, w - 1), w)
    fy, fx, flat = fy[..., None], fx[..., None], image.reshape(h * w, -1)
    y0, y1 = y0 * w, y1 * w
    top = flat.take(y0 + x0, 0) * (1 - fx) + flat.take(y0 + x1, 0) * fx
    return top * (1 - fy) + (flat.take(y1 + x0, 0) * (1 - fx) + flat.take(y1 + x1, 0) * fx) * fy


def mirror_pose(pose: np.ndarray) -> np.ndarray:  # [72]
    """SMPL axis-angle pose of the mirrored body."""
    out = np.array(pose, np.float64).reshape(24, 3)[list(SMPL24.mirror)]
    return (out * [1.0, -1.0, -1.0]).reshape(72)


def rotate_axis_angle(root: np.ndarray, rotation_deg: float) -> np.ndarray:  # [3]
    """Root orientation of a body whose image was turned by `rotation_deg` (as crop_image turns it)."""
    turn = Rotation.from_euler("z", -rotation_deg, degrees=True)
    return (turn * Rotation.from_rotvec(root)).as_rotvec()


def rectify_pose(pose: np.ndarray) -> np.ndarray:  # [72]
    """Pose with its root turned by 180 degrees about the body's own x axis (data sets with y pointing down)."""
    out = np.array(pose, np.float64)
    out[:3] = (Rotation.from_rotvec(out[:3]) * Rotation.from_rotvec([np.pi, 0, 0])).as_rotvec()
    return out


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
    gain = rng.uniform(1 - config.noise, 1 + config.noise, 3)
    rotation = float(np.clip(rng.normal() * config.rotation_deg, -2 * config.rotation_deg, 2 * config.rotation_deg))
    if rng.random() < config.upright:
        rotation = 0.0
    scale = float(np.clip(rng.normal() * config.scale + 1, 1 - config.scale, 1 + config.scale))
    return Augmentation(flip, tuple(map(float, gain)), rotation, scale)


def training_crop(
    pixels: np.ndarray, center, scale: float, augmentation: Augmentation | None = None, size: int = 224
) -> np.ndarray:
    """Normalised training crop [3, size, size] float32: cut, mirror, gain clipped to 0..255, ImageNet mean and deviation."""
    a = augmentation or Augmentation()
    crop = crop_image(pixels, center, scale * a.scale, size, a.rotation_deg)
    if a.flip:
        crop = crop[:, ::-1]
    crop = (crop * a.gain).clip(0, 255) / 255.0
    return np.ascontiguousarray(((crop - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1), np.float32)


def training_keypoints_2d(
    joints: np.ndarray,  # [24, 3] image pixels and visibility
    center,
    scale: float,
    augmentation: Augmentation | None = None,
    size: int = 224,
) -> np.ndarray:  # [24, 3]
    """J24 joints in the [-1, 1] of the training crop, visibility kept."""
    a = augmentation or Augmentation()
    out = np.array(joints, np.float64)
    out[:, :2] = normalize_points(transform_points(joints[:, :2], center, scale * a.scale, size, a.rotation_deg), size)
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
