"""`Tokens`: features of dynamic tokens and where they lie on the stage-1 grid."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.token_map import TokenCsr


class Tokens(NamedTuple):
    """One stage's tokens. N0 = H0*W0 cells of the initial grid (image / 4); it never changes, the tokens do."""

    x: Tensor  # [B, N, C] features
    map_size: tuple[int, int]  # nominal map of this stage, halved (rounded up) by every CTM
    init_grid: tuple[int, int]  # (H0, W0)
    idx_token: Tensor  # [B, N0] int64: token that owns each cell
    agg_weight: Tensor  # [B, N0] float32: product of the normalised merge weights along the chain
    score: Tensor | None = None  # [B, N, 1]: only on the original tokens that a CTM hands to the block after it
    csr: TokenCsr | None = None  # cells grouped by token, built once per CTM
    is_grid: bool = False  # tokens are the pixels of map_size in raster order: map <-> token is a reshape
    parts: int = 1  # tokens lie in this many equal contiguous runs, one per part of a part-wise CTM

    @property
    def num_tokens(self) -> int:
        return self.x.shape[1]


def grid_tokens(x: Tensor, map_size: tuple[int, int]) -> Tokens:
    """Stage-1 tokens: every cell of the initial grid is its own token.

    Args:
        x: [B, H0*W0, C] features in raster order.
        map_size: (H0, W0).
    """
    b, n, _ = x.shape
    if n != map_size[0] * map_size[1]:
        raise ValueError(f"grid_tokens: x must have {map_size[0] * map_size[1]} tokens for a map {map_size}, got {n}")
    idx = torch.arange(n, device=x.device).expand(b, n)
    weight = torch.ones(b, n, dtype=torch.float32, device=x.device)
    return Tokens(x, map_size, map_size, idx, weight, is_grid=True)
