"""Multi-head attention with the parameter names of torch.nn.MultiheadAttention, batch first, dense or on a mesh.

In: tokens from layers/transformer.py; the kernels are ops.mesh_attention (sparse mesh pattern) and torch's fused
scaled-dot-product attention (dense). Weights are only formed when a caller asks for the attention maps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import MeshTopology, linear, mesh_attention
from .linear import Linear
from .prepared import Prepared


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D)) [B, H, Tq, Tk] for q, k [B, H, T, D]; pairs with mask False get zero."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        logits = logits + torch.zeros_like(mask, dtype=logits.dtype).masked_fill_(~mask, float("-inf"))
    return logits.softmax(-1)


def attend(
    q: Tensor,  # [B, H, Tq, D]
    k: Tensor,  # [B, H, Tk, D]
    v: Tensor,  # [B, H, Tk, D]
    topology: MeshTopology | HeadPattern | None = None,
    dropout_p: float = 0.0,
    maps: list[Tensor] | None = None,
    mask: Tensor | None = None,  # bool, broadcasts to [B, H, Tq, Tk]: True = attends; instead of a topology
) -> Tensor:  # [B, H, Tq, D]
    """Attention; with a topology only its open pairs take part. `maps` collects head-averaged weights [B, Tq, Tk]."""
    if maps is not None:
        if isinstance(topology, HeadPattern):
            mask = topology.dense_mask(q.shape[1])
        elif topology is not None:
            mask = topology.dense_mask()
        weights = attention_weights(q, k, mask)
        maps.append(weights.mean(1))
        return F.dropout(weights, dropout_p) @ v
    if isinstance(topology, HeadPattern):
        return _by_heads(q, k, v, topology, dropout_p)
    if topology is not None:
        return mesh_attention(q, k, v, topology, dropout_p=dropout_p)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p)


class HeadPattern(NamedTuple):
    """A mesh pattern in the first `heads` heads only; the others attend to everything (FastMETRO, table 4)."""

    topology: MeshTopology
    heads: int

    def dense_mask(self, heads: int) -> Tensor:
        """[heads, T, T] bool, True = attends."""
        mask = self.topology.dense_mask()
        rest = torch.ones_like(mask).expand(heads - self.heads, -1, -1)
        return torch.cat([mask.expand(self.heads, -1, -1), rest])


def _by_heads(q: Tensor, k: Tensor, v: Tensor, pattern: HeadPattern, dropout_p: float) -> Tensor:
    """The masked heads by mesh_attention's kernels, the others by torch's dense attention."""
    n = pattern.heads
    masked = mesh_attention(q[:, :n], k[:, :n], v[:, :n], pattern.topology, dropout_p=dropout_p)
    dense = F.scaled_dot_product_attention(q[:, n:], k[:, n:], v[:, n:], dropout_p=dropout_p)
    return torch.cat([masked, dense], 1)


class MultiheadAttention(Prepared):
    """q, k, v projections in one matrix, `heads` heads, output projection (keys as torch.nn.MultiheadAttention).

    `dropout` is the rate of the attention weights and of the projected output.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0):
        super().__init__()
        if dim % heads:
            raise ValueError(f"MultiheadAttention: dim {dim} is not a multiple of heads {heads}")
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = Linear(dim, dim, drop=dropout)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def split(self, x: Tensor) -> Tensor:  # [B, N, C] -> [B, H, N, D]
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def project(self, x: Tensor, first: int, last: int, token_bias: Tensor | None = None) -> Tensor:
        """Thirds first..last-1 of (q, k, v): [B, N, C] -> [B, N, (last - first) C].

        `token_bias` [N, (last - first) C] stands in for in_proj_bias; added within the product it costs no other pass.
        """
        dim = self.in_proj_weight.shape[1]
        weight = self.in_proj_weight[first * dim : last * dim]
        if token_bias is None:
            return linear(x, weight, self.in_proj_bias[first * dim : last * dim], packed=self.packed)
        return linear(x, weight, residual=token_bias, packed=self.packed)

    def qkv(self, x: Tensor, pos: Tensor | None = None, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Projections of self-attention, positions added to queries and keys only.

        `bias` [N, 3C] replaces both in_proj_bias and positions: W(x + p) = W x + W p (see `position_bias`).
        """
        if bias is not None or pos is None:
            q, k, v = self.project(x, 0, 3, bias).chunk(3, -1)
        else:
            q, k = self.project(x + pos, 0, 2).chunk(2, -1)
            v = self.project(x, 2, 3)
        return self.split(q), self.split(k), self.split(v)

    def query(self, x: Tensor) -> Tensor:
        return self.split(self.project(x, 0, 1))

    def key_value(self, memory: Tensor, pos: Tensor | None = None, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys of memory + pos and values of memory; `bias` [N, 2C] replaces biases and positions."""
        if bias is not None:
            k, v = self.project(memory, 1, 3, bias).chunk(2, -1)
        else:
            k = self.project(memory if pos is None else memory + pos, 1, 2)
            v = self.project(memory, 2, 3)
        return self.split(k), self.split(v)

    def position_bias(self, pos: Tensor, first: int = 0) -> Tensor:  # [N, C] -> [N, (3 - first) C]
        """in_proj_bias with the projected positions added to its query and key thirds; from third `first` on."""
        dim = self.in_proj_weight.shape[1]
        shift = F.linear(pos, self.in_proj_weight[first * dim : 2 * dim])
        return self.in_proj_bias[first * dim :] + F.pad(shift, (0, dim))

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        topology: MeshTopology | HeadPattern | None = None,
        maps: list[Tensor] | None = None,
        residual: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:  # [B, N, C]
        """Attention of heads [B, H, N, D], joined, projected and (in training) dropped out; then `residual` is
        added."""
        out = attend(q, k, v, topology, self.dropout if self.training else 0.0, maps, mask)
        return self.out_proj(out.transpose(-3, -2).flatten(-2), residual)
