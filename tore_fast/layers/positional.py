"""Sine position encodings of FastMETRO and TORE (DETR's, with counts instead of pixels).

In: a grid size and a width; out: [rows * cols, dim] constants that every attention layer adds to queries and keys
(layers/transformer.py). Computed once when a model is built.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_position(rows: int, cols: int, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Two-dimensional sine encoding, row-major: the first half of the channels encodes y, the second x.

    With the 1-based index p scaled to 2 pi p / (count + 1e-6) and frequency i of a half of size h = dim / 2:
    angle = p / 10000^(2 floor(i / 2) / h), sine at even i, cosine at odd i.

    Args:
        rows, cols: grid; kept tokens without a place use rows = count, cols = 1 (TORE).
        dim: channels, a multiple of 4.

    Returns:
        [rows * cols, dim] on the CPU.

    Example:
        >>> sine_position(7, 7, 512).shape
        torch.Size([49, 512])

    Source: Carion et al., DETR (2020).
    """
    if dim % 4:
        raise ValueError(f"sine_position: dim must be a multiple of 4, got {dim}")
    half = dim // 2
    index = torch.arange(half, dtype=torch.float64)
    wavelength = 10000.0 ** (2 * torch.div(index, 2, rounding_mode="floor") / half)

    def encode(count: int) -> Tensor:  # [count, half]
        place = torch.arange(1, count + 1, dtype=torch.float64) / (count + 1e-6) * (2 * math.pi)
        angle = place[:, None] / wavelength
        return torch.where(torch.arange(half) % 2 == 0, angle.sin(), angle.cos())

    y = encode(rows)[:, None].expand(rows, cols, half)
    x = encode(cols)[None].expand(rows, cols, half)
    return torch.cat([y, x], dim=-1).reshape(rows * cols, dim).to(dtype)
