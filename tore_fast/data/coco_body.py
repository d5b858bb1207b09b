"""COCO's 17 body key points from `person_keypoints_*.json` (or a COCO-WholeBody file), as top-down training and test
items.

In: annotation file, image folder, optionally a detector's boxes; out: crops with targets and the instances eval/oks.py
scores. Reads through data/wholebody.py, whose first 17 points these are. For PPT and other 17-point models.
"""

from __future__ import annotations

from pathlib import Path

from ..geometry.skeleton import COCO17
from .topdown import CropAugment, Instance, TopDownDataset
from .wholebody import UPPER_BODY, read_wholebody

NUM_KEYPOINTS = len(COCO17)


def read_coco_body(
    annotations: str | Path, images: str | Path, boxes: str | Path | None = None, everybody: bool = False
) -> list[Instance]:
    """As `read_wholebody`, with [17, 3] points; annotated people need a labelled body point unless `everybody`."""
    people = [
        p._replace(points=p.points[:NUM_KEYPOINTS]) for p in read_wholebody(annotations, images, boxes, everybody)
    ]
    return people if everybody or boxes is not None else [p for p in people if (p.points[:, 2] > 0).any()]


def coco_body_dataset(
    people: list[Instance], image_size: tuple[int, int] = (256, 192), augment: CropAugment | None = None, seed: int = 0
) -> TopDownDataset:
    """Crops with 17 targets of sigma 2; `augment=CropAugment()` is the usual top-down recipe."""
    return TopDownDataset(
        people, image_size, COCO17.mirror, augment, sigma=2.0, upper_body=UPPER_BODY[:NUM_KEYPOINTS], seed=seed
    )
