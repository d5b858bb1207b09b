"""What was found of one person, side by side: the photograph, the landmarks, the body over it, the body from the side.

In: pixels and arrays of one person (pipelines/images.py:Person) or several; out: pixels. Used by `tore-fast demo` and
the README.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ..models.keypoints.blazepose import LANDMARK_BONES
from .overlay import PALETTE, draw_people, rotated

_SEEN = 0.5  # visibility from which a landmark is drawn strongly
_STRONG, _WEAK = (255, 214, 10), (150, 150, 150)
_GREY, _FILL = 236, 0.9  # background of the side view, and how much of it the body takes


def draw_landmarks(
    image: np.ndarray,  # [H, W, 3] uint8
    points: Sequence[np.ndarray],  # [33, 2] pixels each
    visibility: Sequence[np.ndarray],  # [33] 0..1 each
) -> np.ndarray:  # [H, W, 3] uint8
    """The darkened image with the bones between landmarks; those with a hidden end are thin and grey."""
    canvas = Image.fromarray((np.asarray(image) * 0.55).astype(np.uint8))
    pen, width = ImageDraw.Draw(canvas), max(1, round(max(image.shape[:2]) / 140))
    for place, seen in zip(points, visibility):
        place, strong = np.asarray(place, float), np.asarray(seen) >= _SEEN
        if not np.isfinite(place).all():
            continue
        for both in (False, True):  # strong ones on top
            for a, b in LANDMARK_BONES:
                if bool(strong[a] and strong[b]) == both:
                    ends = [*place[a], *place[b]]
                    pen.line(ends, fill=_STRONG if both else _WEAK, width=width if both else max(1, width // 3))
        for x, y in place[strong]:
            pen.ellipse([x - width, y - width, x + width, y + width], fill=(255, 255, 255))
    return np.asarray(canvas)


def side_view(
    vertices: np.ndarray,  # [V, 3] metres, camera axes
    faces: np.ndarray,  # [F, 3]
    size: tuple[int, int],  # width, height
    yaw_degrees: float = 90.0,
    colour: tuple[int, int, int] = PALETTE[0],
) -> np.ndarray:  # [H, W, 3] uint8
    """The whole body, turned about the vertical axis, as large as the size allows; the camera looks from the person's
    side."""
    turned = rotated(vertices, yaw_degrees)
    low, high = turned.min(0), turned.max(0)
    extent = np.maximum(high - low, 1e-6)
    scale = _FILL * min(size[0] / extent[0], size[1] / extent[1])
    middle = scale * (low + high) / 2
    camera = (scale, size[0] / 2 - middle[0], size[1] / 2 - middle[1])
    blank = np.full((size[1], size[0], 3), _GREY, np.uint8)
    return draw_people(blank, [turned], faces, [camera], colours=[colour], alpha=1.0)
