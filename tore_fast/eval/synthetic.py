"""The fixed held-out split of synthetic images: errors of an image-to-mesh model beside two baselines.

Baselines: the constant mean (the same mesh for every image, the mean of the truth) for MPJPE and MPVPE, and that mean
pose after alignment for PA-MPJPE. A model that does not clearly beat both has learnt nothing about the image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..body import Body
from ..data.synth import generator_class, held_out
from ..geometry.camera import project_weak
from ..geometry.procrustes import similarity_align
from ..geometry.skeleton import H36M17_TO_J14, J14_HIPS
from ..geometry.warp import normalise_image
from .evaluate import mesh_of


@torch.inference_mode()
def evaluate_held_out(
    model: nn.Module, body: Body, split: str = "hard", *, image_size: int, images: int | None = None
) -> dict[str, float]:
    """Errors on a held-out set ("hard": the full prior, "easy": difficulty 0.3), millimetres.

    Bodies: the 14 joints of J14, regressed from the fine mesh, predicted and true ones centred on their own regressed
    pelvis; MPJPE re-centres both at the mean of the hips as the official evaluation does. Hands: HAND21, centred on the
    wrist.

    Args:
        split: key of data.synth.held_out(body).
        images: only the first so many (None: all).
    """
    held = held_out(body)[split]
    total = held.batches * held.batch_size if images is None else min(images, held.batches * held.batch_size)
    device = next(model.parameters()).device
    generator = generator_class(body)(body, image_size, held.seed, held.difficulty, split="test", device=device)
    errors = HeldOutErrors(body, image_size, device)
    batches = range(-(-total // held.batch_size))
    # without a terminal the bar is silent
    for index in tqdm(batches, desc=f"held-out images, {split}", unit="batch", leave=False, disable=None):
        batch = generator.batch(index, held.batch_size)
        n = min(held.batch_size, total - errors.images)
        out = model(normalise_image(batch["images"][:n]))
        camera = out.camera if hasattr(out, "camera") else out.cam  # HMR2.0's name
        errors.add(mesh_of(out, body).float(), camera.float(), batch["vertices"][:n], batch["camera"][:n])
    return errors.result()


class HeldOutErrors:
    """Collects predictions batch by batch; `result` is what `evaluate_held_out` returns."""

    def __init__(self, body: Body, image_size: int, device: torch.device | str = "cpu"):
        self.regressor, self.centre = joint_regressor(body, device)
        self.image_size, self.images = image_size, 0
        self._rows: dict[str, list[Tensor]] = {k: [] for k in ("pred", "truth", "vertex", "vertex_pa", "px")}

    def add(
        self,
        pred: Tensor,  # [B, V, 3] fine vertices, metres
        pred_camera: Tensor,  # [B, 3]
        truth: Tensor,  # [B, V, 3]
        camera: Tensor,  # [B, 3]
    ) -> None:
        pred_joints, pred = _centred(self.regressor, pred)
        truth_joints, truth = _centred(self.regressor, truth)
        px = project_weak(pred_joints, pred_camera) - project_weak(truth_joints, camera)
        self._rows["pred"].append(pred_joints)
        self._rows["truth"].append(truth_joints)
        self._rows["vertex"].append((pred - truth).norm(dim=-1).mean(1))
        self._rows["vertex_pa"].append((similarity_align(pred, truth) - truth).norm(dim=-1).mean(1))
        self._rows["px"].append(px.norm(dim=-1).mean(1) * (self.image_size / 2))
        self.images += pred.shape[0]

    def result(self) -> dict[str, float]:
        pred, truth, vertex, vertex_pa, px = (torch.cat(rows) for rows in self._rows.values())
        mean = truth.mean(0, keepdim=True).expand_as(truth)
        return {
            "mpjpe_mm": _mpjpe(pred, truth, self.centre),
            "pa_mpjpe_mm": _error(similarity_align(pred, truth), truth),
            "mpvpe_mm": 1000 * float(vertex.mean()),
            "pa_mpvpe_mm": 1000 * float(vertex_pa.mean()),
            "joints_2d_px": float(px.mean()),
            "constant_mean_mpjpe_mm": _mpjpe(mean, truth, self.centre),
            "mean_pose_pa_mpjpe_mm": _error(similarity_align(mean, truth), truth),
            "images": float(self.images),
        }


def joint_regressor(body: Body, device: torch.device | str) -> tuple[Tensor, list[int]]:
    """[1 + J, V]: the origin (pelvis or wrist), then the joints that are scored; and those on whose mean MPJPE
    centres."""
    if "hand21" in body.topology.regressors:
        name, picks, centre = "hand21", tuple(range(21)), [0]
    else:
        name, picks, centre = "h36m17", tuple(H36M17_TO_J14), list(J14_HIPS)
    return torch.from_numpy(body.topology.regressor(name)[[0, *picks]]).to(device), centre


def _centred(regressor: Tensor, vertices: Tensor) -> tuple[Tensor, Tensor]:
    regressed = regressor @ vertices
    return regressed[:, 1:] - regressed[:, :1], vertices - regressed[:, :1]


def _mpjpe(pred: Tensor, truth: Tensor, centre: list[int]) -> float:
    return _error(pred - pred[:, centre].mean(1, keepdim=True), truth - truth[:, centre].mean(1, keepdim=True))


def _error(pred: Tensor, truth: Tensor) -> float:
    return 1000 * float((pred - truth).norm(dim=-1).mean())
