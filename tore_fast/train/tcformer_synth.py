"""TCFormer's key-point and body tasks on synthetic images of the free body: training with nothing downloaded.

In: data/synth batches; out: Tasks for train/loop.py (losses in train/keypoints.py).
`tore-fast train keypoints --data synth` and `tore-fast train smpl` run them.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..body import Body
from ..data.heatmap import decode_heatmaps, encode_heatmaps
from ..data.synth import SynthGenerator
from ..geometry.camera import project_weak
from ..geometry.rotation import axis_angle_to_matrix
from ..geometry.warp import normalise_image
from .config import Task
from .keypoints import BodyRecovery, joints_mse

NUM_JOINTS = 14  # of data/synth: the 14 evaluation joints


class SynthKeypoints(Task):
    """Heat-maps of 14 joints on rendered people; evaluated by the pixel error and PCK (10 % of the body's box)."""

    best_metric = "error_px"

    def __init__(
        self,
        model: nn.Module,
        body: Body,
        image_size: int = 128,
        difficulty: float = 0.5,
        sigma: float = 2.0,
        seed: int = 1,
        eval_images: int = 256,
    ):
        self.model, self.image_size, self.sigma, self.eval_images = model, image_size, sigma, eval_images
        self.crop_size = (image_size, image_size)
        self.training, self.held_out = (
            SynthGenerator(body, image_size, seed=seed, difficulty=difficulty, split=split)
            for split in ("train", "test")
        )

    def points(self, made: dict[str, Tensor]) -> Tensor:  # [B, 14, 2] pixel indices
        return (made["joints2d"] + 1) * (self.image_size / 2) - 0.5

    def batch(self, index: int, batch_size: int, step: int) -> dict[str, Tensor]:
        made = self.training.batch(index, batch_size)
        size = (self.image_size // 4, self.image_size // 4)
        target, weight = encode_heatmaps(self.points(made), made["visible2d"], size, 4, self.sigma)
        return {"image": normalise_image(made["images"]), "target": target, "weight": weight}

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        value = joints_mse(model(batch["image"]), batch["target"], batch["weight"])
        return value, {"heatmap_mse": value.detach()}

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Pixel error and PCK; `mean_point_*` are those of the held-out set's mean position of each joint, seen or not,
        which knows where people stand in a crop and nothing of the image."""
        device = next(model.parameters()).device
        rows: dict[str, list[Tensor]] = {"found": [], "truth": [], "side": [], "seen": []}
        for index in range(-(-self.eval_images // 32)):
            made = self.held_out.batch(index, 32)
            at, _ = decode_heatmaps(model(normalise_image(made["images"]).to(device)).cpu())
            rows["found"].append(4 * at)
            rows["truth"].append(self.points(made).cpu())
            rows["side"].append((made["box"][:, 2:] - made["box"][:, :2]).amax(1).cpu())
            rows["seen"].append(made["visible2d"].cpu() > 0)
        found, truth, side, seen = (torch.cat(v) for v in rows.values())
        error, pck = _pixel_error(found, truth, side, seen)
        mean_error, mean_pck = _pixel_error(truth.mean(0).expand_as(truth), truth, side, seen)
        return {"error_px": error, "pck_0.1": pck, "mean_point_error_px": mean_error, "mean_point_pck_0.1": mean_pck}


def _pixel_error(found: Tensor, truth: Tensor, side: Tensor, seen: Tensor) -> tuple[float, float]:
    """Mean distance of the seen joints and their share within 10 % of the body's box."""
    error = (found - truth).norm(dim=2)
    return float(error[seen].mean()), float((error < 0.1 * side[:, None])[seen].float().mean())


def synth_body_batch(made: dict[str, Tensor], body: Body) -> dict[str, Tensor]:
    """A batch of `train.keypoints.hmr_losses` from a batch of data/synth."""
    rotations = axis_angle_to_matrix(made["pose"])
    joints = body.regress("h36m17", body(rotations, made["betas"], level=2).vertices)
    centred = joints - joints[:, :1]
    ones = torch.ones_like(centred[..., :1])
    return {
        "image": normalise_image(made["images"]),
        "rotations": rotations,
        "shape": made["betas"],
        "joints3d": centred,
        "joints2d": torch.cat([project_weak(centred, made["camera"]), ones], dim=2),
    }


def synth_body_recovery(
    model: nn.Module, body: Body, image_size: int = 112, difficulty: float = 0.5, seed: int = 1, eval_images: int = 256
) -> BodyRecovery:
    """`BodyRecovery` on rendered people; the task's body follows the model to its device, the one that is rendered
    stays."""
    training = SynthGenerator(body, image_size, seed=seed, difficulty=difficulty)
    held_out = SynthGenerator(body, image_size, seed=seed, difficulty=difficulty, split="test")
    batches = [synth_body_batch(held_out.batch(i, 32), body) for i in range(-(-eval_images // 32))]
    return BodyRecovery(
        model,
        copy.deepcopy(body),
        lambda index, size, step: synth_body_batch(training.batch(index, size), body),
        batches,
    )
