"""FastMETRO: image tokens are encoded, joint and vertex queries decode them, in two transformers of falling width.

In: [B, 3, 224, 224] crops (geometry/warp.py); out: MeshOutput. Layers: transformer.py, mesh.py, smpl_regressor.py;
TORE's variant is tore.py. Parameter names are the official ones, so official state dicts load strictly.
Cho et al., "Cross-Attention of Disentangled Modalities for 3D Human Mesh Recovery with Transformers", ECCV 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...layers.attention import HeadPattern
from ...layers.graph_conv import VertexGraph
from ...layers.itp import TokenSelection
from ...layers.mesh import MeshPattern, MeshUpsample
from ...layers.metres import exact, metres, wide
from ...layers.smpl_regressor import SMPLParameterRegressor
from ...layers.transformer import Maps, Pattern, Transformer
from ...ops import csr_matrix
from .._outputs import MeshOutput
from .._registry import PaperRow, model_facts, register_models
from ._base import MeshModel, MeshModelConfig, stack_maps
from ._topology import ModelMesh


@dataclass(frozen=True)
class FastMETROConfig(MeshModelConfig):
    """Defaults: FastMETRO-S, ResNet-50, body, the layout of the released checkpoints; no ITP."""

    layers: int = 1
    dim_1: int = 512
    dim_2: int = 128
    feedforward_1: int = 2048
    feedforward_2: int = 512
    heads: int = 8
    dropout: float = 0.1
    shared_reduction: bool = False  # one `dim_reduce_enc` for camera and image (paper era) instead of two
    learned_upsample: bool = True  # learned 431 -> 1723 (released body) instead of the fixed matrix
    smpl_head: bool = False  # SMPL parameter regressor
    # what the paper's table 4 varies
    masking: str = "all"  # heads whose vertices see their mesh neighbours only: "all", "half", "none"
    graph: bool = False  # Mesh Graphormer's block on the vertices after every masked self-attention's place
    learned_fine: bool = False  # both up-sampling steps of a body learned, to the fine mesh
    progressive: bool = True  # False: no projections between the transformers, which must be equally wide


@model_facts(task="mesh", family="fastmetro", crop="square", projection="centred", loss="fastmetro")
class FastMETRO(MeshModel, TokenSelection):
    """FastMETRO for a body (three mesh levels) or a hand (two levels, never a learned up-sampling).

    Args:
        config: FastMETROConfig; its fields may be given as keywords instead. With a `selector` the image tokens are
            pruned (ITP without GTR, an ablation of TORE's).
        mesh, mesh_data: see models/mesh/_topology.py.

    Example:
        >>> out = FastMETRO(FastMETROConfig(backbone=None))(torch.randn(2, 2048, 7, 7))
        >>> out.vertices.shape
        torch.Size([2, 6890, 3])
    """

    config_class = FastMETROConfig
    config: FastMETROConfig
    pos_2: Tensor
    upsample: Any  # nn.ModuleList of MeshUpsample

    def __init__(
        self,
        config: FastMETROConfig | None = None,
        mesh: str | ModelMesh | None = None,
        mesh_data: str | Path | None = None,
        **fields: Any,
    ):
        super().__init__(config, mesh, mesh_data, **fields)
        c = self.config
        counts = self.mesh.counts
        sizes = ((c.dim_1, c.feedforward_1), (c.dim_2, c.feedforward_2))
        self.transformer_1, self.transformer_2 = (Transformer(d, c.heads, f, c.layers, c.dropout) for d, f in sizes)
        if c.masking not in MASKINGS:
            raise ValueError(f"FastMETRO: masking must be one of {MASKINGS}, got {c.masking!r}")
        if c.masking == "half" and c.heads < 2:
            raise ValueError(f"FastMETRO: masking='half' needs at least 2 heads, got {c.heads}")
        if not c.progressive:
            if c.dim_1 != c.dim_2:
                raise ValueError(f"FastMETRO: progressive=False needs dim_1 == dim_2, got {c.dim_1} and {c.dim_2}")
        elif c.shared_reduction:
            self.dim_reduce_enc = nn.Linear(c.dim_1, c.dim_2)
        else:
            self.dim_reduce_enc_cam, self.dim_reduce_enc_img = nn.Linear(c.dim_1, c.dim_2), nn.Linear(c.dim_1, c.dim_2)
        if c.progressive:
            self.dim_reduce_dec = nn.Linear(c.dim_1, c.dim_2)
        self.cam_token_embed = nn.Embedding(1, c.dim_1)
        self.joint_token_embed = nn.Embedding(c.num_joints, c.dim_1)
        self.vertex_token_embed = nn.Embedding(c.num_vertices, c.dim_1)
        self.xyz_regressor = nn.Linear(c.dim_2, 3)
        self.cam_predictor = nn.Linear(c.dim_2, 3)
        self.conv_1x1 = nn.Conv2d(c.feature_dim, c.dim_1, 1)
        if c.learned_fine and len(counts) != 3:
            raise ValueError("FastMETRO: learned_fine needs a body mesh (three levels)")
        self.learned = (c.learned_upsample or c.learned_fine) and len(counts) == 3
        if self.learned:
            self.coarse2intermediate_upsample = nn.Linear(counts[0], counts[1])
        if c.learned_fine:
            self.intermediate2fine_upsample = nn.Linear(counts[1], counts[2])
        if c.smpl_head:
            if len(counts) != 3:
                raise ValueError("FastMETRO: smpl_head needs a body mesh (it reads the intermediate vertices)")
            self.smpl_parameter_regressor = SMPLParameterRegressor(counts[1])
        self.upsample = self.fixed_upsampling()
        self.pattern = MeshPattern(self.mesh.topology(c.num_joints))
        if c.graph:
            self._add_graph_blocks()
        self.init_selection(
            c.selector, c.dim_1, c.grid, c.keep_ratio, c.selector_dim, c.selector_gain, knn_form=c.knn_form
        )
        self.register_buffer("pos_2", self.token_positions(c.dim_2), persistent=False)

    def forward(self, images: Tensor, return_attention: bool = False, fine: bool = True) -> MeshOutput:
        """Regresses the mesh.

        Args:
            images: [B, 3, H, W] normalised crops, or [B, feature_dim, h, w] features if config.backbone is None.
            return_attention: also form the attention maps ("encoder_1", "decoder_1" over [joints; vertices],
                "cross_1", ... "cross_2"); slower.
            fine: False skips up-sampling (and the SMPL head); see `coarse_joint_regressor`.

        Raises:
            ValueError, TypeError: `images` has another shape or type than the config says.
        """
        kept = self.select_tokens(self.conv_1x1(self.features(images)))
        batch, joints = kept.tokens.shape[0], self.config.num_joints
        topology = self.token_pattern()
        maps_1: Maps | None = {} if return_attention else None
        maps_2: Maps | None = {} if return_attention else None
        camera = self.cam_token_embed.weight.expand(batch, -1, -1)
        one = self.transformer_1(camera, kept.tokens, self.queries(), kept.pos, topology, maps_1)
        reduce_cam, reduce_img, reduce_dec = self._reductions()
        place = self.place(kept.heatmap, self.pos_2)
        two = self.transformer_2(
            reduce_cam(one.camera), reduce_img(one.memory), reduce_dec(one.decoded), place, topology, maps_2
        )
        xyz = metres(self.xyz_regressor, two.decoded)
        coarse = xyz[:, joints:]
        intermediate, vertices = self.upsample_mesh(coarse) if fine else (None, None)
        rotmat, betas = None, None
        if self.config.smpl_head and intermediate is not None:
            rotmat, betas = self.smpl_parameter_regressor(intermediate.detach().to(self.xyz_regressor.weight.dtype))
        maps = {f"{k}_{i}": v for i, m in ((1, maps_1), (2, maps_2)) for k, v in (m or {}).items()}
        attention = stack_maps(maps, batch) if return_attention else None
        camera = metres(self.cam_predictor, two.camera).squeeze(1)
        return MeshOutput(
            camera, xyz[:, :joints], coarse, intermediate, vertices, kept.heatmap, rotmat, betas, attention
        )

    def token_pattern(self) -> Pattern | None:
        """Which mesh tokens see which, by `config.masking`; None: all see all."""
        masking = self.config.masking
        if masking == "none":
            return None
        return self.pattern() if masking == "all" else HeadPattern(self.pattern(), self.config.heads // 2)

    def _reductions(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        """Of camera, image and mesh tokens between the transformers."""
        if not self.config.progressive:
            return (lambda x: x,) * 3
        if self.config.shared_reduction:
            return self.dim_reduce_enc, self.dim_reduce_enc, self.dim_reduce_dec
        return self.dim_reduce_enc_cam, self.dim_reduce_enc_img, self.dim_reduce_dec

    def _add_graph_blocks(self) -> None:
        joints = self.config.num_joints
        adjacency = MeshUpsample(csr_matrix(self.mesh.adjacency))
        for transformer, dim in ((self.transformer_1, self.config.dim_1), (self.transformer_2, self.config.dim_2)):
            for layer in transformer.decoder.layers:
                layer.graph = VertexGraph(dim, adjacency, joints)

    def queries(self) -> Tensor:  # [1, J + V, dim_1]
        return torch.cat([self.joint_token_embed.weight, self.vertex_token_embed.weight])[None]

    def upsample_mesh(self, coarse: Tensor) -> tuple[Tensor | None, Tensor]:
        """[B, V, 3] -> intermediate (None for a hand) and fine vertices."""
        if len(self.upsample) == 1:
            return None, self.upsample[0](coarse)
        if self.learned:
            up = self.coarse2intermediate_upsample
            with exact(coarse):
                intermediate = wide(up.weight) @ coarse + wide(up.bias)[:, None]
        else:
            intermediate = self.upsample[0](coarse)
        if self.config.learned_fine:
            up = self.intermediate2fine_upsample
            with exact(coarse):
                return intermediate, wide(up.weight) @ intermediate + wide(up.bias)[:, None]
        return intermediate, self.upsample[1](intermediate)

    def keep_terms(self) -> None:
        pos_1, pos_2 = (lambda: self.token_pos, lambda: self.pos_2) if self.has_fixed_positions else (None, None)
        embeddings = (self.joint_token_embed, self.vertex_token_embed)
        self.transformer_1.keep_constants(pos_1, self.queries, self.token_pattern, embeddings)
        self.transformer_2.keep_constants(pos_2)


MASKINGS = ("all", "half", "none")
PAPER_ERA = {"shared_reduction": True, "learned_upsample": False}
WIDE = {"dim_2": 512, "feedforward_2": 2048, "progressive": False}
HAND = {"mesh": "free_hand", "num_joints": 21}
BODIES = {
    "fastmetro_s_r50": {"backbone": "resnet50", "layers": 1},
    "fastmetro_s_r50_paper": {"backbone": "resnet50", "layers": 1, **PAPER_ERA},
    # rows of table 4
    "fastmetro_s_r50_paper_nomask": {"backbone": "resnet50", "layers": 1, "masking": "none", **PAPER_ERA},
    "fastmetro_s_r50_paper_graph": {"backbone": "resnet50", "layers": 1, "masking": "none", "graph": True, **PAPER_ERA},
    "fastmetro_s_r50_paper_halfmask": {"backbone": "resnet50", "layers": 1, "masking": "half", **PAPER_ERA},
    "fastmetro_s_r50_paper_learned": {"backbone": "resnet50", "layers": 1, "learned_fine": True, **PAPER_ERA},
    "fastmetro_s_r50_paper_wide": {"backbone": "resnet50", "layers": 1, **WIDE, **PAPER_ERA},
    "fastmetro_s_r50_smpl": {"backbone": "resnet50", "layers": 1, "smpl_head": True},
    "fastmetro_s_h64": {"backbone": "hrnet_w64", "layers": 1},
    "fastmetro_s_h64_paper": {"backbone": "hrnet_w64", "layers": 1, **PAPER_ERA},
    "fastmetro_s_h64_smpl": {"backbone": "hrnet_w64", "layers": 1, "smpl_head": True},
    "fastmetro_s_eb0": {"backbone": "efficientnet_b0", "layers": 1},
    "fastmetro_s_eb0_paper": {"backbone": "efficientnet_b0", "layers": 1, **PAPER_ERA},
    "fastmetro_s_eb0_smpl": {"backbone": "efficientnet_b0", "layers": 1, "smpl_head": True},
    "fastmetro_m_r50": {"backbone": "resnet50", "layers": 2},
    "fastmetro_m_r50_paper": {"backbone": "resnet50", "layers": 2, **PAPER_ERA},
    "fastmetro_m_r50_smpl": {"backbone": "resnet50", "layers": 2, "smpl_head": True},
    "fastmetro_m_h64": {"backbone": "hrnet_w64", "layers": 2},
    "fastmetro_m_h64_paper": {"backbone": "hrnet_w64", "layers": 2, **PAPER_ERA},
    "fastmetro_m_h64_smpl": {"backbone": "hrnet_w64", "layers": 2, "smpl_head": True},
    "fastmetro_m_eb0": {"backbone": "efficientnet_b0", "layers": 2},
    "fastmetro_m_eb0_paper": {"backbone": "efficientnet_b0", "layers": 2, **PAPER_ERA},
    "fastmetro_m_eb0_smpl": {"backbone": "efficientnet_b0", "layers": 2, "smpl_head": True},
    "fastmetro_l_r50": {"backbone": "resnet50", "layers": 3},
    "fastmetro_l_r50_paper": {"backbone": "resnet50", "layers": 3, **PAPER_ERA},
    "fastmetro_l_r50_smpl": {"backbone": "resnet50", "layers": 3, "smpl_head": True},
    "fastmetro_l_h64": {"backbone": "hrnet_w64", "layers": 3},
    "fastmetro_l_h64_paper": {"backbone": "hrnet_w64", "layers": 3, **PAPER_ERA},
    "fastmetro_l_h64_smpl": {"backbone": "hrnet_w64", "layers": 3, "smpl_head": True},
    "fastmetro_l_eb0": {"backbone": "efficientnet_b0", "layers": 3},
    "fastmetro_l_eb0_paper": {"backbone": "efficientnet_b0", "layers": 3, **PAPER_ERA},
    "fastmetro_l_eb0_smpl": {"backbone": "efficientnet_b0", "layers": 3, "smpl_head": True},
}
HANDS = {
    "fastmetro_s_r50_hand": {"backbone": "resnet50", "layers": 1, **HAND},
    "fastmetro_s_h64_hand": {"backbone": "hrnet_w64", "layers": 1, **HAND},
    "fastmetro_s_eb0_hand": {"backbone": "efficientnet_b0", "layers": 1, **HAND},
    "fastmetro_m_r50_hand": {"backbone": "resnet50", "layers": 2, **HAND},
    "fastmetro_m_h64_hand": {"backbone": "hrnet_w64", "layers": 2, **HAND},
    "fastmetro_m_eb0_hand": {"backbone": "efficientnet_b0", "layers": 2, **HAND},
    "fastmetro_l_r50_hand": {"backbone": "resnet50", "layers": 3, **HAND},
    "fastmetro_l_h64_hand": {"backbone": "hrnet_w64", "layers": 3, **HAND},
    "fastmetro_l_eb0_hand": {"backbone": "efficientnet_b0", "layers": 3, **HAND},
}
# Table 1 (transformer parameters without backbone, M) describes the paper-era layout; tables 2, B1 and H7
# multiply-adds.
PAPERS = {
    "fastmetro_s_r50_paper": PaperRow(9.2, None, "FastMETRO table 1"),
    "fastmetro_s_h64_paper": PaperRow(9.2, None, "FastMETRO table 1"),
    "fastmetro_m_r50_paper": PaperRow(17.1, None, "FastMETRO table 1"),
    "fastmetro_m_h64_paper": PaperRow(17.1, None, "FastMETRO table 1"),
    "fastmetro_l_r50": PaperRow(None, 10.9, "TORE table B1"),
    "fastmetro_l_r50_paper": PaperRow(24.9, 10.9, "FastMETRO table 1, TORE table B1"),
    "fastmetro_l_h64": PaperRow(None, 35.7, "TORE table B1"),
    "fastmetro_l_h64_paper": PaperRow(24.9, 35.7, "FastMETRO table 1, TORE table B1"),
    "fastmetro_l_eb0": PaperRow(None, 7.1, "TORE table H7"),
    "fastmetro_l_eb0_paper": PaperRow(None, 7.1, "TORE table H7"),
}
register_models(FastMETRO, BODIES, PAPERS, tags=("body",))
register_models(FastMETRO, HANDS, tags=("hand",))
