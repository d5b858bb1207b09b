"""Attention where token j counts as `size_j` equal tokens: log(size_j) is added to the logits of key j (ToMe).

In: q, k, v of layers/decoder_head.py, models/backbones/vit.py or timm; out: [B, H, Nq, D]. Three ways to run it:
the pruned_attention kernel, fused attention with the head widened so that the bias becomes part of q.k, or an additive
mask.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

METHODS = ("auto", "kernel", "widen", "bias")


def widen_heads(q: Tensor, k: Tensor, log_size: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """q' = [q, 1, 0..], k' = [k, log(size) / scale, 0..], head width rounded up to a multiple of 8 (80 -> 88).

    scale * q'.k' = scale * q.k + log(size): proportional attention without an additive mask, so every fused attention
    takes it. In 16 bits log(size)/scale rounds like any other key channel (size 2 and scale 80^-0.5: 6.2 +- 0.4 %).
    """
    pad = 8 - q.shape[-1] % 8
    wide_q = F.pad(q, (0, pad))
    wide_q[..., q.shape[-1]] = 1
    column = (log_size / scale).to(k.dtype)[:, None, :, None].expand(-1, k.shape[1], -1, 1)
    wide_k = torch.cat((k, column, k.new_zeros(*k.shape[:-1], pad - 1)), dim=-1)
    return wide_q, wide_k


def proportional_attention(
    q: Tensor,  # [B, H, Nq, D]
    k: Tensor,  # [B, H, Nk, D]
    v: Tensor,  # [B, H, Nk, D]
    log_size: Tensor | None = None,  # [B, Nk] float32
    scale: float | None = None,
    method: str = "auto",
) -> Tensor:  # [B, H, Nq, D]
    """softmax(scale * q k^T + log_size) v.

    Args:
        log_size: log of the number of tokens each key stands for; None is ordinary attention.
        scale: default D^-0.5.
        method: "widen" (fused attention on widened heads), "bias" (additive mask), "kernel" (ops.pruned_attention),
            "auto": bias on CPU, kernel on CUDA (no padded copies of q, k and v, and the bias stays float32).

    Source: ToMe section 3 (proportional attention).
    """
    if method not in METHODS:
        raise ValueError(f"proportional_attention: method must be one of {METHODS}, got {method!r}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if log_size is None:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    if log_size.shape != (k.shape[0], k.shape[2]):
        raise ValueError(
            f"proportional_attention: log_size must be [{k.shape[0]}, {k.shape[2]}] like the keys, got "
            f"{list(log_size.shape)}"
        )
    if method == "auto":
        method = "kernel" if q.is_cuda else "bias"
    if method == "kernel":
        from ..ops import pruned_attention

        return pruned_attention(q, k, v, key_bias=log_size, scale=scale)
    if method == "bias":
        bias = log_size.to(q.dtype)[:, None, None, :].expand(-1, 1, q.shape[2], -1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    q, k = widen_heads(q, k, log_size, scale)
    value = F.pad(v, (0, q.shape[-1] - v.shape[-1]))
    return F.scaled_dot_product_attention(q, k, value, scale=scale)[..., : v.shape[-1]]
