"""Multi-head attention with the parameter names of torch.nn.MultiheadAttention, batch first, dense or on a mesh.

In: tokens from layers/transformer.py; the kernels are ops.mesh_attention (sparse mesh pattern) and torch's fused
scaled-dot-product attention (dense). Weights are only formed when a caller asks for the attention maps.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import MeshTopology, mesh_attention


@dataclass(frozen=True)
class _Dense:
    fused: bool
    masks: dict[tuple, Tensor]  # topologies as dense masks, made once like the official code's


# None: the ops. Otherwise attention is dense: only for counting multiply-adds in the papers' convention and as baselines.
_DENSE: contextvars.ContextVar[_Dense | None] = contextvars.ContextVar("tore_fast_dense_attention", default=None)


@contextlib.contextmanager
def dense_attention(fused: bool = False, masks: dict | None = None) -> Iterator[None]:
    """Within this context attention is dense: unfused with discarded mean weights like the official code, or (fused) by
    torch's masked kernel. `masks` keeps dense masks from one use to the next."""
    token = _DENSE.set(_Dense(fused, {} if masks is None else masks))
    try:
        yield
    finally:
        _DENSE.reset(token)


def imitates_official() -> bool:
    """Whether attention is computed like the official code now (then learned queries are repeated per image, too)."""
    return not torch.compiler.is_compiling() and _DENSE.get() is not None and not _DENSE.get().fused


def _mask(dense: _Dense, topology: MeshTopology) -> Tensor:
    key = (id(topology.col_idx), topology.joints)
    if key not in dense.masks:
        dense.masks[key] = topology.dense_mask()
    return dense.masks[key]


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D)) [B, H, Tq, Tk] for q, k [B, H, T, D]; pairs with mask [Tq, Tk] False get zero."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        logits = logits + torch.zeros_like(mask, dtype=logits.dtype).masked_fill_(~mask, float("-inf"))
    return logits.softmax(-1)


def attend(
    q: Tensor,  # [B, H, Tq, D]
    k: Tensor,  # [B, H, Tk, D]
    v: Tensor,  # [B, H, Tk, D]
    topology: MeshTopology | None = None,
    dropout_p: float = 0.0,
    maps: list[Tensor] | None = None,
) -> Tensor:  # [B, H, Tq, D]
    """Attention; with a topology only its open pairs take part. `maps` collects head-averaged weights [B, Tq, Tk]."""
    dense = None if torch.compiler.is_compiling() else _DENSE.get()
    mask = _mask(dense or _Dense(False, {}), topology) if topology is not None and (dense or maps is not None) else None
    if maps is not None or (dense and not dense.fused):
        weights = attention_weights(q, k, mask)
        mean = weights.mean(1)
        if maps is not None:
            maps.append(mean)
        return F.dropout(weights, dropout_p) @ v
    if topology is not None and not dense:
        return mesh_attention(q, k, v, topology, dropout_p=dropout_p)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p)


def _linear_token_bias(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [B, N, C] W^T + bias [N, D] in one matrix product (a separate broadcast add costs another pass over the result)."""
    rows = bias.expand(x.shape[0], -1, -1).reshape(-1, bias.shape[-1])
    return torch.addmm(rows, x.reshape(-1, x.shape[-1]), weight.t()).unflatten(0, (x.shape[0], -1))


class MultiheadAttention(nn.Module):
    """q, k, v projections in one matrix, `heads` heads, output projection (keys as torch.nn.MultiheadAttention)."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0):
        super().__init__()
        if dim % heads:
            raise ValueError(f"MultiheadAttention: dim {dim} is not a multiple of heads {heads}")
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def split(self, x: Tensor) -> Tensor:  # [B, N, C] -> [B, H, N, D]
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def qkv(self, x: Tensor, pos: Tensor | None = None, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Projections of self-attention, positions added to queries and keys only.

        `bias` [N, 3C] replaces both in_proj_bias and positions: W(x + p) = W x + W p (see `position_bias`).
        """
        w, b = self.in_proj_weight, self.in_proj_bias
        if bias is not None:
            q, k, v = _linear_token_bias(x, w, bias).chunk(3, -1)
        elif pos is None:
            q, k, v = F.linear(x, w, b).chunk(3, -1)
        else:
            dim = w.shape[1]
            q, k = F.linear(x + pos, w[: 2 * dim], b[: 2 * dim]).chunk(2, -1)
            v = F.linear(x, w[2 * dim :], b[2 * dim :])
        return self.split(q), self.split(k), self.split(v)

    def query(self, x: Tensor) -> Tensor:
        dim = self.in_proj_weight.shape[1]
        return self.split(F.linear(x, self.in_proj_weight[:dim], self.in_proj_bias[:dim]))

    def key_value(self, memory: Tensor, pos: Tensor | None = None, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys of memory + pos and values of memory; `bias` [N, 2C] replaces biases and positions."""
        w, b = self.in_proj_weight, self.in_proj_bias
        dim = w.shape[1]
        if bias is not None:
            k, v = _linear_token_bias(memory, w[dim:], bias).chunk(2, -1)
        else:
            k = F.linear(memory if pos is None else memory + pos, w[dim : 2 * dim], b[dim : 2 * dim])
            v = F.linear(memory, w[2 * dim :], b[2 * dim :])
        return self.split(k), self.split(v)

    def position_bias(self, pos: Tensor) -> Tensor:  # [N, C] -> [N, 3C]
        """in_proj_bias with the projected positions added to its query and key thirds."""
        dim = self.in_proj_weight.shape[1]
        shift = F.linear(pos, self.in_proj_weight[: 2 * dim])
        return self.in_proj_bias + F.pad(shift, (0, dim))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, topology: MeshTopology | None = None, maps: list[Tensor] | None = None
    ) -> Tensor:  # [B, N, C]
        out = attend(q, k, v, topology, self.dropout if self.training else 0.0, maps)
        return self.out_proj(out.transpose(-3, -2).flatten(-2))
