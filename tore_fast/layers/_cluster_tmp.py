"""Temporary stand-ins for ops of the cluster branch (deleted when that branch is merged)."""
from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class DpcClusters(NamedTuple):
    centers: Tensor
    cluster: Tensor
    rho: Tensor
    delta: Tensor
    score: Tensor

def dpc_knn_cluster(x, num_clusters, k=5, mask=None, exclude=None, tie="index", noise=None, order="index", parts=1, impl="auto"):
    b, n, c = x.shape
    if parts > 1:
        m = None if mask is None else mask.reshape(b * parts, n // parts)
        r = dpc_knn_cluster(x.reshape(b * parts, n // parts, c), num_clusters // parts, k, m, order=order)
        off = torch.arange(parts, device=x.device).view(1, parts, 1)
        return DpcClusters((r.centers.view(b, parts, -1) + off * (n // parts)).flatten(1),
                           (r.cluster.view(b, parts, -1) + off * (num_clusters // parts)).flatten(1), r.rho, r.delta, r.score)
    x = x.detach().double()
    d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") / math.sqrt(c)
    if mask is not None:
        d = torch.where(mask[:, None].bool(), d, d.max() + 1)
    rho = (-d.topk(k, largest=False).values.pow(2).mean(-1)).exp().float()
    if mask is not None:
        rho = rho * mask
    i = torch.arange(n, device=x.device)
    denser = (rho[:, None] > rho[..., None]) | ((rho[:, None] == rho[..., None]) & (i[None] < i[:, None]))
    dm = d.flatten(1).max(1).values[:, None, None]
    delta = torch.where(denser, d, dm).min(-1).values.float()
    score = rho * delta
    centers = score.topk(num_clusters).indices
    if order == "index":
        centers = centers.sort().values
    cl = d.gather(1, centers[..., None].expand(-1, -1, n)).argmin(1)
    cl.scatter_(1, centers, torch.arange(num_clusters, device=x.device).expand(b, -1))
    return DpcClusters(centers, cl, rho, delta, score)

def cluster_merge(x, cluster, num_clusters, weight=None, impl="auto"):
    b, n, c = x.shape
    w = x.new_ones(b, n) if weight is None else weight.reshape(b, n)
    tot = w.new_zeros(b, num_clusters).scatter_add(1, cluster, w) + 1e-6
    nw = w / tot.gather(1, cluster)
    y = x.new_zeros(b, num_clusters, c).scatter_add(1, cluster[..., None].expand(-1, -1, c), x * nw[..., None])
    return y, nw.detach()

def _pixels(g, m, dev):
    r = (torch.arange(g[0], device=dev) * m[0]) // g[0]
    c = (torch.arange(g[1], device=dev) * m[1]) // g[1]
    return (r[:, None] * m[1] + c).flatten()

def _wmean(src, s, d, nd, w):
    b, n0 = s.shape
    c = src.shape[-1]
    v = src.float().gather(1, s[..., None].expand(-1, -1, c)) * w[..., None]
    out = v.new_zeros(b, nd, c).scatter_add(1, d[..., None].expand(-1, -1, c), v)
    den = v.new_zeros(b, nd).scatter_add(1, d, w) + 1e-6
    return (out / den[..., None]).to(src.dtype)

def token2map(x, idx_token, init_grid, map_size, impl="auto"):
    b, n, c = x.shape
    h, w = map_size
    if n == idx_token.shape[1] == h * w:
        return x.transpose(1, 2).reshape(b, c, h, w)
    p = _pixels(init_grid, map_size, x.device).expand(b, -1)
    y = _wmean(x, idx_token, p, h * w, torch.ones_like(idx_token, dtype=torch.float32))
    return y.transpose(1, 2).reshape(b, c, h, w)

def map2token(map, idx_token, init_grid, num_tokens, csr=None, impl="auto"):
    b, c, h, w = map.shape
    x = map.flatten(2).transpose(1, 2)
    if num_tokens == idx_token.shape[1] == h * w:
        return x
    p = _pixels(init_grid, (h, w), x.device).expand(b, -1)
    return _wmean(x, p, idx_token, num_tokens, torch.ones_like(idx_token, dtype=torch.float32))

def token_resample(x_src, idx_src, idx_dst, num_dst, agg_dst, impl="auto"):
    return _wmean(x_src, idx_src, idx_dst, num_dst, agg_dst)
