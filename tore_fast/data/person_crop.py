"""Square person crops for inference, as the official demo makes them, and the way back to the original image.

In: [H, W, 3] uint8 pixels and a box. Out: normalised [3, S, S] float32 for a model, and a Crop that maps between crop
coordinates ([-1, 1]) and pixels of the image. Training crops with augmentation are in data/crop.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
BOX_MARGIN = 1.2  # annotated boxes are widened by this (METRO, FastMETRO, TORE data preparation)


@dataclass(frozen=True)
class Crop:
    """A square of the image: centre and side in pixels (pixel centres at half integers)."""

    center_x: float
    center_y: float
    side: float

    def to_image(self, points: np.ndarray) -> np.ndarray:  # [..., 2] in [-1, 1] -> [..., 2] pixels
        return points * (0.5 * self.side) + np.array([self.center_x, self.center_y])

    def camera_in_image(self, camera: np.ndarray) -> np.ndarray:  # (s, tx, ty) -> (scale_px, x_px, y_px)
        """Weak-perspective camera of the whole image: pixel = scale_px * xy + (x_px, y_px)."""
        scale = camera[0] * 0.5 * self.side
        return np.array([scale, self.center_x + scale * camera[1], self.center_y + scale * camera[2]])


def crop_of_box(box: tuple[float, float, float, float], margin: float = BOX_MARGIN) -> Crop:
    """Square around a box: its longer side times `margin`."""
    x0, y0, x1, y1 = box
    return Crop((x0 + x1) / 2, (y0 + y1) / 2, margin * max(x1 - x0, y1 - y0))


def centre_crop(width: int, height: int) -> Crop:
    """What the official demo scripts do to a whole image: its shorter side, in the middle."""
    return Crop(width / 2, height / 2, float(min(width, height)))


def whole_crop(width: int, height: int) -> Crop:
    """The whole image in one square, black where there is none."""
    return Crop(width / 2, height / 2, float(max(width, height)))


def cut(pixels: np.ndarray, crop: Crop, size: int) -> np.ndarray:
    """Normalised [3, size, size] float32 of a crop; PIL's antialiased bilinear, black outside the image."""
    height, width = pixels.shape[:2]
    left, top = crop.center_x - crop.side / 2, crop.center_y - crop.side / 2
    # whole pixels around the crop, then the exact window of them
    x0, y0 = int(np.floor(left)), int(np.floor(top))
    x1, y1 = int(np.ceil(left + crop.side)), int(np.ceil(top + crop.side))
    window = np.zeros((y1 - y0, x1 - x0, 3), np.uint8)
    sx0, sy0, sx1, sy1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if sx0 < sx1 and sy0 < sy1:
        window[sy0 - y0 : sy1 - y0, sx0 - x0 : sx1 - x0] = pixels[sy0:sy1, sx0:sx1]
    box = (left - x0, top - y0, min(left - x0 + crop.side, x1 - x0), min(top - y0 + crop.side, y1 - y0))
    small = Image.fromarray(window).resize((size, size), Image.Resampling.BILINEAR, box=box)
    values = np.asarray(small, np.float32) / 255.0
    return np.ascontiguousarray(((values - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1))
