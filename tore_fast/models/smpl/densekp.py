"""DenseKP of CameraHMR: 138 surface key points with uncertainty from one crop.

In: square crops [B, 3, 256, 256]; out: [B, 138, 3] = x, y in crop units (-0.5..0.5) and log sigma.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...layers.decoder_head import CrossAttentionDecoder, DecoderConfig
from .._config import make_config
from .._registry import model_facts, register_models
from ..backbones.vit import ViT, ViTConfig
from .hmr2 import cut_sides

NUM_POINTS = 138


@dataclass(frozen=True)
class DenseKPConfig:
    embed_dim: int = 1280
    depth: int = 32
    num_heads: int = 16
    decoder_depth: int = 6
    num_points: int = NUM_POINTS


class DenseKPHead(nn.Module):
    """Zero query token -> decoder -> x, y, log sigma per point."""

    def __init__(self, cfg: DecoderConfig, num_points: int = NUM_POINTS):
        super().__init__()
        self.num_points = num_points
        self.transformer = CrossAttentionDecoder(1, cfg, zero_query=True)
        self.dec_kp = nn.Linear(cfg.dim, 3 * num_points)

    def forward(self, context: Tensor) -> Tensor:  # [B, N, C] -> [B, points, 3]
        token = self.transformer(
            torch.zeros(context.shape[0], 1, 1, dtype=context.dtype, device=context.device), context
        )
        return self.dec_kp(token[:, 0]).unflatten(1, (self.num_points, 3))


@model_facts(task="keypoints", family="fasthmr", crop="hmr2")
class DenseKP(nn.Module):
    """Backbone and head; keys `backbone.*` and `head.*` as the official file."""

    config_class = DenseKPConfig

    def __init__(self, config: DenseKPConfig | None = None, **fields: Any):
        super().__init__()
        self.config = make_config(type(self), config, fields)
        c = self.config
        self.backbone = ViT(ViTConfig(embed_dim=c.embed_dim, depth=c.depth, num_heads=c.num_heads))
        self.head = DenseKPHead(DecoderConfig(depth=c.decoder_depth, context_dim=c.embed_dim), c.num_points)

    def forward(self, img: Tensor) -> Tensor:
        img = cut_sides(img, self.backbone.cfg.img_size[1])
        return self.head(self.backbone.forward_tokens(img).tokens)


register_models(DenseKP, {"densekp_vith": {}}, input_shape=(3, 256, 256))
