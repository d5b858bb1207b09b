"""TORE on FastMETRO: image tokens are pruned (ITP), the transformers decode joints only, an NSR gives the vertices
(GTR).

In: [B, 3, 224, 224] crops (geometry/warp.py); out: MeshOutput with the selector's heat map. Layers: itp.py,
transformer.py, gtr_nsr.py. Parameter names are the official ones, so official state dicts load strictly. METRO's
variant: metro_tore.py. Dou et al., "TORE: Token Reduction for Efficient Human Mesh Recovery with Transformer", ICCV
2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...layers.gtr_nsr import NeuralShapeRegressor
from ...layers.itp import TokenSelection
from ...layers.mesh import MeshPattern
from ...layers.metres import metres
from ...layers.positional import sine_position
from ...layers.transformer import Maps, Transformer
from .._outputs import MeshOutput
from .._registry import PaperRow, model_facts, register_models
from ._base import MeshModel, MeshModelConfig, stack_maps
from ._topology import ModelMesh
from .fastmetro import HAND


@dataclass(frozen=True)
class FastMETROToreConfig(MeshModelConfig):
    """Defaults: TORE on FastMETRO-S, ResNet-50, body, ITP@20% (a fifth of the image tokens pruned)."""

    layers: int = 1
    dim_1: int = 512
    dim_2: int = 128
    dim_3: int = 128
    feedforward_1: int = 2048
    feedforward_2: int = 512
    feedforward_3: int = 512
    heads: int = 8
    dropout: float = 0.1
    selector: str = "soft"
    keep_ratio: float = 0.8
    position_in_features: bool = False  # ours: a learned position is added to the token contents, see `tore_default`


@model_facts(task="mesh", family="tore", crop="square", projection="as_is", loss="tore_fastmetro")
class FastMETRO_TORE(MeshModel, TokenSelection):  # noqa: N801 (the paper's name)
    """FastMETRO with GTR and ITP, for a body or (our extension) a hand.

    Args:
        config: FastMETROToreConfig; its fields may be given as keywords instead. Any token grid, widths and mesh are
            possible, e.g. 128 px at stride 16.
        mesh, mesh_data: see models/mesh/_topology.py.

    Example:
        >>> import torch
        >>> model = FastMETRO_TORE(FastMETROToreConfig(backbone=None, keep_ratio=0.5))
        >>> model(torch.randn(2, 2048, 7, 7)).heatmap.shape
        torch.Size([2, 24, 49])
    """

    config_class = FastMETROToreConfig
    config: FastMETROToreConfig
    pos_2: Tensor
    upsample: Any  # nn.ModuleList of MeshUpsample

    def __init__(
        self,
        config: FastMETROToreConfig | None = None,
        mesh: str | ModelMesh | None = None,
        mesh_data: str | Path | None = None,
        **fields: Any,
    ):
        super().__init__(config, mesh, mesh_data, **fields)
        c = self.config
        sizes = ((c.dim_1, c.feedforward_1), (c.dim_2, c.feedforward_2))
        self.transformer_1, self.transformer_2 = (Transformer(d, c.heads, f, c.layers, c.dropout) for d, f in sizes)
        self.transformer_3 = NeuralShapeRegressor(c.num_joints, c.dim_3, c.heads, c.feedforward_3, c.layers, c.dropout)
        if c.dim_2 != c.dim_3:
            raise ValueError(f"FastMETRO_TORE: dim_2 {c.dim_2} and dim_3 {c.dim_3} must be equal (joints feed the NSR)")
        self.init_selection(
            c.selector, c.dim_1, c.grid, c.keep_ratio, c.selector_dim, c.selector_gain, knn_form=c.knn_form
        )
        if c.position_in_features:
            start = sine_position(*c.grid, c.dim_1).T.reshape(1, c.dim_1, *c.grid)
            self.feature_position = nn.Parameter(start.clone())
        self.dim_reduce_enc, self.dim_reduce_dec = nn.Linear(c.dim_1, c.dim_2), nn.Linear(c.dim_1, c.dim_2)
        self.cam_token_embed = nn.Embedding(1, c.dim_1)
        self.joint_token_embed = nn.Embedding(c.num_joints, c.dim_1)
        self.vertex_token_embed = nn.Embedding(c.num_vertices, c.dim_3)
        self.xyz_regressor_j, self.xyz_regressor_v = nn.Linear(c.dim_2, 3), nn.Linear(c.dim_3, 3)
        self.cam_predictor = nn.Linear(c.dim_2, 3)
        self.conv_1x1 = nn.Conv2d(c.feature_dim, c.dim_1, 1)
        self.upsample = self.fixed_upsampling()
        self.pattern = MeshPattern(self.mesh.topology(0))
        self.register_buffer("pos_2", self.token_positions(c.dim_2), persistent=False)

    def forward(
        self, images: Tensor, return_attention: bool = False, fine: bool = True, nsr_noise: float = 0.0
    ) -> MeshOutput:
        """Regresses the mesh.

        Args:
            images: [B, 3, H, W] normalised crops, or [B, feature_dim, h, w] features if config.backbone is None.
            return_attention: also form the attention maps ("encoder_1", "decoder_1", "cross_1", ..., "decoder_3" among
                vertices, "cross_3" from vertices to joints); slower.
            fine: False skips up-sampling; see `coarse_joint_regressor`.
            nsr_noise: share of the joint features' standard deviation added as Gaussian noise before the NSR.

        Raises:
            ValueError, TypeError: `images` has another shape or type than the config says.
        """
        tokens = self.conv_1x1(self.features(images))
        if self.config.position_in_features:
            tokens = tokens + self.feature_position
        kept = self.select_tokens(tokens)
        batch = kept.tokens.shape[0]
        maps: list[Maps | None] = [{}, {}, {}] if return_attention else [None, None, None]
        camera = self.cam_token_embed.weight.expand(batch, -1, -1)
        one = self.transformer_1(camera, kept.tokens, self.joint_token_embed.weight[None], kept.pos, None, maps[0])
        two = self.transformer_2(
            self.dim_reduce_enc(one.camera),
            self.dim_reduce_enc(one.memory),
            self.dim_reduce_dec(one.decoded),
            self.place(kept.heatmap, self.pos_2),
            None,
            maps[1],
        )
        vertex_tokens = self.vertex_token_embed.weight[None]
        three = self.transformer_3(two.camera, two.decoded, vertex_tokens, self.pattern(), nsr_noise, maps[2])
        coarse = metres(self.xyz_regressor_v, three.decoded)
        intermediate, vertices = self.upsample_mesh(coarse) if fine else (None, None)
        attention = None
        if return_attention:
            named = {f"{k}_{i}": v for i, m in enumerate(maps, 1) for k, v in (m or {}).items()}
            attention = stack_maps(named, batch)
        camera = metres(self.cam_predictor, two.camera).squeeze(1)
        joints = metres(self.xyz_regressor_j, two.decoded)
        return MeshOutput(camera, joints, coarse, intermediate, vertices, kept.heatmap, None, None, attention)

    def upsample_mesh(self, coarse: Tensor) -> tuple[Tensor | None, Tensor]:
        """[B, V, 3] -> intermediate (None for a hand) and fine vertices, by the fixed matrices."""
        if len(self.upsample) == 1:
            return None, self.upsample[0](coarse)
        intermediate = self.upsample[0](coarse)
        return intermediate, self.upsample[1](intermediate)

    def keep_terms(self) -> None:
        pos_1, pos_2 = (lambda: self.token_pos, lambda: self.pos_2) if self.has_fixed_positions else (None, None)
        joints, vertices, nsr = self.joint_token_embed, self.vertex_token_embed, self.transformer_3
        self.transformer_1.keep_constants(pos_1, lambda: joints.weight[None], sources=(joints,))
        self.transformer_2.keep_constants(pos_2)
        nsr.keep_constants(lambda: nsr.joint_pos, lambda: vertices.weight[None], self.pattern, (vertices,))


SMALL: dict[str, Any] = dict(
    backbone="regnety_004",
    stride=16,
    image_size=112,
    layers=1,
    heads=4,
    dim_1=256,
    dim_2=64,
    dim_3=64,
    feedforward_1=512,
    feedforward_2=128,
    feedforward_3=128,
    # Attention adds positions to queries and keys only, so a token's content must tell where it is. Features of a
    # pretrained trunk do; those of a small trunk trained from scratch do not, and the model stays at the mean pose
    # (measured after 45 k images with ITP and 12 k without).
    position_in_features=True,
    selector="none",
    dropout=0.0,  # unlimited synthetic images: nothing to regularise
)
# "ITP@20%" prunes a fifth of the image tokens, i.e. keep_ratio 0.8
BODIES = {
    "fastmetro_tore_s_r50": {"backbone": "resnet50", "layers": 1, "keep_ratio": 0.8},
    "fastmetro_tore_s_r50_itp0": {"backbone": "resnet50", "layers": 1, "keep_ratio": 1.0},
    "fastmetro_tore_s_r50_itp50": {"backbone": "resnet50", "layers": 1, "keep_ratio": 0.5},
    "fastmetro_tore_s_r50_itp75": {"backbone": "resnet50", "layers": 1, "keep_ratio": 0.25},
    "fastmetro_tore_s_r50_gtr": {"backbone": "resnet50", "layers": 1, "selector": "none"},
    "fastmetro_tore_s_h64": {"backbone": "hrnet_w64", "layers": 1, "keep_ratio": 0.8},
    "fastmetro_tore_s_h64_itp0": {"backbone": "hrnet_w64", "layers": 1, "keep_ratio": 1.0},
    "fastmetro_tore_s_h64_itp50": {"backbone": "hrnet_w64", "layers": 1, "keep_ratio": 0.5},
    "fastmetro_tore_s_h64_itp75": {"backbone": "hrnet_w64", "layers": 1, "keep_ratio": 0.25},
    "fastmetro_tore_s_h64_gtr": {"backbone": "hrnet_w64", "layers": 1, "selector": "none"},
    "fastmetro_tore_s_eb0": {"backbone": "efficientnet_b0", "layers": 1, "keep_ratio": 0.8},
    "fastmetro_tore_s_eb0_itp0": {"backbone": "efficientnet_b0", "layers": 1, "keep_ratio": 1.0},
    "fastmetro_tore_s_eb0_itp50": {"backbone": "efficientnet_b0", "layers": 1, "keep_ratio": 0.5},
    "fastmetro_tore_s_eb0_itp75": {"backbone": "efficientnet_b0", "layers": 1, "keep_ratio": 0.25},
    "fastmetro_tore_s_eb0_gtr": {"backbone": "efficientnet_b0", "layers": 1, "selector": "none"},
    "fastmetro_tore_m_r50": {"backbone": "resnet50", "layers": 2, "keep_ratio": 0.8},
    "fastmetro_tore_m_r50_itp0": {"backbone": "resnet50", "layers": 2, "keep_ratio": 1.0},
    "fastmetro_tore_m_r50_itp50": {"backbone": "resnet50", "layers": 2, "keep_ratio": 0.5},
    "fastmetro_tore_m_r50_itp75": {"backbone": "resnet50", "layers": 2, "keep_ratio": 0.25},
    "fastmetro_tore_m_r50_gtr": {"backbone": "resnet50", "layers": 2, "selector": "none"},
    "fastmetro_tore_m_h64": {"backbone": "hrnet_w64", "layers": 2, "keep_ratio": 0.8},
    "fastmetro_tore_m_h64_itp0": {"backbone": "hrnet_w64", "layers": 2, "keep_ratio": 1.0},
    "fastmetro_tore_m_h64_itp50": {"backbone": "hrnet_w64", "layers": 2, "keep_ratio": 0.5},
    "fastmetro_tore_m_h64_itp75": {"backbone": "hrnet_w64", "layers": 2, "keep_ratio": 0.25},
    "fastmetro_tore_m_h64_gtr": {"backbone": "hrnet_w64", "layers": 2, "selector": "none"},
    "fastmetro_tore_m_eb0": {"backbone": "efficientnet_b0", "layers": 2, "keep_ratio": 0.8},
    "fastmetro_tore_m_eb0_itp0": {"backbone": "efficientnet_b0", "layers": 2, "keep_ratio": 1.0},
    "fastmetro_tore_m_eb0_itp50": {"backbone": "efficientnet_b0", "layers": 2, "keep_ratio": 0.5},
    "fastmetro_tore_m_eb0_itp75": {"backbone": "efficientnet_b0", "layers": 2, "keep_ratio": 0.25},
    "fastmetro_tore_m_eb0_gtr": {"backbone": "efficientnet_b0", "layers": 2, "selector": "none"},
    "fastmetro_tore_l_r50": {"backbone": "resnet50", "layers": 3, "keep_ratio": 0.8},
    "fastmetro_tore_l_r50_itp0": {"backbone": "resnet50", "layers": 3, "keep_ratio": 1.0},
    "fastmetro_tore_l_r50_itp50": {"backbone": "resnet50", "layers": 3, "keep_ratio": 0.5},
    "fastmetro_tore_l_r50_itp75": {"backbone": "resnet50", "layers": 3, "keep_ratio": 0.25},
    "fastmetro_tore_l_r50_gtr": {"backbone": "resnet50", "layers": 3, "selector": "none"},
    "fastmetro_tore_l_h64": {"backbone": "hrnet_w64", "layers": 3, "keep_ratio": 0.8},
    "fastmetro_tore_l_h64_itp0": {"backbone": "hrnet_w64", "layers": 3, "keep_ratio": 1.0},
    "fastmetro_tore_l_h64_itp50": {"backbone": "hrnet_w64", "layers": 3, "keep_ratio": 0.5},
    "fastmetro_tore_l_h64_itp75": {"backbone": "hrnet_w64", "layers": 3, "keep_ratio": 0.25},
    "fastmetro_tore_l_h64_gtr": {"backbone": "hrnet_w64", "layers": 3, "selector": "none"},
    "fastmetro_tore_l_eb0": {"backbone": "efficientnet_b0", "layers": 3, "keep_ratio": 0.8},
    "fastmetro_tore_l_eb0_itp0": {"backbone": "efficientnet_b0", "layers": 3, "keep_ratio": 1.0},
    "fastmetro_tore_l_eb0_itp50": {"backbone": "efficientnet_b0", "layers": 3, "keep_ratio": 0.5},
    "fastmetro_tore_l_eb0_itp75": {"backbone": "efficientnet_b0", "layers": 3, "keep_ratio": 0.25},
    "fastmetro_tore_l_eb0_gtr": {"backbone": "efficientnet_b0", "layers": 3, "selector": "none"},
}
HANDS = {
    "fastmetro_tore_s_r50_hand": {"backbone": "resnet50", "layers": 1, **HAND},
    "fastmetro_tore_s_h64_hand": {"backbone": "hrnet_w64", "layers": 1, **HAND},
    "fastmetro_tore_s_eb0_hand": {"backbone": "efficientnet_b0", "layers": 1, **HAND},
    "fastmetro_tore_m_r50_hand": {"backbone": "resnet50", "layers": 2, **HAND},
    "fastmetro_tore_m_h64_hand": {"backbone": "hrnet_w64", "layers": 2, **HAND},
    "fastmetro_tore_m_eb0_hand": {"backbone": "efficientnet_b0", "layers": 2, **HAND},
    "fastmetro_tore_l_r50_hand": {"backbone": "resnet50", "layers": 3, **HAND},
    "fastmetro_tore_l_h64_hand": {"backbone": "hrnet_w64", "layers": 3, **HAND},
    "fastmetro_tore_l_eb0_hand": {"backbone": "efficientnet_b0", "layers": 3, **HAND},
}
PAPERS = {  # parameters are not printed for these rows
    "fastmetro_tore_l_r50": PaperRow(None, 5.3, "TORE table B1"),
    "fastmetro_tore_l_h64": PaperRow(None, 30.2, "TORE table B1"),
    "fastmetro_tore_l_eb0": PaperRow(None, 1.6, "TORE table H7"),
    "fastmetro_tore_l_eb0_itp50": PaperRow(None, 1.4, "TORE table H7"),
    "fastmetro_tore_l_eb0_itp75": PaperRow(None, 1.2, "TORE table H7", "paper rounds 1.26 down"),
}
register_models(FastMETRO_TORE, BODIES, PAPERS, tags=("body",))
register_models(FastMETRO_TORE, HANDS, tags=("hand",))
register_models(FastMETRO_TORE, {"tore_default": SMALL}, input_shape=(3, 112, 112), tags=("body",))
SMALL_HAND = {**SMALL, **HAND, "dim_1": 128, "feedforward_1": 256}
register_models(FastMETRO_TORE, {"tore_default_hand": SMALL_HAND}, input_shape=(3, 112, 112), tags=("hand",))
