"""PPT: TokenPose with human-token pruning, 2D pose by dropping background patches (ECCV 2022, arXiv:2209.08194).

In: image [B, 3, 256, 192]; out: heat-maps [B, J, 64, 48]. A convolutional stem makes patches, J learned key-point
tokens run in front of them through a transformer, and three layers drop the patches the key-points look at least
(ops/ppt_select). Comparison row of the TCFormer family; nothing is merged here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...ops.ppt_select import gather_tokens, ppt_select
from ...ops.pruned_attention import pruned_attention
from .._config import make_config
from .._registry import model_facts, register_models


class PPTOutput(NamedTuple):
    joint_tokens: Tensor  # [B, J, C]
    patch_tokens: Tensor  # [B, K, C] survivors, in the order of `kept`
    kept: Tensor  # [B, K] int64 original patch positions
    # layer -> (positions before, attention of the key-points to them, positions kept), each [B, ...]
    pruned: dict[int, tuple[Tensor, Tensor, Tensor]]


class NormedLayer(nn.Module):
    def __init__(self, dim: int, fn: nn.Module):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(dim), fn


class Residual(nn.Module):
    def __init__(self, fn: nn.Module):
        super().__init__()
        self.fn = fn


class KeypointAttention(nn.Module):
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
        if num_keypoints == 0:
            out, score = pruned_attention(q, k, v, scale=self.scale), None
        else:
            out, _, importance = pruned_attention(q, k, v, scale=self.scale, importance_rows=num_keypoints)
            score = importance[:, num_keypoints:]
        return self.to_out(out.transpose(1, 2).flatten(2)), score


class PPTMlp(nn.Module):
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
        self.training_keep_ratio: float | None = None  # while training, in the place of keep_ratio
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    NormedLayer(dim, KeypointAttention(dim, heads, scale_with_head)),
                    Residual(NormedLayer(dim, PPTMlp(dim, mlp_dim))),
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
        keep_ratio = (
            self.keep_ratio if not self.training or self.training_keep_ratio is None else self.training_keep_ratio
        )
        x = tokens
        layers: Any = self.layers  # of pairs of PreNorm
        for i, (attn, mlp) in enumerate(layers):
            if i > 0 and self.pos_every_layer:
                x = torch.cat([x[:, :joints], x[:, joints:] + pos], dim=1)
            prunes = i in self.pruning_layers and keep_ratio < 1
            out, score = attn.fn(attn.norm(x), joints if prunes else 0)
            x = x + out
            if prunes:
                idx = ppt_select(score, math.ceil(score.shape[1] * keep_ratio))
                before, kept = kept, kept.gather(1, idx)
                pruned[i] = (before, score, kept)
                x = torch.cat([x[:, :joints], gather_tokens(x[:, joints:], idx)], dim=1)
                pos = gather_tokens(pos, idx)
            x = x + mlp.fn.fn(mlp.fn.norm(x))
        return PPTOutput(x[:, :joints], x[:, joints:], kept, pruned)


@dataclass(frozen=True)
class PPTConfig:
    """PPT-S of the paper: 256x192 images, 4x3 patches of a stride-4 feature map, 12 layers."""

    image_size: tuple[int, int] = (256, 192)
    num_keypoints: int = 17
    patch_size: tuple[int, int] = (4, 3)
    stem_channels: int = 256
    dim: int = 192
    depth: int = 12
    heads: int = 8
    mlp_dim: int = 576
    pruning_layers: tuple[int, ...] = (3, 6, 9)
    keep_ratio: float = 0.7
    heatmap_hidden: int = 384

    def __post_init__(self) -> None:
        for size, patch in zip(self.image_size, self.patch_size):
            if size % (4 * patch):
                raise ValueError(
                    f"PPTConfig: image_size {self.image_size} is no multiple of 4 x patch_size {self.patch_size}"
                )

    @property
    def map_size(self) -> tuple[int, int]:
        return self.image_size[0] // 4, self.image_size[1] // 4


class Bottleneck(nn.Module):
    """ResNet bottleneck, expansion 4."""

    def __init__(self, dim_in: int, width: int):
        super().__init__()
        out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(dim_in, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.downsample = None
        if dim_in != out:
            self.downsample = nn.Sequential(nn.Conv2d(dim_in, out, 1, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn3(self.conv3(self.bn2(self.conv2(y)).relu()))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


@model_facts(task="keypoints", family="tcformer", crop="topdown")
class PPT(nn.Module):
    """2D pose heat-maps with human-token pruning.

    Example:
        >>> from tore_fast.models import create_model
        >>> create_model("ppt_s")(torch.rand(1, 3, 256, 192)).shape
        torch.Size([1, 17, 64, 48])
    """

    config_class = PPTConfig

    def __init__(self, config: PPTConfig | None = None, **fields: Any):
        super().__init__()
        self.config = c = make_config(type(self), config, fields)
        width = c.stem_channels // 4
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64)
        self.conv2, self.bn2 = nn.Conv2d(64, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(*(Bottleneck(64 if i == 0 else 4 * width, width) for i in range(4)))
        (h, w), (ph, pw) = c.map_size, c.patch_size
        self.patch_to_embedding = nn.Linear(c.stem_channels * ph * pw, c.dim)
        self.keypoint_token = nn.Parameter(torch.zeros(1, c.num_keypoints, c.dim))
        self.register_buffer("pos_embedding", sine_position(h // ph, w // pw, c.dim), persistent=False)
        self.transformer = PPTTransformer(
            c.dim, c.depth, c.heads, c.mlp_dim, c.num_keypoints, c.pruning_layers, c.keep_ratio
        )
        self.mlp_head = nn.Sequential(
            nn.LayerNorm(c.dim),
            nn.Linear(c.dim, c.heatmap_hidden),
            nn.LayerNorm(c.heatmap_hidden),
            nn.Linear(c.heatmap_hidden, h * w),
        )
        nn.init.trunc_normal_(self.keypoint_token, std=0.02)

    def set_epoch(self, epoch: float) -> None:
        """Keep ratio of the training at this epoch (`keep_ratio_at`); evaluation always prunes to the config's."""
        self.transformer.training_keep_ratio = keep_ratio_at(epoch, self.config.keep_ratio)

    def forward(self, image: Tensor) -> Tensor:  # [B, 3, H, W] -> [B, J, H/4, W/4]
        c = self.config
        if image.dim() != 4 or tuple(image.shape[2:]) != c.image_size:
            raise ValueError(
                f"PPT: image must be [B, 3, {c.image_size[0]}, {c.image_size[1]}], got {list(image.shape)}"
            )
        y = self.bn2(self.conv2(self.bn1(self.conv1(image)).relu())).relu()
        y = self.layer1(y)
        (h, w), (ph, pw) = c.map_size, c.patch_size
        y = y.unflatten(2, (h // ph, ph)).unflatten(4, (w // pw, pw))  # [B, C, gh, ph, gw, pw]
        patches = self.patch_to_embedding(y.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2))
        joints = self.keypoint_token.expand(image.shape[0], -1, -1)
        out = self.transformer(torch.cat([joints, patches + self.pos_embedding], dim=1), self.pos_embedding)
        return self.mlp_head(out.joint_tokens).unflatten(2, (h, w))


def sine_position(h: int, w: int, dim: int, temperature: float = 10000.0) -> Tensor:  # [1, h*w, dim]
    """DETR's two-dimensional sine table: first half rows, second half columns, positions scaled to (0, 2 pi]."""
    half = dim // 2
    period = temperature ** (2 * (torch.arange(half) // 2) / half)

    def axis(n: int) -> Tensor:  # [n, half]
        angle = (torch.arange(1, n + 1) / (n + 1e-6) * 2 * math.pi)[:, None] / period
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=2).flatten(1)

    rows, cols = axis(h)[:, None].expand(h, w, half), axis(w)[None].expand(h, w, half)
    return torch.cat([rows, cols], dim=2).reshape(1, h * w, dim)


def keep_ratio_at(epoch: float, final: float = 0.7, start: int = 10, end: int = 110, shape: str = "cosine") -> float:
    """Keep ratio during training: 1 until `start`, then down to `final` at `end` (cosine: single view, linear:
    multi)."""
    t = min(max((epoch - start) / (end - start), 0.0), 1.0)
    if shape not in ("cosine", "linear"):
        raise ValueError(f"keep_ratio_at: shape must be cosine or linear, got {shape!r}")
    return final + (1 - final) * (0.5 * (1 + math.cos(math.pi * t)) if shape == "cosine" else 1 - t)


register_models(PPT, {"ppt_s": {}}, input_shape=(3, 256, 192), tags=("keypoints",))
