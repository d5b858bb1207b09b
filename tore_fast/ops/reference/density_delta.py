"""Plain torch density peaks: distance to the nearest denser token, and which token that is."""

from __future__ import annotations

import torch
from torch import Tensor

from .knn_density import token_distances


def first_minimum(d: Tensor, dim: int) -> Tensor:
    """Lowest index at which `d` takes its minimum along `dim`; 0 where the minimum is NaN."""
    shape = [1] * d.dim()
    shape[dim] = size = d.shape[dim]
    index = torch.arange(size, device=d.device).view(shape)
    first = torch.where(d == d.amin(dim, keepdim=True), index, size).amin(dim)
    return torch.where(first < size, first, 0)


def delta_from_distances(d: Tensor, rho: Tensor, mask: Tensor | None, strict: bool) -> tuple[Tensor, Tensor]:
    denser = rho[:, None, :] > rho[:, :, None]  # [B, i, j]: j is denser than i
    if not strict:
        index = torch.arange(rho.shape[1], device=rho.device)
        denser = denser | ((rho[:, None, :] == rho[:, :, None]) & (index[None, :] < index[:, None]))
    if mask is not None:
        denser = denser & mask[:, None, :]
    found = denser.any(-1)
    candidates = torch.where(denser, d, torch.inf)
    delta = torch.where(found, candidates.amin(-1), d.amax((1, 2))[:, None])
    return delta, torch.where(found, first_minimum(candidates, -1), -1)


def density_delta_reference(
    x: Tensor,  # [B, N, C]
    rho: Tensor,  # [B, N]
    mask: Tensor | None = None,  # [B, N] bool
    strict: bool = False,
) -> tuple[Tensor, Tensor]:  # [B, N] float, [B, N] int64
    return delta_from_distances(token_distances(x, mask), rho, mask, strict)
