"""TCFormer's four tasks for train/loop.py: class labels, key-point heat-maps (whole body, face), SMPL parameters.

In: datasets of data/{imagenet_folder,wholebody,wflw}.py, or batches with body parameters; out: Tasks with the losses of
the paper's code and the metrics of eval/keypoint_metrics.py. A batch is a function of its index, so runs resume exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..body import Body, project
from ..data.topdown import TopDownDataset
from ..eval.keypoint_metrics import KeypointMetric, predict_keypoints
from ..models.tcformer_heads import BodyParameters
from .stream import items_of_batch

# ---- classification


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean of -sum p log q; `target` holds class indices [B] or probabilities [B, classes] (mixup)."""
    return F.cross_entropy(logits.float(), target)


class Classification:
    """Class labels: cross entropy (with mixup where given), top-1 error in percent."""

    best_metric = "top1_error"

    def __init__(self, model: nn.Module, training, held_out, mixup: Callable | None = None, seed: int = 0,
                 eval_batch: int = 64):  # fmt: skip
        self.model, self.training, self.held_out = model, training, held_out
        self.mixup, self.seed, self.eval_batch = mixup, seed, eval_batch
        self.items_per_epoch = len(training)

    def batch(self, index: int, batch_size: int, step: int) -> dict[str, Tensor]:
        images, labels = [], []
        for epoch, i in items_of_batch(index, batch_size, len(self.training), self.seed):
            # random transforms draw from the global generators: pinned to the item and epoch
            torch.manual_seed(((self.seed * 1_000_003 + epoch) * 1_000_003 + i) & 0x7FFFFFFF)
            image, label = self.training[i]
            images.append(image)
            labels.append(label)
        image, target = torch.stack(images), torch.tensor(labels)
        if self.mixup is not None:
            np.random.seed((self.seed * 1_000_003 + index) & 0x7FFFFFFF)  # timm's Mixup draws from numpy's generator
            image, target = self.mixup(image, target)
        return {"image": image, "target": target}

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        value = soft_cross_entropy(model(batch["image"]), batch["target"])
        return value, {"cross_entropy": value.detach()}

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device
        wrong, wrong5, count, loss = 0, 0, 0, 0.0
        for image, label in torch.utils.data.DataLoader(self.held_out, self.eval_batch):
            logits, label = model(image.to(device)).float(), label.to(device)
            top = logits.topk(min(5, logits.shape[1]), dim=1).indices
            wrong += int((top[:, 0] != label).sum())
            wrong5 += int((top != label[:, None]).all(1).sum())
            loss += float(F.cross_entropy(logits, label, reduction="sum"))
            count += len(label)
        return {"top1_error": 100 * wrong / count, "top5_error": 100 * wrong5 / count, "cross_entropy": loss / count}


# ---- key points


