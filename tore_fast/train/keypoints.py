"""TCFormer's four tasks for train/loop.py: class labels, key-point heat-maps (whole body, face), SMPL parameters.

In: datasets of data/{imagenet_folder,wholebody,wflw}.py, or batches with body parameters; out: Tasks with the losses of
the paper's code and the metrics of eval/keypoint_metrics.py. A batch is a function of its index, so runs resume
exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..body import Body
from ..body.lbs import pose_matrices
from ..data.topdown import TopDownDataset
from ..eval.keypoint_metrics import KeypointMetric, predict_keypoints
from ..geometry.camera import project_weak
from ..geometry.skeleton import H36M17_TO_J14, J24_TO_J14
from ..models.keypoints.tcformer_heads import BodyParameters
from .config import Task
from .losses import joints_3d_loss, labelled_mean
from .mesh_labels import LabelledCrops
from .stream import items_of_batch

# ---- classification


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean of -sum p log q; `target` holds class indices [B] or probabilities [B, classes] (mixup)."""
    return F.cross_entropy(logits.float(), target)


class Classification(Task):
    """Class labels: cross entropy (with mixup where given), top-1 error in percent."""

    best_metric = "top1_error"

    def __init__(
        self,
        model: nn.Module,
        training: Any,
        held_out: Any,
        mixup: Callable | None = None,
        seed: int = 0,
        eval_batch: int = 64,
    ) -> None:
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
        return {
            "top1_percent": 100 - 100 * wrong / count,
            "top5_percent": 100 - 100 * wrong5 / count,
            "top1_error": 100 * wrong / count,
            "cross_entropy": loss / count,
        }


# ---- key points


