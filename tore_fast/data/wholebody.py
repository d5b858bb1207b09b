"""COCO-WholeBody: 133 key points per person from the official annotation files, as top-down training and test items.

In: `coco_wholebody_{train,val}_v1.0.json` and the COCO image folder, optionally a detector's boxes; out: crops with
targets for train/tcformer.py, and the tables eval/oks.py needs. Order: 17 body, 6 foot, 68 face, 21 + 21 hand points.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from .heatmap import flip_index_from_pairs
from .topdown import CropAugment, Instance, TopDownDataset

PARTS = {"body": (0, 17), "foot": (17, 23), "face": (23, 91), "left_hand": (91, 112), "right_hand": (112, 133)}
FIELDS = ("keypoints", "foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts")  # one per part, x y v triples
NUM_KEYPOINTS = 133
_BODY_PAIRS = [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)]
_FOOT_PAIRS = [(17, 20), (18, 21), (19, 22)]
# of the 68 face points, counted from 0
_FACE_PAIRS = [
    *((i, 16 - i) for i in range(8)), *((17 + i, 26 - i) for i in range(5)), (31, 35), (32, 34),
    (36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46),
    (48, 54), (49, 53), (50, 52), (55, 59), (56, 58), (60, 64), (61, 63), (65, 67),
]  # fmt: skip
FLIP_INDEX = flip_index_from_pairs(
    NUM_KEYPOINTS,
    [*_BODY_PAIRS, *_FOOT_PAIRS, *((23 + a, 23 + b) for a, b in _FACE_PAIRS), *((91 + i, 112 + i) for i in range(21))],
)
UPPER_BODY = np.array([i < 11 or i >= 23 for i in range(NUM_KEYPOINTS)])  # head, arms, face, hands


class WholeBodyError(ValueError):
    """An annotation file that cannot be used; the text names it and the entry."""


def _load(path: Path, what: str):
    if not path.is_file():
        raise WholeBodyError(f"{path}: no such {what}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as e:
        raise WholeBodyError(f"{path}: not JSON (line {e.lineno}: {e.msg})") from None


def annotation_points(annotation: dict, where: str = "annotation") -> np.ndarray:  # [133, 3]
    """All 133 key points of one annotation; absent fields count as not labelled."""
    rows = []
    for field, (first, last) in zip(FIELDS, PARTS.values()):
        values = annotation.get(field)
        if values is None:
            values = [0.0] * (3 * (last - first))
        if len(values) != 3 * (last - first):
            raise WholeBodyError(f"{where}: {field} must have {3 * (last - first)} numbers, got {len(values)}")
        rows.append(np.asarray(values, np.float32).reshape(-1, 3))
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
    files = {entry["id"]: Path(images) / entry["file_name"] for entry in data["images"]}
    people = []
    if boxes is not None:
        for n, entry in enumerate(_load(Path(boxes), "box file")):
            if entry.get("category_id", 1) != 1:
                continue
            if entry["image_id"] not in files:
                raise WholeBodyError(f"{boxes}: entry {n}: image_id {entry['image_id']} is not in {path}")
            x, y, w, h = entry["bbox"]
            empty = np.zeros((NUM_KEYPOINTS, 3), np.float32)
            if w > 0 and h > 0:
                people.append(Instance(files[entry["image_id"]], entry["image_id"], (x, y, w, h), empty, w * h, entry["score"], n))
        return people
    for entry in data["annotations"]:
        where = f"{path}: annotation {entry.get('id')}"
        if entry.get("iscrowd") and not everybody:
            continue
        if entry["image_id"] not in files:
            raise WholeBodyError(f"{where}: image_id {entry['image_id']} is not in 'images'")
        points = annotation_points(entry, where)
        x, y, w, h = entry["bbox"]
        if not everybody and (not (points[:, 2] > 0).any() or w <= 0 or h <= 0):
            continue
        image, area = entry["image_id"], entry.get("area", w * h)
        people.append(Instance(files[image], image, (x, y, w, h), points, area, 1.0, entry["id"], bool(entry.get("iscrowd"))))
    return people


def wholebody_dataset(
    people: list[Instance],
    image_size: tuple[int, int] = (256, 192),
    augment: CropAugment | None = None,
    seed: int = 0,
) -> TopDownDataset:
    """Crops with 133 targets of sigma 2; `augment=CropAugment()` is the official training recipe."""
    return TopDownDataset(people, image_size, FLIP_INDEX, augment, sigma=2.0, upper_body=UPPER_BODY, seed=seed)
