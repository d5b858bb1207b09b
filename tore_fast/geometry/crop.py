"""Crops: which rectangle of an image a model sees. How its pixels are taken is in geometry/warp.py.

Image coordinates are pixels (x, y), x right, y down. A crop's own coordinates are its pixels, or -1 to 1 from edge to
edge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RULES = ("hmr2", "tight", "spin", "topdown")
SPIN_BOX_PX = 200.0  # side of the box of scale 1 in the annotations of SPIN, METRO, FastMETRO and TORE
BOX_MARGIN = 1.2  # by which METRO, FastMETRO and TORE widen annotated boxes
_MARGIN = {"hmr2": 1.0, "tight": 1.0, "spin": BOX_MARGIN, "topdown": 1.25}


@dataclass(frozen=True)
class Crop:
    """A rectangle of the image, turned by `rotation_deg` about its middle.

    Args:
        center: x, y in pixels of the image.
        size: width, height in pixels of the image. A crop's width decides its scale.
        rotation_deg: by which the image turns counter-clockwise as it is cut.
    """

    center: tuple[float, float]
    size: tuple[float, float]
    rotation_deg: float = 0.0

    @classmethod
    def square(cls, x: float, y: float, side: float, rotation_deg: float = 0.0) -> Crop:
        """Square crop around (x, y), `side` pixels of the image wide."""
        return cls((x, y), (side, side), rotation_deg)

    @classmethod
    def of_scale(cls, center: Sequence[float], scale: float, rotation_deg: float = 0.0) -> Crop:
        """Square crop of SPIN's annotations: side 200 * scale pixels."""
        return cls.square(float(center[0]), float(center[1]), SPIN_BOX_PX * float(scale), rotation_deg)

    @property
    def side(self) -> float:
        """Width; of a square also the height."""
        return self.size[0]

    @property
    def x_y_side(self) -> tuple[float, float, float]:
        """Centre and side as one row."""
        return (*self.center, self.side)

    def matrix(self, size: int | tuple[int, int]) -> np.ndarray:  # [2, 3]
        """Affine map from image to crop pixels of a crop of `size` pixels: (height, width), or one number for a
        square."""
        h, w = height_width(size)
        # exactly SPIN's order of operations: its corners are truncated to whole pixels later, so the last bit matters
        extent = (self.side, self.side if h == w else self.side * h / w)
        dx, dy = (n * (-float(c) / e + 0.5) for n, c, e in zip((w, h), self.center, extent))
        t = np.array([[w / self.side, 0, dx], [0, w / self.side, dy], [0, 0, 1.0]])
        if self.rotation_deg:
            a = np.deg2rad(-self.rotation_deg)
            turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1.0]])
            to, back = np.eye(3), np.eye(3)
            to[:2, 2], back[:2, 2] = (-w / 2, -h / 2), (w / 2, h / 2)
            t = back @ turn @ to @ t
        return t[:2]

    def to_crop(self, points: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:  # [..., 2] -> [..., 2]
        """Crop pixels of image points."""
        t = self.matrix(size)
        return points @ t[:, :2].T + t[:, 2]

    def to_image(self, points: np.ndarray) -> np.ndarray:  # [..., 2] in [-1, 1] -> [..., 2] pixels
        """Image points of points of an unrotated square crop."""
        if self.rotation_deg or self.size[0] != self.size[1]:
            raise ValueError(f"to_image: the crop must be an unrotated square, got {self}")
        return points * (0.5 * self.side) + np.array(self.center)


def height_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """(H, W) of a size given as such or as the side of a square."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def crop_of_box(
    box: Sequence[float],  # x0, y0, x1, y1 px
    rule: str = "spin",
    margin: float | None = None,
    size: int | tuple[int, int] = (1, 1),
) -> Crop:
    """The crop that a model was trained to see of a box.

    Args:
        rule: "spin", the square of the longer side (METRO, FastMETRO, TORE, SPIN); "tight" is the same with margin 1
            (CameraHMR's demo), wide boxes lose their sides where the outer columns are not used; "hmr2" grows the
            shorter side to 192:256 first, so that cutting 32 of 256 columns per side keeps the box; "topdown" grows the
            box to the aspect ratio of `size` (heat-map models).
        margin: by which the result grows. None: 1.2 for spin, 1.25 for topdown, else 1.
        size: (height, width) of the crop's pixels, for "topdown".

    Raises:
        ValueError: unknown rule, or a box that is empty or not finite.

    Example:
        >>> crop_of_box((0, 0, 192, 100), "hmr2").x_y_side
        (96.0, 50.0, 256.0)
    """
    if rule not in RULES:
        raise ValueError(f"crop_of_box: rule must be one of {RULES}, got {rule!r}")
    x0, y0, x1, y1 = map(float, box)
    w, h = x1 - x0, y1 - y0
    if not (w > 0 and h > 0 and math.isfinite(w * h)):
        raise ValueError(f"crop_of_box: box must be x0 < x1 and y0 < y1, got {tuple(box)}")
    grow = _MARGIN[rule] if margin is None else margin
    center = ((x0 + x1) / 2, (y0 + y1) / 2)
    if rule == "topdown":
        rows, columns = height_width(size)
        aspect = columns / rows
        return Crop(center, (max(w, h * aspect) * grow, max(h, w / aspect) * grow))
    side = max(h, w * 4 / 3) if rule == "hmr2" else max(w, h)
    return Crop.square(*center, side * grow)


def centre_crop(width: int, height: int) -> Crop:
    """What the official demo scripts do to a whole image: its shorter side, in the middle."""
    return Crop.square(width / 2, height / 2, float(min(width, height)))


def whole_crop(width: int, height: int) -> Crop:
    """The whole image in one square."""
    return Crop.square(width / 2, height / 2, float(max(width, height)))


def spin_pixels(points: np.ndarray, crop: Crop, size: int) -> np.ndarray:  # [N, 2] -> [N, 2] int64
    """Whole crop pixels of image points as SPIN has them: truncated towards zero, then plus one (upstream counts from
    1)."""
    return crop.to_crop(np.asarray(points, np.float64), size).astype(np.int64) + 1
