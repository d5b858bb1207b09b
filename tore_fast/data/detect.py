"""People in frames: any detector as a callable, an optional one from torchvision, and a small box tracker.

In: RGB frames [H, W, 3] uint8; out: {track: box} and masks per track, as pipelines/video.py takes them. No
detector is part of the package and none is downloaded: the choice, its weights and their licence are the user's.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..io.image import ImageError, check_box
from ..io.video import TrackBoxes
from ..io.weights import read_weights

PERSON = 1  # COCO class number of torchvision's detectors


class Detections(NamedTuple):
    """People of one frame."""

    boxes: np.ndarray  # [N, 4] x0, y0, x1, y1 px
    scores: np.ndarray  # [N]
    masks: np.ndarray | None = None  # [N, H, W] bool


Detector = Callable[[np.ndarray], object]


def as_detections(value: object, shape: tuple[int, int]) -> Detections:
    """What a detector returned as Detections.

    Args:
        value: rows [N, 4] of x0, y0, x1, y1; [N, 5] with a score; [N, 6] with a score and a class, of which 0 is a
            person, as YOLO writes them; a dict with boxes, scores, masks; a Detections; None or an empty list for
            nobody. Arrays or tensors on any device.
        shape: (H, W) of the frame, for the masks.

    Raises:
        ValueError: anything else, boxes that are no numbers, or masks that are not the frame's size.
    """
    if value is None:
        value = np.zeros((0, 4))
    if isinstance(value, dict):
        if "boxes" not in value:
            raise ValueError(f"detector: expected a dict with boxes, got {list(value)[:5]}")
        given: Any = value
        value = Detections(given["boxes"], given.get("scores"), given.get("masks"))
    if not isinstance(value, Detections):
        rows = _array(value)
        rows = rows.reshape(0, 4) if rows.size == 0 else rows
        if rows.ndim != 2 or rows.shape[1] not in (4, 5, 6):
            raise ValueError(
                "detector: expected boxes [N, 4] or [N, 5] with a score (or [N, 6] with a class), got shape "
                f"{list(rows.shape)}"
            )
        rows = rows[rows[:, 5] == 0] if rows.shape[1] == 6 else rows
        value = Detections(rows[:, :4], rows[:, 4] if rows.shape[1] > 4 else np.ones(len(rows), np.float32))
    boxes = _array(value.boxes).reshape(-1, 4)
    scores = np.ones(len(boxes), np.float32) if value.scores is None else _array(value.scores).reshape(-1)
    masks = None if value.masks is None else _array(value.masks) > 0
    if len(scores) != len(boxes):
        raise ValueError(f"detector: {len(boxes)} boxes and {len(scores)} scores")
    if not np.isfinite(boxes).all():
        raise ValueError("detector: a box has NaN or infinite numbers")
    if masks is not None and masks.shape != (len(boxes), *shape):
        raise ValueError(f"detector: masks must be [{len(boxes)}, {shape[0]}, {shape[1]}], got {list(masks.shape)}")
    return Detections(boxes, np.nan_to_num(scores), masks)


def _array(value: Any) -> np.ndarray:
    """float32 of an array, list or tensor."""
    if hasattr(value, "detach"):
        value = value.detach().float().cpu().numpy()
    try:
        return np.asarray(value, np.float32)
    except (TypeError, ValueError) as e:
        raise ValueError(f"detector: expected boxes as numbers, got {str(value)[:60]!r}") from e


def load_detector(source: str, weights: str | None = None, device: str = "cpu") -> Detector:
    """ "MODULE:NAME" (a callable of yours: frame -> boxes) or "torchvision:MODEL" with the weights file of that model.

    Raises:
        ValueError: no such callable or model; torchvision or the weights are missing.
    """
    module, _, name = source.partition(":")
    if module == "torchvision":
        return TorchvisionDetector(name or "fasterrcnn_mobilenet_v3_large_320_fpn", weights, device)
    if not name:
        raise ValueError(f"--detector: expected MODULE:CALLABLE or torchvision:MODEL, got {source!r}")
    return load_callable(source, "--detector")


def load_callable(source: str, option: str) -> Callable:
    """A function of the user's, "MODULE:NAME" (MODULE may lie in the current folder), given for `option`.

    Raises:
        ValueError: no such module or name, or not callable.
    """
    module, _, name = source.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # a file beside the user, as with python -m
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as e:
        raise ValueError(f"{option} {source}: {e}") from None
    if not callable(found):
        raise ValueError(f"{option} {source}: not callable")
    return found


class TorchvisionDetector:
    """A detection model of torchvision (BSD-3; its COCO weights have their own terms) on a local weights file.

    Args:
        model: name in torchvision.models.detection, e.g. fasterrcnn_mobilenet_v3_large_320_fpn; maskrcnn_* gives masks.
        weights: .pth state dict of it. min_score: people below are dropped.
    """

    def __init__(self, model: str, weights: str | Path | None, device: str = "cpu", min_score: float = 0.5):
        try:
            from torchvision.models import detection, get_model, list_models
        except ImportError:
            raise ValueError("--detector torchvision needs torchvision: pip install tore_fast[detect]") from None
        if model not in list_models(module=detection):
            raise ValueError(
                f"--detector torchvision: no detection model {model!r}; there are "
                f"{', '.join(list_models(module=detection))}"
            )
        if weights is None or not Path(weights).is_file():
            raise ValueError(
                f"--detector torchvision:{model}: give its weights file with --detector-weights (nothing is "
                f"downloaded), got {weights}"
            )
        self.model = get_model(model, weights=None, weights_backbone=None)
        try:
            self.model.load_state_dict(read_weights(weights))
        except (ValueError, TypeError, AttributeError, RuntimeError) as e:  # the file is not this model's
            raise ValueError(f"{weights}: not the weights of {model} ({str(e).splitlines()[0]})") from None
        self.model.to(device).eval()
        self.device, self.min_score = device, min_score

    def __call__(self, frame: np.ndarray) -> Detections:
        import torch

        with torch.inference_mode():
            image = torch.from_numpy(frame.copy()).to(self.device).permute(2, 0, 1).float() / 255
            out = {k: v.cpu().numpy() for k, v in self.model([image])[0].items()}
        keep = (out["labels"] == PERSON) & (out["scores"] >= self.min_score)
        masks = out["masks"][keep, 0] > 0.5 if "masks" in out else None
        return Detections(out["boxes"][keep], out["scores"][keep], masks)


def box_overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:  # [N, 4], [M, 4] -> [N, M]
    """Intersection over union."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.clip(high - low, 0, None).prod(-1)
    area_a, area_b = (np.clip(x[:, 2:] - x[:, :2], 0, None).prod(-1) for x in (a, b))
    return inter / np.maximum(area_a[:, None] + area_b[None] - inter, 1e-9)