def joints_mse(heatmaps: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean over images and joints of weight * mean((prediction - target)^2).

    Args:
        heatmaps, target: [B, J, H, W].
        weight: [B, J], 0 for joints that are not labelled.
    """
    return ((heatmaps.float() - target).square().mean((2, 3)) * weight).mean()


class Keypoints:
    """Heat-map regression on top-down crops; evaluated with the flip test and a metric of the data set."""

    def __init__(self, model: nn.Module, training: TopDownDataset, held_out: TopDownDataset, metric: KeypointMetric,
                 flip_test: bool = True, refine: str = "quarter", seed: int = 0, eval_batch: int = 32):  # fmt: skip
        self.model, self.training, self.held_out, self.metric = model, training, held_out, metric
        self.flip_test, self.refine, self.seed, self.eval_batch = flip_test, refine, seed, eval_batch
        self.best_metric = metric.best
        self.items_per_epoch = len(training)

    def batch(self, index: int, batch_size: int, step: int) -> dict[str, Tensor]:
        items = []
        for epoch, i in items_of_batch(index, batch_size, len(self.training), self.seed):
            self.training.epoch = epoch
            items.append(self.training[i])
        return {k: torch.stack([item[k] for item in items]) for k in ("image", "target", "weight")}

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        value = joints_mse(model(batch["image"]), batch["target"], batch["weight"])
        return value, {"heatmap_mse": value.detach()}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        points, scores = predict_keypoints(model, self.held_out, self.flip_test, self.refine, self.eval_batch)
        return self.metric(self.held_out.instances, points, scores)


# ---- body parameters

HMR_WEIGHTS = {"joints2d": 5.0, "joints3d": 5.0, "pose": 1.0, "shape": 0.001, "camera": 60.0}


def hmr_losses(out: BodyParameters, batch: dict[str, Tensor], body: Body, regressor: str = "h36m17") -> dict[str, Tensor]:
    """Unweighted losses of SPIN's regressor training; what a batch does not carry is left out.

    Args:
        out: of the model.
        batch: any of "rotations" [B, J, 3, 3], "shape" [B, S], "joints3d" [B, K, 3] (metres, any origin; K joints of
            `regressor`), "joints2d" [B, K, 3] (crop units in [-1, 1] and confidence).
        body: gives joints from parameters.

    Returns:
        joints2d, joints3d, pose, shape (where supervised), camera (exp(-10 scale)^2: keeps the scale positive).
    """
    losses = {"camera": torch.exp(-10.0 * out.camera[:, 0].float()).square().mean()}
    if "rotations" in batch:
        losses["pose"] = F.mse_loss(out.rotations, batch["rotations"])
    if "shape" in batch:
        losses["shape"] = F.mse_loss(out.shape.float(), batch["shape"])
    if "joints3d" in batch or "joints2d" in batch:
        # level 2 skins 431 vertices: joints need no more
        joints = body.regress(regressor, body(out.rotations, out.shape.float(), level=2).vertices)
        joints = joints - joints[:, :1]
        if "joints3d" in batch:
            truth = batch["joints3d"]
            losses["joints3d"] = F.mse_loss(joints, truth - truth[:, :1])
        if "joints2d" in batch:
            error = (project(joints, out.camera.float()) - batch["joints2d"][..., :2]).square().sum(2)
            losses["joints2d"] = (error * batch["joints2d"][..., 2]).mean()
    return losses


class BodyRecovery:
    """SMPL-style parameters from images; `source(index, batch_size, step)` gives the batches of `hmr_losses`.

    Held-out batches must carry "joints3d"; reported are MPJPE and PA-MPJPE in millimetres.
    """

    best_metric = "pa_mpjpe_mm"

    def __init__(self, model: nn.Module, body: Body, source: Callable[[int, int, int], dict[str, Tensor]],
                 held_out: Sequence[dict[str, Tensor]], weights: dict[str, float] | None = None):  # fmt: skip
        self.model, self.body, self.source, self.held_out = model, body, source, held_out
        self.weights = HMR_WEIGHTS | (weights or {})

    def batch(self, index: int, batch_size: int, step: int) -> dict[str, Tensor]:
        return self.source(index, batch_size, step)

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        parts = hmr_losses(model(batch["image"]), batch, self.body)
        return sum(self.weights[k] * v for k, v in parts.items()), {k: v.detach() for k, v in parts.items()}

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        from ..eval.procrustes import similarity_align

        device = next(model.parameters()).device
        error, aligned = [], []
        for batch in self.held_out:
            out = model(batch["image"].to(device))
            joints = self.body.regress("h36m17", self.body(out.rotations, out.shape.float(), level=2).vertices).cpu()
            truth = batch["joints3d"].cpu()
            joints, truth = joints - joints[:, :1], truth - truth[:, :1]
            error.append((joints - truth).norm(dim=2).mean(1))
            aligned.append((similarity_align(joints, truth) - truth).norm(dim=2).mean(1))
        return {"mpjpe_mm": 1000 * float(torch.cat(error).mean()), "pa_mpjpe_mm": 1000 * float(torch.cat(aligned).mean())}
