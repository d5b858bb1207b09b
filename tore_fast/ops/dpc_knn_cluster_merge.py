"""dpc_knn_cluster_merge: clusters tokens and merges them in one call, what a CTM without parts does.

In: tokens and weights exp(score) of layers/ctm.py; out: merged tokens, their bookkeeping, and the clustering's own
results. CUDA: one launch for up to 256 tokens (csrc/cuda/dpc_fused.cuh), else the launches of the two ops behind one
dispatch. CPU: the kernels of dpc_knn_cluster and cluster_merge, one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._schema import LIBRARY
from ._cluster_args import check_form, check_like_tokens, check_tokens, cluster_why_not
from ._dispatch import choose
from .cluster_merge import check_dictionary, cluster_merge, cluster_merge_tokens
from .cluster_merge import why_not as merge_why_not
from .dpc_knn_cluster import cluster_options, dpc_knn_cluster
from .reference.cluster_merge import cluster_merge_reference
from .reference.dpc_knn_cluster import dpc_knn_cluster_reference

BACKENDS = ("cuda", "cpu")


class DpcClusterMerge(NamedTuple):
    merged: Tensor  # [B, M, C] in x's dtype, differentiable w.r.t. x and weight
    norm_weight: Tensor  # [B, N] float32, share of each token in its cluster
    idx_token: Tensor  # [B, N0] int64, merged token of each cell; [B, 0] without a dictionary
    agg_weight: Tensor  # [B, N0] float32, share of each cell in its merged token; [B, 0] without a dictionary
    centers: Tensor  # [B, M] int64, and the rest as in DpcClusters
    cluster: Tensor  # [B, N] int64
    rho: Tensor  # [B, N] float32
    delta: Tensor  # [B, N] float32
    score: Tensor  # [B, N] float32


def why_not(backend: str, x: Tensor, k: int = 1, num_clusters: int = 1) -> str | None:
    """Why `backend` cannot cluster and merge the tokens `x`, or None."""
    return cluster_why_not(backend, x, k) or merge_why_not(backend, x, num_clusters)


def dpc_knn_cluster_merge(
    x: Tensor,  # [B, N, C]
    num_clusters: int,
    k: int = 5,
    weight: Tensor | None = None,  # [B, N]
    idx_token: Tensor | None = None,  # [B, N0]
    agg_weight: Tensor | None = None,  # [B, N0]
    mask: Tensor | None = None,  # [B, N]
    exclude: int | Sequence[int] | Tensor | None = None,
    tie: str = "index",
    noise: Tensor | torch.Generator | None = None,
    order: str = "index",
    masked: int = 0,
    form: str = "released",
    *,
    impl: str = "auto",
) -> DpcClusterMerge:
    """cluster_merge(x, dpc_knn_cluster(x.detach(), M, k).cluster, M, weight) and the token dictionary's bookkeeping.

    The clustering sees detached tokens; gradients reach x and weight through the weighted mean only, as in the official
    code.

    Args:
        x: [B, N, C] float32/float16/bfloat16 (float64 with the reference).
        num_clusters, k, mask, exclude, tie, noise, order, masked, form: as in dpc_knn_cluster.
        weight: [B, N] weight of each token, default 1; as in cluster_merge.
        idx_token, agg_weight: [B, N0] token and share of each cell of the initial grid, as in cluster_merge_tokens;
            both or neither.
        impl: "auto", "reference", "cpu" or "cuda".

    Returns:
        DpcClusterMerge(merged, norm_weight, idx_token, agg_weight, centers, cluster, rho, delta, score).

    Raises:
        ValueError: wrong shape, device or option. BackendUnavailable: an explicit `impl` cannot run.

    Example:
        >>> dpc_knn_cluster_merge(torch.rand(2, 196, 512), num_clusters=49).merged.shape
        torch.Size([2, 49, 512])

    Source: TCFormer (CVPR 2022) section 3.2 with eq. 3.
    """
    op = "dpc_knn_cluster_merge"
    check_tokens(op, x)
    check_form(op, form)
    if weight is not None:
        check_like_tokens(op, "weight", weight, x)
    if (idx_token is None) != (agg_weight is None):
        raise ValueError(f"{op}: idx_token and agg_weight come together")
    if idx_token is not None and agg_weight is not None:
        check_dictionary(op, x, idx_token, agg_weight)
        idx_token, agg_weight = idx_token.long(), agg_weight.detach()
    if form == "printed":
        found = dpc_knn_cluster(
            x, num_clusters, k, mask, exclude, tie, noise, order, masked=masked, form=form, impl=impl
        )
        if idx_token is None or agg_weight is None:
            merged, share = cluster_merge(x, found.cluster, num_clusters, weight, impl=impl)
            none = (share.new_empty(x.shape[0], 0, dtype=t) for t in (torch.int64, torch.float32))
            return DpcClusterMerge(merged, share, *none, *found)
        parts = cluster_merge_tokens(x, found.cluster, num_clusters, weight, idx_token, agg_weight, impl=impl)
        return DpcClusterMerge(*parts, *found)
    mask, excluded, noise = cluster_options(op, x, num_clusters, k, mask, exclude, tie, noise, order, masked)
    backend = choose(op, impl, BACKENDS, why_not, x, k, num_clusters)
    options = (num_clusters, k, mask, excluded, noise, tie != "index", order == "index", masked)
    if backend == "reference":
        clusters = dpc_knn_cluster_reference(x.detach(), *options)
        merged, share = cluster_merge_reference(x, clusters[1], num_clusters, weight)
        index, cell_share = (merged.new_empty(x.shape[0], 0, dtype=t) for t in (torch.int64, torch.float32))
        if idx_token is not None and agg_weight is not None:
            index, cell_share = (
                clusters[1].gather(1, idx_token),
                agg_weight.to(share.dtype) * share.gather(1, idx_token),
            )
        return DpcClusterMerge(merged, share, index, cell_share, *clusters)
    weight = None if weight is None else weight.float()
    agg_weight = None if agg_weight is None else agg_weight.float()
    noise = None if noise is None else noise.float()
    out = torch.ops.tore_fast.dpc_knn_cluster_merge(
        x.float() if backend == "cpu" else x,
        num_clusters,
        k,
        mask,
        excluded,
        noise,
        *options[5:],
        weight,
        idx_token,
        agg_weight,
    )
    merged, share, _, idx_token, agg_weight, *clusters = out
    return DpcClusterMerge(merged.to(x.dtype), share, idx_token, agg_weight, *clusters)


def _one_after_the_other(
    x: Tensor,
    num_clusters: int,
    k: Tensor,
    mask: Any,
    exclude: Any,
    noise: Any,
    strict: bool,
    by_index: bool,
    masked: Any,
    weight: Tensor,
    idx_token: Any,
    agg_weight: Any,
) -> Any:
    ops = torch.ops.tore_fast
    clusters = ops.dpc_knn_cluster(x, num_clusters, k, mask, exclude, noise, strict, by_index, masked)
    return *ops.cluster_merge(x, clusters[1], num_clusters, weight, idx_token, agg_weight), *clusters


LIBRARY.impl("dpc_knn_cluster_merge", _one_after_the_other, "CPU")
torch.library.register_fake("tore_fast::dpc_knn_cluster_merge")(_one_after_the_other)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    merged, norm_weight, total, *_ = output
    cluster = output[6]
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(inputs[0], cluster, norm_weight, total, merged)
    ctx.weighted = inputs[9] is not None


def _backward(ctx: Any, *grads: Tensor) -> Any:
    x, cluster, norm_weight, total, merged = ctx.saved_tensors
    grad = grads[0].contiguous()
    grad_x, grad_weight = torch.ops.tore_fast.cluster_merge_backward(grad, x, cluster, norm_weight, total, merged)
    return grad_x, *(None,) * 8, grad_weight if ctx.weighted else None, None, None


torch.library.register_autograd("tore_fast::dpc_knn_cluster_merge", _backward, setup_context=_setup_context)
