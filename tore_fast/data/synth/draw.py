"""Random numbers of one batch: small tables on the CPU (the same on every device), pixel noise from a bank.

In: (seed, split, index); out: everything the other files of this folder draw.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor


class Draw:
    """Seeded source of tables of `batch` rows."""

    def __init__(self, batch: int, *key: int | str):
        self.batch = batch
        self._g = torch.Generator().manual_seed(stream_seed(*key))

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(self.batch, *shape, generator=self._g) * (high - low) + low

    def normal(self, *shape: int, std: float = 1.0) -> Tensor:
        return torch.randn(self.batch, *shape, generator=self._g) * std

    def chance(self, p: float, *shape: int) -> Tensor:
        """True with probability p."""
        return torch.rand(self.batch, *shape, generator=self._g) < p

    def integer(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, (self.batch, *shape), generator=self._g)

    def choice(self, weights: Tensor, *shape: int) -> Tensor:
        """Indices drawn with probabilities proportional to `weights` [K]."""
        edges = weights.cumsum(0) / weights.sum()
        r = torch.rand(self.batch, *shape, generator=self._g)
        return torch.searchsorted(edges[:-1].contiguous(), r, right=True)


def stream_seed(*key: int | str) -> int:
    """63-bit seed of a stream: a mix of all parts, so that (1, 2) and (2, 1) or neighbours share nothing."""
    state = 0x9E3779B97F4A7C15
    for part in key:
        part = zlib.crc32(part.encode()) if isinstance(part, str) else part
        for word in (part & 0xFFFFFFFF, (part >> 32) & 0xFFFFFFFF):
            state = (state ^ word) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
            state ^= state >> 31
            state = state * 0x94D049BB133111EB & (1 << 64) - 1
            state ^= state >> 29
    return state >> 1
