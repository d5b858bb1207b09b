"""METRO: template joints and vertices with image features are the tokens of three BERT-style blocks of falling width.

In: [B, 3, 224, 224] crops; out: MeshOutput. Layers: bert_block.py. TORE's variant is metro_tore.py, Mesh Graphormer
graphormer.py. Parameter names are the official ones without the tables that no forward pass reads (44.8 M weights).
Lin et al., "End-to-End Human Pose and Mesh Reconstruction with Transformers", CVPR 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...layers.bert_block import BertBlock
from ...layers.itp import TokenSelection
from ...layers.metres import exact, metres, wide
from .._outputs import MeshOutput
from .._registry import PaperRow, model_facts, register_models
from ._base import MeshModel, MeshModelConfig, stack_maps
from ._topology import ModelMesh

MASKED = 0.01  # every channel of a masked query (masked joint and vertex modelling)


@dataclass(frozen=True)
class METROConfig(MeshModelConfig):
    """Defaults: METRO body with ResNet-50; no ITP."""

    pooled: bool = False  # hand: every token gets the pooled feature; body: a learned mix of the grid tokens
    camera_from_joints: bool = False  # hand: camera from joints and vertices; body: from vertices
    camera_dim: int = 250
    hidden: tuple[int, int, int] = (1024, 256, 128)
    widths: tuple[int, int] = (512, 128)  # between the blocks
    feedforward: tuple[int, int, int] = (3072, 3072, 3072)
    layers: int = 4
    heads: int = 4
    dropout: float = 0.1
    layer_norm_eps: float = 1e-12
    positions: int = 512


def bert_blocks(config: METROConfig, graph_last: bool = False) -> nn.ModuleList:
    """The three blocks: (features + 3) -> widths[0] -> widths[1] -> 3."""
    c = config
    ins, outs = (c.feature_dim + 3, *c.widths), (*c.widths, 3)
    return nn.ModuleList(
        BertBlock(i, h, o, c.heads, c.layers, f, c.dropout, c.layer_norm_eps, c.positions, graph_last and n == 2)
        for n, (i, h, o, f) in enumerate(zip(ins, c.hidden, outs, c.feedforward))
    )


class DenseUpsampling(MeshModel):
    """METRO's learned linear up-sampling, one or two steps, and its shortcut (a base of the BERT models)."""

    needs_template = True
    config: METROConfig
    template: Tensor
    trans_encoder: Any  # nn.ModuleList of three BertBlock

    def init_upsampling(self) -> None:
        counts = self.mesh.counts
        self.upsampling = nn.Linear(counts[0], counts[1])
        self.upsampling2 = nn.Linear(counts[1], counts[2]) if len(counts) == 3 else None

    def upsample_mesh(self, coarse: Tensor) -> tuple[Tensor | None, Tensor]:
        """[B, V, 3] -> intermediate (None for a hand) and fine vertices."""
        with exact(coarse):
            one = wide(self.upsampling.weight) @ coarse + wide(self.upsampling.bias)[:, None]
            if self.upsampling2 is None:
                return None, one
            both = self.recall("up-sampling")
            if both is not None:
                return one, wide(both[0]) @ coarse + wide(both[1])
            return one, wide(self.upsampling2.weight) @ one + wide(self.upsampling2.bias)[:, None]

    def unused_official_params(self) -> int:
        return super().unused_official_params() + sum(b.unused_official_params() for b in self.trans_encoder)

    def keep_terms(self) -> None:
        """Both steps as one matrix: a quarter of the multiply-adds of the second step alone (431 against 1723
        columns)."""
        if self.upsampling2 is None:
            return

        one, two = self.upsampling, self.upsampling2

        def both_steps() -> tuple[Tensor, Tensor]:  # [V_fine, V], [V_fine, 1]
            return two.weight @ one.weight, (two.weight @ one.bias + two.bias)[:, None]

        self.keep("up-sampling", (one, two), both_steps)


