"""How `tore-fast eval` scores key points and classes: items, rows and metrics for evaluate.evaluate_rows.

In: instances of a reader (data/{wholebody,coco_body,wflw}.py) or a class folder; rows: points [J, 2] and scores [J] of
an item in image pixels, or whether the class was right. Out: metrics of keypoint_metrics.py, or top-1 and top-5 in
percent.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.topdown import Instance, TopDownDataset
from ..geometry.skeleton import WHOLEBODY_PARTS
from ..io.atomic import write_text
from ..io.image import ImageError
from .keypoint_metrics import LandmarkMetric, OksMetric, batch_keypoints


class ListedItems:
    """A data set with random access and no sequences, as `evaluate_rows` wants it."""

    def __init__(self, name: str, data: Any):
        self.format, self.data = name, data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.data[index]
        except ImageError:
            raise
        except OSError as e:  # what Pillow raises for a broken file
            raise ImageError(str(e)) from None

    def place(self, index: int) -> tuple[str, int]:
        return "", -1


class KeypointScoring:
    """Top-down key points of the instances of `data`.

    Args:
        name: of the protocol in the report.
        data: crops without augmentation.
        metric: of all instances; attributes of a LandmarkMetric belong to `data.instances`.
        flip_test, refine, half_pixel: see keypoint_metrics.batch_keypoints.
    """

    metrics: tuple[str, ...] = ()

    def __init__(
        self,
        name: str,
        data: TopDownDataset,
        metric: OksMetric | LandmarkMetric,
        flip_test: bool = True,
        refine: str = "quarter",
        half_pixel: bool = False,
    ):
        self.name, self.data, self.metric = name, data, metric
        self.flip_test, self.refine, self.half_pixel = flip_test, refine, half_pixel

    def identity(self) -> dict:
        boxes = np.array([i.box for i in self.data.instances], np.float64)
        return {
            "protocol": self.name,
            "image_size": list(self.data.image_size),
            "flip_test": self.flip_test,
            "refine": self.refine,
            "half_pixel": self.half_pixel,
            "boxes": round(float(boxes.sum()), 3),
        }

    def item(self, record: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        return record["image"], {k: record[k].numpy() for k in ("center", "size")}

    def rows(self, model: nn.Module, inputs: Tensor, truth: dict[str, Tensor]) -> dict[str, Tensor]:
        flip = self.data.flip_index if self.flip_test else None
        points, scores = batch_keypoints(
            model, inputs, truth["center"], truth["size"], flip, self.refine, self.half_pixel
        )
        if points.shape[1] != len(self.data.flip_index):
            raise ValueError(
                f"{self.name}: the model has {points.shape[1]} key points, the data {len(self.data.flip_index)}"
            )
        return {"points": points, "scores": scores}

    def summary(self, rows: dict[str, np.ndarray], sequences: Sequence[str], frames: Sequence[int]) -> dict:
        chosen = [self.data.instances[int(i)] for i in rows["index"]]
        metric = self.metric
        if isinstance(metric, LandmarkMetric):
            metric = LandmarkMetric(metric.attributes[rows["index"]], metric.subsets, metric.corners)
        result = metric(chosen, rows["points"].astype(np.float64), rows["scores"].astype(np.float64))
        counts = {}
        if isinstance(metric, LandmarkMetric):
            counts = {f"nme_{name}": int(n) for name, n in zip(metric.subsets, metric.attributes.sum(0))}
        return {**{k: v for k, v in result.items() if not k.endswith("_missing")}, "counts": counts}


class ClassScoring:
    """Top-1 and top-5 accuracy in percent and cross entropy of class folders."""

    metrics: tuple[str, ...] = ()

    def __init__(self, classes: Sequence[str], image_size: int):
        self.classes, self.image_size = list(classes), image_size

    def identity(self) -> dict:
        return {"protocol": "classification", "image_size": self.image_size, "classes": len(self.classes)}

    def item(self, record: tuple[Tensor, int]) -> tuple[Tensor, dict[str, Any]]:
        return record[0], {"label": np.int64(record[1])}

    def rows(self, model: nn.Module, inputs: Tensor, truth: dict[str, Tensor]) -> dict[str, Tensor]:
        logits, label = model(inputs).float(), truth["label"]
        if logits.shape[1] != len(self.classes):
            raise ValueError(f"classification: the model has {logits.shape[1]} classes, the data {len(self.classes)}")
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices == label[:, None]
        return {
            "top1": top[:, 0],
            "top5": top.any(1),
            "cross_entropy": F.cross_entropy(logits, label, reduction="none"),
        }

    def summary(self, rows: dict[str, np.ndarray], sequences: Sequence[str], frames: Sequence[int]) -> dict:
        return {
            "top1_percent": 100 * float(rows["top1"].mean()),
            "top5_percent": 100 * float(rows["top5"].mean()),
            "cross_entropy": float(rows["cross_entropy"].mean()),
            "counts": {},
        }


def coco_results(scoring: KeypointScoring, rows: dict[str, np.ndarray]) -> list[dict]:
    """Detections as COCO's (or COCO-WholeBody's) evaluation servers and xtcocotools read them, after the NMS."""
    if not isinstance(scoring.metric, OksMetric):
        raise ValueError(f"--pred-json: {scoring.name} has no result format")
    chosen = [scoring.data.instances[int(i)] for i in rows["index"]]
    found = scoring.metric.detections(chosen, rows["points"].astype(np.float64), rows["scores"].astype(np.float64))
    fields = {"keypoints": (0, 17)}
    if found.points.shape[1] > 17:
        names = ("keypoints", "foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts")
        fields = dict(zip(names, WHOLEBODY_PARTS.values()))
    return [
        {"image_id": int(image), "category_id": 1, "score": float(score)}
        | {name: points[first:last].ravel().tolist() for name, (first, last) in fields.items()}
        for image, points, score in zip(found.image_id, found.points, found.score)
    ]


def write_coco_results(scoring: KeypointScoring, rows: dict[str, np.ndarray], path: str | Path) -> int:
    """Writes `coco_results`; returns how many detections there are."""
    results = coco_results(scoring, rows)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(results))
    return len(results)


def in_images_of(people: list[Instance], shown: list[Instance]) -> list[Instance]:
    """The people in images that `shown` has (annotations of a run with --limit)."""
    images = {i.image_id for i in shown}
    return [p for p in people if p.image_id in images]