class BoxTracker:
    """Greedy tracking by overlap: a box continues the track it overlaps most, others start new tracks.

    Called as a pipeline's `tracker`; `masks` is its mask source; `state` and `restore` let interrupted runs keep the
    ids.

    Args:
        detector: frame -> detections (see as_detections). min_overlap: IoU that joins. max_lost: frames a track
            survives without a box. min_side: smaller boxes (px) are dropped.
    """

    def __init__(self, detector: Detector, min_overlap: float = 0.3, max_lost: int = 15, min_side: float = 16.0):
        self.detector, self.min_overlap, self.max_lost, self.min_side = detector, min_overlap, max_lost, min_side
        self._last: dict[int, tuple[int, list[float]]] = {}  # track: frame, box
        self._next = 0
        self._masks: dict[int, np.ndarray] | None = None
        self.problems: list[str] = []  # a line for each frame in which the detector failed

    def __call__(self, index: int, frame: np.ndarray) -> dict[int, tuple[float, float, float, float]]:
        try:
            found = as_detections(self.detector(frame), frame.shape[:2])
        except Exception as e:  # noqa: BLE001 (the detector is the user's; a frame that it fails on costs itself)
            self.problems.append(f"frame {index}: the detector failed ({type(e).__name__}: {str(e)[:120]})")
            found = as_detections(None, frame.shape[:2])
        out = self.assign(index, found.boxes, found.scores)
        self._masks = None if found.masks is None else {t: found.masks[i] for t, i in out.items()}
        return {t: tuple(found.boxes[i].tolist()) for t, i in out.items()}

    def assign(self, index: int, boxes: np.ndarray, scores: np.ndarray) -> dict[int, int]:
        """Track -> row of the boxes [N, 4] of frame `index`; rows of equal overlap go by their scores [N]."""
        sides = (boxes[:, 2:] - boxes[:, :2]).min(1) if len(boxes) else np.zeros(0)
        rows = [i for i in np.argsort(-scores, kind="stable") if sides[i] >= self.min_side]
        self._last = {t: v for t, v in self._last.items() if index - v[0] <= self.max_lost}
        tracks = sorted(self._last)
        overlap = box_overlap(boxes, np.array([self._last[t][1] for t in tracks], np.float32).reshape(-1, 4))
        out: dict[int, int] = {}
        pairs = sorted(
            ((overlap[i, k], i, k) for i in rows for k in range(len(tracks))), key=lambda p: (-p[0], p[1], p[2])
        )
        taken: set[int] = set()
        for value, i, k in pairs:
            if value >= self.min_overlap and i not in taken and tracks[k] not in out:
                out[tracks[k]] = int(i)
                taken.add(i)
        for i in rows:
            if i not in taken:
                out[self._next] = int(i)
                self._next += 1
        for t, i in out.items():
            self._last[t] = (index, boxes[i].tolist())
        return out

    def masks(self, index: int, frame: np.ndarray, boxes: dict) -> dict[int, np.ndarray] | None:
        """Masks of the last call's people; None where the detector gives none at all."""
        if not boxes:
            return {}
        return None if self._masks is None else {t: self._masks[t] for t in boxes if t in self._masks}

    def state(self) -> dict:
        """JSON-able memory."""
        return {"next": self._next, "last": {str(t): [f, box] for t, (f, box) in self._last.items()}}

    def restore(self, state: dict) -> None:
        self._next = int(state["next"])
        self._last = {int(t): (int(f), list(box)) for t, (f, box) in state["last"].items()}