@model_facts(task="mesh", family="metro", crop="square", projection="as_is", loss="metro", masked_queries="all")
class METRO(DenseUpsampling, TokenSelection):
    """METRO for a body or (config.pooled) a hand.

    Args:
        config: METROConfig; its fields may be given as keywords instead. With a `selector` the 49 image tokens are
            pruned before their learned mix into queries, which then reads M tokens (our reading of ITP on METRO; a
            pooled model has no image tokens to prune).
        mesh, mesh_data: see models/mesh/_topology.py; the mesh must have a rest template (its points are the queries).

    Example:
        >>> out = METRO(METROConfig(backbone=None))(torch.randn(1, 2048, 7, 7))
        >>> out.joints.shape
        torch.Size([1, 14, 3])
    """

    config_class = METROConfig
    config: METROConfig
    template: Tensor
    trans_encoder: Any  # nn.ModuleList of three BertBlock

    def __init__(
        self,
        config: METROConfig | None = None,
        mesh: str | ModelMesh | None = None,
        mesh_data: str | Path | None = None,
        **fields: Any,
    ):
        super().__init__(config, mesh, mesh_data, **fields)
        c = self.config
        if c.pooled and c.selector != "none":
            raise ValueError(f"METRO: a pooled model has no image tokens to select, config.selector is {c.selector!r}")
        tokens = c.num_joints + c.num_vertices
        self.register_buffer("template", self.mesh.template(), persistent=False)  # [J + V, 3]
        if self.template.shape[0] != tokens:
            raise ValueError(f"METRO: template has {self.template.shape[0]} points, joints + vertices are {tokens}")
        self.init_selection(
            c.selector, c.feature_dim, c.grid, c.keep_ratio, c.selector_dim, c.selector_gain, knn_form=c.knn_form
        )
        self.trans_encoder = bert_blocks(c)
        self.init_upsampling()  # after the other buffers: torch.export miscounts those that follow an empty one
        self.conv_learn_tokens = None if c.pooled else nn.Conv1d(self.keep_num, tokens, 1)
        self.cam_param_fc = nn.Linear(3, 1)
        self.cam_param_fc2 = nn.Linear(tokens if c.camera_from_joints else c.num_vertices, c.camera_dim)
        self.cam_param_fc3 = nn.Linear(c.camera_dim, 3)

    def forward(
        self, images: Tensor, query_mask: Tensor | None = None, return_attention: bool = False, fine: bool = True
    ) -> MeshOutput:
        """Regresses the mesh.

        Args:
            images: [B, 3, H, W] normalised crops; without a backbone features [B, C, h, w] or (pooled) [B, C].
            query_mask: [B, J + V] with 1 for kept and 0 for masked queries (train/mesh_loss.py, draw_query_mask); None
                keeps all.
            return_attention: also form the attention maps "bert_1".."bert_3" over [joints; vertices]; slower.
            fine: False skips up-sampling; see `coarse_joint_regressor`.
        """
        tokens, heatmap = self.image_tokens(images)
        maps: list[list[Tensor] | None] = [[], [], []] if return_attention else [None, None, None]
        first, second, third = self.trans_encoder
        kept = self.recall("embedding") if query_mask is None else None
        if kept is not None:
            both = self.mix(F.linear(tokens, kept[0]), bias=False) + kept[1]
            embedded, residual = both.split([first.dim, both.shape[-1] - first.dim], dim=-1)
            x, _ = first.from_embedded(embedded, residual, maps=maps[0])
        else:
            x, _ = first(self.queries(tokens, query_mask), maps=maps[0])
        x, _ = second(x, maps=maps[1])
        x, _ = third(x, maps=maps[2])
        joints, coarse = x[:, : self.config.num_joints], x[:, self.config.num_joints :]
        intermediate, vertices = self.upsample_mesh(coarse) if fine else (None, None)
        camera = self.camera(x if self.config.camera_from_joints else coarse)
        named = {f"bert_{i}": m for i, m in enumerate(maps, 1) if m is not None} if return_attention else None
        attention = stack_maps(named, x.shape[0])
        return MeshOutput(camera, joints, coarse, intermediate, vertices, heatmap, None, None, attention)

    def image_tokens(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Kept tokens [B, M, C] and their heat map, or the pooled feature [B, 1, C]."""
        if self.config.pooled:
            if self.backbone is None and images.dim() == 2:
                self.check_input("features", images, (self.config.feature_dim,), "pooled")
                return images[:, None], None
            return self.features(images).mean((2, 3))[:, None], None
        kept = self.select_tokens(self.features(images))
        return kept.tokens, kept.heatmap

    def mix(self, tokens: Tensor, bias: bool = True) -> Tensor:
        """Image tokens -> one row per query: the learned mix of grid positions, or the pooled row for all."""
        if self.conv_learn_tokens is None:
            return tokens
        weight, offset = self.conv_learn_tokens.weight, self.conv_learn_tokens.bias
        assert offset is not None
        mixed = weight[..., 0] @ tokens
        return mixed + offset[:, None] if bias else mixed

    def queries(self, tokens: Tensor, query_mask: Tensor | None) -> Tensor:  # [B, J + V, 3 + C]
        rows = self.mix(tokens)
        batch, count = rows.shape[0], self.template.shape[0]
        x = torch.cat([self.template.expand(batch, -1, -1), rows.expand(-1, count, -1)], dim=-1)
        return mask_queries(x, query_mask)

    def camera(self, points: Tensor) -> Tensor:  # [B, N, 3] -> [B, 3]
        return metres(self.cam_param_fc3, metres(self.cam_param_fc2, metres(self.cam_param_fc, points).squeeze(-1)))

    def keep_terms(self) -> None:
        super().keep_terms()
        keep_embedding(self, self.conv_learn_tokens)


def keep_embedding(model: DenseUpsampling, mix: nn.Conv1d | None) -> None:
    """Keeps the image-token form of the first block's input (`token_embedding`) of a model that is prepared."""
    first, template = model.trans_encoder[0], model.template
    sources = (first.bert["position_embeddings"], first.bert["img_embedding"], first.residual, template)
    compute = lambda: token_embedding(first, template, mix)
    model.keep("embedding", sources if mix is None else (*sources, mix), compute)


def token_embedding(
    block: BertBlock, template: Tensor, mix: nn.Conv1d | None
) -> tuple[Tensor, Tensor]:  # [D, C], [T, D] with D = dim + width
    """Embedding and residual of [xyz; M f + c] as M (W f) + constant: the linear layers commute with the token mix, so
    they run on the image tokens (49, or one pooled) instead of all queries (445). Positions and template are
    constant."""
    embed = block.bert["img_embedding"]
    weight = torch.cat([embed.weight, block.residual.weight])  # [D, 3 + C]
    bias = torch.cat([embed.bias + 0, block.residual.bias])
    const = F.linear(template, weight[:, :3], bias)
    if mix is not None and mix.bias is not None:
        const = const + mix.bias[:, None] * weight[:, 3:].sum(1)
    const = const + F.pad(block.positions(template.shape[0]), (0, weight.shape[0] - block.dim))
    return weight[:, 3:].contiguous(), const


def mask_queries(x: Tensor, query_mask: Tensor | None) -> Tensor:
    """x [B, N, C] with the whole vector of masked queries set to 0.01; mask [B, N], 1 = kept."""
    if query_mask is None:
        return x
    if query_mask.shape != x.shape[:2]:
        raise ValueError(f"query_mask must be {list(x.shape[:2])}, got {list(query_mask.shape)}")
    return torch.where(query_mask[..., None] > 0, x, MASKED)


HAND = dict(
    mesh="free_hand",
    num_joints=21,
    pooled=True,
    camera_from_joints=True,
    camera_dim=150,
    hidden=(1024, 256, 64),
    feedforward=(4096, 1024, 256),
)


NOTE = "the paper counts unused weights and leaves out the 12.6 M of the up-sampling"
BODIES = {"metro_r50": {"backbone": "resnet50"}, "metro_h64": {"backbone": "hrnet_w64"}}
HANDS = {"metro_r50_hand": {"backbone": "resnet50", **HAND}, "metro_h64_hand": {"backbone": "hrnet_w64", **HAND}}
PAPERS = {
    "metro_r50": PaperRow(102.3, 31.6, "FastMETRO table 2, TORE table B1", NOTE),
    "metro_h64": PaperRow(102.3, 56.5, "FastMETRO table 2, TORE table B1", NOTE),
}
register_models(METRO, BODIES, PAPERS, tags=("body",))
register_models(METRO, HANDS, tags=("hand",))
