"""Stand-in for ops.dpc_knn_cluster until it lands (plain torch, same contract)."""

from typing import NamedTuple

import torch


class DpcClusters(NamedTuple):
    centers: torch.Tensor
    cluster: torch.Tensor
    rho: torch.Tensor
    delta: torch.Tensor
    score: torch.Tensor


def dpc_knn_cluster(x, num_clusters, k=5, mask=None, exclude=None, tie="index", noise=None, order="index", parts=1, *, impl="auto"):
    x = x.float()
    b, n, c = x.shape
    d2 = (x[:, :, None] - x[:, None]).square().sum(-1) / c if n <= 64 else torch.stack(
        [(x - x[:, i : i + 1]).square().sum(-1) / c for i in range(n)], 1)
    rho = torch.exp(-d2.topk(k, largest=False).values.mean(-1))
    if noise is not None:
        rho = rho + noise
    d = d2.sqrt()
    i = torch.arange(n)
    denser = rho[:, None] > rho[:, :, None]
    if tie == "index":
        denser |= (rho[:, None] == rho[:, :, None]) & (i[None] < i[:, None])
    delta = torch.where(denser, d, d.flatten(1).max(1).values[:, None, None]).min(-1).values
    score = rho * delta
    if exclude is not None:
        score = score.clone()
        score[:, exclude] = -torch.inf
    centers = score.sort(dim=1, descending=True, stable=True).indices[:, :num_clusters]
    if order == "index":
        centers = centers.sort(1).values
    return DpcClusters(centers, None, rho, delta, score)
