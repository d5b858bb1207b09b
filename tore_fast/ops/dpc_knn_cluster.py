"""dpc_knn_cluster: density-peak clustering of tokens in one call.

In: tokens of layers/ctm.py or layers/tpc.py; out: centres and the cluster of every token, for ops/cluster_merge.py.
Kernels: csrc/cpu/dpc_knn_cluster.cpp, csrc/cuda/dpc_knn_cluster.cu (one launch per image batch for few tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ._cluster_args import (
    as_mask,
    check_form,
    check_neighbours,
    check_tokens,
    cluster_why_not,
    densest,
    density_noise,
    farthest_of_the_densest,
    kernel_input,
    printed_tokens,
)
from ._dispatch import choose
from .reference.dpc_knn_cluster import dpc_knn_cluster_reference

BACKENDS = ("cuda", "cpu")
ORDERS = ("index", "score")
why_not = cluster_why_not


class DpcClusters(NamedTuple):
    centers: Tensor  # [B, M] int64, token index of each cluster's centre
    cluster: Tensor  # [B, N] int64, cluster of each token
    rho: Tensor  # [B, N] float32, density (with the additive term)
    delta: Tensor  # [B, N] float32, distance to the nearest denser token
    score: Tensor  # [B, N] float32, rho * delta; -inf where excluded


def dpc_knn_cluster(
    x: Tensor,  # [B, N, C]
    num_clusters: int,
    k: int = 5,
    mask: Tensor | None = None,  # [B, N]
    exclude: int | Sequence[int] | Tensor | None = None,
    tie: str = "index",
    noise: Tensor | torch.Generator | None = None,
    order: str = "index",
    parts: int = 1,
    masked: int = 0,
    form: str = "released",
    *,
    impl: str = "auto",
) -> DpcClusters:
    """Selects the tokens with the largest rho * delta as centres and gives every token to its nearest centre.

    rho and delta are those of knn_density and density_delta. Centres are ranked by (score descending, index ascending);
    a token joins the centre with the smallest distance (ties: the lowest rank), a centre always joins itself.

    Args:
        x: [B, N, C] float32/float16/bfloat16 (float64 with the reference).
        num_clusters: M, centres per item.
        k: neighbours of the density, the token itself included; 1 <= k <= N / parts.
        mask: [B, N], non-zero = real token. Empty tokens have density 0 and join cluster rank 0, as in the official
            code.
        exclude: token indices that must not become centres: an int, a sequence, or a tensor [E] or [B, E].
        tie: "index", "strict" or "noise", see density_delta.
        noise: generator of tie="noise", or an additive density term [B, N] (added before the mask zeroes densities).
        order: "index" numbers clusters by ascending centre index, "score" by rank.
        parts: cuts the token sequence into this many equal runs that are clustered on their own, M / parts centres
            each; cluster = part * (M / parts) + number inside the part, centres are indices of the whole sequence.
        masked: 0, or -1 to give empty tokens the cluster -1 (then cluster_merge leaves them out).
        form: "released", or "printed": densities and distances as the papers print them, see knn_density and
            density_delta; k then counts other tokens only. Of the three differences the densest token's distance
            never changes a choice: it has the largest score of its item in both forms.
        impl: "auto", "reference", "cpu" or "cuda".

    Returns:
        DpcClusters(centers, cluster, rho, delta, score), no gradient.

    Raises:
        ValueError: wrong shape, device or option. BackendUnavailable: an explicit `impl` cannot run.

    Example:
        >>> clusters = dpc_knn_cluster(torch.rand(2, 196, 512), num_clusters=49)
        >>> clusters.centers.shape, clusters.cluster.shape
        (torch.Size([2, 49]), torch.Size([2, 196]))

    Source: TCFormer (CVPR 2022) section 3.2, HoT (CVPR 2024) section 3.3; DPC-kNN of Du et al. 2016.
    """
    check_tokens("dpc_knn_cluster", x)
    check_form("dpc_knn_cluster", form)
    batch, tokens, channels = x.shape
    if parts < 1 or tokens % parts or num_clusters % parts:
        raise ValueError(
            f"dpc_knn_cluster: parts must divide N and num_clusters, got parts={parts}, N={tokens}, "
            f"num_clusters={num_clusters}"
        )
    if form == "printed":
        return _printed(x, num_clusters, k, mask, exclude, tie, noise, order, parts, masked, impl)
    mask, excluded, noise = cluster_options(
        "dpc_knn_cluster", x, num_clusters, k, mask, exclude, tie, noise, order, masked, parts
    )

    x_part: Any = x
    whole = (x, mask, excluded, noise)
    if parts > 1:
        x_part, mask, excluded, noise = (
            None if t is None else t.reshape(batch * parts, tokens // parts, *t.shape[2:]) for t in whole
        )
    backend = choose("dpc_knn_cluster", impl, BACKENDS, why_not, x, k)
    args = (num_clusters // parts, k, mask, excluded, noise, tie != "index", order == "index", masked)
    if backend == "reference":
        out = dpc_knn_cluster_reference(x_part.detach(), *args)
    else:
        noise = None if noise is None else noise.float()
        out = torch.ops.tore_fast.dpc_knn_cluster(kernel_input(backend, x_part), *args)
    return DpcClusters(*out) if parts == 1 else _join_parts(out, batch, parts, tokens // parts, num_clusters // parts)


def _printed(
    x: Tensor,
    num_clusters: int,
    k: int,
    mask: Any,
    exclude: Any,
    tie: str,
    noise: Any,
    order: str,
    parts: int,
    masked: int,
    impl: str,
) -> DpcClusters:
    """The printed form by any backend: the released form of scaled tokens, then delta and score put right."""
    op = "dpc_knn_cluster"
    rows, tokens, channels = x.shape[0] * parts, x.shape[1] // parts, x.shape[2]
    check_neighbours(op, k, tokens)
    scaled, others = printed_tokens(op, x.reshape(rows, tokens, channels), k)
    found = dpc_knn_cluster(
        scaled.view(x.shape), num_clusters, others, mask, exclude, tie, noise, order, parts, masked, impl=impl
    )
    mask = as_mask(op, mask, x)
    rho, mask = found.rho.view(rows, tokens), None if mask is None else mask.reshape(rows, tokens)
    delta = found.delta.view(rows, tokens) * (k / (k + 1)) ** 0.5
    strict = tie != "index"
    top = densest(rho, mask, strict)
    delta = farthest_of_the_densest(x.reshape(rows, tokens, channels), delta, top, mask, strict).view_as(found.rho)
    score = torch.where(found.score == -torch.inf, found.score, found.rho * delta)
    return DpcClusters(found.centers, found.cluster, found.rho, delta, score)


def cluster_options(
    op: str,
    x: Tensor,
    num_clusters: int,
    k: int,
    mask: Any,
    exclude: Any,
    tie: str,
    noise: Any,
    order: str,
    masked: int,
    parts: int = 1,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Checks the options of dpc_knn_cluster; returns mask bool [B, N], excluded bool [B, N], noise [B, N] or None
    each."""
    tokens = x.shape[1]
    if not 1 <= num_clusters <= tokens:
        raise ValueError(f"{op}: num_clusters must be in 1..{tokens} (N), got {num_clusters}")
    if order not in ORDERS:
        raise ValueError(f"{op}: order must be one of {ORDERS}, got {order!r}")
    if masked not in (0, -1):
        raise ValueError(f"{op}: masked must be 0 or -1, got {masked}")
    check_neighbours(op, k, tokens // parts)
    noise = density_noise(op, tie, noise, x)
    return as_mask(op, mask, x), _exclusion(op, exclude, num_clusters, x), noise


def _exclusion(op: str, exclude: int | Sequence[int] | Tensor | None, num_clusters: int, x: Tensor) -> Tensor | None:
    """Bool [B, N] (True = must not be a centre) from indices."""
    if exclude is None:
        return None
    batch, tokens = x.shape[:2]
    listed = exclude if isinstance(exclude, Tensor) else [exclude] if isinstance(exclude, int) else list(exclude)
    if isinstance(listed, Tensor):
        if listed.dim() not in (1, 2) or (listed.dim() == 2 and listed.shape[0] != batch):
            raise ValueError(f"{op}: exclude must be [E] or [B, E] with B = {batch}, got {list(listed.shape)}")
    elif any(not 0 <= i < tokens for i in listed):
        raise ValueError(f"{op}: exclude must hold token indices in 0..{tokens - 1}, got {listed}")
    count = listed.shape[-1] if isinstance(listed, Tensor) else len(listed)
    if tokens - count < num_clusters:
        raise ValueError(f"{op}: {num_clusters} centres cannot be chosen from {tokens} tokens with {count} excluded")
    flags = torch.zeros(batch, tokens, dtype=torch.bool, device=x.device)
    if isinstance(listed, Tensor):
        return flags.scatter(1, listed.long().expand(batch, -1), True)
    for (
        i
    ) in listed:  # not as a tensor made here: on a GPU that would be a copy from the host, which no CUDA graph holds
        flags.select(1, i).fill_(True)
    return flags


def _join_parts(out: tuple[Tensor, ...], batch: int, parts: int, tokens: int, clusters: int) -> DpcClusters:
    """Results of [B * parts] runs of `tokens` as results of the whole sequences."""
    centers, cluster, *stats = out
    part = torch.arange(parts, device=centers.device)[:, None]
    centers = centers.view(batch, parts, clusters) + part * tokens
    cluster = cluster.view(batch, parts, tokens)
    cluster = torch.where(cluster < 0, cluster, cluster + part * clusters)
    stats = [s.view(batch, parts * tokens) for s in stats]
    return DpcClusters(centers.flatten(1), cluster.flatten(1), *stats)


@register_flop_formula([torch.ops.tore_fast.dpc_knn_cluster, torch.ops.tore_fast.dpc_knn_cluster_merge])
def _flops(x_shape: Any, num_clusters: int, *args: Any, **kwargs: Any) -> int:
    """Distances once for the densities, once for the deltas, and those to the centres (the merge itself only adds)."""
    batch, tokens, channels = x_shape
    return 2 * batch * tokens * (2 * tokens + num_clusters) * channels


@torch.library.register_fake("tore_fast::dpc_knn_cluster")
def _fake(
    x: Tensor,
    num_clusters: int,
    k: Tensor,
    mask: Any,
    exclude: Any,
    noise: Any,
    strict: bool,
    by_index: bool,
    masked: Any,
) -> Any:
    batch, tokens = x.shape[:2]
    centers = x.new_empty(batch, num_clusters, dtype=torch.int64)
    cluster = x.new_empty(batch, tokens, dtype=torch.int64)
    return centers, cluster, *(x.new_empty(batch, tokens, dtype=torch.float32) for _ in range(3))
