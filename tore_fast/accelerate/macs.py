"""Multiply-adds of a stack of blocks by tokens, from the shapes of its own weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from .blocks import Family


def _linear(module: Any) -> int:
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def stack_macs(blocks: Sequence[Any], family: Family | None, tokens: int, schedule: Sequence[int]) -> int:
    """Multiply-adds of one image through the blocks: products of weights, and 2 N^2 D of the attention.

    Args:
        tokens: with prefix tokens. schedule: merges per block, between attention and MLP.
    """
    total, n = 0, tokens
    for block, r in zip(blocks, schedule):
        attention = getattr(block, "attn" if family is None else family.attention)
        width = int(block.norm1.weight.shape[0])
        total += _linear(attention) * n + 2 * n * n * width
        n -= r
        total += _linear(block.mlp) * n
    return total
