"""COCO-WholeBody: 133 key points per person from the official annotation files, as top-down training and test items.

In: `coco_wholebody_{train,val}_v1.0.json` and the COCO image folder, optionally a detector's boxes; out: crops with
targets for train/keypoints.py, and the tables eval/oks.py needs. Order: 17 body, 6 foot, 68 face, 21 + 21 hand points.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..geometry.skeleton import WHOLEBODY133, WHOLEBODY_PARTS
from .topdown import CropAugment, Instance, TopDownDataset

FIELDS = ("keypoints", "foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts")  # one per part, x y v triples
NUM_KEYPOINTS = len(WHOLEBODY133)
UPPER_BODY = np.array([i < 11 or i >= 23 for i in range(NUM_KEYPOINTS)])  # head, arms, face, hands


class WholeBodyError(ValueError):
    """An annotation file that cannot be used; the text names it and the entry."""


def _load(path: Path, what: str) -> Any:
    if not path.is_file():
        raise WholeBodyError(f"{path}: no such {what}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as e:
        raise WholeBodyError(f"{path}: not JSON (line {e.lineno}: {e.msg})") from None
    except UnicodeDecodeError:
        raise WholeBodyError(f"{path}: not JSON (not even text)") from None


def _value(entry: Any, name: str, where: str) -> Any:
    """entry[name] of a JSON object; an error that says where else."""
    if not isinstance(entry, dict) or name not in entry:
        raise WholeBodyError(f"{where}: expected an object with {name!r}, got {str(entry)[:80]}")
    return entry[name]


def _numbers(values: Any, count: int, name: str, where: str) -> np.ndarray:  # [count] float32
    if not isinstance(values, list) or len(values) != count:
        got = len(values) if isinstance(values, list) else values
        raise WholeBodyError(f"{where}: {name} must have {count} numbers, got {got}")
    try:
        numbers = np.asarray(values, np.float32)
    except (TypeError, ValueError):
        numbers = np.full(count, np.nan, np.float32)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise WholeBodyError(f"{where}: {name} must be finite numbers, got {str(values)[:80]}")
    return numbers


def _entries(data: Any, name: str, where: str) -> list:
    entries = _value(data, name, where)
    if not isinstance(entries, list):
        raise WholeBodyError(f"{where}: {name!r} must be a list, got {type(entries).__name__}")
    return entries


def _box(entry: Any, where: str) -> tuple[float, float, float, float]:
    box = _value(entry, "bbox", where)
    _numbers(box, 4, "bbox", where)
    return tuple(box)


def annotation_points(annotation: dict, where: str = "annotation") -> np.ndarray:  # [133, 3]
    """All 133 key points of one annotation; absent fields count as not labelled."""
    rows = []
    for field, (first, last) in zip(FIELDS, WHOLEBODY_PARTS.values()):
        values = annotation.get(field)
        if values is None:
            values = [0.0] * (3 * (last - first))
        rows.append(_numbers(values, 3 * (last - first), field, where).reshape(-1, 3))
    return np.concatenate(rows)


def read_wholebody(
    annotations: str | Path, images: str | Path, boxes: str | Path | None = None, everybody: bool = False
) -> list[Instance]:
    """People of an official annotation file.

    Args:
        annotations: COCO-WholeBody JSON (a COCO key-point file reads as one with 17 of the 133 points labelled).
        images: folder of the image files.
        boxes: detector results `[{image_id, category_id, bbox, score}, ...]`; then one Instance per box, without key
            points (for testing), else one per annotated person with at least one labelled point and no crowd flag.
        everybody: also crowds (`ignore` set) and people without labelled points, as OKS-AP wants them.
    """
    path = Path(annotations)
    data = _load(path, "annotation file")
    if not isinstance(data, dict) or not {"images", "annotations"} <= data.keys():
        raise WholeBodyError(f"{path}: expected the COCO keys 'images' and 'annotations'")
    files = {}
    for n, entry in enumerate(_entries(data, "images", str(path))):
        where = f"{path}: image {n}"
        files[_value(entry, "id", where)] = Path(images) / _value(entry, "file_name", where)
    if boxes is not None:
        return _detected(Path(boxes), files, path)
    people = []
    for n, entry in enumerate(_entries(data, "annotations", str(path))):
        name = _value(entry, "id", f"{path}: entry {n} of 'annotations'")
        where = f"{path}: annotation {name}"
        if entry.get("iscrowd") and not everybody:
            continue
        image = _value(entry, "image_id", where)
        if image not in files:
            raise WholeBodyError(f"{where}: image_id {image} is not in 'images'")
        points = annotation_points(entry, where)
        x, y, w, h = _box(entry, where)
        if not everybody and (not (points[:, 2] > 0).any() or w <= 0 or h <= 0):
            continue
        area = entry.get("area", w * h)
        people.append(Instance(files[image], image, (x, y, w, h), points, area, 1.0, name, bool(entry.get("iscrowd"))))
    return people


def _detected(boxes: Path, files: dict, annotations: Path) -> list[Instance]:
    """One Instance per person's box of a detector's result file."""
    found = _load(boxes, "box file")
    if not isinstance(found, list):
        raise WholeBodyError(f"{boxes}: expected a list of detections, got {type(found).__name__}")
    people = []
    for n, entry in enumerate(found):
        where = f"{boxes}: entry {n}"
        image = _value(entry, "image_id", where)
        if entry.get("category_id", 1) != 1:
            continue
        if image not in files:
            raise WholeBodyError(f"{where}: image_id {image} is not in {annotations}")
        x, y, w, h = _box(entry, where)
        score = _value(entry, "score", where)
        _numbers([score], 1, "score", where)
        empty = np.zeros((NUM_KEYPOINTS, 3), np.float32)
        if w > 0 and h > 0:
            people.append(Instance(files[image], image, (x, y, w, h), empty, w * h, score, n))
    return people


def wholebody_dataset(
    people: list[Instance], image_size: tuple[int, int] = (256, 192), augment: CropAugment | None = None, seed: int = 0
) -> TopDownDataset:
    """Crops with 133 targets of sigma 2; `augment=CropAugment()` is the official training recipe."""
    return TopDownDataset(people, image_size, WHOLEBODY133.mirror, augment, sigma=2.0, upper_body=UPPER_BODY, seed=seed)
