"""The embedded images: a photograph, and a render of our own whose truth is known (made by tools/assets/demo.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..io.image import read_image

ASSETS = Path(__file__).resolve().parent / "assets"


PORTRAIT_SOURCE = "NASA portrait of the astronaut Eileen Collins (public domain), from NASA's Great Images collection"


class DemoTruth(NamedTuple):
    box: tuple[float, float, float, float]  # pixels
    vertices: np.ndarray  # [6890, 3] metres, camera orientation, pelvis at the origin
    joints_3d: np.ndarray  # [14, 3]


def portrait() -> np.ndarray:
    """Pixels [512, 512, 3] uint8 of the embedded photograph; NOTICE names its source."""
    return read_image(ASSETS / "portrait.jpg")


def demo_image() -> tuple[np.ndarray, DemoTruth]:
    """Pixels [H, W, 3] uint8 and truth of the embedded render."""
    with np.load(ASSETS / "demo_truth.npz", allow_pickle=False) as data:
        box: Any = tuple(float(v) for v in data["box"])
        truth = DemoTruth(box, data["vertices"].astype(np.float32), data["joints_3d"])
    return read_image(ASSETS / "demo.jpg"), truth
