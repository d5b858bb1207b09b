"""Focal length of a photograph from what its camera wrote into the file (EXIF)."""

from __future__ import annotations

import math
from pathlib import Path

from .image import MAX_BYTES, open_image
from .open_file import read_regular

_EXIF_IFD, _FOCAL_35MM, _FOCAL_MM, _PLANE_X, _PLANE_UNIT = 0x8769, 0xA405, 0x920A, 0xA20E, 0xA210
_MM_PER_UNIT = {2: 25.4, 3: 10.0, 4: 1.0}
_DIAGONAL_35MM = math.hypot(36.0, 24.0)
_PLAUSIBLE = (0.3, 20.0)  # focal length in longer sides: a fisheye, a long telephoto lens


def focal_from_exif(source: str | Path | bytes) -> float | None:
    """Focal length in pixels of the file's image, or None where the file does not say it or says something impossible.

    From the 35 mm equivalent (by the diagonal), else from the focal length and the resolution of the sensor. An image
    that was cropped after it was taken, and kept its EXIF, gives a wrong number.
    """
    try:
        data = source if isinstance(source, bytes) else read_regular(source, MAX_BYTES)
        with open_image(data) as image:
            width, height = image.size
            tags = image.getexif().get_ifd(_EXIF_IFD)
    except Exception:  # noqa: BLE001 (whoever needs the pixels says what is wrong with the file)
        return None

    def number(tag: int) -> float:
        try:
            value = float(tags.get(tag) or 0)
        except (TypeError, ValueError, ZeroDivisionError):
            return 0.0
        return value if math.isfinite(value) else 0.0

    focal = number(_FOCAL_35MM) / _DIAGONAL_35MM * math.hypot(width, height)
    if not focal:
        unit = _MM_PER_UNIT.get(int(number(_PLANE_UNIT)), 0.0)
        focal = number(_FOCAL_MM) * number(_PLANE_X) / unit if unit else 0.0
    low, high = (f * max(width, height) for f in _PLAUSIBLE)
    return focal if low <= focal <= high else None
