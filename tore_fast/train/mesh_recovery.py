"""Training of image-to-mesh models on synthetic images of the free body: what the built-in default was made with.

In: batches of data/synth. Out: a Task for train/loop.py. Everything is in metres in the camera's orientation, centred on
the regressed pelvis; the losses are L1 on joints, on the mesh at each level and on the projection, as FastMETRO and TORE
weigh them against each other (supervision of joints and of the three mesh levels, then 2D).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from ..body import Body, joints, project
from ..data.synth import SynthGenerator
from ..eval.synthetic import evaluate_held_out
from .dense_supervision import DenseOutput, DenseSupervision, dense_losses


@dataclass(frozen=True)
class MeshRecoveryConfig:
    """Data and losses of the synthetic image-to-mesh training."""

    image_size: int = 112
    difficulty_start: float = 0.2
    """Pose, view, background and occluder difficulty (0..1) at step 0 ..."""
    difficulty_end: float = 1.0
    """... and from `curriculum` of the steps on."""
    curriculum: float = 0.6
    joint_weight: float = 10.0
    mesh_weight: float = 10.0
    projection_weight: float = 1.0
    heatmap_weight: float = 2.0
    """Of the train-only joint heat maps (dense_supervision.py); 0 with part_weight 0 leaves the heads out."""
    part_weight: float = 0.5
    data_seed: int = 1
    eval_images: int = 512
    """Held-out images per evaluation while training (the card's numbers use the whole split)."""


class MeshRecovery:
    """Task: model(images) -> camera, joints, vertices at three levels, against synthetic truth."""

    best_metric = "pa_mpjpe_mm"

    def __init__(self, model: nn.Module, body: Body, config: MeshRecoveryConfig, total_steps: int, device: str = "cpu"):
        self.body, self.config, self.total_steps, self.device = body, config, total_steps, device
        self.dense = config.heatmap_weight > 0 or config.part_weight > 0
        self.model = DenseSupervision(model, len(joints.J14), len(body.part_names)) if self.dense else model
        self._generators: dict[float, SynthGenerator] = {}
        picks = list(joints.H36M17_TO_J14)
        self.regressors = {
            level: torch.from_numpy(body.topology.regressor("h36m17", level)[[0, *picks]]).to(device) for level in (0, 2)
        }

    def difficulty(self, step: int) -> float:
        """Curriculum: linear from start to end over the first `curriculum` share of the steps, in tenths."""
        c = self.config
        done = min(1.0, step / max(1.0, c.curriculum * self.total_steps))
        return round(c.difficulty_start + (c.difficulty_end - c.difficulty_start) * done, 1)

    def batch(self, index: int, batch_size: int, step: int) -> dict[str, Tensor]:
        level = self.difficulty(step)
        if level not in self._generators:
            self._generators = {
                level: SynthGenerator(self.body, image_size=self.config.image_size, seed=self.config.data_seed,
                                      difficulty=level, split="train", device=self.device)
            }
        made = self._generators[level].batch(index, batch_size)
        keys = ("images", "vertices", "camera") + (("parts",) if self.dense else ())
        return {k: made[k] for k in keys}

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        c = self.config
        made = model(batch["images"])
        out = made.out if isinstance(made, DenseOutput) else made
        truth = batch["vertices"]  # [B, V, 3], pelvis-centred
        truth_mid, truth_coarse = self.body.coarse(truth, 1), self.body.coarse(truth, 2)
        truth_joints = self._joints(truth)
        vertices, mid, coarse = out.vertices.float(), out.vertices_intermediate.float(), out.vertices_coarse.float()
        token_joints = out.joints.float()
        mesh_joints = self._joints(vertices)
        joint_loss = l1_loss(token_joints, truth_joints) + l1_loss(mesh_joints, truth_joints)
        mesh_loss = (l1_loss(coarse, truth_coarse) + l1_loss(mid, truth_mid) + l1_loss(vertices, truth)) / 3
        truth_2d = project(truth_joints, batch["camera"])
        camera = out.camera.float()
        projection = l1_loss(project(token_joints, camera), truth_2d) + l1_loss(project(mesh_joints, camera), truth_2d)
        total = c.joint_weight * joint_loss + c.mesh_weight * mesh_loss + c.projection_weight * projection
        logs = {"joints": joint_loss.detach(), "mesh": mesh_loss.detach(), "2d": projection.detach()}
        if isinstance(made, DenseOutput):
            heat, part = dense_losses(made, truth_2d, batch["parts"])
            total = total + c.heatmap_weight * heat + c.part_weight * part
            logs |= {"heatmaps": heat.detach(), "parts": part.detach()}
        return total, {**logs, "difficulty": torch.tensor(self.difficulty(step))}

    def _joints(self, vertices: Tensor) -> Tensor:  # [B, V, 3] -> [B, 14, 3], centred on the regressed pelvis
        regressed = self.regressors[0].to(vertices.device) @ vertices
        return regressed[:, 1:] - regressed[:, :1]

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        model = model.model if self.dense else model
        return evaluate_held_out(model, self.body, image_size=self.config.image_size, images=self.config.eval_images)
