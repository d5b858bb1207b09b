"""FreiHAND as published: `<split>/rgb/00000000.jpg` beside `<split>_K.json`, `_xyz.json`, `_verts.json`, `_mano.json`.

In: its folder. Out: Records of right hands, hand21 joints, box of the official crops (centre 112, scale 0.9).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from .record import Camera, DataError, Reader, Record, float_array, require, stored_image

SOURCE = (
    "FreiHAND is licensed for research: get it from the FreiHAND page of the Computer Vision group, University of "
    "Freiburg"
)
CENTER_PX, SCALE = (112.0, 112.0), 0.9  # of every 224 x 224 image (data preparation of METRO)


class FreiHandReader(Reader):
    """Hands of one split.

    Args:
        root: holds the JSON files and the image folders.
        split: training (each of its hands in four versions of the background) or evaluation.
    """

    format = "freihand"

    def __init__(self, root: str | Path, split: str = "evaluation"):
        if split not in ("training", "evaluation"):
            raise ValueError(f"FreiHAND: split must be training or evaluation, got {split!r}")
        self.root, self.split = Path(root), split
        self._k = _load(require(self.root / f"{split}_K.json", "FreiHAND's camera file", SOURCE))
        self._labels = {}
        for key in ("xyz", "verts", "mano", "scale"):
            path = self.root / f"{split}_{key}.json"
            if path.is_file():
                self._labels[key] = _load(path)
                if len(self._labels[key]) != len(self._k):
                    raise DataError(f"{path}: {len(self._labels[key])} entries, {split}_K.json has {len(self._k)}")
        self._versions = 1
        if split == "training":
            images = len(list((self.root / split / "rgb").glob("*.jpg")))
            self._versions = max(1, images // max(len(self._k), 1))

    def __len__(self) -> int:
        return len(self._k) * self._versions

    def _record(self, index: int) -> Record:
        hand = index % len(self._k)
        what = f"FreiHAND {self.split} {index}"
        k = float_array(self._k[hand], (3, 3), f"{what}: K").astype(np.float64)
        points_2d = points_3d = vertices = pose = betas = None
        if "xyz" in self._labels:
            xyz = float_array(self._labels["xyz"][hand], (21, 3), f"{what}: xyz")
            points_3d = np.concatenate([xyz, np.ones((21, 1), np.float32)], 1)
            uv = xyz @ k.T
            points_2d = np.concatenate([uv[:, :2] / uv[:, 2:], np.ones((21, 1))], 1).astype(np.float32)
        if "verts" in self._labels:
            vertices = float_array(self._labels["verts"][hand], (778, 3), f"{what}: verts")
        if "mano" in self._labels:
            mano = np.ravel(np.asarray(self._labels["mano"][hand], np.float32))
            if len(mano) < 58:
                raise DataError(f"{what}: mano must hold 48 pose and 10 shape numbers, got {len(mano)}")
            pose, betas = mano[:48], mano[48:58]
        return Record(
            f"{index:08d}",
            stored_image(self.root / self.split / "rgb" / f"{index:08d}.jpg"),
            center=np.array(CENTER_PX),
            scale=SCALE,
            box_size=np.full(2, 200.0 * SCALE),
            keypoints_2d=points_2d,
            keypoints_2d_set="hand21" if points_2d is not None else "",
            keypoints_3d=points_3d,
            keypoints_3d_set="hand21" if points_3d is not None else "",
            pose=pose,
            betas=betas,
            has_smpl=pose is not None,
            vertices=vertices,
            camera=Camera(k),
            extra={"scale_m": float(np.ravel(self._labels["scale"][hand])[0])} if "scale" in self._labels else {},
        )


def _load(path: Path) -> list:
    try:
        value = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise DataError(f"{path}: not JSON ({e})") from None
    if not isinstance(value, list):
        raise DataError(f"{path}: expected a list with one entry per hand, got {type(value).__name__}")
    return value
