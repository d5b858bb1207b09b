"""Plain torch mesh_attention: dense masked softmax attention. Any device, any floating dtype; float32 or better inside.

Also the counter-based dropout mask that every implementation shares: keep or drop depends on (seed, batch*heads + head,
query row, key) only, so forward and backward, C++, CUDA and this file agree bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .mesh_upsample import entry_rows

_MULTIPLIER = 0xD256D193
_WEYL = 0x9E3779B9
_LOW32 = 0xFFFFFFFF


def dense_mask(row_ptr: Tensor, col_idx: Tensor, joints: int) -> Tensor:
    """[T, T] bool, True = attends; the first `joints` rows and columns are full, the rest is the CSR pattern."""
    vertices = row_ptr.shape[0] - 1
    row = entry_rows(row_ptr, col_idx.shape[0])
    token = torch.arange(joints + vertices, device=row_ptr.device)
    mask = (token[:, None] < joints) | (token[None, :] < joints)
    return mask.index_put((row + joints, col_idx.long() + joints), torch.ones((), dtype=torch.bool, device=mask.device))


def dropout_keep(seed: Tensor, groups: int, rows: int, cols: int, dropout_p: float) -> Tensor:
    """[groups, rows, cols] bool: Philox 2x32-10 with counter (row * cols + col, group) and the seed's low 32 bits as
    key."""
    device = seed.device
    lo = torch.arange(rows * cols, device=device, dtype=torch.int64).expand(groups, -1)
    hi = torch.arange(groups, device=device, dtype=torch.int64)[:, None].expand(-1, rows * cols)
    key = seed.reshape(()).to(torch.int64) & _LOW32
    for _ in range(10):
        product = lo * _MULTIPLIER  # the wrapped int64 holds the right 64 bits
        lo, hi = ((product >> 32) & _LOW32) ^ key ^ hi, product & _LOW32
        key = (key + _WEYL) & _LOW32
    return (lo >= drop_threshold(dropout_p)).view(groups, rows, cols)


def drop_threshold(dropout_p: float) -> int:
    """A 32-bit random word below this number drops its pair."""
    return min(int(dropout_p * 2.0**32), _LOW32)


def mesh_attention_reference(
    q: Tensor,  # [B, H, T, D]
    k: Tensor,  # [B, H, T, D]
    v: Tensor,  # [B, H, T, D]
    row_ptr: Tensor,  # [V + 1] int32
    col_idx: Tensor,  # [nnz] int32
    joints: int,
    scale: float,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,  # one int64
) -> tuple[Tensor, Tensor, Tensor]:
    """(out [B, H, T, D], lse [B, H, T], weights [B, H, T, T] before dropout)."""
    acc = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast("cpu" if q.is_meta else q.device.type, enabled=False):  # autocast knows no meta device
        scores = (q.to(acc) * scale) @ k.to(acc).transpose(-2, -1)
        scores = scores.masked_fill(~dense_mask(row_ptr, col_idx, joints), float("-inf"))
        lse = scores.logsumexp(-1)
        weights = scores.softmax(-1)
        used = weights
        if dropout_p > 0.0:
            batch, heads, tokens, _ = q.shape
            assert seed is not None
            keep = dropout_keep(seed, batch * heads, tokens, tokens, dropout_p).view(batch, heads, tokens, tokens)
            used = weights * keep / (1.0 - dropout_p)
        return (used @ v.to(acc)).to(q.dtype), lse, weights
