"""Cross-attention decoder of HMR2.0: one query token reads the image tokens.

In: query token [B, 1, T] and context [B, N, C] (N = 192, or 90 after Mask-ToMe, then with log sizes); out: [B, 1, D].
Parameter names are those of the official files. Two facts make it cheaper without changing a bit of meaning:
self-attention of a single token is only out(v(x)), and a constant query makes everything before the first
cross-attention constant (`FoldedDecoder`). Next on the way: models/smpl/hmr2.py, models/smpl/camerahmr.py, models/smpl/densekp.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dense import Dense
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


class CrossAttention(nn.Module):
    def __init__(self, cfg: DecoderConfig):
        super().__init__()
        inner = cfg.heads * cfg.dim_head
        self.heads, self.dropout = cfg.heads, cfg.dropout
        self.to_kv = Dense(cfg.context_dim, 2 * inner, bias=False)
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

    def forward(self, x: Tensor, *args) -> Tensor:
        return self.fn(self.norm(x), *args)


class _Layers(nn.Module):
    def __init__(self, cfg: DecoderConfig):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(PreNorm(cfg.dim, fn(cfg)) for fn in (SelfAttention, CrossAttention, FeedForward))
            for _ in range(cfg.depth)
        )

    def forward(self, x: Tensor, context: Tensor, log_size: Tensor | None) -> Tensor:
        for self_attention, cross_attention, feed_forward in self.layers:
            x = self_attention(x) + x
            x = cross_attention(x, context, log_size) + x
            x = feed_forward(x) + x
        return x


class CrossAttentionDecoder(nn.Module):
    """Query token [B, 1, token_dim] + context [B, N, C] -> [B, 1, dim]; no final norm.

    Args:
        token_dim: width of the query token (1 for HMR2.0's zero token, 157 mean parameters, 160 CameraHMR).
        cfg: sizes.
    """

    def __init__(self, token_dim: int, cfg: DecoderConfig):
        super().__init__()
        self.cfg = cfg
        self.to_token_embedding = nn.Linear(token_dim, cfg.dim)
        self.pos_embedding = nn.Parameter(torch.randn(1, 1, cfg.dim))
        self.dropout = nn.Dropout(cfg.emb_dropout)
        self.transformer = _Layers(cfg)

    def forward(self, token: Tensor, context: Tensor, log_size: Tensor | None = None) -> Tensor:
        if context.dim() != 3 or context.shape[-1] != self.cfg.context_dim:
            raise ValueError(
                f"CrossAttentionDecoder: context must be [B, N, {self.cfg.context_dim}], got {list(context.shape)}"
            )
        x = self.dropout(self.to_token_embedding(token) + self.pos_embedding)
        return self.transformer(x, context, log_size)


class FoldedDecoder(nn.Module):
    """Inference form of a decoder: dead q/k weights dropped, v and output projection of each self-attention joined.

    With `token` (a query that does not depend on the image), everything before the first cross-attention's keys is
    stored as two constants. Outputs equal the decoder's up to rounding (tests/models/test_smpl.py).

    Args:
        decoder: trained decoder; its parameters are copied.
        token: [1, 1, token_dim] constant query, or None when the query changes per image.
    """

    def __init__(self, decoder: CrossAttentionDecoder, token: Tensor | None = None):
        super().__init__()
        self.cfg = decoder.cfg
        layers = decoder.transformer.layers
        self.self_attention = nn.ModuleList()
        self.cross_attention = nn.ModuleList()
        self.feed_forward = nn.ModuleList()
        with torch.no_grad():
            for own, cross, forward in layers:
                v = own.fn.to_qkv.weight.chunk(3)[2].double()
                out = own.fn.to_out[0]
                joined = nn.Linear(v.shape[1], out.out_features, device=v.device, dtype=out.weight.dtype)
                joined.weight.copy_(out.weight.double() @ v)
                joined.bias.copy_(out.bias)
                norm = nn.LayerNorm(self.cfg.dim, device=v.device, dtype=out.weight.dtype)
                norm.load_state_dict(own.norm.state_dict())
                self.self_attention.append(nn.Sequential(norm, joined))
                self.cross_attention.append(_copy(cross))
                self.feed_forward.append(_copy(forward))
            if token is None:
                self.embed = _copy(decoder.to_token_embedding)
                self.register_buffer("position", decoder.pos_embedding.detach().clone())
            else:
                self.embed = None
                x = decoder.to_token_embedding(token) + decoder.pos_embedding
                x = self.self_attention[0](x) + x
                first = self.cross_attention[0]
                self.register_buffer("start", x.detach().clone())
                self.register_buffer("start_query", first.fn.to_q(first.norm(x)).detach().clone())
                self.self_attention[0] = nn.Identity()  # folded into `start`
                first.fn.to_q = nn.Identity()
        self.requires_grad_(False)

    def forward(self, token: Tensor | None, context: Tensor, log_size: Tensor | None = None) -> Tensor:
        x = None
        for i, (own, cross, forward) in enumerate(zip(self.self_attention, self.cross_attention, self.feed_forward)):
            if i == 0 and self.embed is None:
                x = cross.fn.attend(self.start_query.to(context.dtype), context, log_size) + self.start
            else:
                if i == 0:
                    x = self.embed(token) + self.position
                x = own(x) + x
                x = cross(x, context, log_size) + x
            x = forward(x) + x
        return x


def _copy(module: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(module)
