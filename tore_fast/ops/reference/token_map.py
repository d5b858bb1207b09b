"""Plain torch token <-> map: one weighted mean over the cells of the initial grid.

Every cell knows its source row and its destination row; out[dst] = sum w * x[src] / (sum w + 1e-6).
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-6


def nearest_cells(cells: int, pixels: int, device: torch.device | str | None = None) -> Tensor:
    """Pixel of each cell along one axis: floor(i * pixels / cells) with the ratio in float32 (nearest resize)."""
    ratio = torch.tensor(pixels, dtype=torch.float32, device=device) / cells
    index = torch.arange(cells, dtype=torch.float32, device=device) * ratio
    return index.floor().long().clamp_max(pixels - 1)


def cell_pixels(
    init_grid: tuple[int, int], map_size: tuple[int, int], device: torch.device | str | None = None
) -> Tensor:
    """[H0 * W0] int64: the pixel (row-major in the H x W map) that each cell of the initial grid belongs to."""
    rows = nearest_cells(init_grid[0], map_size[0], device)
    cols = nearest_cells(init_grid[1], map_size[1], device)
    return (rows[:, None] * map_size[1] + cols[None, :]).flatten()


def cell_mean_reference(
    x: Tensor,  # [B, S, C]
    src: Tensor,  # [B, N0] int64, source row of every cell
    dst: Tensor,  # [B, N0] int64, destination row of every cell
    num_dst: int,
    weight: Tensor | None = None,  # [B, N0], no gradient
) -> Tensor:  # [B, num_dst, C]
    acc = torch.promote_types(x.dtype, torch.float32)
    batch, cells = dst.shape
    weight = torch.ones(batch, cells, dtype=acc, device=x.device) if weight is None else weight.detach().to(acc)
    row = (dst + num_dst * torch.arange(batch, device=x.device)[:, None]).flatten()
    values = x.to(acc).gather(1, src[..., None].expand(-1, -1, x.shape[2])) * weight[..., None]
    total = weight.new_zeros(batch * num_dst).index_add(0, row, weight.flatten()) + EPS
    out = values.new_zeros(batch * num_dst, x.shape[2]).index_add(0, row, values.flatten(0, 1))
    return (out / total[:, None]).view(batch, num_dst, x.shape[2]).to(x.dtype)


def token_csr_reference(idx_token: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Cells grouped by token: offsets [B, N + 1] int32 and cell ids [B, N0] int32, ascending inside a token."""
    cells = idx_token.sort(dim=1, stable=True).indices
    counts = torch.zeros(idx_token.shape[0], num_tokens + 1, dtype=torch.int64, device=idx_token.device)
    counts.scatter_add_(1, idx_token + 1, torch.ones_like(idx_token))
    return counts.cumsum(1).int(), cells.int()
