"""Annotation npz of 4D-Humans (evaluation sets and SPIN-style training lists): arrays over people, images in a folder.

In: an npz with `imgname`, `center`, `scale` (box in PIXELS, one or two numbers; SPIN's files: over 200 px) and any of
`body_pose`, `betas`, `has_*`, `body_keypoints_2d`, `extra_keypoints_2d`, `..._3d`. Out: Records with body44 joints.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...io.safe_pickle import read_npz
from .hmr2_tar import person_record
from .record import DataError, Reader, Record, plain_data, require, stored_image

SOURCE = (
    "The annotation files are published by the 4D-Humans project (SPIN's by SPIN); the images keep their data "
    "sets' licences"
)


class Hmr2NpzReader(Reader):
    """People listed in an npz.

    Args:
        path: the npz.
        images: folder its `imgname` is relative to; None = the npz's own folder.
        scale_in_pixels: None = told by the numbers (a box over 200 px is a few units, in pixels a few hundreds).
    """

    format = "npz"

    def __init__(self, path: str | Path, images: str | Path | None = None, scale_in_pixels: bool | None = None):
        path = Path(path)
        require(path, "an annotation npz", SOURCE)
        self.path, self.root = path, Path(images) if images else path.parent
        data = plain_data(read_npz, path)
        missing = [k for k in ("imgname", "center", "scale") if k not in data]
        if missing:
            raise DataError(f"{path}: no {', '.join(missing)}; it has {', '.join(sorted(data))}")
        self._data = data
        self._names = [n.decode() if isinstance(n, bytes) else str(n) for n in np.ravel(data["imgname"])]
        n = len(self._names)
        for key, value in data.items():
            if key in _KEYS and len(value) != n:
                raise DataError(f"{path}: {key} has {len(value)} rows, imgname {n}")
        scale = np.asarray(data["scale"], np.float64).reshape(n, -1)
        pixels = bool(np.median(scale) > 25.0) if scale_in_pixels is None and n else bool(scale_in_pixels)
        self._scale = scale / 200.0 if pixels else scale
        seen: dict[str, int] = {}
        self._keys = []  # several people share a image: number them
        for name in self._names:
            seen[name] = seen.get(name, -1) + 1
            self._keys.append(name if seen[name] == 0 else f"{name}#{seen[name]}")

    def __len__(self) -> int:
        return len(self._names)

    def _record(self, index: int) -> Record:
        data = self._data
        row = {"center": data["center"][index], "scale": self._scale[index]}
        for key, sources in _ROWS.items():
            source = next((s for s in sources if s in data), None)
            if source is not None:
                row[key] = data[source][index]
        for flag, label in (("has_body_pose", "body_pose"), ("has_betas", "betas"), ("has_hand_pose", "hand_pose")):
            if label in row and flag not in data and "has_smpl" in data:
                row[flag] = data["has_smpl"][index]
            elif flag in data:
                row[flag] = data[flag][index]
        for dims, columns in (("2d", 3), ("3d", 4)):
            points = self._points(index, dims, columns)
            if points is not None:
                row[f"keypoints_{dims}"] = points
        image = self.root / self._names[index]
        return person_record(self._keys[index], stored_image(image), row, f"{self.path}: row {index}")

    def _points(self, index: int, dims: str, columns: int) -> np.ndarray | None:
        data = self._data
        hand = data.get(f"hand_keypoints_{dims}")
        if hand is not None:
            return hand[index]
        parts = [data.get(f"{part}_keypoints_{dims}") for part in ("body", "extra")]
        if all(p is None for p in parts):
            spin = data.get({"2d": "part", "3d": "S"}[dims])  # SPIN: J24 joints under these names
            return None if spin is None else spin[index]
        sizes = (25, 19)
        rows = [
            np.zeros((k, columns), np.float32) if p is None else np.array(p[index], np.float32)
            for p, k in zip(parts, sizes)
        ]
        if dims == "3d":
            rows[0][1:15, 3] = 0.0  # 4D-Humans trusts only the extra joints of limbs and neck in 3D
        return np.concatenate(rows)


_ROWS = {
    "body_pose": ("body_pose", "pose"),
    "betas": ("betas", "shape"),
    "hand_pose": ("hand_pose",),
    "right": ("right",),
    "gender": ("gender",),
}
_KEYS = {
    "center",
    "scale",
    "body_pose",
    "pose",
    "betas",
    "shape",
    "hand_pose",
    "has_body_pose",
    "has_betas",
    "has_hand_pose",
    "has_smpl",
    "gender",
    "right",
    "part",
    "S",
    *(f"{p}_keypoints_{d}" for p in ("body", "extra", "hand") for d in ("2d", "3d")),
}
