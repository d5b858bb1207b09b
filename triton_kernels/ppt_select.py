"""Triton kernel of ppt_select: a token's rank is the number of tokens that beat it, so no sort is needed.

One program is one image and one tile of tokens; it compares them with all tokens of the image (P is a few hundred).
"""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl


@triton.jit
def ppt_select_fwd_kernel(SCORE, OUT, stride, tokens, keep, BLOCK: tl.constexpr, NUM_BLOCKS: tl.constexpr):
    row = tl.program_id(0) // NUM_BLOCKS  # one dimension: along y a grid ends at 65,535
    base = SCORE + tl.cast(row, tl.int64) * stride
    i = tl.program_id(0) % NUM_BLOCKS * BLOCK + tl.arange(0, BLOCK)
    mine = tl.load(base + i, mask=i < tokens, other=float("-inf")).to(tl.float32)
    mine = tl.where(mine == mine, mine, float("-inf"))  # NaN last
    rank = tl.zeros([BLOCK], tl.int32)
    for block in range(0, NUM_BLOCKS):
        j = block * BLOCK + tl.arange(0, BLOCK)
        other = tl.load(base + j, mask=j < tokens, other=float("-inf")).to(tl.float32)
        other = tl.where(other == other, other, float("-inf"))
        beats = (other[None, :] > mine[:, None]) | ((other[None, :] == mine[:, None]) & (j[None, :] < i[:, None]))
        rank += tl.sum((beats & (j < tokens)[None, :]).to(tl.int32), 1)
    tl.store(OUT + tl.cast(row, tl.int64) * keep + rank, i, mask=(i < tokens) & (rank < keep))


def select(score: torch.Tensor, keep: int, sort_by_position: bool) -> torch.Tensor:
    """The op ppt_select: [B, keep] int32."""
    score = score if score.stride(1) == 1 else score.contiguous()
    batch, tokens = score.shape
    out = torch.empty(batch, keep, device=score.device, dtype=torch.int32)
    if out.numel() == 0:
        return out
    block = 64
    blocks = -(-tokens // block)
    with torch.cuda.device(score.device) if score.is_cuda else contextlib.nullcontext():
        ppt_select_fwd_kernel[(blocks * batch,)](
            score, out, score.stride(0), tokens, keep, BLOCK=block, NUM_BLOCKS=blocks
        )
    return out.sort(1).values if sort_by_position else out
