"""Plain torch weighted mean per cluster, with the token dictionary's bookkeeping."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-6  # added to the sum of weights, as the official code does; part of the result and of the gradient


def cluster_merge_reference(
    x: Tensor,  # [B, N, C]
    cluster: Tensor,  # [B, N] int64; an id outside 0..M-1 leaves its token out
    num_clusters: int,
    weight: Tensor | None = None,  # [B, N]
) -> tuple[Tensor, Tensor]:  # merged [B, M, C], norm_weight [B, N] (detached)
    acc = torch.promote_types(x.dtype, torch.float32)
    batch, tokens, channels = x.shape
    weight = torch.ones(batch, tokens, dtype=acc, device=x.device) if weight is None else weight.to(acc)
    member = (cluster >= 0) & (cluster < num_clusters)
    weight = torch.where(member, weight, 0)
    row = torch.where(member, cluster, 0)
    row = row + num_clusters * torch.arange(batch, device=x.device)[:, None]  # row of the flattened [B * M, C] result
    total = weight.new_zeros(batch * num_clusters).index_add(0, row.flatten(), weight.flatten()) + EPS
    norm_weight = weight / total[row] if num_clusters else weight
    terms = torch.where(member[..., None], x.to(acc) * norm_weight[..., None], 0)
    merged = terms.new_zeros(batch * num_clusters, channels).index_add(0, row.flatten(), terms.flatten(0, 1))
    return merged.view(batch, num_clusters, channels).to(x.dtype), norm_weight.detach()
