"""Transformer blocks over video pose tokens [B, F, J, C]: the layout never changes between space and time.

In: tokens of F frames and J joints. Out: the same shape. Spatial attention groups the joints of one frame, temporal
attention the frames of one joint; both read strided views of q, k, v, so the (b f) <-> (b j) copies of the official
code do not exist. Products are layers/linear.py's. Next on the way:
models/{mixste,motionbert,mhformer,motionagformer}.py.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..ops import plain_attention
from .linear import Linear

Axis = Literal["joints", "frames"]


def joint_attention(
    q: Tensor,  # [B, F, J, C]
    k: Tensor,  # [B, F, K, C]
    v: Tensor,  # [B, F, K, C]
    heads: int,
) -> Tensor:  # [B, F, J, C]
    """softmax(q k^T / sqrt(C / heads)) v among the tokens of each frame; views only, also for slices of a fused qkv."""
    b, f, j, c = q.shape
    q, k, v = (t.reshape(b * f, t.shape[2], heads, c // heads).transpose(1, 2) for t in (q, k, v))
    return plain_attention(q, k, v).transpose(1, 2).reshape(b, f, j, c)


def frame_attention(
    q: Tensor,  # [B, F, J, C], contiguous
    k: Tensor,  # [B, T, J, C], contiguous
    v: Tensor,  # [B, T, J, C], contiguous
    heads: int,
) -> Tensor:  # [B, F, J, C]
    """softmax(q k^T / sqrt(C / heads)) v over the frames of each joint.

    Joints and heads merge into one "heads" axis of J * heads, which is a view of contiguous q, k, v for any batch
    size; the result comes back in the same layout.
    """
    b, f, j, c = q.shape
    q, k, v = (t.reshape(b, t.shape[1], j * heads, c // heads).transpose(1, 2) for t in (q, k, v))
    return plain_attention(q, k, v).transpose(1, 2).reshape(b, f, j, c)


def attention_column_mean(
    q: Tensor,  # [B, F, J, C]
    k: Tensor,  # [B, F, J, C]
    heads: int,
) -> Tensor:  # [B, F]
    """How much attention each frame receives: mean over heads, joints and queries of its temporal attention column.

    One joint at a time, so the largest temporary is [B, heads, F, F]. Used by attention pruning (HoT, tables 4 and 5).
    """
    b, f, j, c = q.shape
    total = q.new_zeros(b, f, dtype=torch.float32)
    for joint in range(j):
        qj, kj = (t[:, :, joint].reshape(b, f, heads, c // heads).transpose(1, 2) for t in (q, k))
        weight = ((qj @ kj.transpose(-1, -2)).float() * (c // heads) ** -0.5).softmax(dim=-1)
        total = total + weight.mean(dim=(1, 2))
    return total / j


class DropPath(nn.Module):
    """Drops a residual branch for whole groups: frames (axis="joints"), joints (axis="frames") or clips (axis=None)."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.p = float(p)

    def forward(self, x: Tensor, axis: Axis | None = None) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        shape = [x.shape[0]] + [1] * (x.ndim - 1)
        if axis is not None:
            group = 1 if axis == "joints" else 2
            shape[group] = x.shape[group]
        keep = torch.rand(shape, device=x.device, dtype=torch.float32) >= self.p
        return x * (keep / (1.0 - self.p)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def linear_rates(last: float, count: int) -> list[float]:
    """Drop-path rates of `count` blocks, from 0 to `last`."""
    return [last * i / max(count - 1, 1) for i in range(count)]


class Mlp(nn.Module):
    """The norm if one is given, fc1, exact GELU, dropout, fc2, dropout, and the residual if one is given."""

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden, drop=drop)
        self.fc2 = Linear(hidden, dim, drop=drop)

    def forward(self, x: Tensor, residual: Tensor | None = None, norm: nn.LayerNorm | None = None) -> Tensor:
        return self.fc2(self.fc1(x, act="gelu", norm=norm), residual)


class PoseAttention(nn.Module):
    """Multi-head self-attention with one fused qkv weight, over the joints or the frames of [B, F, J, C]."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool = True, proj_drop: float = 0.0) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"PoseAttention: dim {dim} is not divisible by heads {heads}")
        self.heads = heads
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim, drop=proj_drop)

    def queries_keys_values(self, x: Tensor, split: bool, norm: nn.LayerNorm | None = None) -> tuple[Tensor, ...]:
        """q, k, v like x. `split`: three contiguous tensors (what frame attention needs), else slices of one
        product."""
        return self.qkv(x, norm=norm, split=3) if split else self.qkv(x, norm=norm).chunk(3, dim=-1)

    def forward(
        self, x: Tensor, axis: Axis, residual: Tensor | None = None, norm: nn.LayerNorm | None = None
    ) -> Tensor:
        """Attention of norm(x)."""
        q, k, v = self.queries_keys_values(x, axis == "frames", norm)
        attend = frame_attention if axis == "frames" else joint_attention
        return self.proj(attend(q, k, v, self.heads), residual)

    def frame_scores(self, x: Tensor) -> Tensor:
        """[B, F] float32: temporal attention each frame of x [B, F, J, C] receives."""
        q, k, _ = self.queries_keys_values(x, split=True)
        return attention_column_mean(q, k, self.heads)


class PoseBlock(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)), over one axis of [B, F, J, C]."""

    def __init__(
        self, dim: int, heads: int, hidden: int, drop: float = 0.0, drop_path: float = 0.0, eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = PoseAttention(dim, heads, proj_drop=drop)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, hidden, drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, axis: Axis) -> Tensor:
        if self.training and self.drop_path.p:
            x = x + self.drop_path(self.attn(self.norm1(x), axis), axis)
            return x + self.drop_path(self.mlp(self.norm2(x)), axis)
        x = self.attn(x, axis, residual=x, norm=self.norm1)
        return self.mlp(x, residual=x, norm=self.norm2)
