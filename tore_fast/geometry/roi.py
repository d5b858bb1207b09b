"""Rotated squares of an image (regions of interest): made of two points of a person, cut out, and the way back.

In: pixels [H, W, 3] uint8 and a Roi; out: float32 crops in 0..1 for the landmark net, points of the image. The rule is
MediaPipe's: the square is centred on the hips, reaches 1.25 times as far as the circle round the body, and is turned so
that the body stands upright in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

MARGIN = 1.25  # side of the square = 2 * MARGIN * radius
_SHRINK = 1.25  # a crop whose pixels are larger than this is made smaller with antialiasing first


@dataclass(frozen=True)
class Roi:
    """A square of the image: centre and side in pixels (pixel centres at half integers), turned clockwise by
    `angle`."""

    center_x: float
    center_y: float
    side: float
    angle: float  # radians

    @property
    def center(self) -> np.ndarray:
        return np.array([self.center_x, self.center_y])

    def turn(self, vectors: np.ndarray) -> np.ndarray:
        """Directions of the upright crop [..., 2 or 3] in the axes of the image; depth stays."""
        c, s = np.cos(self.angle), np.sin(self.angle)
        out = np.array(vectors, copy=True)
        x, y = vectors[..., 0], vectors[..., 1]
        out[..., 0], out[..., 1] = c * x - s * y, s * x + c * y
        return out

    def to_image(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 2] in 0..1 of the crop -> pixels of the image."""
        return self.turn((points - 0.5) * self.side) + self.center

    def to_crop(self, points: np.ndarray) -> np.ndarray:
        """Pixels of the image -> 0..1 of the crop."""
        back = Roi(0.0, 0.0, 1.0, -self.angle)
        return back.turn(points - self.center) / self.side + 0.5

    def is_usable(self) -> bool:
        """Finite and at least four pixels wide."""
        return bool(np.isfinite([self.center_x, self.center_y, self.side, self.angle]).all() and self.side >= 4)


def roi_of_points(center: np.ndarray, circle: np.ndarray, margin: float = MARGIN) -> Roi:
    """The square of a person from the middle of the hips and a point on the circle round the body, above the head
    (pixels)."""
    dx, dy = (np.asarray(circle, float) - np.asarray(center, float)).tolist()
    angle = np.pi / 2 - np.arctan2(-dy, dx)
    angle -= 2 * np.pi * np.floor((angle + np.pi) / (2 * np.pi))
    return Roi(float(center[0]), float(center[1]), float(2 * margin * np.hypot(dx, dy)), float(angle))


def cut_roi(pixels: np.ndarray, roi: Roi, size: int) -> np.ndarray:
    """The crop as [3, size, size] float32 in 0..1; beyond the image its edge goes on.

    Bilinear; where a pixel of the crop is larger than one of the image, the part in question is made smaller first
    (PIL's antialiased bilinear).
    """
    height, width = pixels.shape[:2]
    reach = roi.side * 0.71 + 2  # half the diagonal
    x0, x1 = (int(np.clip(v, 0, width)) for v in (roi.center_x - reach, np.ceil(roi.center_x + reach)))
    y0, y1 = (int(np.clip(v, 0, height)) for v in (roi.center_y - reach, np.ceil(roi.center_y + reach)))
    x0, y0 = min(x0, width - 1), min(y0, height - 1)  # beside the image: its last column, row
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    part, scale_x, scale_y = pixels[y0:y1, x0:x1], 1.0, 1.0
    shrink = roi.side / size
    if shrink > _SHRINK:
        small = max(1, round((x1 - x0) / shrink)), max(1, round((y1 - y0) / shrink))
        scale_x, scale_y = small[0] / (x1 - x0), small[1] / (y1 - y0)
        part = np.asarray(Image.fromarray(part).resize(small, Image.Resampling.BILINEAR, reducing_gap=3.0))
    line = (torch.arange(size, dtype=torch.float64) + 0.5) / size - 0.5
    c, s = np.cos(roi.angle) * roi.side, np.sin(roi.angle) * roi.side
    x = (roi.center_x + c * line[None, :] - s * line[:, None] - x0) * (2 * scale_x / part.shape[1]) - 1
    y = (roi.center_y + s * line[None, :] + c * line[:, None] - y0) * (2 * scale_y / part.shape[0]) - 1
    planes = torch.from_numpy(np.ascontiguousarray(part.transpose(2, 0, 1), np.float32))[None]
    grid = torch.stack([x, y], -1)[None].float()
    crop = torch.nn.functional.grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return (crop[0] / 255).numpy()
