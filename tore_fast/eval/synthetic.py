"""The fixed held-out split of synthetic images: errors of an image-to-mesh model beside two baselines.

Baselines: the constant mean (the same mesh for every image, the mean of the truth) for MPJPE and MPVPE, and that mean pose
after alignment for PA-MPJPE. A model that does not clearly beat both has learnt nothing about the image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..body import Body, joints, project
from ..data.synth import generator_class, held_out, normalize_images
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

    Bodies: the 14 joints of joints.J14, regressed from the fine mesh, predicted and true ones centred on their own regressed
    pelvis; MPJPE re-centres both at the mean of the hips as the official evaluation does. Hands: HAND21, centred on the wrist.

    Args:
        split: key of data.synth.held_out(body).
        images: only the first so many (None: all).
    """
    held = held_out(body)[split]
    total = held.batches * held.batch_size if images is None else min(images, held.batches * held.batch_size)
    device = next(model.parameters()).device
    generator = generator_class(body)(body, image_size, held.seed, held.difficulty, split="test", device=device)
    regressor, centre = joint_regressor(body, device)
    rows = {k: [] for k in ("pred", "truth", "vertex", "vertex_pa", "px")}
    seen = 0
    for index in range(-(-total // held.batch_size)):
        batch = generator.batch(index, held.batch_size)
        n = min(held.batch_size, total - seen)
        out = model(normalize_images(batch["images"][:n]))
        truth, camera = batch["vertices"][:n], batch["camera"][:n]
        pred = out.vertices.float()
        pred_joints, pred = _centred(regressor, pred)
        truth_joints, truth = _centred(regressor, truth)
        rows["pred"].append(pred_joints)
        rows["truth"].append(truth_joints)
        rows["vertex"].append((pred - truth).norm(dim=-1).mean(1))
        rows["vertex_pa"].append((similarity_align(pred, truth) - truth).norm(dim=-1).mean(1))
        px = project(pred_joints, out.camera.float()) - project(truth_joints, camera)
        rows["px"].append(px.norm(dim=-1).mean(1) * (image_size / 2))
        seen += n
    pred, truth = torch.cat(rows["pred"]), torch.cat(rows["truth"])
    mean = truth.mean(0, keepdim=True).expand_as(truth)
    return {
        "mpjpe_mm": _mpjpe(pred, truth, centre),
        "pa_mpjpe_mm": _error(similarity_align(pred, truth), truth),
        "mpvpe_mm": 1000 * float(torch.cat(rows["vertex"]).mean()),
        "pa_mpvpe_mm": 1000 * float(torch.cat(rows["vertex_pa"]).mean()),
        "joints_2d_px": float(torch.cat(rows["px"]).mean()),
        "constant_mean_mpjpe_mm": _mpjpe(mean, truth, centre),
        "mean_pose_pa_mpjpe_mm": _error(similarity_align(mean, truth), truth),
        "images": float(seen),
    }


def joint_regressor(body: Body, device: torch.device | str) -> tuple[Tensor, list[int]]:
    """[1 + J, V]: the origin (pelvis or wrist), then the joints that are scored; and those on whose mean MPJPE centres."""
    if "hand21" in body.topology.regressors:
        name, picks, centre = "hand21", range(21), [0]
    else:
        name, picks, centre = "h36m17", joints.H36M17_TO_J14, list(joints.J14_HIPS)
    return torch.from_numpy(body.topology.regressor(name)[[0, *picks]]).to(device), centre


def _centred(regressor: Tensor, vertices: Tensor) -> tuple[Tensor, Tensor]:
    regressed = regressor @ vertices
    return regressed[:, 1:] - regressed[:, :1], vertices - regressed[:, :1]


def _mpjpe(pred: Tensor, truth: Tensor, centre: list[int]) -> float:
    return _error(pred - pred[:, centre].mean(1, keepdim=True), truth - truth[:, centre].mean(1, keepdim=True))


def _error(pred: Tensor, truth: Tensor) -> float:
    return 1000 * float((pred - truth).norm(dim=-1).mean())
