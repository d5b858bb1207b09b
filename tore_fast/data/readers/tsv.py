"""TSV sets of METRO, FastMETRO, Mesh Graphormer and TORE: Human3.6M, 3DPW, UP-3D, MuCo, COCO, MPII, FreiHAND.

In: a yaml file with `img`, `label`, `hw`, `linelist` (or `composite: true` and lists of these). Rows are
`key<TAB>value`; images are base64, labels JSON, `.lineidx` holds the byte offset of each row. Out: Records with J24 (or
hand) joints.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...io.image import read_image
from .joint_sets import set_of
from .record import DataError, Reader, Record, float_array, gender_name, require

SOURCE = (
    "The TSV sets came from the MeshTransformer (METRO) and FastMETRO projects; their hosts answer no more, so convert "
    "your own licensed copy with those projects' tsv_demo scripts"
)


class TsvFile:
    """Rows of one TSV by number. Reads the offsets of `.lineidx`, or counts them once where it is missing."""

    def __init__(self, path: Path):
        self.path = require(path, "a TSV of a METRO-style data set", SOURCE)
        self._offsets: np.ndarray | None = None
        self._file: Any = None
        self._pid = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}  # worker processes open their own

    @property
    def offsets(self) -> np.ndarray:  # [rows] int64
        if self._offsets is None:
            index = self.path.with_suffix(".lineidx")
            self._offsets = self._read_index(index) if index.is_file() else self._count()
        return self._offsets

    def _read_index(self, index: Path) -> np.ndarray:
        try:
            offsets = np.array(index.read_text().split(), np.int64)
        except ValueError:
            raise DataError(f"{index}: expected one byte offset per line") from None
        if len(offsets) and not 0 <= offsets.min() <= offsets.max() < max(self.path.stat().st_size, 1):
            raise DataError(f"{index}: offsets reach beyond {self.path.name}; delete the index, it is stale")
        return offsets

    def _count(self) -> np.ndarray:
        offsets, position = [], 0
        with open(self.path, "rb") as file:
            for line in file:
                offsets.append(position)
                position += len(line)
        return np.array(offsets, np.int64)

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, row: int) -> list[str]:
        if not 0 <= row < len(self):
            raise DataError(f"{self.path}: row {row} asked for, there are {len(self)}")
        if self._file is None or self._pid != os.getpid():  # a forked worker must not share the file position
            self._file, self._pid = open(self.path, "rb"), os.getpid()
        start = int(self.offsets[row])
        self._file.seek(max(start - 1, 0))
        if start and self._file.read(1) != b"\n":
            raise DataError(f"{self.path}: row {row} does not start where .lineidx says; delete the index, it is stale")
        return [part.strip() for part in self._file.readline().decode("utf-8").split("\t")]


class _Column:
    """One of img/label/hw: a single TSV, or several of a composite set addressed by (file, row)."""

    def __init__(self, names: list[str], root: Path):
        self.names = names
        self.files = [TsvFile(_find(name, root)) for name in names]

    def row(self, file: int, row: int) -> list[str]:
        if not 0 <= file < len(self.files):
            raise DataError(f"composite line list names file {file}, there are {len(self.files)}")
        return self.files[file][row]


class TsvReader(Reader):
    """A METRO-style TSV set.

    Args:
        path: the yaml file.

    Raises:
        MissingData: a file it names is not there. DataError: not such a yaml, or a row that cannot be read.
    """

    format = "tsv"

    def __init__(self, path: str | Path):
        import yaml

        path = Path(path)
        require(path, "the yaml of a METRO-style TSV set", SOURCE)
        self.path, self.root = path, path.parent
        try:
            config = yaml.safe_load(path.read_text())
        except yaml.YAMLError as e:
            raise DataError(f"{path}: not yaml ({str(e).splitlines()[0]})") from None
        if not isinstance(config, dict) or "img" not in config:
            raise DataError(f"{path}: expected keys img, label, hw, linelist; got {type(config).__name__}")
        composite = bool(config.get("composite", False))
        self._columns = {
            key: _Column(_names(config[key], self.root), self.root) for key in ("img", "label", "hw") if config.get(key)
        }
        if not composite and any(len(c.files) != 1 for c in self._columns.values()):
            raise DataError(f"{path}: lists of files need composite: true")
        self._lines = self._line_list(config.get("linelist"), composite)
        self._composite = composite

    def _line_list(self, name: str | None, composite: bool) -> np.ndarray:  # [N, 2] file, row
        if name is None:
            if composite:
                raise DataError(f"{self.path}: a composite set needs a linelist")
            rows = len(next(iter(self._columns.values())).files[0])
            return np.stack([np.zeros(rows, np.int64), np.arange(rows)], 1)
        path = require(_find(name, self.root), "the line list of the set", SOURCE)
        try:
            lines = np.array(
                [[int(v) for v in line.split()] for line in path.read_text().splitlines() if line.strip()], np.int64
            )
        except ValueError:
            raise DataError(f"{path}: expected whole numbers, one row of the set per line") from None
        if lines.ndim != 2 or lines.shape[1] != (2 if composite else 1):
            raise DataError(f"{path}: expected {'file and row' if composite else 'one row number'} per line")
        return lines if composite else np.concatenate([np.zeros_like(lines), lines], 1)

    def __len__(self) -> int:
        return len(self._lines)

    def _row(self, column: str, index: int) -> list[str]:
        file, row = map(int, self._lines[index])
        return self._columns[column].row(file, row)

    def _image(self, index: int) -> np.ndarray:
        row = self._row("img", index)
        try:
            data = base64.b64decode(row[-1], validate=True)  # old files have more columns; the image is the last
        except binascii.Error as e:
            raise DataError(f"{self.path}: {row[0]}: the image is not base64 ({e})") from None
        return read_image(data, f"{self.path}: {row[0]}", upright=False)

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of a image, from the hw column where there is one (no decoding)."""
        if "hw" not in self._columns:
            height, width = self._image(index).shape[:2]
            return width, height
        text = self._row("hw", index)[1]
        try:
            value = json.loads(text)
            value = value[0] if isinstance(value, list) else value
            return int(value["width"]), int(value["height"])
        except (json.JSONDecodeError, TypeError, KeyError):
            height, width = text.split()[:2]  # older sets: "height width"
            return int(width), int(height)

    def _record(self, index: int) -> Record:
        column = next(c for c in ("hw", "label", "img") if c in self._columns)
        name = self._row(column, index)[0]
        if self._composite:
            name = f"{self._columns[column].names[int(self._lines[index][0])]}_{name}"
        opener = partial(self._image, index)
        if "label" not in self._columns:
            return Record(name, opener)
        text = self._row("label", index)
        what = f"{self.path}: {name}"
        try:
            label = json.loads(text[1])
        except (json.JSONDecodeError, IndexError):
            raise DataError(f"{what}: the label is not JSON") from None
        label = label[0] if isinstance(label, list) and label else label
        if not isinstance(label, dict):
            raise DataError(f"{what}: the label list is empty; leave such rows out of the linelist")
        return _from_label(name, opener, label, what)


