"""Cross-attention decoder of HMR2.0: one query token reads the image tokens.

In: query token [B, 1, T] and context [B, N, C] (N = 192, or 90 after Mask-ToMe, then with log sizes); out: [B, 1, D].
Parameter names are those of the official files. Two facts make it cheaper without changing a bit of meaning:
self-attention of a single token is only out(v(x)), and a constant query makes everything before the first
cross-attention constant (kept in a prepared decoder). Next on the way: models/smpl/hmr2.py, models/smpl/camerahmr.py,
models/smpl/densekp.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .linear import Linear
from .prepared import Prepared
from .proportional import proportional_attention


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder; defaults are HMR2.0's."""

    depth: int = 6
    heads: int = 8
    dim_head: int = 64
    mlp_dim: int = 1024
    dim: int = 1024
    context_dim: int = 1280
    dropout: float = 0.0
    emb_dropout: float = 0.0


def _heads(x: Tensor, heads: int) -> Tensor:  # [B, N, H*d] -> [B, H, N, d]
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class SelfAttention(nn.Module):
    """Self-attention; with one token q and k have no influence, so only v and the output projection run."""

    def __init__(self, cfg: DecoderConfig):
        super().__init__()
        inner = cfg.heads * cfg.dim_head
        self.heads, self.dropout = cfg.heads, cfg.dropout
        self.to_qkv = nn.Linear(cfg.dim, 3 * inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, cfg.dim), nn.Dropout(cfg.dropout))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] == 1 and not (self.training and self.dropout):
            return self.to_out(F.linear(x, self.to_qkv.weight.chunk(3)[2]))
        q, k, v = (_heads(t, self.heads) for t in self.to_qkv(x).chunk(3, dim=-1))
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.to_out(out.transpose(1, 2).flatten(2))

    def joined(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of what is left for one token: out(v(x))."""
        out: Any = self.to_out[0]
        v = self.to_qkv.weight.chunk(3)[2]
        return (out.weight.double() @ v.double()).to(v.dtype), out.bias


class ContextAttention(nn.Module):
    """Cross-attention of the query token to the image tokens, a key of log size s counting as exp(s) equal ones."""

    def __init__(self, cfg: DecoderConfig):
        super().__init__()
        inner = cfg.heads * cfg.dim_head
        self.heads, self.dropout = cfg.heads, cfg.dropout
        self.to_kv = Linear(cfg.context_dim, 2 * inner, bias=False)
        self.to_q = nn.Linear(cfg.dim, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, cfg.dim), nn.Dropout(cfg.dropout))

    def attend(self, q: Tensor, context: Tensor, log_size: Tensor | None) -> Tensor:
        """q [B or 1, 1, inner] already projected."""
        k, v = (_heads(t, self.heads) for t in self.to_kv(context).chunk(2, dim=-1))
        q = _heads(q, self.heads).expand(k.shape[0], -1, -1, -1)
        if self.training and self.dropout:
            bias = None if log_size is None else log_size[:, None, None].to(q.dtype)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=self.dropout)
        else:
            out = proportional_attention(q, k, v, log_size)
        return self.to_out(out.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, context: Tensor, log_size: Tensor | None = None) -> Tensor:
        return self.attend(self.to_q(x), context, log_size)


class FeedForward(nn.Module):
    def __init__(self, cfg: DecoderConfig):
        super().__init__()
        drop = cfg.dropout
        self.net = nn.Sequential(
            nn.Linear(cfg.dim, cfg.mlp_dim),
            nn.GELU(),
            nn.Dropout(drop),
            nn.Linear(cfg.mlp_dim, cfg.dim),
            nn.Dropout(drop),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class PreNorm(nn.Module):
    """LayerNorm (eps 1e-5) before `fn`; the attribute names are the official keys."""

    def __init__(self, dim: int, fn: nn.Module):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        return self.fn(self.norm(x), *args)


class _Layers(nn.Module):
    """`layers.i` is the list (self-attention, cross-attention, feed-forward), as in the official files."""

    layers: Any  # nn.ModuleList of nn.ModuleLists of three PreNorm

    def __init__(self, cfg: DecoderConfig):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(PreNorm(cfg.dim, fn(cfg)) for fn in (SelfAttention, ContextAttention, FeedForward))
            for _ in range(cfg.depth)
        )


class CrossAttentionDecoder(Prepared):
    """Query token [B, 1, token_dim] + context [B, N, C] -> [B, 1, dim]; no final norm.

    A prepared decoder has value and output weights of each self-attention as one matrix; with a constant query,
    everything before the first cross-attention's keys is two constants.

    Args:
        token_dim: width of the query token (1 for HMR2.0's zero token, 157 mean parameters, 160 CameraHMR).
        cfg: sizes.
        zero_query: the query token is 0 in every call.
    """

    def __init__(self, token_dim: int, cfg: DecoderConfig, zero_query: bool = False):
        super().__init__()
        self.cfg, self.zero_query = cfg, zero_query
        self.to_token_embedding = nn.Linear(token_dim, cfg.dim)
        self.pos_embedding = nn.Parameter(torch.randn(1, 1, cfg.dim))
        self.dropout = nn.Dropout(cfg.emb_dropout)
        self.transformer = _Layers(cfg)

    def forward(self, token: Tensor, context: Tensor, log_size: Tensor | None = None) -> Tensor:
        if context.dim() != 3 or context.shape[-1] != self.cfg.context_dim:
            raise ValueError(
                f"CrossAttentionDecoder: context must be [B, N, {self.cfg.context_dim}], got {list(context.shape)}"
            )
        start = self.recall("start")
        x: Any = None if start is not None else self.dropout(self.to_token_embedding(token) + self.pos_embedding)
        for i, (_, cross_attention, feed_forward) in enumerate(self.transformer.layers):
            if x is None:
                x, query = start
                x = cross_attention.fn.attend(query.to(context.dtype), context, log_size) + x
            else:
                x = self.self_attention(i, x)
                x = cross_attention(x, context, log_size) + x
            x = feed_forward(x) + x
        return x

    def self_attention(self, i: int, x: Tensor) -> Tensor:
        layer, joined = self.transformer.layers[i][0], self.recall(("self-attention", i))
        out = layer(x) if joined is None or x.shape[1] > 1 else F.linear(layer.norm(x), *joined)
        return out + x

    def keep_terms(self) -> None:
        for i, (layer, _, _) in enumerate(self.transformer.layers):
            self.keep(("self-attention", i), (layer.fn,), layer.fn.joined)
        if self.zero_query:
            first = self.transformer.layers[0]
            sources = (self.to_token_embedding, self.pos_embedding, first[0], first[1].norm, first[1].fn.to_q)
            self.keep("start", sources, self._start)

    def _start(self) -> tuple[Tensor, Tensor]:
        """Tokens before the first cross-attention and their query, for the zero token."""
        token = self.pos_embedding.new_zeros(1, 1, self.to_token_embedding.in_features)
        x = self.self_attention(0, self.to_token_embedding(token) + self.pos_embedding)
        cross = self.transformer.layers[0][1]
        return x, cross.fn.to_q(cross.norm(x))
