"""Plain torch k-nearest-neighbour density: every distance by direct differences, the whole N x N matrix in memory.

Direct differences make D exactly symmetric with an exactly zero diagonal; the matrix-product form that torch.cdist
prefers above 25 tokens does neither, and changes which tokens are selected.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_distances(
    x: Tensor,  # [B, N, C]
    mask: Tensor | None,  # [B, N] bool, True = real token
) -> Tensor:  # [B, N, N]
    """D[b, i, j] = ||x_i - x_j|| / sqrt(C); columns of empty tokens hold the maximum of the whole batch + 1."""
    acc = torch.promote_types(x.dtype, torch.float32)
    x = x.to(acc)
    d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") * x.shape[-1] ** -0.5
    if mask is not None and d.numel():
        d = torch.where(mask[:, None, :], d, d.amax() + 1)
    return d


def density_from_distances(d: Tensor, k: int, mask: Tensor | None) -> Tensor:
    # squares of rounded roots: 1.5 ulp that sums of squares would save, but roots are what the official code compares
    # and squares, and what ties in it ties here
    nearest = d.topk(k, dim=-1, largest=False).values
    rho = nearest.square().mean(-1).neg().exp()
    return rho if mask is None else rho * mask


def knn_density_reference(
    x: Tensor,  # [B, N, C]
    k: int,
    mask: Tensor | None = None,  # [B, N] bool
) -> Tensor:  # [B, N]
    return density_from_distances(token_distances(x, mask), k, mask)
