"""SAM 3D Body: which pass runs (body or hands), and person coverage of its crops.

In: the user's own `SAM3DBody` object; out: overrides on that instance, undone by `remove`. Written from the published
interface (attribute names and shapes); nothing of that project is part of this one. Its weights and code have their own
licence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..layers.mask_tome import mask_coverage
from .blocks import Refused
from .hosts import Host
from .runtime import Runtime

MASKS = ("auto", "model", "box", "previous", "none")
HAND_PART = 1 / 1.2  # of the crop's side that a hand's box takes


def is_sam3d(model: Any) -> bool:
    return isinstance(model, nn.Module) and hasattr(model, "forward_pose_branch") and hasattr(model, "backbone")


def rectangle(part: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes in the middle of crops: part [P, 2] of width and height -> [P, H, W] 0/1."""
    height, width = size
    y = ((torch.arange(height, device=part.device) + 0.5) / height * 2 - 1).abs()
    x = ((torch.arange(width, device=part.device) + 0.5) / width * 2 - 1).abs()
    return ((y[None, :, None] <= part[:, 1, None, None]) & (x[None, None] <= part[:, 0, None, None])).float()


class Previous:
    """Stands in for an estimator's `process_one_image`: remembers the people of the last frame."""

    def __init__(self, original: Any) -> None:
        self.original = original
        self.people: list[dict[str, Any]] = []
        self.size = (0, 0)

    def __call__(self, img: Any, *args: Any, **kwargs: Any) -> Any:
        found = self.original(img, *args, **kwargs)
        self.people = [p for p in found if all(k in p for k in ("bbox", "pred_vertices", "pred_cam_t", "focal_length"))]
        return found

    def forget(self) -> None:
        self.people = []

    def outline(self, box: np.ndarray, image: tuple[float, float]) -> np.ndarray | None:
        """Corners [K, 2] (px) of the convex hull of the person whose box fits best, projected as the model does
        (principal point in the middle of the image [W, H]); None where no box of the last frame overlaps by a third."""
        from scipy.spatial import ConvexHull, QhullError

        best = max(self.people, key=lambda p: _overlap(np.asarray(p["bbox"]).reshape(4), box), default=None)
        if best is None or _overlap(np.asarray(best["bbox"]).reshape(4), box) < 1 / 3:
            return None
        points = np.asarray(best["pred_vertices"], np.float64) + np.asarray(best["pred_cam_t"], np.float64)
        if not np.isfinite(points).all() or points[:, 2].min() <= 0:
            return None
        flat = points[:, :2] / points[:, 2:] * float(np.asarray(best["focal_length"])) + np.array(image) / 2
        try:
            return flat[ConvexHull(flat).vertices]
        except QhullError:  # all in one line
            return None


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1."""
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - np.prod(sides)
    return float(np.prod(sides) / union) if union > 0 else 0.0


def polygon_mask(corners: Tensor, size: tuple[int, int]) -> Tensor:
    """Convex polygon, corners [K, 2] in order (x, y of pixels) -> [H, W] 0/1 at pixel centres."""
    y, x = (torch.arange(n, device=corners.device, dtype=corners.dtype) for n in size)
    start, edge = corners, corners.roll(-1, 0) - corners
    side = edge[:, 0, None, None] * (y[:, None] - start[:, 1, None, None])
    side = side - edge[:, 1, None, None] * (x[None] - start[:, 0, None, None])
    return ((side >= 0).all(0) | (side <= 0).all(0)).float()


class Branch:
    """Stands in for `model.forward_pose_branch`: sets budget and coverage of the pass, then calls the original."""

    def __init__(
        self,
        model: Any,
        host: Host,
        runtime: Runtime,
        masks: str | Callable[[dict], Tensor],
        keep: tuple,
        previous: Previous | None = None,
    ) -> None:
        if not callable(masks) and masks not in MASKS:
            raise ValueError(f"accelerate: masks must be one of {MASKS} or a function of the batch, got {masks!r}")
        if masks == "previous" and previous is None:
            raise Refused("accelerate: masks='previous' needs the estimator, whose results are the previous frame")
        self.model, self.host, self.runtime, self.masks, self.previous = model, host, runtime, masks, previous
        self.keep = keep
        self.original = model.forward_pose_branch

    def __call__(self, batch: dict, *args: Any, **kwargs: Any) -> Any:
        hand = len(getattr(self.model, "hand_batch_idx", ())) > 0
        body = len(getattr(self.model, "body_batch_idx", ())) > 0
        if hand and body and self.keep[0] != self.keep[1]:
            raise Refused(
                "accelerate: bodies and hands share one batch here, so they need one budget: "
                "keep_tokens=N, not (body, hand)"
            )
        self.runtime.keep = self.keep[1] if hand and not body else self.keep[0]
        self.runtime.coverage = None if self.runtime.keep is None else self.coverage(batch, hand and not body)
        try:
            return self.original(batch, *args, **kwargs)
        finally:
            self.runtime.coverage = None

    def coverage(self, batch: dict, hand: bool) -> Tensor | None:
        """[P, N0] of a batch; None is plain ToMe."""
        if self.masks == "none":
            return None
        crops = batch["img"].flatten(0, 1) if batch["img"].dim() == 5 else batch["img"]
        size = (int(crops.shape[-2]), int(crops.shape[-1]))
        if callable(self.masks):
            found = self.masks(batch)
        else:
            found = self._box(batch, hand, size, crops)
            mask = batch.get("mask")
            if self.previous is not None and not hand:
                found = self._previous(batch, size, found)
            elif self.masks != "box" and mask is not None and not hand:
                mask = mask.reshape(len(crops), *mask.shape[-2:]).float().clamp(0, 1)  # 0/1 or 0/255
                score = batch.get("mask_score")
                given = torch.ones(len(crops), device=mask.device) if score is None else score.reshape(-1)
                found = torch.where((given > 0)[:, None, None], mask, found)
            elif self.masks == "model":
                return None
        found = found.reshape(len(crops), *found.shape[-2:])
        width = getattr(getattr(self.host.vit, "patch_embed", None), "img_size", None)
        if isinstance(width, tuple | list) and len(width) == 2 and width[1] < found.shape[-1]:
            cut = (found.shape[-1] - int(width[1])) // 2  # the ViT-H variant drops columns left and right
            found = found[..., cut : found.shape[-1] - cut]
        return mask_coverage(found, *self.host.window)

    def _previous(self, batch: dict, size: tuple[int, int], box: Tensor) -> Tensor:
        """The last frame's people inside this frame's crops; `box` [P, H, W] where there is none."""
        assert self.previous is not None
        if not self.previous.people or not all(k in batch for k in ("bbox", "affine_trans", "ori_img_size")):
            return box
        rows = []
        for i, rectangle_ in enumerate(box):
            place = batch["bbox"].reshape(-1, 4)[i].cpu().double().numpy()
            width, height = batch["ori_img_size"].reshape(-1, 2)[i].tolist()
            corners = self.previous.outline(place, (width, height))
            if corners is None:
                rows.append(rectangle_)
                continue
            warp = batch["affine_trans"].reshape(-1, *batch["affine_trans"].shape[-2:])[i].double().cpu()
            inside = torch.from_numpy(corners) @ warp[:2, :2].T + warp[:2, 2]
            rows.append(polygon_mask(inside, size).to(box))
        return torch.stack(rows)

    def _box(self, batch: dict, hand: bool, size: tuple[int, int], crops: Tensor) -> Tensor:
        people = len(crops)
        if hand:
            part = crops.new_full((people, 2), HAND_PART)
        elif "bbox" in batch and "bbox_scale" in batch:
            box, scale = batch["bbox"].reshape(people, 4).float(), batch["bbox_scale"].reshape(people, 2).float()
            part = ((box[:, 2:] - box[:, :2]) / scale).clamp(0, 1)
        else:
            part = crops.new_full((people, 2), 1 / 1.25)
        return rectangle(part.float(), size)
