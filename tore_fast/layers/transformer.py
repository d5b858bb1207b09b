"""The pre-norm encoder-decoder of FastMETRO and TORE: camera and image (or joint) tokens encode, mesh tokens decode.

In: tokens from models/mesh/fastmetro.py, models/mesh/tore.py or layers/gtr_nsr.py; out: camera, memory and decoded
features. What is the same for every image is kept in a prepared model (layers further down: attention.py,
ops.mesh_attention).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import MeshTopology
from .attention import HeadPattern, MultiheadAttention
from .linear import Linear
from .prepared import Prepared, Source

Pattern = MeshTopology | HeadPattern
Maps = dict[str, list[Tensor]]  # attention maps by name, one per layer: head averages [B, queries, keys]


class TransformerOutput(NamedTuple):
    camera: Tensor  # [B, 1, C] encoder output of the camera token
    memory: Tensor  # [B, N, C] encoder output of the other tokens
    decoded: Tensor  # [B, T, C]


def _layer_maps(maps: Maps | None, name: str) -> list[Tensor] | None:
    return None if maps is None else maps.setdefault(name, [])


class EncoderLayer(Prepared):
    """x += MHA(q = k = norm(x) + pos, v = norm(x)); x += MLP(norm(x))."""

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float):
        super().__init__()
        self.self_attn = MultiheadAttention(dim, heads, dropout)
        self.linear1, self.linear2 = Linear(dim, feedforward, drop=dropout), Linear(feedforward, dim, drop=dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, pos: Tensor | None, maps: Maps | None = None) -> Tensor:
        attn, bias = self.self_attn, self.recall("qkv bias")  # [N, 3C]
        x = attn.attend(*attn.qkv(self.norm1(x), pos, bias), maps=_layer_maps(maps, "encoder"), residual=x)
        return self.linear2(self.linear1(x, act="relu", norm=self.norm2), residual=x)


class DecoderLayer(Prepared):
    """Self-attention among mesh tokens (masked), cross-attention to memory, MLP; each pre-norm with a residual."""

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float):
        super().__init__()
        self.self_attn = MultiheadAttention(dim, heads, dropout)
        self.multihead_attn = MultiheadAttention(dim, heads, dropout)
        self.linear1, self.linear2 = Linear(dim, feedforward, drop=dropout), Linear(feedforward, dim, drop=dropout)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.graph: nn.Module | None = None  # of the tokens, after self-attention (FastMETRO, table 4)

    def first_query(
        self, x: Tensor, topology: Pattern | None, maps: Maps | None = None
    ) -> tuple[Tensor, Tensor]:  # [B, T, C], [B, H, T, D]
        """Tokens after self-attention and their query to the memory."""
        attn = self.self_attn
        x = attn.attend(*attn.qkv(self.norm1(x)), topology, _layer_maps(maps, "decoder"), residual=x)
        if self.graph is not None:
            x = self.graph(x)
        return x, self.multihead_attn.query(self.norm2(x))

    def forward(
        self, x: Tensor, memory: Tensor, pos: Tensor | None, topology: Pattern | None, maps: Maps | None = None
    ) -> Tensor:
        attn = self.multihead_attn
        constant = self.recall("first query") if maps is None else None
        x, q = constant or self.first_query(x, topology, maps)
        q = q.expand(memory.shape[0], -1, -1, -1)  # learned tokens may come once for the whole batch
        k, v = attn.key_value(memory, pos, self.recall("kv bias"))
        x = attn.attend(q, k, v, maps=_layer_maps(maps, "cross"), residual=x)
        return self.linear2(self.linear1(x, act="relu", norm=self.norm3), residual=x)


class _Stack(nn.Module):
    layers: Any  # nn.ModuleList of `layer`

    def __init__(self, layer: Callable[..., nn.Module], count: int, dim: int, *args: Any) -> None:
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
        topology: Pattern | None = None,  # of the queries
        maps: Maps | None = None,
    ) -> TransformerOutput:
        x = torch.cat([camera, tokens], dim=1)
        camera_pos = F.pad(pos, (0, 0, 1, 0))  # zeros for the camera token
        for layer in self.encoder.layers:
            x = layer(x, camera_pos, maps)
        x = self.encoder.norm(x)
        camera, memory = x[:, :1], x[:, 1:]
        # without dropout the first self-attention is the same for every image: once is enough
        per_image = self.training and self.dropout > 0
        y = queries.expand(memory.shape[0], -1, -1) if per_image else queries
        for layer in self.decoder.layers:
            y = layer(y, memory, pos, topology, maps)
        return TransformerOutput(camera, memory, self.decoder.norm(y))

    def keep_constants(
        self,
        pos: Callable[[], Tensor] | None,  # -> [N, C], positions of the tokens where they are the same for every image
        queries: Callable[[], Tensor] | None = None,  # -> [1, T, C], likewise
        topology: Callable[[], Pattern | None] = lambda: None,
        sources: tuple[Source, ...] = (),  # what these three are made from
    ) -> None:
        """In a model that is prepared: keeps the projected positions, and with constant `queries` the first decoder
        layer's
        self-attention with its norm2 and query projection."""
        if pos is not None:
            for layer in self.encoder.layers:
                attn = layer.self_attn
                bias = lambda attn=attn: attn.position_bias(F.pad(pos(), (0, 0, 1, 0)))  # the camera has no position
                layer.keep("qkv bias", (attn, *sources), bias)
            for layer in self.decoder.layers:
                attn = layer.multihead_attn
                layer.keep("kv bias", (attn, *sources), lambda attn=attn: attn.position_bias(pos(), first=1))
        if queries is not None:
            first = self.decoder.layers[0]

            def query() -> tuple[Tensor, Tensor]:
                x, q = first.first_query(queries(), topology())
                return x, q.contiguous()

            first.keep("first query", (first, *sources), query)
