"""PPT: TokenPose with human-token pruning, 2D pose by dropping background patches (ECCV 2022, arXiv:2209.08194).

In: image [B, 3, 256, 192]; out: heat-maps [B, J, 64, 48]. A convolutional stem makes patches, J learned key-point
tokens run in front of them through a transformer, and three layers drop the patches the key-points look at least
(ops/ppt_select). Comparison row of the TCFormer family; nothing is merged here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ._registry import PaperRow, register_model


class PPTOutput(NamedTuple):
    joint_tokens: Tensor  # [B, J, C]
    patch_tokens: Tensor  # [B, K, C] survivors, in the order of `kept`
    kept: Tensor  # [B, K] int64 original patch positions
    # layer -> (positions before, attention of the key-points to them, positions kept), each [B, ...]
    pruned: dict[int, tuple[Tensor, Tensor, Tensor]]


class PreNorm(nn.Module):
    def __init__(self, dim: int, fn: nn.Module):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(dim), fn


class Residual(nn.Module):
    def __init__(self, fn: nn.Module):
        super().__init__()
        self.fn = fn


class Attention(nn.Module):
    """Multi-head self-attention without qkv bias; also the summed attention from the key-points to the patches."""

    def __init__(self, dim: int, heads: int, scale_with_head: bool):
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads if scale_with_head else dim) ** -0.5
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim))

    def forward(self, y: Tensor, num_keypoints: int = 0) -> tuple[Tensor, Tensor | None]:
        """(output [B, T, C], patch scores [B, P] if `num_keypoints` > 0: mean over heads, sum over key-points)."""
        q, k, v = self.to_qkv(y).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = nn.functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        score = None
        if num_keypoints:
            logits = q[:, :, :num_keypoints].float() @ k.float().transpose(2, 3) * self.scale
            score = logits.softmax(3)[..., num_keypoints:].mean(1).sum(1)
        return self.to_out(out.transpose(1, 2).flatten(2)), score


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, dim))

    def forward(self, y: Tensor) -> Tensor:
        return self.net(y)


class PPTTransformer(nn.Module):
    """Pre-norm transformer over key-point and patch tokens that prunes patches at some layers.

    Args:
        dim, depth, heads, mlp_dim, num_keypoints: sizes.
        pruning_layers: 0-based layers after whose attention patches are dropped.
        keep_ratio: share kept at each of them, ceil(P * ratio).
        pos_every_layer: add the patch positions before every layer but the first (the caller adds them there).
        scale_with_head: attention scale head_dim^-0.5 instead of dim^-0.5.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        num_keypoints: int,
        pruning_layers: tuple[int, ...] = (3, 6, 9),
        keep_ratio: float = 0.7,
        pos_every_layer: bool = True,
        scale_with_head: bool = False,
    ):
        super().__init__()
        if not 0 < keep_ratio <= 1:
            raise ValueError(f"PPTTransformer: keep_ratio must be in (0, 1], got {keep_ratio}")
        self.num_keypoints, self.pruning_layers = num_keypoints, tuple(pruning_layers)
        self.keep_ratio, self.pos_every_layer = keep_ratio, pos_every_layer
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PreNorm(dim, Attention(dim, heads, scale_with_head)),
                    Residual(PreNorm(dim, FeedForward(dim, mlp_dim))),
                ]
            )
            for _ in range(depth)
        )

    def forward(
        self,
        tokens: Tensor,  # [B, J + P, C]
        pos: Tensor,  # [1 or B, P, C]
    ) -> PPTOutput:
        joints = self.num_keypoints
        b, patches = tokens.shape[0], tokens.shape[1] - joints
        kept = torch.arange(patches, device=tokens.device).expand(b, -1)
        pos = pos.expand(b, -1, -1)
        pruned = {}
        x = tokens
        for i, (attn, mlp) in enumerate(self.layers):
            if i > 0 and self.pos_every_layer:
                x = torch.cat([x[:, :joints], x[:, joints:] + pos], dim=1)
            prunes = i in self.pruning_layers and self.keep_ratio < 1
            out, score = attn.fn(attn.norm(x), joints if prunes else 0)
            x = x + out
            if prunes:
                idx = select_patches(score, math.ceil(score.shape[1] * self.keep_ratio))
                before, kept = kept, kept.gather(1, idx)
                pruned[i] = (before, score, kept)
                rows = idx[..., None].expand(-1, -1, x.shape[2])
                x = torch.cat([x[:, :joints], x[:, joints:].gather(1, rows)], dim=1)
                pos = pos.gather(1, rows)
            x = x + mlp.fn.fn(mlp.fn.norm(x))
        return PPTOutput(x[:, :joints], x[:, joints:], kept, pruned)


def select_patches(score: Tensor, keep: int) -> Tensor:
    """[B, keep] indices of the best scores, descending, lower index first on ties."""
    return torch.sort(score, dim=1, descending=True, stable=True).indices[:, :keep]
