"""Training of image-to-mesh models on synthetic images of the free body or hand: what the built-in weights were made
with.

In: batches of data/synth. Out: a Task for train/loop.py. Everything is in metres in the camera's orientation, centred
on the regressed pelvis; the losses are L1 on joints, on the mesh at each level and on the projection, as FastMETRO and
TORE weigh them against each other (supervision of joints and of the three mesh levels, then 2D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from ..body import Body
from ..data.synth import generator_class, held_out
from ..eval.synthetic import evaluate_held_out, joint_regressor
from ..geometry.camera import project_weak
from ..geometry.warp import normalise_image
from .config import Task
from .dense_supervision import DenseOutput, DenseSupervision, dense_losses


@dataclass(frozen=True)
class MeshRecoveryConfig:
    """Data and losses of the synthetic image-to-mesh training."""

    image_size: int = 112
    """Side of the images in pixels."""
    difficulty_start: float = 0.2
    """Pose, view, background and occluder difficulty (0..1) at step 0 ..."""
    difficulty_end: float = 1.0
    """... and from `curriculum` of the steps on; batches are spread over 0.4..1 of the current difficulty."""
    curriculum: float = 0.5
    """Share of the steps over which the difficulty rises."""
    joint_weight: float = 10.0
    """Of the 3D joints (L1, metres)."""
    mesh_weight: float = 10.0
    """Of the vertices at three levels (L1, metres)."""
    edge_weight: float = 20.0
    """Of the coarse mesh's edge vectors: keeps the surface smooth where vertices are still uncertain."""
    projection_weight: float = 1.0
    """Of the joints' projection (L1, the crop is -1..1)."""
    heatmap_weight: float = 2.0
    """Of the train-only joint heat maps (dense_supervision.py); 0 with part_weight 0 leaves the heads out."""
    part_weight: float = 0.5
    """Of the train-only body parts."""
    data_seed: int = 1
    """Of the rendered images; train.seed draws the weights."""
    eval_images: int = 512
    """Held-out images per evaluation while training (the card's numbers use the whole split)."""


class MeshRecovery(Task):
    """Task: model(images) -> camera, joints, vertices at three levels, against synthetic truth."""

    best_metric = "hard_pa_mpjpe_mm"

    def __init__(
        self,
        model: nn.Module,
        body: Body,
        config: MeshRecoveryConfig,
        total_steps: int,
        device: str = "cpu",
        render_device: str | None = None,  # "cpu" where worker processes make the batches; None: `device`
    ):
        self.body, self.config, self.total_steps, self.device = body, config, total_steps, device
        self.dense = config.heatmap_weight > 0 or config.part_weight > 0
        self.generator = generator_class(body)(
            body, config.image_size, config.data_seed, device=render_device or device
        )
        self.regressor, _ = joint_regressor(body, device)
        parts = len(self.generator.part_names)
        self.model = DenseSupervision(model, len(self.regressor) - 1, parts) if self.dense else model
        if device == "cpu":
            self.model.to(memory_format=torch.channels_last)  # 1.2-1.5x for the convolutions on a CPU
        self.levels = range(body.hierarchy.num_levels - 1, -1, -1)  # coarse to fine
        self.edges = torch.from_numpy(body.hierarchy.edges(self.levels[0])).to(device)  # [E, 2]

    def difficulty(self, step: int) -> float:
        """Curriculum: linear from start to end over the first `curriculum` share of the steps."""
        c = self.config
        done = min(1.0, step / max(1.0, c.curriculum * self.total_steps))
        return c.difficulty_start + (c.difficulty_end - c.difficulty_start) * done

    def batch(self, index: int, batch_size: int, step: int) -> dict[str, Tensor]:
        share = 0.4 + 0.6 * ((index * 0.6180339887) % 1.0)  # evenly spread, the same for the same index
        made = self.generator.batch(index, batch_size, self.difficulty(step) * share)
        keys = ("images", "vertices", "camera", "joints2d") + (("mask",) if self.dense else ())
        return {k: made[k] for k in keys}

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        c = self.config
        made = model(normalise_image(batch["images"]))
        out: Any = made.out if isinstance(made, DenseOutput) else made
        truth = batch["vertices"]  # [B, V, 3], pelvis (wrist) at the origin
        meshes = [v.float() for v in (out.vertices_coarse, out.vertices_intermediate, out.vertices) if v is not None]
        truths = [self.body.coarse(truth, level) if level else truth for level in self.levels]
        truth_joints = self._joints(truth)
        token_joints = out.joints.float()
        mesh_joints = self._joints(meshes[-1])
        joint_loss = l1_loss(token_joints, truth_joints) + l1_loss(mesh_joints, truth_joints)
        mesh_loss = sum(l1_loss(a, b) for a, b in zip(meshes, truths, strict=True)) / len(meshes)
        edge_loss = l1_loss(self._edges(meshes[0]), self._edges(truths[0]))
        truth_2d = batch["joints2d"]
        camera = out.camera.float()
        projection = l1_loss(project_weak(token_joints, camera), truth_2d) + l1_loss(
            project_weak(mesh_joints, camera), truth_2d
        )
        total = c.joint_weight * joint_loss + c.mesh_weight * mesh_loss + c.projection_weight * projection
        total = total + c.edge_weight * edge_loss
        logs: dict[str, Any] = {"joints": joint_loss, "mesh": mesh_loss, "2d": projection, "edges": edge_loss}
        logs = {k: v.detach() for k, v in logs.items()}
        if isinstance(made, DenseOutput):
            heat, part = dense_losses(made, batch["joints2d"], batch["mask"])
            total = total + c.heatmap_weight * heat + c.part_weight * part
            logs |= {"heatmaps": heat.detach(), "parts": part.detach()}
        return total, {**logs, "difficulty": torch.tensor(self.difficulty(step))}

    def _edges(self, coarse: Tensor) -> Tensor:  # [B, V, 3] -> [B, E, 3]
        return coarse[:, self.edges[:, 0]] - coarse[:, self.edges[:, 1]]

    def _joints(self, vertices: Tensor) -> Tensor:  # [B, V, 3] -> [B, J, 3], centred on the regressed pelvis (wrist)
        regressed = self.regressor.to(vertices.device) @ vertices
        return regressed[:, 1:] - regressed[:, :1]

    def model_to_export(self) -> Any:
        return self.model.model if self.dense else self.model

    def evaluate(self, model: Any) -> dict[str, float]:
        model = model.model if self.dense else model
        metrics: dict[str, Any] = {}
        for name in held_out(self.body):
            values = evaluate_held_out(
                model, self.body, name, image_size=self.config.image_size, images=self.config.eval_images
            )
            metrics |= {f"{name}_{k}": v for k, v in values.items() if k in ("mpjpe_mm", "pa_mpjpe_mm", "mpvpe_mm")}
        return metrics

    def report(self, model: Any) -> dict[str, dict[str, float]]:
        """All images of the held-out sets."""
        inner = (model.model if self.dense else model).float()
        return {
            n: evaluate_held_out(inner, self.body, n, image_size=self.config.image_size) for n in held_out(self.body)
        }
