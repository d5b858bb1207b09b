"""Your own images with a table: CSV rows, a JSON list, JSON lines, or COCO-style JSON (also Pose2Mesh's 3DPW files).

In: the table; image names in it are relative to `images` (default: the table's folder). Out: Records.
CSV header: image and x0,y0,x1,y1 (or x,y,w,h, or center_x,center_y,scale), optional gender,sequence,frame. JSON objects
have the same keys, or `box` [x0, y0, x1, y1], and any of keypoints_2d/_3d (+ _set), pose, betas, gender, camera,
vertices.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from ...geometry.crop import BOX_MARGIN
from ..boxes import BoxFileError, read_boxes
from .joint_sets import JOINT_SETS, set_of
from .record import Camera, DataError, Reader, Record, float_array, gender_name, require, stored_image

SOURCE = "Write it yourself (docs/data.md shows the columns)"


class FolderReader(Reader):
    """Images listed in a table.

    Args:
        path: .csv, .json or .jsonl.
        images: folder the image names are relative to.
        margin: boxes are widened by this, as the official data preparation does; a given scale already has it.
    """

    format = "folder"

    def __init__(self, path: str | Path, images: str | Path | None = None, margin: float = BOX_MARGIN):
        path = Path(path)
        require(path, "a CSV or JSON table", SOURCE)
        self.path, self.root, self.margin = path, Path(images) if images else path.parent, margin
        self._rows = _rows(path)
        if not self._rows:
            raise DataError(f"{path}: the table is empty")

    def __len__(self) -> int:
        return len(self._rows)

    def place(self, index: int) -> tuple[str, int]:
        row = self._rows[index]
        return str(row.get("sequence") or ""), int(row["frame"]) if row.get("frame") not in (None, "") else -1

    def _record(self, index: int) -> Record:
        row, what = self._rows[index], f"{self.path}: entry {index + 1}"
        if not row.get("image"):
            raise DataError(f"{what}: no 'image'; it has {', '.join(map(str, row))}")
        center, size = _box(row, self.margin, what)
        points: dict[str, Any] = {}
        for key, columns in (("keypoints_2d", 3), ("keypoints_3d", 4)):
            points[key], points[f"{key}_set"] = _points(row, key, columns, what)
        pose = _numbers(row, "pose", what)
        if pose is not None and len(pose) not in (72, 48):
            raise DataError(f"{what}: pose must have 72 (SMPL) or 48 (MANO) numbers, got {len(pose)}")
        betas = _numbers(row, "betas", what)
        camera = row.get("camera")
        return Record(
            str(row.get("name") or f"{row['image']}#{index}"),
            stored_image(self.root / str(row["image"])),
            center=center,
            scale=float(size.max()) / 200.0,
            box_size=size,
            pose=pose,
            betas=None if betas is None else float_array(betas[:10], (10,), f"{what}: betas"),
            has_smpl=pose is not None and betas is not None,
            vertices=None
            if row.get("vertices") is None
            else float_array(row["vertices"], (None, 3), f"{what}: vertices"),
            translation=_numbers(row, "translation", what),
            gender=gender_name(row.get("gender", "")),
            camera=None
            if camera is None
            else Camera(float_array(camera, (3, 3), f"{what}: camera").astype(np.float64)),
            sequence=self.place(index)[0],
            frame=self.place(index)[1],
            **points,
        )


def _rows(path: Path) -> list[dict]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".csv":
            return _csv_rows(path, text)
        if path.suffix.lower() == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        value = json.loads(text)
    except UnicodeDecodeError:
        raise DataError(f"{path}: not text") from None
    except json.JSONDecodeError as e:
        raise DataError(f"{path}: not JSON (line {e.lineno}: {e.msg})") from None
    if isinstance(value, dict) and "images" in value and "annotations" in value:
        return _coco_rows(path, value)
    if isinstance(value, dict):  # the box files of `predict`
        return [{"image": name, "box": box} for name, boxes in read_boxes(path).items() for box in boxes]
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise DataError(f"{path}: expected a list of objects, COCO's images and annotations, or a box file")
    return value


def _csv_rows(path: Path, text: str) -> list[dict]:
    lines = text.splitlines()
    header = [c.strip() for c in next(csv.reader(lines[:1]), [])]
    if "image" in header:
        return [{k.strip(): v for k, v in row.items() if k} for row in csv.DictReader(lines)]
    try:  # no header: the box files of `predict`
        return [{"image": name, "box": box} for name, boxes in read_boxes(path).items() for box in boxes]
    except BoxFileError as e:
        raise DataError(str(e)) from None


def _coco_rows(path: Path, data: dict) -> list[dict]:
    """COCO key points; with Pose2Mesh's additions (sequence, cam_param, smpl_param) where they are."""
    images = {image["id"]: image for image in data["images"]}
    rows = []
    for number, label in enumerate(data["annotations"]):
        image = images.get(label.get("image_id"))
        if image is None or "bbox" not in label:
            raise DataError(f"{path}: annotation {number} has no bbox or names a image that is not listed")
        if not (label["bbox"][2] > 0 and label["bbox"][3] > 0) or label.get("iscrowd"):
            continue
        x, y, w, h = label["bbox"]
        folder = f"{image['sequence']}/" if "sequence" in image and "/" not in image["file_name"] else ""
        row = {"image": folder + image["file_name"], "box": [x, y, x + w, y + h], "name": str(label.get("id", number))}
        if "keypoints" in label and any(label["keypoints"]):
            points = np.asarray(label["keypoints"], np.float32).reshape(-1, 3)
            points[:, 2] = points[:, 2] > 0  # COCO's 1 (hidden) and 2 (visible) both are labels
            row["keypoints_2d"] = points
        if "smpl_param" in label:
            smpl = label["smpl_param"]
            row |= {
                "pose": smpl["pose"],
                "betas": smpl["shape"],
                "gender": smpl.get("gender", ""),
                "translation": smpl.get("trans"),
            }
        if "cam_param" in image:
            (fx, fy), (cx, cy) = image["cam_param"]["focal"], image["cam_param"]["princpt"]
            row["camera"] = [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]
        if "sequence" in image:
            row["sequence"] = f"{image['sequence']}_{label.get('person_id', 0)}"
            digits = "".join(c for c in Path(image["file_name"]).stem if c.isdigit())
            row["frame"] = int(digits) if digits else -1
        rows.append(row)
    return rows


