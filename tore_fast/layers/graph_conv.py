"""Mesh Graphormer's graph residual block: vertex tokens mix with their mesh neighbours inside a transformer layer.

In: vertex tokens of layers/bert_block.py; out: the same with a residual update. The adjacency product is a sparse
matrix product (ops.mesh_upsample with a square matrix).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import linear
from .mesh import MeshUpsample


class _Linear(nn.Module):
    """y = x W^T + b with the official names `W` [out, in] and `b`."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.W = nn.Parameter(torch.empty(out_dim, in_dim))
        self.b = nn.Parameter(torch.zeros(out_dim))
        nn.init.xavier_uniform_(self.W)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.W, self.b)


class _GraphConvolution(nn.Module):
    """A (x W) + b with `weight` [in, out]; A is given at call time."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_dim, out_dim))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor, adjacency: MeshUpsample) -> Tensor:
        return adjacency(x @ self.weight) + self.bias


class GraphResidualBlock(nn.Module):
    """y = x + lin2(relu(LN(gconv(relu(LN(lin1(relu(LN(x)))))))), width dim / 2 inside.

    The official block also owns a `skip_conv` that is never used (input and output have the same width); it is left
    out.

    Source: Lin et al., "Mesh Graphormer", ICCV 2021.
    """

    def __init__(self, dim: int, eps: float = 1e-12):
        super().__init__()
        half = dim // 2
        self.lin1, self.conv, self.lin2 = _Linear(dim, half), _GraphConvolution(half, half), _Linear(half, dim)
        self.pre_norm = nn.LayerNorm(dim, eps=eps)
        self.norm1, self.norm2 = nn.LayerNorm(half, eps=eps), nn.LayerNorm(half, eps=eps)

    def forward(self, x: Tensor, adjacency: MeshUpsample) -> Tensor:  # [B, V, C] -> [B, V, C]
        y = self.lin1(F.relu(self.pre_norm(x)))
        y = self.conv(F.relu(self.norm1(y)), adjacency)
        return x + self.lin2(F.relu(self.norm2(y)))


class VertexGraph(nn.Module):
    """GraphResidualBlock of the vertex tokens behind the first `joints` tokens, which pass untouched."""

    def __init__(self, dim: int, adjacency: MeshUpsample, joints: int):
        super().__init__()
        self.block, self.adjacency, self.joints = GraphResidualBlock(dim), adjacency, joints

    def forward(self, x: Tensor) -> Tensor:  # [B, J + V, C]
        return torch.cat([x[:, : self.joints], self.block(x[:, self.joints :], self.adjacency)], 1)
