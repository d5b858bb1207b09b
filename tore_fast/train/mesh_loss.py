"""The published training losses, added up: FastMETRO, METRO (= Mesh Graphormer), TORE on both, for bodies and hands.

In: MeshOutput of models/ and MeshTargets of a batch. Out: the total and its parts. Terms are in losses.py; the weights
are those of the released scripts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..geometry.camera import project_weak
from ..models._outputs import MeshOutput
from . import losses


class MeshTargets(NamedTuple):
    """Labels of a batch; vertices centred on their regressed pelvis or wrist, coarse to fine like the output."""

    joints_3d: Tensor  # [B, J, 3] metres
    joints_3d_confidence: Tensor  # [B, J]
    joints_2d: Tensor  # [B, J, 2] in [-1, 1]
    joints_2d_visibility: Tensor  # [B, J]
    vertices: tuple[Tensor, ...]  # per level, coarse to fine
    has_joints_3d: Tensor  # [B]
    has_mesh: Tensor  # [B]


@dataclass(frozen=True)
class MeshLossConfig:
    """Weights; defaults: FastMETRO body."""

    kind: str = "l1"  # of the joint terms: l1 or mse (mesh terms are always l1)
    joints: float = 1000.0
    vertices: float = 100.0
    levels: tuple[float, ...] = (0.25, 0.5, 0.25)  # coarse to fine
    projection: float = 100.0
    centred: bool = True  # mesh centred on its own origin before the vertex loss and the projection
    origin: tuple[int, ...] = (2, 3)  # joints whose mean the 3D joint loss centres on: hips, or the wrist
    surface: float = 100.0  # weight of the three surface terms below
    edge: float = 5.0
    edge_prior: float = 1e-4
    normal: float = 0.1
    surface_level: int = 1  # level they act on: 1 = 1,723 vertices of a body
    per_face: bool = False  # edges counted per face side instead of once
    edge_eps: float = 1e-8
    itp: float = 0.0  # 1e-3 for TORE on FastMETRO; grows with sigmoid(epoch - 3)


FASTMETRO = MeshLossConfig()
# equations 1, 2 and 6 of the paper: the fine mesh alone and no surface terms; it prints no weights, so the released
# script's stay, and its projection is s P(J) + t where ours is the released code's s (P(J) + t)
FASTMETRO_PRINTED = replace(FASTMETRO, levels=(0.0, 0.0, 1.0), surface=0.0)
FASTMETRO_PRINTED_HAND = replace(FASTMETRO_PRINTED, levels=(0.0, 1.0), origin=(0,))
FASTMETRO_HAND = replace(
    FASTMETRO, levels=(0.5, 0.5), origin=(0,), edge=1.0, edge_prior=0.0, surface_level=1, per_face=True
)
METRO = MeshLossConfig(kind="mse", levels=(0.33, 0.33, 0.33), centred=False, surface=0.0)
METRO_HAND = replace(METRO, joints=1.0, vertices=1.0, projection=1.0, levels=(0.5, 0.5), origin=(0,))
TORE_FASTMETRO = replace(METRO, kind="l1", itp=1e-3)
TORE_FASTMETRO_SURFACE = replace(
    TORE_FASTMETRO,
    surface=1.0,
    edge=1000.0,
    edge_prior=0.0,
    normal=100.0,
    surface_level=2,
    per_face=True,
    edge_eps=1e-6,
)
TORE_METRO = replace(
    METRO, surface=1.0, edge=1.0, edge_prior=0.0, normal=0.1, surface_level=2, per_face=True, edge_eps=1e-6
)
# our extensions: the hand's levels and origin, the wrist, with TORE's weights
TORE_FASTMETRO_HAND = replace(TORE_FASTMETRO, levels=(0.5, 0.5), origin=(0,))
TORE_METRO_HAND = replace(TORE_METRO, levels=(0.5, 0.5), origin=(0,), surface_level=1)
PRESETS = {
    "fastmetro": FASTMETRO,
    "fastmetro_hand": FASTMETRO_HAND,
    "fastmetro_printed": FASTMETRO_PRINTED,
    "fastmetro_printed_hand": FASTMETRO_PRINTED_HAND,
    "metro": METRO,
    "metro_hand": METRO_HAND,
    "graphormer": METRO,
    "graphormer_hand": METRO_HAND,
    "tore_fastmetro": TORE_FASTMETRO,
    "tore_fastmetro_surface": TORE_FASTMETRO_SURFACE,
    "tore_metro": TORE_METRO,
    "tore_fastmetro_hand": TORE_FASTMETRO_HAND,
    "tore_metro_hand": TORE_METRO_HAND,
}


class MeshLoss(nn.Module):
    """Total training loss of an image-to-mesh model.

    Args:
        config: weights, or the name of a preset (PRESETS).
        regressor: [1 + J, V_fine]: first row the origin (pelvis or wrist), then the J joints of the mesh.
        faces: [F, 3] of config.surface_level; edges [E, 2] of it (each once), needed unless `per_face`.
        grid: token grid of the model, for the ITP term.
    """

    def __init__(
        self,
        config: MeshLossConfig | str,
        regressor: Tensor,
        faces: Tensor | None = None,
        edges: Tensor | None = None,
        grid: tuple[int, int] = (7, 7),
    ):
        super().__init__()
        if isinstance(config, str):
            if config not in PRESETS:
                raise ValueError(f"MeshLoss: preset must be one of {', '.join(PRESETS)}, got {config!r}")
            config = PRESETS[config]
        self.config, self.grid = config, grid
        if config.surface and faces is None:
            raise ValueError(f"MeshLoss: surface terms need the faces of mesh level {config.surface_level}")
        if config.surface and edges is None:
            if not config.per_face:
                raise ValueError("MeshLoss: surface terms with edges counted once need edges [E, 2]")
            assert faces is not None
            edges = losses.face_edges(faces)
        self.regressor: Tensor
        self.faces: Tensor
        self.edges: Tensor
        for name, value in (("regressor", regressor), ("faces", faces), ("edges", edges)):
            self.register_buffer(name, value, persistent=False)

    def forward(self, out: MeshOutput, target: MeshTargets, epoch: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
        """Total and detached parts; `epoch` (fractional) drives the ITP weight."""
        c = self.config
        levels = [v.float() for v in (out.vertices_coarse, out.vertices_intermediate, out.vertices) if v is not None]
        if len(levels) != len(c.levels):
            raise ValueError(f"MeshLoss: {len(c.levels)} level weights for an output with {len(levels)} mesh levels")
        regressed = self.regressor @ levels[-1]
        origin, mesh_joints, token_joints = regressed[:, :1], regressed[:, 1:], out.joints.float()
        shift = origin if c.centred else torch.zeros_like(origin)
        has, camera = target.has_joints_3d, out.camera.float()
        joints = sum(
            losses.joints_3d_loss(j, target.joints_3d, target.joints_3d_confidence, has, c.kind, c.origin)
            for j in (token_joints, mesh_joints)
        )
        vertices = sum(
            w * losses.vertices_loss(p - shift, t, target.has_mesh)
            for w, p, t in zip(c.levels, levels, target.vertices)
        )
        projection = sum(
            losses.joints_2d_loss(project_weak(j, camera), target.joints_2d, target.joints_2d_visibility, c.kind)
            for j in (token_joints, mesh_joints - shift)
        )
        parts: dict[str, Any] = {
            "joints": c.joints * joints,
            "vertices": c.vertices * vertices,
            "projection": c.projection * projection,
        }
        if c.surface:
            parts["surface"] = c.surface * self._surface(levels[c.surface_level], target)
        if c.itp and out.heatmap is not None:
            points = project_weak(target.vertices[-1], camera)
            weight = c.itp / (1 + math.exp(3 - epoch))
            parts["itp"] = weight * losses.itp_loss(out.heatmap.float(), points, self.grid, target.has_mesh)
        total: Any = sum(parts.values())
        return total, {k: v.detach() for k, v in parts.items()}

    def _surface(self, pred: Tensor, target: MeshTargets) -> Tensor:
        c, truth, has = self.config, target.vertices[self.config.surface_level], target.has_mesh
        total = c.edge * losses.edge_length_loss(pred, truth, self.edges, has, c.edge_eps)
        if c.edge_prior:
            total = total + c.edge_prior * losses.edge_length_prior(pred, self.edges, has, c.edge_eps)
        return total + c.normal * losses.normal_loss(pred, truth, self.faces, has)


def draw_query_mask(
    batch: int,
    joints: int,
    vertices: int,
    ratio: float = 0.3,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """[batch, joints + vertices] 1 = kept: masked joint and vertex modelling of METRO and Mesh Graphormer.

    Per item, u and u' from U(0, 1): int(u * ratio * joints) joints and int(u' * ratio * vertices) vertices are masked.
    vertices=0 gives TORE's joint mask.
    """
    parts = []
    for count in (joints, vertices):
        if count:
            number = (torch.rand(batch, 1, generator=generator, device=device) * ratio * count).floor()
            rank = torch.rand(batch, count, generator=generator, device=device).argsort(1).argsort(1)
            parts.append((rank >= number).float())
    return torch.cat(parts, dim=1)