def joints_mse(heatmaps: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean over images and joints of weight * mean((prediction - target)^2).

    Args:
        heatmaps, target: [B, J, H, W].
        weight: [B, J], 0 for joints that are not labelled.
    """
    return ((heatmaps.float() - target).square().mean((2, 3)) * weight).mean()


class Keypoints(Task):
    """Heat-map regression on top-down crops; evaluated with the flip test and a metric of the data set."""

    def __init__(
        self,
        model: nn.Module,
        training: TopDownDataset,
        held_out: TopDownDataset,
        metric: KeypointMetric,
        flip_test: bool = True,
        refine: str = "quarter",
        seed: int = 0,
        eval_batch: int = 32,
    ):
        self.model, self.training, self.held_out, self.metric = model, training, held_out, metric
        self.flip_test, self.refine, self.seed, self.eval_batch = flip_test, refine, seed, eval_batch
        self.best_metric = metric.best
        self.items_per_epoch, self.crop_size = len(training), tuple(training.image_size)

    def batch(self, index: int, batch_size: int, step: int) -> dict[str, Tensor]:
        items = []
        for epoch, i in items_of_batch(index, batch_size, len(self.training), self.seed):
            self.training.epoch = epoch
            items.append(self.training[i])
        return {k: torch.stack([item[k] for item in items]) for k in ("image", "target", "weight")}

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        plain: Any = self.model
        if hasattr(plain, "set_epoch"):
            plain.set_epoch(step / self.steps_per_epoch)
        value = joints_mse(model(batch["image"]), batch["target"], batch["weight"])
        return value, {"heatmap_mse": value.detach()}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        points, scores = predict_keypoints(model, self.held_out, self.flip_test, self.refine, self.eval_batch)
        return self.metric(self.held_out.instances, points, scores)


# ---- body parameters

# SPIN's; it multiplies the sum by 60, which Adam does not notice
HMR_WEIGHTS = {"joints2d": 5.0, "joints3d": 5.0, "pose": 1.0, "shape": 0.001, "camera": 1.0}
# joints of a label set: rows of the 17-joint regressor, and those whose mean is the origin of the 3D loss (pelvis;
# hips)
JOINT_SETS = {"h36m17": (tuple(range(17)), (0,)), "j14": (H36M17_TO_J14, (2, 3))}


def hmr_losses(
    out: BodyParameters, batch: dict[str, Tensor], body: Body, joint_set: str = "h36m17"
) -> dict[str, Tensor]:
    """Unweighted losses of SPIN's regressor training; what a batch does not carry is left out.

    Args:
        out: of the model.
        batch: any of "rotations" [B, J, 3, 3], "shape" [B, S], "joints3d" [B, K, 3 or 4] (metres, any origin, perhaps
            with confidence; the K joints of `joint_set`), "joints2d" [B, K, 3] (crop units in [-1, 1] and confidence);
            "has_smpl", "has_3d" [B]: items that carry the first two, the third (default: all).
        body: gives joints from parameters.

    Returns:
        joints2d, joints3d, pose, shape (where supervised), camera (exp(-10 scale)^2: keeps the scale positive).
    """
    losses = {"camera": torch.exp(-10.0 * out.camera[:, 0].float()).square().mean()}
    if "rotations" in batch:
        losses["pose"] = labelled_mean((out.rotations - batch["rotations"]).square(), batch.get("has_smpl"))
    if "shape" in batch:
        losses["shape"] = labelled_mean((out.shape.float() - batch["shape"]).square(), batch.get("has_smpl"))
    if "joints3d" in batch or "joints2d" in batch:
        picks, origin = JOINT_SETS[joint_set]
        # level 2 skins 431 vertices: joints need no more
        joints = body.regress("h36m17", body(out.rotations, out.shape.float(), level=2).vertices)
        joints = (joints - joints[:, :1])[:, list(picks)]
        if "joints3d" in batch:
            truth = batch["joints3d"]
            confidence = truth[..., 3] if truth.shape[2] == 4 else torch.ones_like(truth[..., 0])
            losses["joints3d"] = joints_3d_loss(joints, truth[..., :3], confidence, batch.get("has_3d"), "mse", origin)
        if "joints2d" in batch:
            error = (project_weak(joints, out.camera.float()) - batch["joints2d"][..., :2]).square().sum(2)
            losses["joints2d"] = (error * batch["joints2d"][..., 2]).mean()
    return losses


class BodyRecovery(Task):
    """SMPL-style parameters from images; `source(index, batch_size, step)` gives the batches of `hmr_losses`.

    Args:
        held_out: batches with "joints3d" of the 17 joints, for MPJPE and PA-MPJPE in millimetres; or model -> metrics.
        items_per_epoch: of the data behind `source`, where it has an end.
    """

    best_metric = "pa_mpjpe_mm"

    def __init__(
        self,
        model: nn.Module,
        body: Body,
        source: Callable[[int, int, int], dict[str, Tensor]],
        held_out: Sequence[dict[str, Tensor]] | Callable[[nn.Module], dict[str, float]],
        weights: dict[str, float] | None = None,
        joint_set: str = "h36m17",
        items_per_epoch: int | None = None,
    ):
        self.model, self.body, self.source, self.held_out = model, body, source, held_out
        self.weights, self.joint_set, self.items_per_epoch = HMR_WEIGHTS | (weights or {}), joint_set, items_per_epoch

    def batch(self, index: int, batch_size: int, step: int) -> dict[str, Tensor]:
        return self.source(index, batch_size, step)

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        self.body.to(batch["image"].device)  # no copy when it is there
        parts = hmr_losses(model(batch["image"]), batch, self.body, self.joint_set)
        total: Any = sum(self.weights[k] * v for k, v in parts.items())
        return total, {k: v.detach() for k, v in parts.items()}

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        from ..geometry.procrustes import similarity_align

        if callable(self.held_out):
            return self.held_out(model)
        device = next(model.parameters()).device
        self.body.to(device)
        error, aligned = [], []
        for batch in self.held_out:
            out = model(batch["image"].to(device))
            joints = self.body.regress("h36m17", self.body(out.rotations, out.shape.float(), level=2).vertices).cpu()
            truth = batch["joints3d"].cpu()
            joints, truth = joints - joints[:, :1], truth - truth[:, :1]
            error.append((joints - truth).norm(dim=2).mean(1))
            aligned.append((similarity_align(joints, truth) - truth).norm(dim=2).mean(1))
        return {
            "mpjpe_mm": 1000 * float(torch.cat(error).mean()),
            "pa_mpjpe_mm": 1000 * float(torch.cat(aligned).mean()),
        }


def labelled_body_batch(sample: dict[str, Tensor], num_joints: int = 24) -> dict[str, Tensor]:
    """A batch of `hmr_losses` (joint set "j14") from labelled crops (mesh_labels.LabelledCrops.batch)."""
    picks = list(J24_TO_J14)
    return {
        "image": sample["image"],
        "rotations": pose_matrices(sample["pose"], num_joints),
        "shape": sample["betas"],
        "joints3d": sample["joints_3d"][:, picks],
        "joints2d": sample["joints_2d"][:, picks],
        "has_smpl": sample["has_smpl"],
        "has_3d": sample["has_3d"],
    }


def labelled_body_recovery(
    model: nn.Module, body: Body, crops: LabelledCrops, validate: Callable[[nn.Module], dict[str, float]] | None = None
) -> BodyRecovery:
    """`BodyRecovery` on labelled data sets; `validate`: model -> metrics, where a set is held out."""
    return BodyRecovery(
        model,
        body,
        lambda index, size, step: labelled_body_batch(crops.batch(index, size)),
        validate or (lambda model: {}),
        joint_set="j14",
        items_per_epoch=len(crops),
    )