def _box(row: dict, margin: float, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Centre and size in pixels, margin included."""
    try:
        if row.get("box") is not None:
            x0, y0, x1, y1 = (float(v) for v in row["box"])
        elif row.get("x0") not in (None, ""):
            x0, y0, x1, y1 = (float(row[k]) for k in ("x0", "y0", "x1", "y1"))
        elif row.get("w") not in (None, ""):
            x, y, w, h = (float(row[k]) for k in ("x", "y", "w", "h"))
            x0, y0, x1, y1 = x, y, x + w, y + h
        elif row.get("scale") not in (None, ""):
            center = row["center"] if "center" in row else (row["center_x"], row["center_y"])
            return np.array([float(v) for v in center]), np.full(2, 200.0 * float(row["scale"]))
        else:
            raise KeyError("box")
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{what}: no usable box; give x0,y0,x1,y1 or x,y,w,h or center_x,center_y,scale") from None
    if not (np.isfinite([x0, y0, x1, y1]).all() and x1 > x0 and y1 > y0):
        raise DataError(f"{what}: the box {[x0, y0, x1, y1]} needs x0 < x1 and y0 < y1")
    return np.array([(x0 + x1) / 2, (y0 + y1) / 2]), margin * np.array([x1 - x0, y1 - y0])


def _points(row: dict, key: str, columns: int, what: str) -> tuple[np.ndarray | None, str]:
    if row.get(key) is None:
        return None, ""
    value = np.asarray(row[key], np.float32)
    if value.ndim == 2 and value.shape[1] == columns - 1:  # no confidence: all count
        value = np.concatenate([value, np.ones((len(value), 1), np.float32)], 1)
    points = float_array(value, (None, columns), f"{what}: {key}")
    name = str(row.get(f"{key}_set") or set_of(len(points)))
    if name not in JOINT_SETS or len(JOINT_SETS[name]) != len(points):
        raise DataError(
            f"{what}: {key} has {len(points)} joints; name their order in {key}_set ({', '.join(JOINT_SETS)})"
        )
    return points, name


def _numbers(row: dict[str, Any], key: str, what: str) -> np.ndarray | None:
    value = row.get(key)
    return None if value is None else float_array(np.ravel(value), (None,), f"{what}: {key}")
