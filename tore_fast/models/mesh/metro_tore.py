"""TORE on METRO: the BERT-style blocks run on the joint tokens only, an NSR gives the vertices (GTR); ITP optional.

In: [B, 3, 224, 224] crops; out: MeshOutput. Layers: bert_block.py, gtr_nsr.py, itp.py. Released for bodies without ITP.
Our extensions: hands (the body's way with 21 joints), and ITP, which here means to prune the 49 grid tokens before the
learned 49 -> J mix; the mix then reads M tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...layers.gtr_nsr import NeuralShapeRegressor
from ...layers.itp import TokenSelection
from ...layers.mesh import MeshPattern
from ...layers.metres import metres
from ...layers.transformer import Maps
from .._outputs import MeshOutput
from .._registry import PaperRow, model_facts, register_models
from ._base import stack_maps
from ._topology import ModelMesh
from .metro import DenseUpsampling, METROConfig, bert_blocks, keep_embedding, mask_queries


@dataclass(frozen=True)
class METROToreConfig(METROConfig):
    """Defaults: METRO+GTR body with ResNet-50. `pooled` and the camera fields of METRO have no meaning here."""

    dim_3: int = 128  # of the NSR; equal to hidden[2]
    feedforward_3: int = 512
    heads_3: int = 8
    layers_3: int = 3


@model_facts(task="mesh", family="metro", crop="square", projection="as_is", loss="tore_metro", masked_queries="joints")
class METRO_TORE(DenseUpsampling, TokenSelection):  # noqa: N801 (the paper's name)
    """METRO with GTR.

    Args:
        config: METROToreConfig; its fields may be given as keywords instead.
        mesh, mesh_data: see models/mesh/_topology.py; the mesh must have a rest template (its joints are the queries).

    Example:
        >>> model = METRO_TORE(backbone=None, selector="soft", keep_ratio=0.8)
        >>> out = model(torch.randn(1, 2048, 7, 7))
        >>> out.heatmap.shape
        torch.Size([1, 39, 49])
    """

    config_class = METROToreConfig
    config: METROToreConfig
    template: Tensor
    trans_encoder: Any  # nn.ModuleList of three BertBlock

    def __init__(
        self,
        config: METROToreConfig | None = None,
        mesh: str | ModelMesh | None = None,
        mesh_data: str | Path | None = None,
        **fields: Any,
    ):
        super().__init__(config, mesh, mesh_data, **fields)
        c = self.config
        if c.hidden[2] != c.dim_3:
            raise ValueError(
                f"METRO_TORE: hidden[2] {c.hidden[2]} and dim_3 {c.dim_3} must be equal (it feeds the NSR)"
            )
        self.register_buffer("template", self.mesh.template()[: c.num_joints], persistent=False)
        self.init_selection(
            c.selector, c.feature_dim, c.grid, c.keep_ratio, c.selector_dim, c.selector_gain, knn_form=c.knn_form
        )
        self.trans_encoder = bert_blocks(c)
        self.init_upsampling()  # after the other buffers: torch.export miscounts those that follow an empty one
        self.conv_learn_tokens = nn.Conv1d(self.keep_num, c.num_joints, 1)
        self.cam_token_embed = nn.Embedding(1, c.dim_3)
        self.vertex_token_embed = nn.Embedding(c.num_vertices, c.dim_3)
        self.transformer_3 = NeuralShapeRegressor(
            c.num_joints, c.dim_3, c.heads_3, c.feedforward_3, c.layers_3, c.dropout
        )
        self.cam_predictor, self.xyz_regressor_v = nn.Linear(c.dim_3, 3), nn.Linear(c.dim_3, 3)
        self.pattern = MeshPattern(self.mesh.topology(0))

    def forward(
        self,
        images: Tensor,
        query_mask: Tensor | None = None,
        return_attention: bool = False,
        fine: bool = True,
        nsr_noise: float = 0.0,
    ) -> MeshOutput:
        """Regresses the mesh.

        Args:
            images: [B, 3, H, W] normalised crops; without a backbone features [B, C, h, w].
            query_mask: [B, J] with 1 for kept and 0 for masked joint queries; None keeps all.
            return_attention: also form the attention maps ("bert_1".."bert_3" among joints, "encoder_3", "decoder_3",
                "cross_3" of the NSR); slower.
            fine: False skips up-sampling; see `coarse_joint_regressor`.
            nsr_noise: share of the joint features' standard deviation added as Gaussian noise before the NSR.
        """
        kept = self.select_tokens(self.features(images))
        maps: list[list[Tensor] | None] = [[], [], []] if return_attention else [None, None, None]
        nsr_maps: Maps | None = {} if return_attention else None
        first, second, third = self.trans_encoder
        mix = self.conv_learn_tokens.weight[..., 0]  # [J, M]
        constant = self.recall("embedding") if query_mask is None else None
        if constant is not None:
            # J < M, so the mix comes first here: embed J tokens
            both = F.linear(mix @ kept.tokens, constant[0]) + constant[1]
            embedded, residual = both.split([first.dim, both.shape[-1] - first.dim], dim=-1)
            x, _ = first.from_embedded(embedded, residual, maps=maps[0])
        else:
            assert self.conv_learn_tokens.bias is not None
            rows = mix @ kept.tokens + self.conv_learn_tokens.bias[:, None]
            queries = torch.cat([self.template.expand(rows.shape[0], -1, -1), rows], dim=-1)
            x, _ = first(mask_queries(queries, query_mask), maps=maps[0])
        x, _ = second(x, maps=maps[1])
        joints, hidden = third(x, maps=maps[2])
        batch = joints.shape[0]
        camera = self.cam_token_embed.weight.expand(batch, -1, -1)
        vertex_tokens = self.vertex_token_embed.weight[None]
        nsr = self.transformer_3(camera, hidden, vertex_tokens, self.pattern(), nsr_noise, nsr_maps)
        coarse = metres(self.xyz_regressor_v, nsr.decoded)
        intermediate, vertices = self.upsample_mesh(coarse) if fine else (None, None)
        attention = None
        if return_attention:
            named = {f"bert_{i}": m for i, m in enumerate(maps, 1) if m is not None}
            named |= {f"{k}_3": m for k, m in (nsr_maps or {}).items()}
            attention = stack_maps(named, batch)
        camera = metres(self.cam_predictor, nsr.camera).squeeze(1)
        return MeshOutput(camera, joints, coarse, intermediate, vertices, kept.heatmap, None, None, attention)

    def keep_terms(self) -> None:
        super().keep_terms()
        keep_embedding(self, self.conv_learn_tokens)
        nsr, tokens = self.transformer_3, self.vertex_token_embed
        nsr.keep_constants(lambda: nsr.joint_pos, lambda: tokens.weight[None], self.pattern, (tokens,))


BODIES: dict[str, dict[str, Any]] = {
    "metro_tore_r50": {"backbone": "resnet50"},
    "metro_tore_r50_itp20": {"backbone": "resnet50", "selector": "soft", "keep_ratio": 0.8},
    "metro_tore_h64": {"backbone": "hrnet_w64"},
    "metro_tore_h64_itp20": {"backbone": "hrnet_w64", "selector": "soft", "keep_ratio": 0.8},
}
HANDS = {
    "metro_tore_r50_hand": {"backbone": "resnet50", "mesh": "free_hand", "num_joints": 21},
    "metro_tore_h64_hand": {"backbone": "hrnet_w64", "mesh": "free_hand", "num_joints": 21},
}
PAPERS = {
    "metro_tore_r50": PaperRow(None, 5.4, "TORE table B1"),
    "metro_tore_h64": PaperRow(None, 30.3, "TORE table B1"),
}
register_models(METRO_TORE, BODIES, PAPERS, tags=("body",))
register_models(METRO_TORE, HANDS, tags=("hand",))
