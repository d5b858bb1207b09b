"""Transformer blocks of TCFormer: spatial-reduction attention and a convolutional MLP, on dynamic tokens.

In: query `Tokens` and key/value `Tokens` (with a score per key right after a CTM); out: the query tokens with new
features. One class serves the grid (stage 1), the dynamic stages and the MTA neck; keys are the official ones.
Source: TCFormer (CVPR 2022) eq. 5 and Fig. 4; PVT for the spatial reduction.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.pruned_attention import pruned_attention
from ._tokens import Tokens
from .linear import Linear
from .pose_blocks import DropPath
from .token_conv import MapConv, TokenConv, tokens_to_map


class ReducedAttention(nn.Module):
    """Multi-head attention whose keys and values come from a map reduced by `sr_ratio`, biased by the token score.

    logits = q k^T / sqrt(head_dim) + score of the key. `use_sr_layer=False` reduces by average pooling (MTA).
    """

    def __init__(self, dim: int, num_heads: int, sr_ratio: int, qkv_bias: bool = True, use_sr_layer: bool = True):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"ReducedAttention: dim {dim} is not divisible by num_heads {num_heads}")
        self.num_heads, self.sr_ratio = num_heads, sr_ratio
        self.q = Linear(dim, dim, bias=qkv_bias)
        self.kv = Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.reduces_by_conv = sr_ratio > 1 and use_sr_layer
        if self.reduces_by_conv:
            self.sr = nn.Conv2d(dim, dim, sr_ratio, stride=sr_ratio)
            self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(
        self,
        y_query: Tensor,  # [B, Nq, C]
        y_key: Tensor,  # [B, Nk, C]
        keys: Tokens,  # bookkeeping (and score) of y_key
        map_size: tuple[int, int],  # of the query tokens
        residual: Tensor | None = None,  # [B, Nq, C]
    ) -> Tensor:  # [B, Nq, C]
        y_key, score = self.reduce(y_key, keys, map_size)
        q = self.q(y_query).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, Nq, D]
        kv = self.kv(y_key).unflatten(2, (2, self.num_heads, -1))  # [B, Nk', 2, heads, D]
        k, v = kv[:, :, 0].transpose(1, 2), kv[:, :, 1].transpose(1, 2)
        out = pruned_attention(q, k, v, key_bias=score)
        return self.proj(out.transpose(1, 2).flatten(2), residual)

    def reduce(self, y: Tensor, keys: Tokens, map_size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """Key/value features [B, Nk', C] and their score [B, Nk'] (None where there is none)."""
        r = self.sr_ratio
        if r == 1:
            return y, None if keys.score is None else keys.score[..., 0]
        if map_size[0] < r or map_size[1] < r:
            raise ValueError(f"ReducedAttention: a map {map_size} cannot be reduced by {r}: the image is too small")
        score = None
        if keys.score is None:
            feature_map = tokens_to_map(keys, y, map_size)
        else:
            both = tokens_to_map(keys, torch.cat([y, keys.score.to(y.dtype)], dim=2), map_size)
            feature_map, score_map = both[:, :-1], both[:, -1:]
            score = F.avg_pool2d(score_map, r).flatten(1)
        if self.reduces_by_conv:
            return self.norm(self.sr(feature_map).flatten(2).transpose(1, 2)), score
        return F.avg_pool2d(feature_map, r).flatten(2).transpose(1, 2), score


class ConvMlp(nn.Module):
    """fc1 -> depth-wise 3x3 convolution on the map of the tokens -> GELU -> fc2."""

    def __init__(self, dim: int, hidden: int, on_grid: bool):
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.dwconv = MapConv(hidden) if on_grid else TokenConv(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, tokens: Tokens, y: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.fc2(F.gelu(self.dwconv(tokens, self.fc1(y))), residual)


class TCBlock(nn.Module):
    """x += attn(LN1 x); x += mlp(LN2 x) on tokens; queries and keys share LN1.

    Args:
        dim, num_heads, mlp_ratio, sr_ratio, qkv_bias: as in the paper's Table A1.
        on_grid: regular block of stage 1 (plain depth-wise convolution) instead of the dynamic one.
        use_sr_layer: reduce by strided convolution + LayerNorm; False = average pooling.
        norm_eps: of norm1 and norm2 (1e-6 in the backbone, 1e-5 in the MTA neck).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        sr_ratio: int,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        on_grid: bool = False,
        use_sr_layer: bool = True,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = ReducedAttention(dim, num_heads, sr_ratio, qkv_bias, use_sr_layer)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio), on_grid)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(
        self,
        query: Tokens,
        keys: Tokens | None = None,  # default: the query tokens attend to themselves
    ) -> Tokens:
        keys = query if keys is None else keys
        y_query = self.norm1(query.x)
        y_key = y_query if keys is query else self.norm1(keys.x)
        if self.training and not isinstance(self.drop_path, nn.Identity):
            x = query.x + self.drop_path(self.attn(y_query, y_key, keys, query.map_size))
            return query._replace(x=x + self.drop_path(self.mlp(query, self.norm2(x))))
        x = self.attn(y_query, y_key, keys, query.map_size, residual=query.x)
        return query._replace(x=self.mlp(query, self.norm2(x), residual=x))
