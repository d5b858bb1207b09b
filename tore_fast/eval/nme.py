"""Normalised mean error of face landmarks: overall, per WFLW subset, failure rate and area under the error curve.

In: landmarks [F, J, 2] in image pixels from data/heatmap.py and annotations from data/wflw.py; out: plain numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def nme(
    predicted: np.ndarray,  # [F, J, 2]
    truth: np.ndarray,  # [F, J, >=2]
    corners: tuple[int, int] = (60, 72),
) -> np.ndarray:  # [F]
    """Mean point distance divided by the distance of two annotated points (WFLW: outer eye corners).

    Raises:
        ValueError: shapes differ, or a face whose two corners coincide.
    """
    predicted, truth = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)[..., :2]
    if predicted.shape != truth.shape:
        raise ValueError(f"nme: predicted must be {list(truth.shape)} like truth, got {list(predicted.shape)}")
    scale = np.linalg.norm(truth[:, corners[0]] - truth[:, corners[1]], axis=1)
    if (scale <= 0).any():
        raise ValueError(f"nme: points {corners} coincide in face {int(np.argmin(scale))}")
    return np.linalg.norm(predicted - truth, axis=2).mean(1) / scale


def failure_rate(errors: np.ndarray, threshold: float = 0.10) -> float:
    """Share of faces with an error above the threshold."""
    return float((errors > threshold).mean())


def error_auc(errors: np.ndarray, threshold: float = 0.10) -> float:
    """Area under the cumulative error curve up to the threshold, between 0 and 1 (exact, no histogram)."""
    return float(np.clip(1 - errors / threshold, 0, 1).mean())


def nme_report(errors: np.ndarray, attributes: np.ndarray, subsets: Sequence[str]) -> dict[str, float]:
    """{"nme": ..., "fr_0.08": ..., "fr_0.10": ..., "auc_0.10": ..., "nme_pose": ..., ...}; attributes [F, S] bool."""
    attributes = np.asarray(attributes, bool)
    if attributes.shape != (len(errors), len(subsets)):
        raise ValueError(f"nme_report: attributes must be {[len(errors), len(subsets)]}, got {list(attributes.shape)}")
    out = {
        "nme": float(errors.mean()),
        "fr_0.08": failure_rate(errors, 0.08),
        "fr_0.10": failure_rate(errors, 0.10),
        "auc_0.10": error_auc(errors, 0.10),
    }
    for i, name in enumerate(subsets):
        chosen = errors[attributes[:, i]]
        out[f"nme_{name}"] = float(chosen.mean()) if chosen.size else float("nan")
    return out
