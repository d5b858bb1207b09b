"""The pre-norm encoder-decoder of FastMETRO and TORE: camera and image (or joint) tokens encode, mesh tokens decode.

In: tokens from models/mesh/fastmetro.py, models/mesh/tore.py or layers/gtr_nsr.py; out: camera, memory and decoded features.
`fuse` caches what is the same for every image (layers further down: attention.py, ops.mesh_attention).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import MeshTopology
from .attention import MultiheadAttention, imitates_official
from .dense import Dense

Maps = dict[str, list[Tensor]]  # attention maps by name, one per layer: head averages [B, queries, keys]


class TransformerOutput(NamedTuple):
    camera: Tensor  # [B, 1, C] encoder output of the camera token
    memory: Tensor  # [B, N, C] encoder output of the other tokens
    decoded: Tensor  # [B, T, C]


def _layer_maps(maps: Maps | None, name: str) -> list[Tensor] | None:
    return None if maps is None else maps.setdefault(name, [])


class EncoderLayer(nn.Module):
    """x += MHA(q = k = norm(x) + pos, v = norm(x)); x += MLP(norm(x))."""

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float):
        super().__init__()
        self.self_attn = MultiheadAttention(dim, heads, dropout)
        self.linear1, self.linear2 = Dense(dim, feedforward, drop=dropout), Dense(feedforward, dim, drop=dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.register_buffer("fused_qkv", None, persistent=False)  # [N, 3C]

    def forward(self, x: Tensor, pos: Tensor | None, maps: Maps | None = None) -> Tensor:
        attn = self.self_attn
        x = attn.attend(*attn.qkv(self.norm1(x), pos, self.fused_qkv), maps=_layer_maps(maps, "encoder"), residual=x)
        return self.linear2(self.linear1(x, act="relu", norm=self.norm2), residual=x)


class DecoderLayer(nn.Module):
    """Self-attention among mesh tokens (masked), cross-attention to memory, MLP; each pre-norm with a residual."""

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float):
        super().__init__()
        self.self_attn = MultiheadAttention(dim, heads, dropout)
        self.multihead_attn = MultiheadAttention(dim, heads, dropout)
        self.linear1, self.linear2 = Dense(dim, feedforward, drop=dropout), Dense(feedforward, dim, drop=dropout)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.register_buffer("fused_kv", None, persistent=False)  # [N, 2C]
        self.register_buffer("fused_x", None, persistent=False)  # [1, T, C] tokens after self-attention
        self.register_buffer("fused_query", None, persistent=False)  # [1, H, T, D]

    def after_self_attention(self, x: Tensor, topology: MeshTopology | None, maps: Maps | None = None) -> Tensor:
        attn = self.self_attn
        return attn.attend(*attn.qkv(self.norm1(x)), topology, _layer_maps(maps, "decoder"), residual=x)

    def forward(
        self, x: Tensor, memory: Tensor, pos: Tensor | None, topology: MeshTopology | None, maps: Maps | None = None
    ) -> Tensor:
        attn = self.multihead_attn
        if self.fused_x is not None and maps is None:
            x, q = self.fused_x, self.fused_query
        else:
            x = self.after_self_attention(x, topology, maps)
            q = attn.query(self.norm2(x))
        q = q.expand(memory.shape[0], -1, -1, -1)  # learned tokens may come once for the whole batch
        k, v = attn.key_value(memory, pos, self.fused_kv)
        x = attn.attend(q, k, v, maps=_layer_maps(maps, "cross"), residual=x)
        return self.linear2(self.linear1(x, act="relu", norm=self.norm3), residual=x)


class _Stack(nn.Module):
    def __init__(self, layer: type[nn.Module], count: int, dim: int, *args):
        super().__init__()
        self.layers = nn.ModuleList([layer(dim, *args) for _ in range(count)])
        self.norm = nn.LayerNorm(dim)


class Transformer(nn.Module):
    """One transformer encoder-decoder: `layers` encoder and as many decoder layers.

    Args:
        dim, heads, feedforward, dropout: sizes of every layer.
        layers: encoder layers = decoder layers (FastMETRO S/M/L: 1/2/3).
    """

    def __init__(self, dim: int, heads: int, feedforward: int, layers: int, dropout: float = 0.1):
        super().__init__()
        self.dropout = dropout
        self.encoder = _Stack(EncoderLayer, layers, dim, heads, feedforward, dropout)
        self.decoder = _Stack(DecoderLayer, layers, dim, heads, feedforward, dropout)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)

    def forward(
        self,
        camera: Tensor,  # [B, 1, C]
        tokens: Tensor,  # [B, N, C]
        queries: Tensor,  # [B or 1, T, C]
        pos: Tensor,  # [N, C] or [B, N, C] of the tokens; the camera has none
        topology: MeshTopology | None = None,  # of the queries
        maps: Maps | None = None,
    ) -> TransformerOutput:
        x = torch.cat([camera, tokens], dim=1)
        camera_pos = F.pad(pos, (0, 0, 1, 0))  # zeros for the camera token
        for layer in self.encoder.layers:
            x = layer(x, camera_pos, maps)
        x = self.encoder.norm(x)
        camera, memory = x[:, :1], x[:, 1:]
        # without dropout the first self-attention is the same for every image: once is enough
        per_image = (self.training and self.dropout > 0) or imitates_official()
        y = queries.expand(memory.shape[0], -1, -1) if per_image else queries
        for layer in self.decoder.layers:
            y = layer(y, memory, pos, topology, maps)
        return TransformerOutput(camera, memory, self.decoder.norm(y))

    @torch.no_grad()
    def fuse(self, pos: Tensor | None, queries: Tensor | None = None, topology: MeshTopology | None = None) -> None:
        """Caches image-independent terms: projected positions, and with constant `queries` [1, T, C] the first
        decoder layer's self-attention with its norm2 and query projection."""
        if pos is not None:
            camera_pos = F.pad(pos, (0, 0, 1, 0))
            for layer in self.encoder.layers:
                layer.fused_qkv = layer.self_attn.position_bias(camera_pos)
            for layer in self.decoder.layers:
                attn = layer.multihead_attn
                layer.fused_kv = attn.position_bias(pos)[:, pos.shape[-1] :].contiguous()
        if queries is not None:
            first = self.decoder.layers[0]
            first.fused_x = first.after_self_attention(queries, topology)
            first.fused_query = first.multihead_attn.query(first.norm2(first.fused_x)).contiguous()