class TableTracker:
    """Boxes of a file as a pipeline's `tracker`; boxes that are not in the frame cost themselves.

    Args:
        table: files without track numbers are tracked by overlap. name: of the file, for messages.
    """

    def __init__(self, table: TrackBoxes, name: str):
        self.table, self.name = table, name
        self.problems: list[str] = []
        self.last = -1  # frame that was asked for last
        self._tracker = None if table.tracked else BoxTracker(lambda _: None, min_side=2.0)

    def __call__(self, index: int, frame: np.ndarray) -> dict[int, tuple[float, float, float, float]]:
        self.last = max(self.last, index)
        out = {}
        for track, box in self.table.at(index).items():
            try:
                out[track] = check_box(
                    box, frame.shape[1], frame.shape[0], f"{self.name}: frame {index}, track {track}"
                )
            except ImageError as e:
                self.problems.append(str(e))
        if self._tracker is None:
            return out
        rows = list(out.values())
        boxes = np.array(rows, np.float32).reshape(-1, 4)
        return {t: rows[i] for t, i in self._tracker.assign(index, boxes, np.ones(len(rows), np.float32)).items()}

    def unused(self) -> list[int]:
        """Frames with boxes behind the last one of the video."""
        return [f for f in self.table.frames if f > self.last >= 0]

    def state(self) -> dict:
        """JSON-able memory."""
        return {} if self._tracker is None else self._tracker.state()

    def restore(self, state: dict) -> None:
        if self._tracker is not None:
            self._tracker.restore(state)
