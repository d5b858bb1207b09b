"""OKS-AP of key points, as COCO and COCO-WholeBody define it (20 detections, 101 recall points, OKS .50:.05:.95).

In: annotations and detections as `KeypointTable`s (from data/wholebody.py and decoded heat-maps); out: AP and AR per
part. A numpy implementation of the published protocol: pycocotools knows no 133-point sets, and its numbers are what
tests/eval/test_oks.py compares with where it is installed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

_BODY = [
    0.026,
    0.025,
    0.025,
    0.035,
    0.035,
    0.079,
    0.079,
    0.072,
    0.072,
    0.062,
    0.062,
    0.107,
    0.107,
    0.087,
    0.087,
    0.089,
    0.089,
]
_FOOT = [0.068, 0.066, 0.066, 0.092, 0.094, 0.094]
_FACE = [
    0.042,
    0.043,
    0.044,
    0.043,
    0.040,
    0.035,
    0.031,
    0.025,
    0.020,
    0.023,
    0.029,
    0.032,
    0.037,
    0.038,
    0.043,
    0.041,
    0.045,
    0.013,
    0.012,
    0.011,
    0.011,
    0.012,
    0.012,
    0.011,
    0.011,
    0.013,
    0.015,
    0.009,
    0.007,
    0.007,
    0.007,
    0.012,
    0.009,
    0.008,
    0.016,
    0.010,
    0.017,
    0.011,
    0.009,
    0.011,
    0.009,
    0.007,
    0.013,
    0.008,
    0.011,
    0.012,
    0.010,
    0.034,
    0.008,
    0.008,
    0.009,
    0.008,
    0.008,
    0.007,
    0.010,
    0.008,
    0.009,
    0.009,
    0.009,
    0.007,
    0.007,
    0.008,
    0.011,
    0.008,
    0.008,
    0.008,
    0.010,
    0.008,
]
_HAND = [
    0.029,
    0.022,
    0.035,
    0.037,
    0.047,
    0.026,
    0.025,
    0.024,
    0.035,
    0.018,
    0.024,
    0.022,
    0.026,
    0.017,
    0.021,
    0.021,
    0.032,
    0.020,
    0.019,
    0.022,
    0.031,
]
WHOLEBODY_SIGMAS = np.array(_BODY + _FOOT + _FACE + _HAND + _HAND)
BODY_SIGMAS = np.array(_BODY)
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = {"all": (0.0, 1e10), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
_EPS = np.spacing(1)


class KeypointTable(NamedTuple):
    """Key points of people in many images, one row per person."""

    image_id: np.ndarray  # [P] int
    points: np.ndarray  # [P, J, 3]: x, y and visibility (annotations) or score (detections)
    area: np.ndarray  # [P] annotated area; for detections the extent of the points (see `extent_area`)
    score: np.ndarray  # [P], 1 for annotations
    ignore: np.ndarray  # [P] bool: crowd annotations
    box: np.ndarray  # [P, 4] x, y, width, height; used for annotations without a labelled point

    def part(self, first: int, last: int) -> KeypointTable:
        return self._replace(points=self.points[:, first:last])


def extent_area(points: np.ndarray) -> np.ndarray:  # [P, J, >=2] -> [P]
    """Area of the rectangle around all points, as COCO gives detections."""
    extent = points[..., :2].max(1) - points[..., :2].min(1)
    return extent[:, 0] * extent[:, 1]


def oks(
    detections: np.ndarray,  # [D, J, >=2]
    annotations: np.ndarray,  # [G, J, 3]
    area: np.ndarray,  # [G]
    sigmas: np.ndarray,  # [J]
    box: np.ndarray | None = None,  # [G, 4]
) -> np.ndarray:  # [D, G]
    """Object key-point similarity: mean over labelled joints of exp(-d^2 / (2 area (2 sigma)^2)).

    For an annotation without a labelled joint, distances count from its box doubled in size (COCO's rule; such
    annotations are ignored in the AP anyway).
    """
    labelled: np.ndarray = annotations[..., 2] > 0  # [G, J]
    d = detections[:, None, :, :2] - annotations[None, ..., :2]
    if box is not None:
        low, high = box[:, None, :2] - box[:, None, 2:], box[:, None, :2] + 2 * box[:, None, 2:]
        p = detections[:, None, :, :2]
        outside = np.maximum(0, low[None] - p) + np.maximum(0, p - high[None])
        d = np.where(np.asarray(labelled.any(1))[None, :, None, None], d, outside)
    else:
        d = np.where(np.asarray(labelled.any(1))[None, :, None, None], d, np.inf)
    e = (d**2).sum(3) / (2 * sigmas) ** 2 / (area[None, :, None] + _EPS) / 2
    weight = np.where(np.asarray(labelled.any(1))[:, None], labelled, True)
    return (np.exp(-e) * weight[None]).sum(2) / weight.sum(1)


def _match(similarity: Any, gt_ignore: Any, gt_crowd: Any, threshold: Any) -> Any:
    """Greedy matching in score order; gts are sorted with ignored ones last. Returns per-detection gt index or -1."""
    matched = np.full(similarity.shape[0], -1)
    taken = np.zeros(similarity.shape[1], bool)
    for d in range(similarity.shape[0]):
        best, found = min(threshold, 1 - 1e-10), -1
        for g in range(similarity.shape[1]):
            if taken[g] and not gt_crowd[g]:
                continue
            if found >= 0 and not gt_ignore[found] and gt_ignore[g]:
                break
            if similarity[d, g] < best:
                continue
            best, found = similarity[d, g], g
        matched[d] = found
        if found >= 0:
            taken[found] = True
    return matched


def keypoint_ap(
    annotations: KeypointTable, detections: KeypointTable, sigmas: np.ndarray = BODY_SIGMAS, max_detections: int = 20
) -> dict[str, float]:
    """COCO key-point metrics: AP, AP50, AP75, APM, APL, AR, AR50, AR75, ARM, ARL (-1 where nothing is annotated).

    Args:
        annotations: people with [J, 3] points; those without a labelled joint, and crowds, are ignored.
        detections: people with scores.
        sigmas: [J] of the joints.
    """
    if annotations.points.shape[1] != len(sigmas) or detections.points.shape[1] != len(sigmas):
        raise ValueError(
            f"keypoint_ap: points must have {len(sigmas)} joints like sigmas, got "
            f"{annotations.points.shape[1]} annotated "
            f"and {detections.points.shape[1]} detected"
        )
    images = {}
    no_joint = ~(annotations.points[..., 2] > 0).any(1)
    for image in np.union1d(annotations.image_id, detections.image_id):
        g = np.flatnonzero(annotations.image_id == image)
        d = np.flatnonzero(detections.image_id == image)
        d = d[np.argsort(-detections.score[d], kind="mergesort")][:max_detections]
        images[image] = (
            g,
            d,
            oks(detections.points[d], annotations.points[g], annotations.area[g], sigmas, annotations.box[g]),
        )
    curves = {name: _curve(images, annotations, detections, no_joint, limits) for name, limits in AREAS.items()}
    precision, recall = curves["all"]

    def mean(values: Any) -> float:
        values = values[values > -1]
        return float(values.mean()) if values.size else -1.0

    return {
        "AP": mean(precision),
        "AP50": mean(precision[0]),
        "AP75": mean(precision[5]),
        "APM": mean(curves["medium"][0]),
        "APL": mean(curves["large"][0]),
        "AR": mean(recall),
        "AR50": mean(recall[:1]),
        "AR75": mean(recall[5:6]),
        "ARM": mean(curves["medium"][1]),
        "ARL": mean(curves["large"][1]),
    }


def _curve(images: Any, annotations: Any, detections: Any, no_joint: Any, limits: Any) -> tuple[np.ndarray, np.ndarray]:
    """Precision [10, 101] and recall [10] for annotations of one range of areas; -1 where there are none."""
    low, high = limits
    scores, hits, ignored, total = [], [], [], 0
    for g, d, similarity in images.values():
        area = annotations.area[g]
        gt_ignore = annotations.ignore[g] | no_joint[g] | (area < low) | (area > high)
        order = np.argsort(gt_ignore, kind="mergesort")
        gt_ignore, gt_crowd = gt_ignore[order], annotations.ignore[g][order]
        total += int((~gt_ignore).sum())
        outside = (detections.area[d] < low) | (detections.area[d] > high)
        hit, skip = np.zeros((len(THRESHOLDS), len(d)), bool), np.zeros((len(THRESHOLDS), len(d)), bool)
        for t, threshold in enumerate(THRESHOLDS):
            matched = _match(similarity[:, order], gt_ignore, gt_crowd, threshold)
            hit[t] = matched >= 0
            skip[t] = np.where(matched >= 0, gt_ignore[matched] if len(g) else False, outside)
        scores.append(detections.score[d])
        hits.append(hit)
        ignored.append(skip)
    precision, recall = -np.ones((len(THRESHOLDS), len(RECALLS))), -np.ones(len(THRESHOLDS))
    if total == 0:
        return precision, recall
    order = np.argsort(-np.concatenate(scores), kind="mergesort")
    hit, skip = np.concatenate(hits, 1)[:, order], np.concatenate(ignored, 1)[:, order]
    for t in range(len(THRESHOLDS)):
        true = np.cumsum(hit[t] & ~skip[t]).astype(float)
        false = np.cumsum(~hit[t] & ~skip[t]).astype(float)
        reached = true / total
        value = true / (true + false + _EPS)
        recall[t] = reached[-1] if reached.size else 0.0
        value = np.maximum.accumulate(value[::-1])[::-1]
        at = np.searchsorted(reached, RECALLS, side="left")
        precision[t] = np.where(at < value.size, value[np.minimum(at, value.size - 1)] if value.size else 0.0, 0.0)
    return precision, recall


def oks_nms(
    points: np.ndarray, score: np.ndarray, area: np.ndarray, sigmas: np.ndarray, threshold: float = 0.9
) -> np.ndarray:
    """Indices of detections [D, J, >=2] of one image that stay: none is more similar than `threshold` to a better
    one."""
    order = list(np.argsort(-score, kind="mergesort"))
    keep = []
    while order:
        best = order.pop(0)
        keep.append(best)
        if order:
            rest = np.array(order)
            e = ((points[rest, :, :2] - points[best, :, :2]) ** 2).sum(2) / (2 * sigmas) ** 2
            similarity = np.exp(-e / (((area[best] + area[rest]) / 2)[:, None] + _EPS) / 2).mean(1)
            order = list(rest[similarity <= threshold])
    return np.array(keep, dtype=np.int64)


def rescore(box_score: np.ndarray, keypoint_score: np.ndarray, visible_threshold: float = 0.2) -> np.ndarray:
    """Detection score [D]: box score times the mean of the key-point scores [D, J] above the threshold."""
    visible = keypoint_score > visible_threshold
    mean = (keypoint_score * visible).sum(1) / np.maximum(visible.sum(1), 1)
    return box_score * mean


def wholebody_ap(
    annotations: KeypointTable, detections: KeypointTable, parts: dict[str, tuple[int, int]]
) -> dict[str, float]:
    """AP and AR of every part and of all 133 points: {"body_AP": ..., "whole_AR": ...}.

    A person counts for a part only if it has a labelled joint there; sizes of detections are those of the part's
    points, and a detection none of whose points has a positive score there is left out, as in xtcocotools.
    """
    out: dict[str, Any] = {}
    for name, (first, last) in {**parts, "whole": (0, len(WHOLEBODY_SIGMAS))}.items():
        found = detections.part(first, last)
        found = KeypointTable(*(column[(found.points[..., 2] > 0).any(1)] for column in found))
        found = found._replace(area=extent_area(found.points))
        result = keypoint_ap(annotations.part(first, last), found, WHOLEBODY_SIGMAS[first:last])
        out |= {f"{name}_AP": result["AP"], f"{name}_AR": result["AR"]}
    return out
