"""Annotated key-point sets by file: COCO-WholeBody, COCO and WFLW as crops, with the metric of their official test.

In: an annotation file and its images (readers of data/{wholebody,coco_body,wflw}.py). Out: `KeypointSet`. Called by
cli/train_keypoints.py and cli/eval_keypoints.py.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import NamedTuple

from ..data import coco_body, wflw, wholebody
from ..data.topdown import CropAugment, TopDownDataset
from .keypoint_metrics import LandmarkMetric, OksMetric, WholeBodyMetric
from .task_scoring import in_images_of

POINTS = {"wholebody": wholebody.NUM_KEYPOINTS, "coco": coco_body.NUM_KEYPOINTS, "wflw": wflw.NUM_KEYPOINTS}


class KeypointSet(NamedTuple):
    """Crops of a set and what measures them."""

    data: TopDownDataset
    metric: OksMetric | LandmarkMetric
    points: int  # key points of an item


def format_of(form: str, path: str | Path, points: int = 0) -> str:
    """Which of the sets a file is.

    Args:
        form: "auto", or the answer.
        points: of the model, which must fit then; 0: not known.

    Raises:
        ValueError: no file, or a model of another set.
    """
    if not Path(path).is_file():
        raise ValueError(f"--data {path}: no such file; expected an annotation file, or synth")
    if form == "auto":
        by_points = {count: name for name, count in POINTS.items()}.get(points)
        form = "wflw" if Path(path).suffix == ".txt" else by_points or _coco_format(Path(path))
    if points not in (0, POINTS[form]):
        raise ValueError(f"--format {form}: has {POINTS[form]} key points, the model {points}")
    return form


def _coco_format(path: Path) -> str:
    """wholebody where a COCO file has points of feet."""
    if not path.stat().st_size:
        raise ValueError(f"--data {path}: the file is empty")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return "wholebody" if text.find(b'"foot_kpts"') >= 0 else "coco"


def read_set(
    form: str,
    annotations: str | Path,
    images: str | Path | None,
    size: tuple[int, int],
    *,
    training: bool = False,
    seed: int = 0,
    boxes: Path | None = None,
    limit: int | None = None,
) -> KeypointSet:
    """Crops of (H, W) `size` and the metric.

    Args:
        form: of `format_of`.
        images: folder of the images; None: that of the annotations.
        training: augmented crops, drawn by `seed`.
        boxes: detector boxes in COCO's result format instead of the annotated ones.
        limit: only the first items.

    Raises:
        ValueError: no such folder, nobody annotated, or boxes for faces.
    """
    folder = Path(annotations).parent if images is None else Path(images)
    if not folder.is_dir():
        raise ValueError(f"--images: {folder} is not a folder")
    if form == "wflw":
        if boxes is not None:
            raise ValueError("--boxes: WFLW's faces come with their rectangles")
        faces, attributes = wflw.read_wflw(annotations, folder)
        made = wflw.wflw_dataset(faces[:limit], size, *((wflw.AUGMENT, seed) if training else ()))
        return KeypointSet(made, LandmarkMetric(attributes[:limit], wflw.SUBSETS, wflw.EYE_CORNERS), POINTS[form])
    read, make, kind = {
        "wholebody": (wholebody.read_wholebody, wholebody.wholebody_dataset, WholeBodyMetric),
        "coco": (coco_body.read_coco_body, coco_body.coco_body_dataset, OksMetric),
    }[form]
    people = read(annotations, folder, boxes)[:limit]
    if not people:
        raise ValueError(f"{annotations}: nobody to use" + (f" in {boxes}" if boxes else ": no labelled point"))
    if training:
        return KeypointSet(make(people, size, CropAugment(), seed), kind(None, size), POINTS[form])
    everybody = read(annotations, folder, everybody=True)
    metric = kind(everybody if limit is None else in_images_of(everybody, people), size)
    return KeypointSet(make(people, size), metric, POINTS[form])