def _from_label(name: str, opener: Any, label: dict, what: str) -> Record:
    def joints(key: str, columns: int) -> np.ndarray | None:
        if key not in label:
            return None
        value = np.asarray(label[key], np.float32)
        return float_array(value[0] if value.ndim == 3 else value, (None, columns), f"{what}: {key}")

    def flag(key: str) -> bool:
        return bool(np.asarray(label.get(key, 0)).any())

    if np.size(label.get("center", ())) != 2 or np.size(label.get("scale", ())) < 1:
        raise DataError(f"{what}: the label needs center [x, y] and scale")
    points_2d, points_3d = joints("2d_joints", 3), joints("3d_joints", 4)
    # the flags decide: files carry fillers where there is no label
    if points_2d is not None and not flag("has_2d_joints"):
        points_2d[:, 2] = 0
    if points_3d is not None and not flag("has_3d_joints"):
        points_3d[:, 3] = 0
    pose = float_array(np.ravel(label["pose"]), (None,), f"{what}: pose") if "pose" in label else None
    if pose is not None and len(pose) not in (72, 48):
        raise DataError(f"{what}: pose must have 72 (SMPL) or 48 (MANO) numbers, got {len(pose)}")
    side = 200.0 * float(np.ravel(label["scale"])[0])
    return Record(
        name,
        opener,
        center=np.asarray(np.ravel(label["center"])[:2], np.float64),  # not float32: the crop truncates to whole pixels
        scale=side / 200.0,
        box_size=np.array([side, side]),
        keypoints_2d=points_2d,
        keypoints_2d_set="" if points_2d is None else set_of(len(points_2d)),
        keypoints_3d=points_3d,
        keypoints_3d_set="" if points_3d is None else set_of(len(points_3d)),
        pose=pose,
        betas=float_array(np.ravel(label["betas"]), (10,), f"{what}: betas") if "betas" in label else None,
        has_smpl=flag("has_smpl") and pose is not None and "betas" in label,
        gender=gender_name(label.get("gender", "")),
    )


def _find(name: str, root: Path) -> Path:
    """A path in a yaml is relative to the yaml's folder, else to the working folder."""
    return root / name if (root / name).is_file() or not Path(name).is_file() else Path(name)


def _names(value: Any, root: Path) -> list[str]:
    """File names of a column: a list, one .tsv, or a text file with one name per line."""
    if isinstance(value, list):
        return [str(v) for v in value]
    path = _find(str(value), root)
    if path.suffix == ".txt":
        return [
            line.strip()
            for line in require(path, "a list of TSV files", SOURCE).read_text().splitlines()
            if line.strip()
        ]
    return [str(value)]
