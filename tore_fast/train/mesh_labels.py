"""Training of image-to-mesh models on labelled data sets with the published losses: Human3.6M, 3DPW, COCO, FreiHAND,
one's own.

In: readers of data/readers (any mix; items may lack 3D or SMPL labels), a model, its body; out: a Task for loop.py. The
way of an item: Record -> training_sample (official crop and augmentation) -> here: meshes of pose and shape ->
mesh_loss.py.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..body import Body
from ..data.augment import AugmentConfig
from ..data.readers import DataError, Reader, training_sample
from ..geometry.camera import project_weak
from ..geometry.skeleton import H36M17_TO_J14, J24_TO_J14
from ..io.image import ImageError
from ..models._registry import facts_of
from . import losses
from .config import Task
from .mesh_loss import PRESETS, MeshLoss, MeshTargets, draw_query_mask
from .stream import Mixture

MAX_BAD_IN_A_ROW = 20


@dataclass(frozen=True)
class LabelConfig:
    """Losses and augmentation of a training on labelled data."""

    loss: str = "auto"
    """Preset of train/mesh_loss.py; auto: the one of the model's project (tore_fastmetro_surface adds TORE's mesh
    terms)."""
    query_mask: float = 0.3
    """Largest share of masked queries (METRO, Mesh Graphormer, TORE on METRO; 0 for hands and models without
    queries)."""
    smpl_weight: float = 1000.0
    """Of the SMPL parameter head's losses (models *_smpl)."""
    rest_weight: float = 1e-8
    """Of all other losses while the SMPL head is trained: 1e-8 on the mixed set, 1 on 3DPW, as the released script."""
    flip: float = 0.5
    """Chance to mirror a body; hands never are."""
    noise: float = 0.4
    """Largest change of a colour channel's brightness, as a share."""
    rotation_deg: float = -1.0
    """Deviation of in-plane rotation, clipped at twice that; -1: 30 for bodies, 90 for hands."""
    upright: float = 0.6
    """Chance that a crop is not rotated."""
    scale: float = 0.25
    """Deviation of the crop's size, as a share."""

    def augmentation(self, hand: bool) -> AugmentConfig:
        rotation = self.rotation_deg if self.rotation_deg >= 0 else 90.0 if hand else 30.0
        return AugmentConfig(0.0 if hand else self.flip, self.noise, rotation, self.upright, self.scale)


class LabelledCrops:
    """Augmented training crops of labelled data sets; which come, and how, follows from (seed, index) alone.

    Args:
        readers: data sets; `weights` as stream.Mixture takes them.
        augmentation: of the crops.
        image_size: side of the crops.
        hand: the items must be hands (else bodies).
    """

    def __init__(
        self,
        readers: list[Reader],
        weights: list[float] | None,
        augmentation: AugmentConfig,
        image_size: int,
        seed: int = 0,
        hand: bool = False,
    ):
        self.readers, self.augmentation, self.image_size = readers, augmentation, image_size
        self.seed, self.hand = seed, hand
        self.mixture = Mixture([len(r) for r in readers], weights, seed)

    def __len__(self) -> int:
        return len(self.mixture)

    def batch(self, index: int, batch_size: int) -> dict[str, Tensor]:
        """The keys of data/readers/sample.py's training_sample, each [B, ...]."""
        rows = [self._sample(n) for n in range(index * batch_size, (index + 1) * batch_size)]
        return {k: torch.from_numpy(np.stack([r[k] for r in rows])) for k in rows[0]}

    def _sample(self, n: int) -> dict[str, np.ndarray]:
        """The n-th training item; one that cannot be read is replaced by the next of its data set, with a warning."""
        source, item, epoch = self.mixture.place(n)
        reader = self.readers[source]
        for attempt in range(MAX_BAD_IN_A_ROW):
            rng = np.random.default_rng((self.seed, n, attempt))
            try:
                record = reader[(item + attempt) % len(reader)]
                if record.is_hand == self.hand:
                    return training_sample(record, rng, self.augmentation, self.image_size)
            except (ImageError, DataError) as e:
                warnings.warn(f"training item left out: {e}", stacklevel=2)
                continue
            raise DataError(
                f"{reader.format} data of {'bodies' if self.hand else 'hands'}, the model is for "
                f"{'hands' if self.hand else 'bodies'}"
            )
        raise DataError(
            f"{reader.format} data: {MAX_BAD_IN_A_ROW} items in a row cannot be read (the last: item {item + attempt})"
        )


