"""People by frame as a file of key points holds them, nothing filled in, nothing chosen; and the rule of what is not
seen.

Made by json_forms.py, arrays.py and table.py, used by clip.py. Points that were not seen are NaN.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .orders import KeypointError

MAX_JOINTS = 1024
FAR = 1e6  # pixels: no image is so large, no point so far outside of one


class SeenPerson(NamedTuple):
    """One person in one frame."""

    points: np.ndarray  # [J, 3] float64: x, y, confidence; NaN, NaN, 0 where not seen
    track: str | None = None
    score: float = 1.0


@dataclass
class Found:
    """All of a file."""

    frames: dict[int, list[SeenPerson]]
    order: str | None = None
    facts: dict[str, float] = field(default_factory=dict)  # width, height, fps where the file says so
    length: int | None = None  # frames, of files that hold an array: all are kept
    notes: list[str] = field(default_factory=list)


def clean(points: np.ndarray) -> np.ndarray:
    """[..., 2 or 3] of a detector -> [..., 3] float64. Not seen, so NaN and confidence 0: NaN or absurd numbers,
    confidence 0 or
    none, and exactly (0, 0) or (-1, -1), which is how detectors write a point that they did not find."""
    points = np.asarray(points, np.float64)
    if points.shape[-1] == 2:
        points = np.concatenate([points, np.ones((*points.shape[:-1], 1))], -1)
    points = points.copy()
    bad = ~np.isfinite(points).all(-1) | (points[..., 2] <= 0) | (np.abs(points[..., :2]) > FAR).any(-1)
    bad |= (points[..., :2] == 0).all(-1) | (points[..., :2] == -1).all(-1)
    points[bad] = (np.nan, np.nan, 0)
    points[..., 2] = np.minimum(points[..., 2], 1)  # COCO's 2 is "visible"
    return points


def numbers_of(names: Sequence[str]) -> list[int]:
    """Frame numbers of image names: the last digits of each, where that makes them all different and rising; else 0, 1,
    2 ..."""
    out = []
    for name in names:
        digits = re.findall(r"\d+", re.sub(r"_?keypoints$", "", name))
        out.append(int(digits[-1]) if digits and len(digits[-1]) < 16 else -1)
    rising = all(a < b for a, b in zip(out, out[1:]))
    return out if rising and out and out[0] >= 0 else list(range(len(names)))


def track_id(given: Any) -> str | None:
    """Track as a text: 3, 3.0, "3" and [3] are the same person."""
    while isinstance(given, list):
        given = given[0] if given else None
    if given is None or given == "":
        return None
    if isinstance(given, float) and given.is_integer():
        given = int(given)
    return str(given)


def planar(points: np.ndarray) -> np.ndarray:
    """x, y, confidence of [..., 2 to 5] columns; MediaPipe writes x, y, z, visibility (and presence)."""
    return points if points.shape[-1] <= 3 else points[..., [0, 1, 3]]


def box_of(points: np.ndarray) -> np.ndarray | None:
    """x0, y0, x1, y1 round the points that are seen."""
    seen = points[np.isfinite(points[:, 0]), :2]
    return np.concatenate([seen.min(0), seen.max(0)]) if len(seen) >= 2 else None


def facts_of(data: dict, path: Path) -> dict[str, float]:
    """width, height, fps, where a file states them."""
    out = {}
    for key, also in (("width", "w"), ("height", "h"), ("fps", "frame_rate")):
        value = data.get(key, data.get(also))
        if value is None:
            continue
        try:
            number = float(np.asarray(value).reshape(()))
        except (TypeError, ValueError, OverflowError):
            number = 0.0
        if not 0 < number < FAR:
            raise KeypointError(f"{path}: {key}: expected a positive number, got {str(value)[:40]}")
        out[key] = number
    return out


def given_order(data: dict, path: Path) -> str | None:
    """The order that a file states."""
    value = data.get("order")
    return None if value is None else str(np.asarray(value)).lower()
