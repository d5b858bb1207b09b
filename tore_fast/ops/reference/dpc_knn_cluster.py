"""Plain torch DPC-kNN: density, distance to the nearest denser token, centres, nearest centre."""

from __future__ import annotations

import torch
from torch import Tensor

from .density_delta import delta_from_distances, first_minimum
from .knn_density import density_from_distances, token_distances


def dpc_knn_cluster_reference(
    x: Tensor,  # [B, N, C]
    num_clusters: int,
    k: int,
    mask: Tensor | None = None,  # [B, N] bool
    exclude: Tensor | None = None,  # [B, N] bool
    noise: Tensor | None = None,  # [B, N]
    strict: bool = False,
    by_index: bool = True,
    masked: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # centers [B, M], cluster [B, N], rho, delta, score [B, N]
    d = token_distances(x, mask)
    rho = density_from_distances(d, k, mask)
    if noise is not None:
        rho = rho + noise.to(rho.dtype)
        rho = rho if mask is None else rho * mask
    delta, _ = delta_from_distances(d, rho, mask, strict)
    score = rho * delta
    if exclude is not None:
        score = score.masked_fill(exclude, -torch.inf)

    ranking = torch.where(score.isnan(), -torch.inf, score).sort(dim=1, descending=True, stable=True).indices
    centers = ranking[:, :num_clusters]  # rank -> token
    ranks = torch.arange(num_clusters, device=x.device).expand_as(centers)
    to_centers = d.gather(1, centers[:, :, None].expand(-1, -1, d.shape[2]))  # [B, M, N]
    cluster = first_minimum(to_centers, 1).scatter(1, centers, ranks)
    if by_index:
        centers, old_rank = centers.sort(dim=1)
        cluster = torch.empty_like(ranks).scatter(1, old_rank, ranks).gather(1, cluster)
    if mask is not None and masked < 0:
        cluster = torch.where(mask, cluster, masked)
    return centers, cluster, rho, delta, score