class LabelledMeshes(Task):
    """Task: crops of labelled people (or hands) -> camera, joints, meshes.

    Args:
        model: image-to-mesh model of models/.
        body: what pose and shape in the data mean; its topology must be the model's.
        readers: data sets; `weights` as stream.Mixture takes them.
        validate: () -> metrics of the model, or None.
    """

    best_metric = "pa_mpjpe_mm"

    def __init__(
        self,
        model: Any,
        body: Body,
        readers: list[Reader],
        weights: list[float] | None = None,
        config: LabelConfig | None = None,
        seed: int = 0,
        validate: Callable[[nn.Module], dict[str, float]] | None = None,
    ):
        self.model, self.body = model, body
        self.config = config or LabelConfig()
        self.hand = "hand21" in body.topology.regressors
        counts, own = body.hierarchy.counts, tuple(reversed(model.mesh.counts))
        if counts != own:
            raise ValueError(f"train mesh: the model has {own} vertices per level, the body {body.name} {counts}")
        self.crops = LabelledCrops(
            readers, weights, self.config.augmentation(self.hand), model.config.image_size, seed, self.hand
        )
        self.items_per_epoch = len(self.crops)
        self.loss_of = make_mesh_loss(self.loss_name(), body, model)
        takes_mask = "query_mask" in inspect.signature(model.forward).parameters
        self.mask_ratio = self.config.query_mask if takes_mask and not self.hand else 0.0
        self.validate = validate

    def loss_name(self) -> str:
        """The preset that --labels.loss names, or the model's own."""
        if self.config.loss != "auto":
            return self.config.loss
        facts = facts_of(self.model)
        if facts is None or facts.loss not in PRESETS:
            raise ValueError(f"--labels.loss: no published loss for this model; name one of {', '.join(PRESETS)}")
        return facts.loss + ("_hand" if self.hand else "")

    # ---- batches

    def batch(self, index: int, batch_size: int, step: int) -> dict[str, Tensor]:
        return self.crops.batch(index, batch_size)

    # ---- loss

    def targets(self, batch: dict[str, Tensor]) -> MeshTargets:
        """Joints of the 14 (or 21), meshes of pose and shape per level, centred on their regressed pelvis (wrist)."""
        picks = list(range(21)) if self.hand else list(J24_TO_J14)
        joints_3d, joints_2d = batch["joints_3d"][:, picks], batch["joints_2d"][:, picks]
        with torch.no_grad():
            vertices = self.body(batch["pose"], batch["betas"]).vertices
            vertices = vertices - self.loss_of.regressor[:1] @ vertices
        levels = range(self.body.hierarchy.num_levels - 1, -1, -1)
        meshes = tuple(self.body.coarse(vertices, level) if level else vertices for level in levels)
        return MeshTargets(
            joints_3d[..., :3],
            joints_3d[..., 3],
            joints_2d[..., :2],
            joints_2d[..., 2],
            meshes,
            batch["has_3d"],
            batch["has_smpl"],
        )

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        images = batch["image"]
        for part in (self.body, self.loss_of):
            part.to(images.device)  # no copy when they are there
        mask = {}
        if self.mask_ratio:
            facts = facts_of(self.model)
            only_joints = facts is not None and facts.masked_queries == "joints"
            vertices = 0 if only_joints else self.body.hierarchy.counts[-1]
            mask["query_mask"] = draw_query_mask(len(images), 14, vertices, self.mask_ratio, device=images.device)
        out = model(images, **mask)
        target = self.targets(batch)
        total, parts = self.loss_of(out, target, step / self.steps_per_epoch)
        if out.rotmat is not None and self.config.smpl_weight:
            head, terms = self._smpl_head(out, target, batch)
            total = self.config.smpl_weight * head + self.config.rest_weight * total
            parts |= terms
        return total, parts

    def _smpl_head(self, out: Any, target: MeshTargets, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Parameters, and joints, projection (camera not trained) and vertices of the mesh they make."""
        from ..body.lbs import pose_matrices

        rotmat, betas, has = out.rotmat.float(), out.betas.float(), batch["has_smpl"]
        vertices = self.body(rotmat, betas).vertices
        regressed = self.loss_of.regressor @ vertices
        pelvis, joints = regressed[:, :1], regressed[:, 1:]
        truth = pose_matrices(batch["pose"], self.body.num_joints)
        terms = {
            "smpl": losses.smpl_parameter_loss(rotmat, betas, truth, batch["betas"], has),
            "smpl_joints": losses.joints_3d_loss(
                joints, target.joints_3d, target.joints_3d_confidence, target.has_joints_3d
            ),
            "smpl_projection": losses.joints_2d_loss(
                project_weak(joints - pelvis, out.camera.float().detach()),
                target.joints_2d,
                target.joints_2d_visibility,
            ),
            "smpl_vertices": losses.vertices_loss(vertices - pelvis, target.vertices[-1], has),
        }
        total: Any = sum(terms.values())
        return total, {k: v.detach() for k, v in terms.items()}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return self.validate(model) if self.validate is not None else {}


def make_mesh_loss(name: str, body: Body, model: nn.Module) -> MeshLoss:
    """Loss preset `name` with the body's regressor, and the faces and edges its surface terms want."""
    if name not in PRESETS:
        raise ValueError(f"--labels.loss: expected one of {', '.join(PRESETS)}, got {name!r}")
    preset = PRESETS[name]
    if "hand21" in body.topology.regressors:
        regressor = body.topology.regressor("hand21")[[0, *range(21)]]
    else:
        regressor = body.topology.regressor("h36m17")[[0, *H36M17_TO_J14]]
    faces = edges = None
    if preset.surface:
        h = body.hierarchy
        level = h.num_levels - 1 - preset.surface_level  # presets count coarse to fine
        faces = torch.from_numpy(np.asarray(body.topology.loss_faces.get(level, h.faces[level]), np.int64))
        edges = None if preset.per_face else torch.from_numpy(np.asarray(h.edges(level), np.int64))
    return MeshLoss(preset, torch.from_numpy(regressor), faces, edges, getattr(model.config, "grid", (7, 7)))
