"""Mesh Graphormer: METRO's blocks with 49 grid tokens added, and graph convolutions over the mesh in the last block.

In: [B, 3, 224, 224] crops; out: MeshOutput. Layers: bert_block.py, graph_conv.py. Only HRNet gives the two features it
needs; other trunks have no map before their final layer.
Lin et al., "Mesh Graphormer", ICCV 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...layers.mesh import MeshUpsample
from ...layers.metres import metres
from ...ops import csr_matrix
from .._outputs import MeshOutput
from .._registry import PaperRow, model_facts, register_models
from ._base import stack_maps
from ._topology import ModelMesh
from .metro import DenseUpsampling, METROConfig, bert_blocks, keep_embedding, mask_queries


@dataclass(frozen=True)
class MeshGraphormerConfig(METROConfig):
    """Defaults: body with HRNet-W64. `pooled` has no meaning here, the selector is none."""

    backbone: str | None = "hrnet_w64"
    grid_dim: int = 1024  # channels of the grid features
    hidden: tuple[int, int, int] = (1024, 256, 64)
    feedforward: tuple[int, int, int] = (2048, 512, 128)


@model_facts(
    task="mesh", family="graphormer", crop="square", projection="as_is", loss="graphormer", masked_queries="all"
)
class MeshGraphormer(DenseUpsampling):
    """Mesh Graphormer for a body or (config.camera_from_joints) a hand.

    Args:
        config: MeshGraphormerConfig; its fields may be given as keywords instead.
        mesh, mesh_data: see models/mesh/_topology.py; the mesh must have a rest template.
    """

    config_class = MeshGraphormerConfig
    config: MeshGraphormerConfig
    template: Tensor
    trans_encoder: Any  # nn.ModuleList of three BertBlock

    def __init__(
        self,
        config: MeshGraphormerConfig | None = None,
        mesh: str | ModelMesh | None = None,
        mesh_data: str | Path | None = None,
        **fields: Any,
    ):
        super().__init__(config, mesh, mesh_data, **fields)
        c = self.config
        if self.backbone is not None and not hasattr(self.backbone, "grid_features"):
            raise ValueError(
                f"MeshGraphormer: backbone must be 'hrnet_w64' (it needs grid features), got {c.backbone!r}"
            )
        if c.selector != "none":
            raise ValueError(f"MeshGraphormer: its grid tokens are not pruned, config.selector is {c.selector!r}")
        points = c.num_joints + c.num_vertices
        self.register_buffer("template", self.mesh.template(), persistent=False)  # [J + V, 3]
        if self.template.shape[0] != points:
            raise ValueError(
                f"MeshGraphormer: template has {self.template.shape[0]} points, joints + vertices are {points}"
            )
        self.trans_encoder = bert_blocks(c, graph_last=True)
        self.adjacency = MeshUpsample(csr_matrix(self.mesh.adjacency))
        self.grid_feat_dim = nn.Linear(c.grid_dim, c.feature_dim + 3)
        self.init_upsampling()
        self.cam_param_fc = nn.Linear(3, 1)
        self.cam_param_fc2 = nn.Linear(points if c.camera_from_joints else c.num_vertices, c.camera_dim)
        self.cam_param_fc3 = nn.Linear(c.camera_dim, 3)

    def forward(
        self,
        images: Tensor | tuple[Tensor, Tensor],
        query_mask: Tensor | None = None,
        return_attention: bool = False,
        fine: bool = True,
    ) -> MeshOutput:
        """Regresses the mesh.

        Args:
            images: [B, 3, H, W] normalised crops; without a backbone the pair (pooled [B, C], grid [B, grid_dim, h,
                w]).
            query_mask: [B, J + V] with 1 for kept and 0 for masked queries; grid tokens are never masked.
            return_attention: also form the maps "bert_1".."bert_3" over [joints; vertices; grid]; slower.
            fine: False skips up-sampling; see `coarse_joint_regressor`.
        """
        pooled, grid = self.features(images)
        grid = grid.flatten(2).transpose(1, 2)  # [B, h * w, grid_dim] row-major
        maps: list[list[Tensor] | None] = [[], [], []] if return_attention else [None, None, None]
        points, joints = self.template.shape[0], self.config.num_joints
        first, second, third = self.trans_encoder
        kept = (self.recall("embedding"), self.recall("grid embedding")) if query_mask is None else (None, None)
        if kept[0] is not None and kept[1] is not None:
            rows = F.linear(pooled, kept[0][0])[:, None] + kept[0][1]
            both = torch.cat([rows, F.linear(grid, kept[1][0]) + kept[1][1]], dim=1)
            embedded, residual = both.split([first.dim, both.shape[-1] - first.dim], dim=-1)
            x, _ = first.from_embedded(embedded, residual, maps=maps[0])
        else:
            rows = pooled[:, None].expand(-1, points, -1)
            queries = torch.cat([self.template.expand(pooled.shape[0], -1, -1), rows], dim=-1)
            queries = mask_queries(queries, query_mask)
            x, _ = first(torch.cat([queries, self.grid_feat_dim(grid)], dim=1), maps=maps[0])
        x, _ = second(x, maps=maps[1])
        x, _ = third(x, (joints, points), self.adjacency, maps[2])
        coarse = x[:, joints:points]
        intermediate, vertices = self.upsample_mesh(coarse) if fine else (None, None)
        camera = x[:, :points] if self.config.camera_from_joints else coarse
        camera = metres(self.cam_param_fc3, metres(self.cam_param_fc2, metres(self.cam_param_fc, camera).squeeze(-1)))
        named = {f"bert_{i}": m for i, m in enumerate(maps, 1) if m is not None} if return_attention else None
        attention = stack_maps(named, x.shape[0])
        return MeshOutput(camera, x[:, :joints], coarse, intermediate, vertices, None, None, None, attention)

    def features(self, images: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Pooled feature [B, C] and grid features [B, grid_dim, h, w]."""
        c = self.config
        if self.backbone is None:
            if not isinstance(images, (tuple, list)) or len(images) != 2:
                raise TypeError(
                    f"MeshGraphormer: features must be the pair (pooled, grid), got {type(images).__name__}"
                )
            self.check_input("pooled features", images[0], (c.feature_dim,), "config feature_dim")
            self.check_input(
                "grid features", images[1], (c.grid_dim, *c.grid), "config grid_dim and image_size / stride"
            )
            return images
        self.check_input(
            "images", images, (3, *(s * c.stride for s in c.grid)), "normalised crops of config image_size"
        )
        grid = self.backbone.grid_features(images)
        return self.backbone.final_layer(grid).mean((2, 3)), grid

    def example_features(self, channels: int, rows: int, cols: int) -> tuple[Tensor, Tensor]:
        pooled = torch.empty(1, channels, device="meta")
        return pooled, torch.empty(1, self.config.grid_dim, rows, cols, device="meta")

    def keep_terms(self) -> None:
        super().keep_terms()
        keep_embedding(self, None)
        first = self.trans_encoder[0]
        parts = (first.bert["position_embeddings"], first.bert["img_embedding"], first.residual, self.grid_feat_dim)
        self.keep("grid embedding", parts, self._grid_embedding)

    def _grid_embedding(self) -> tuple[Tensor, Tensor]:  # [D, grid_dim], [h * w, D] with D = dim + width
        first = self.trans_encoder[0]
        embed, residual = first.bert["img_embedding"], first.residual
        weight = torch.cat([embed.weight, residual.weight])
        bias = torch.cat([embed.bias, residual.bias])
        points, cells = self.template.shape[0], self.config.grid[0] * self.config.grid[1]
        positions = first.positions(points + cells)[points:]
        const = F.linear(self.grid_feat_dim.bias, weight, bias)
        return weight @ self.grid_feat_dim.weight, const + F.pad(positions, (0, weight.shape[0] - first.dim))


HAND = {"mesh": "free_hand", "num_joints": 21, "camera_from_joints": True, "camera_dim": 150}
PAPERS = {"graphormer_h64": PaperRow(98.4, None, "FastMETRO table 2", "the paper counts unused weights")}
register_models(MeshGraphormer, {"graphormer_h64": {}}, PAPERS, tags=("body",))
register_models(MeshGraphormer, {"graphormer_h64_hand": HAND}, tags=("hand",))
