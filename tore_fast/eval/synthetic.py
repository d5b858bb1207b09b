"""The fixed held-out split of synthetic images: errors of an image-to-mesh model beside two baselines.

Baselines: the constant mean (the same mesh for every image, the mean of the truth) for MPJPE and MPVPE, and that mean pose
after alignment for PA-MPJPE. A model that does not clearly beat both has learnt nothing about the image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..body import Body, joints, project
from ..data.synth import HELD_OUT, SynthGenerator, normalize_images
from .procrustes import similarity_align


@torch.inference_mode()
def evaluate_held_out(
    model: nn.Module,
    body: Body,
    split: str = "hard",
    *,
    image_size: int,
    images: int | None = None,
) -> dict[str, float]:
    """Errors on a held-out set ("hard": the full prior, "easy": difficulty 0.3), millimetres.

    Joints are the 14 of joints.J14, regressed from the fine mesh, predicted and true ones centred on their own
    regressed pelvis; MPJPE re-centres both at the mean of the hips as the official evaluation does.

    Args:
        split: key of data.synth.HELD_OUT.
        images: only the first so many (None: all).
    """
    held = HELD_OUT[split]
    total = held.batches * held.batch_size if images is None else min(images, held.batches * held.batch_size)
    device = next(model.parameters()).device
    generator = SynthGenerator(body, image_size, held.seed, held.difficulty, split="test", device=device)
    errors = HeldOutErrors(body, image_size, device)
    for index in range(-(-total // held.batch_size)):
        batch = generator.batch(index, held.batch_size)
        n = min(held.batch_size, total - errors.images)
        out = model(normalize_images(batch["images"][:n]))
        errors.add(out.vertices.float(), out.camera.float(), batch["vertices"][:n], batch["camera"][:n])
    return errors.result()


class HeldOutErrors:
    """Collects predictions batch by batch; `result` is what `evaluate_held_out` returns."""

    def __init__(self, body: Body, image_size: int, device: torch.device | str = "cpu"):
        self.regressor = torch.from_numpy(body.topology.regressor("h36m17")).to(device)
        self.image_size, self.images = image_size, 0
        self._rows: dict[str, list[Tensor]] = {k: [] for k in ("pred", "truth", "vertex", "px")}

    def add(
        self,
        pred: Tensor,  # [B, V, 3] fine vertices, metres
        pred_camera: Tensor,  # [B, 3]
        truth: Tensor,  # [B, V, 3]
        camera: Tensor,  # [B, 3]
    ) -> None:
        pred_joints, pred = _centred(self.regressor, pred)
        truth_joints, truth = _centred(self.regressor, truth)
        px = project(pred_joints, pred_camera) - project(truth_joints, camera)
        self._rows["pred"].append(pred_joints)
        self._rows["truth"].append(truth_joints)
        self._rows["vertex"].append((pred - truth).norm(dim=-1).mean(1))
        self._rows["px"].append(px.norm(dim=-1).mean(1) * (self.image_size / 2))
        self.images += pred.shape[0]

    def result(self) -> dict[str, float]:
        pred, truth, vertex, px = (torch.cat(self._rows[k]) for k in ("pred", "truth", "vertex", "px"))
        mean = truth.mean(0, keepdim=True).expand_as(truth)
        return {
            "mpjpe_mm": _mpjpe(pred, truth),
            "pa_mpjpe_mm": _error(similarity_align(pred, truth), truth),
            "mpvpe_mm": 1000 * float(vertex.mean()),
            "joints_2d_px": float(px.mean()),
            "constant_mean_mpjpe_mm": _mpjpe(mean, truth),
            "mean_pose_pa_mpjpe_mm": _error(similarity_align(mean, truth), truth),
            "images": float(self.images),
        }


def _centred(regressor: Tensor, vertices: Tensor) -> tuple[Tensor, Tensor]:
    regressed = regressor @ vertices
    pelvis = regressed[:, :1]
    return regressed[:, list(joints.H36M17_TO_J14)] - pelvis, vertices - pelvis


def _mpjpe(pred: Tensor, truth: Tensor) -> float:
    hips = list(joints.J14_HIPS)
    return _error(pred - pred[:, hips].mean(1, keepdim=True), truth - truth[:, hips].mean(1, keepdim=True))


def _error(pred: Tensor, truth: Tensor) -> float:
    return 1000 * float((pred - truth).norm(dim=-1).mean())
