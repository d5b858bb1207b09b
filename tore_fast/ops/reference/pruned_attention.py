"""Plain torch pruned_attention: softmax attention with key bias, key and query lengths. Any device and floating
dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def valid_rows(length: Tensor | None, size: int) -> Tensor | None:
    """[B, size] bool, True below the length; None without lengths."""
    if length is None:
        return None
    return torch.arange(size, device=length.device) < length[:, None]


def pruned_attention_reference(
    q: Tensor,  # [B, H, Nq, D]
    k: Tensor,  # [B, H, Nk, D]
    v: Tensor,  # [B, H, Nk, D]
    key_bias: Tensor | None,  # [B, Nk]
    key_len: Tensor | None,  # [B]
    query_len: Tensor | None,  # [B]
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(out [B, H, Nq, D], lse [B, H, Nq], weights [B, H, Nq, Nk]); rows without a key are 0 with lse -inf."""
    acc = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast("cpu" if q.is_meta else q.device.type, enabled=False):  # autocast knows no meta device
        scores = (q.to(acc) * scale) @ k.to(acc).transpose(-2, -1)
        if key_bias is not None:
            scores = scores + key_bias.to(acc)[:, None, None, :]
        keys, rows = valid_rows(key_len, k.shape[2]), valid_rows(query_len, q.shape[2])
        if keys is not None:
            scores = scores.masked_fill(~keys[:, None, None, :], float("-inf"))
        if rows is not None:
            scores = scores.masked_fill(~rows[:, None, :, None], float("-inf"))
        if k.shape[2] == 0:
            lse = scores.new_full(scores.shape[:-1], float("-inf"))
            return (scores @ v.to(acc)).to(q.dtype), lse, scores  # zeros, with a graph
        # an all -inf row has no softmax: shift it by 0 instead of by its maximum, and divide 0 by 1
        top = scores.detach().amax(-1, keepdim=True)
        top = torch.where(top == float("-inf"), torch.zeros_like(top), top)
        weights = (scores - top).exp()
        total = weights.sum(-1, keepdim=True)
        empty = total == 0
        total = torch.where(empty, torch.ones_like(total), total)
        lse = (total.log() + top).masked_fill(empty, float("-inf")).squeeze(-1)
        weights = weights / total
        out = weights @ v.to(acc)
        if keys is not None:  # 0 * inf of an excluded value row must not leak in
            out = weights @ v.to(acc).masked_fill(~keys[:, None, :, None], 0.0)
        return out.to(q.dtype), lse, weights


def key_importance_reference(
    q: Tensor,  # [B, H, R, D] the chosen query rows
    k: Tensor,  # [B, H, Nk, D]
    key_bias: Tensor | None,  # [B, Nk]
    key_len: Tensor | None,  # [B]
    lse: Tensor,  # [B, H, R] of those rows
    scale: float,
) -> Tensor:  # [B, Nk]
    """Attention each key gets from the rows, summed over rows, mean over heads."""
    acc = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast("cpu" if q.is_meta else q.device.type, enabled=False):
        scores = (q.to(acc) * scale) @ k.to(acc).transpose(-2, -1)
        if key_bias is not None:
            scores = scores + key_bias.to(acc)[:, None, None, :]
        keys = valid_rows(key_len, k.shape[2])
        if keys is not None:
            scores = scores.masked_fill(~keys[:, None, None, :], float("-inf"))
        lse = lse.to(acc)[..., None]
        weights = torch.where(lse == float("-inf"), torch.zeros_like(scores), (scores - lse).exp())
        return weights.sum(2).mean(1)
