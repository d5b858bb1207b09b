"""METRO's and Mesh Graphormer's transformer block: embedding + learned positions, four post-norm BERT layers, two
heads.

In: joint and vertex (and grid) tokens from models/{metro,metro_tore,graphormer}.py; out: tokens of the next width.
Key names are BERT's as in the official checkpoints, minus tables that no forward pass reads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .attention import attend
from .graph_conv import GraphResidualBlock
from .linear import Linear
from .mesh import MeshUpsample
from .metres import metres


class _SelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        if dim % heads:
            raise ValueError(f"BertBlock: hidden width {dim} is not a multiple of heads {heads}")
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value = Linear(dim, dim), Linear(dim, dim), Linear(dim, dim)

    def forward(self, x: Tensor, maps: list[Tensor] | None) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        out = attend(q, k, v, dropout_p=self.dropout if self.training else 0.0, maps=maps)
        return out.transpose(1, 2).flatten(2)


class _Output(nn.Module):
    """LN(residual + dropout(dense(x)))."""

    def __init__(self, in_dim: int, dim: int, dropout: float, eps: float):
        super().__init__()
        self.dense, self.LayerNorm = Linear(in_dim, dim, drop=dropout), nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x, residual))


class BertLayer(nn.Module):
    """Post-norm self-attention, an optional graph convolution on the vertex tokens, then the feed-forward (erf
    GELU)."""

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float, eps: float, graph: bool):
        super().__init__()
        self.attention = nn.ModuleDict(
            {"self": _SelfAttention(dim, heads, dropout), "output": _Output(dim, dim, dropout, eps)}
        )
        self.intermediate = nn.ModuleDict({"dense": Linear(dim, feedforward)})
        self.output = _Output(feedforward, dim, dropout, eps)
        self.graph_conv = GraphResidualBlock(dim, eps) if graph else None

    def forward(
        self,
        x: Tensor,  # [B, N, C]
        vertices: tuple[int, int] | None = None,  # first and last + 1 of the vertex tokens, for the graph convolution
        adjacency: MeshUpsample | None = None,  # [V, V]
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, maps), x)
        if self.graph_conv is not None:
            assert vertices is not None
            first, last = vertices
            mixed = self.graph_conv(x[:, first:last], adjacency)
            x = torch.cat([x[:, :first], mixed, x[:, last:]], dim=1)
        return self.output(self.intermediate["dense"](x, act="gelu"), x)


class BertBlock(nn.Module):
    """Linear embedding + position table -> BERT layers -> cls_head(h) + residual(x).

    Args:
        in_dim, dim, out_dim: widths of the input, the layers, the output.
        heads, layers, feedforward, dropout, eps: of the layers (METRO: 4 heads, 4 layers, eps 1e-12).
        positions: rows of the learned position table; the first N are used.
        graph: layers carry a graph convolution (Mesh Graphormer's third block).
    """

    bert: Any  # nn.ModuleDict: position_embeddings, img_embedding, encoder.layer

    def __init__(
        self,
        in_dim: int,
        dim: int,
        out_dim: int,
        heads: int,
        layers: int,
        feedforward: int,
        dropout: float = 0.1,
        eps: float = 1e-12,
        positions: int = 512,
        graph: bool = False,
    ):
        super().__init__()
        layer_list = [BertLayer(dim, heads, feedforward, dropout, eps, graph) for _ in range(layers)]
        self.bert = nn.ModuleDict(
            {
                "position_embeddings": nn.Embedding(positions, dim),
                "img_embedding": Linear(in_dim, dim),
                "encoder": nn.ModuleDict({"layer": nn.ModuleList(layer_list)}),
            }
        )
        self.cls_head, self.residual = Linear(dim, out_dim), Linear(in_dim, out_dim)
        self.dropout = nn.Dropout(dropout)
        self.apply(_bert_init)

    @property
    def coordinates(self) -> bool:
        """Whether the tokens that come out are points."""
        return self.cls_head.out_features == 3

    @property
    def dim(self) -> int:
        return self.cls_head.in_features

    def positions(self, count: int) -> Tensor:  # [count, dim]
        table = self.bert["position_embeddings"].weight
        if count > table.shape[0]:
            raise ValueError(f"BertBlock: {count} tokens, but the position table has {table.shape[0]} rows")
        return table[:count]

    def unused_official_params(self) -> int:
        """Weights of the official block that are never read: word, position and type tables, their norm, the pooler,
        and the skip connection of each graph convolution."""
        dim = self.dim
        skips = sum(layer.graph_conv is not None for layer in self.bert["encoder"]["layer"])
        return (30522 + 512 + 2 + 2) * dim + (dim * dim + dim) * (1 + skips)

    def forward(
        self, x: Tensor, vertices: Any = None, adjacency: Any = None, maps: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """[B, N, in_dim] -> tokens [B, N, out_dim] and the last hidden state [B, N, dim]."""
        embedded = self.bert["img_embedding"](x, self.positions(x.shape[1]))
        residual = metres(self.residual, x) if self.coordinates else self.residual(x)
        return self.from_embedded(embedded, residual, vertices, adjacency, maps)

    def from_embedded(
        self,
        embedded: Tensor,
        residual: Tensor,
        vertices: Any = None,
        adjacency: Any = None,
        maps: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The block after its two input projections (positions included in `embedded`)."""
        h = self.dropout(embedded)
        for layer in self.bert["encoder"]["layer"]:
            h = layer(h, vertices, adjacency, maps)
        return (metres(self.cls_head, h, residual) if self.coordinates else self.cls_head(h, residual)), h


def _bert_init(module: nn.Module) -> None:
    """N(0, 0.02) weights and zero biases; norms and graph convolutions keep their own."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
