"""Scores of predicted key points: OKS-AP (COCO, COCO-WholeBody), NME of faces (WFLW), pixel error; and the prediction
itself.

In: a heat-map model and crops (data/topdown.py), instances of a reader; out: plain numbers. train/keypoints.py calls
the metrics while training, task_scoring.py in `tore-fast eval`. Arithmetic: oks.py, nme.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..data.heatmap import decode_heatmaps, map_to_image, predict_heatmaps
from ..data.topdown import Instance, TopDownDataset
from ..geometry.skeleton import WHOLEBODY_PARTS
from .nme import nme, nme_report
from .oks import BODY_SIGMAS, WHOLEBODY_SIGMAS, KeypointTable, extent_area, keypoint_ap, oks_nms, rescore, wholebody_ap


class KeypointMetric(Protocol):
    """Metrics from predicted points [N, J, 2] (image pixels) and scores [N, J] of the instances."""

    best: str

    def __call__(self, instances: list[Instance], points: np.ndarray, scores: np.ndarray) -> dict[str, float]: ...


class OksMetric:
    """OKS-AP of COCO's 17 body points as the official test counts it.

    Detections are re-scored (box score times the mean of the visible points' scores) and thinned by OKS-NMS per image.

    Args:
        annotations: everybody annotated in the images, crowds and people without labelled points included: they are
            ignored, not missed. None: the tested instances are the annotations.
        image_size: (H, W) of the crops; the NMS measures people by the area of their crop.
        nms: OKS above which the worse of two detections of an image goes.
        visible: score from which a point counts in the re-scoring.
    """

    best = "AP_missing"
    sigmas = BODY_SIGMAS

    def __init__(
        self,
        annotations: list[Instance] | None = None,
        image_size: tuple[int, int] = (256, 192),
        nms: float = 0.9,
        visible: float = 0.2,
    ):
        self.annotations, self.image_size, self.nms, self.visible = annotations, image_size, nms, visible

    def __call__(self, instances: list[Instance], points: np.ndarray, scores: np.ndarray) -> dict[str, float]:
        truth = instance_table(instances if self.annotations is None else self.annotations)
        found = self.detections(instances, points, scores)
        result = self.average_precision(truth, found._replace(area=extent_area(found.points)))
        # the training loop keeps the lowest value
        return {**result, self.best: 1 - result[self.best.removesuffix("_missing")]}

    def average_precision(self, truth: KeypointTable, found: KeypointTable) -> dict[str, float]:
        return keypoint_ap(truth, found, self.sigmas)

    def detections(self, instances: list[Instance], points: np.ndarray, scores: np.ndarray) -> KeypointTable:
        """Re-scored detections that the NMS leaves, ordered as the instances; `area` is the crop's."""
        found = instance_table(instances)
        found = found._replace(
            points=np.concatenate([points, scores[..., None]], 2).astype(np.float64),
            score=rescore(found.score, scores, self.visible),
            area=np.array([np.prod(i.crop(self.image_size).size) for i in instances]),
        )
        keep: list[int] = []
        for image in np.unique(found.image_id):
            rows = np.flatnonzero(found.image_id == image)
            kept = oks_nms(found.points[rows], found.score[rows], found.area[rows], self.sigmas, self.nms)
            keep.extend(rows[kept])
        return KeypointTable(*(column[np.sort(keep)] for column in found))


class WholeBodyMetric(OksMetric):
    """OKS-AP and AR of COCO-WholeBody's parts and of all 133 points."""

    best = "whole_AP_missing"
    sigmas = WHOLEBODY_SIGMAS

    def average_precision(self, truth: KeypointTable, found: KeypointTable) -> dict[str, float]:
        return wholebody_ap(truth, found, WHOLEBODY_PARTS)


def instance_table(instances: Sequence[Instance]) -> KeypointTable:
    """Annotations of eval/oks.py from a reader's instances."""
    return KeypointTable(
        np.array([i.image_id for i in instances]),
        np.stack([i.points for i in instances]).astype(np.float64),
        np.array([i.area for i in instances], np.float64),
        np.array([i.score for i in instances], np.float64),
        np.array([i.ignore for i in instances], bool),
        np.array([i.box for i in instances], np.float64),
    )


class LandmarkMetric:
    """NME of faces, overall and by subset; `attributes` [F, S] bool belongs to the tested faces."""

    best = "nme"

    def __init__(self, attributes: np.ndarray, subsets: Sequence[str], corners: tuple[int, int] = (60, 72)):
        self.attributes, self.subsets, self.corners = attributes, subsets, corners

    def __call__(self, instances: list[Instance], points: np.ndarray, scores: np.ndarray) -> dict[str, float]:
        truth = np.stack([i.points[:, :2] for i in instances])
        return nme_report(nme(points, truth, self.corners), self.attributes, self.subsets)


@torch.no_grad()
def batch_keypoints(
    model: nn.Module,
    image: Tensor,  # [B, 3, H, W]
    center: Tensor,  # [B, 2]
    size: Tensor,  # [B, 2]
    flip_index: Sequence[int] | None,
    refine: str = "quarter",
    half_pixel: bool = False,
) -> tuple[Tensor, Tensor]:  # [B, J, 2] image pixels, [B, J]
    """Key points and scores of a batch of crops.

    Args:
        center, size: of the crops in image pixels.
        flip_index: for the flip test; None without it.
        half_pixel: adds half a map pixel before the way back (for weights of the HRNet face code, whose targets are
            cut off to whole pixels; ours are rounded).
    """
    heatmaps = predict_heatmaps(model, image, flip_index)
    at, score = decode_heatmaps(heatmaps, refine)
    return map_to_image(at + 0.5 if half_pixel else at, center, size, (heatmaps.shape[2], heatmaps.shape[3])), score


def predict_keypoints(
    model: nn.Module,
    data: TopDownDataset,
    flip_test: bool = True,
    refine: str = "quarter",
    batch_size: int = 32,
    half_pixel: bool = False,
) -> tuple[np.ndarray, np.ndarray]:  # [N, J, 2] image pixels, [N, J]
    """Key points of every instance of a data set, decoded and mapped back to the image."""
    device = next(model.parameters()).device
    points, scores = [], []
    for batch in torch.utils.data.DataLoader(data, batch_size):
        image, center, size = (batch[k].to(device) for k in ("image", "center", "size"))
        at, score = batch_keypoints(
            model, image, center, size, data.flip_index if flip_test else None, refine, half_pixel
        )
        points.append(at.cpu())
        scores.append(score.cpu())
    return torch.cat(points).numpy(), torch.cat(scores).numpy()
