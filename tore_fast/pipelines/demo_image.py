"""The embedded demo image: one of our own renders, so that its truth is known. Made by tools/assets/demo.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..io.image import read_image

ASSETS = Path(__file__).resolve().parent / "assets"


class DemoTruth(NamedTuple):
    box: tuple[float, float, float, float]  # pixels
    vertices: np.ndarray  # [6890, 3] metres, camera orientation, pelvis at the origin
    joints_3d: np.ndarray  # [14, 3]


def demo_image() -> tuple[np.ndarray, DemoTruth]:
    """Pixels [H, W, 3] uint8 and truth of the embedded image."""
    with np.load(ASSETS / "demo_truth.npz", allow_pickle=False) as data:
        box: Any = tuple(float(v) for v in data["box"])
        truth = DemoTruth(box, data["vertices"].astype(np.float32), data["joints_3d"])
    return read_image(ASSETS / "demo.jpg"), truth
