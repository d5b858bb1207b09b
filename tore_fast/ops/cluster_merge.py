"""cluster_merge: weighted mean of the tokens of each cluster.

In: tokens, their clusters from ops/dpc_knn_cluster.py and weights exp(score) of layers/ctm.py; out: the merged tokens.
`cluster_merge_tokens` also carries the token dictionary (idx_token, agg_weight) that ops/token_map.py reads.
Kernels: csrc/cpu/cluster_merge.cpp, csrc/cuda/cluster_merge.cu; plain torch: ops/reference/cluster_merge.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._autograd import differentiable
from ._cluster_args import FLOATS, check_like_tokens, check_tokens
from ._dispatch import backend_reason, check_device, choose, tensor_reason
from .reference.cluster_merge import cluster_merge_reference

BACKENDS = ("cuda", "cpu")


class ClusterMerge(NamedTuple):
    merged: Tensor  # [B, M, C] in x's dtype
    norm_weight: Tensor  # [B, N] float32, share of each token in its cluster, no gradient


class ClusterMergeTokens(NamedTuple):
    merged: Tensor  # [B, M, C] in x's dtype
    norm_weight: Tensor  # [B, N] float32, no gradient
    idx_token: Tensor  # [B, N0] int64, merged token of each cell of the initial grid
    agg_weight: Tensor  # [B, N0] float32, share of each cell in its merged token, no gradient


MAX_CUDA_GROUPS = 24576  # counters of the CUDA counting sort: 96 KB of shared memory


def why_not(backend: str, x: Tensor, num_clusters: int = 1) -> str | None:
    """Why `backend` cannot merge the tokens `x` into `num_clusters`, or None."""
    if backend == "cuda" and num_clusters > MAX_CUDA_GROUPS:
        return f"it takes num_clusters <= {MAX_CUDA_GROUPS}, got {num_clusters}"
    return backend_reason(backend) or tensor_reason(backend, x, FLOATS)


def cluster_merge(
    x: Tensor,  # [B, N, C]
    cluster: Tensor,  # [B, N]
    num_clusters: int,
    weight: Tensor | None = None,  # [B, N]
    *,
    impl: str = "auto",
) -> ClusterMerge:
    """Weighted mean per cluster: W_c = sum w + 1e-6, y_c = sum (w_j / W_c) x_j over the tokens j of cluster c.

    Sums run over ascending j in float32, so equal inputs give equal bits. An empty cluster gives 0.

    Args:
        x: [B, N, C] float32/float16/bfloat16 (float64 with the reference).
        cluster: [B, N] int64 cluster of each token; a token with an id outside 0..M-1 is left out (share 0).
        num_clusters: M.
        weight: [B, N] weight of each token, default 1.
        impl: "auto", "reference", "cpu" or "cuda".

    Returns:
        ClusterMerge(merged [B, M, C], norm_weight [B, N] float32 = w_j / W_c). `merged` is differentiable with respect
        to x and weight (exactly, the 1e-6 included), norm_weight is not.

    Raises:
        ValueError: wrong shape or device. BackendUnavailable: an explicit `impl` cannot run.

    Example:
        >>> from tore_fast.ops import dpc_knn_cluster
        >>> x = torch.rand(2, 196, 512)
        >>> cluster_merge(x, dpc_knn_cluster(x, 49).cluster, 49).merged.shape
        torch.Size([2, 49, 512])

    Source: TCFormer (CVPR 2022) eq. 3, `merge_tokens` of the official code.
    """
    backend, cluster, weight = _prepare("cluster_merge", x, cluster, num_clusters, weight, impl)
    if backend == "reference":
        return ClusterMerge(*cluster_merge_reference(x, cluster, num_clusters, weight))
    merged, norm_weight, *_ = _run(backend, x, cluster, num_clusters, weight, None, None)
    return ClusterMerge(merged, norm_weight)


def cluster_merge_tokens(
    x: Tensor,  # [B, N, C]
    cluster: Tensor,  # [B, N]
    num_clusters: int,
    weight: Tensor | None,  # [B, N]
    idx_token: Tensor,  # [B, N0]
    agg_weight: Tensor,  # [B, N0]
    *,
    impl: str = "auto",
) -> ClusterMergeTokens:
    """cluster_merge plus the bookkeeping of the token dictionary, in one call.

    idx_token' = cluster[idx_token] and agg_weight' = agg_weight * norm_weight[idx_token]; agg_weight is *not*
    normalised again (the official code computes such a quotient and drops it).

    Args:
        x, cluster, num_clusters, weight, impl: as in cluster_merge.
        idx_token: [B, N0] int64, token of each cell of the initial grid.
        agg_weight: [B, N0] float, share of each cell in its token.

    Returns:
        ClusterMergeTokens(merged, norm_weight, idx_token, agg_weight).

    Raises:
        ValueError: wrong shape or device. BackendUnavailable: an explicit `impl` cannot run.

    Source: `merge_tokens` of the official TCFormer code.
    """
    op = "cluster_merge_tokens"
    backend, cluster, weight = _prepare(op, x, cluster, num_clusters, weight, impl)
    check_dictionary(op, x, idx_token, agg_weight)
    idx_token, agg_weight = idx_token.long(), agg_weight.detach()
    if backend == "reference":
        merged, norm_weight = cluster_merge_reference(x, cluster, num_clusters, weight)
        agg_weight = agg_weight.to(norm_weight.dtype) * norm_weight.gather(1, idx_token)
        return ClusterMergeTokens(merged, norm_weight, cluster.gather(1, idx_token), agg_weight)
    merged, norm_weight, _, idx_token, agg_weight = _run(
        backend, x, cluster, num_clusters, weight, idx_token, agg_weight.float()
    )
    return ClusterMergeTokens(merged, norm_weight, idx_token, agg_weight)


def check_dictionary(op: str, x: Tensor, idx_token: Tensor, agg_weight: Tensor) -> None:
    """ValueError unless idx_token and agg_weight are [B, N0] with the B and the device of x."""
    if idx_token.dim() != 2 or idx_token.shape[0] != x.shape[0]:
        raise ValueError(f"{op}: idx_token must be [B, N0] with B = {x.shape[0]}, got {list(idx_token.shape)}")
    if agg_weight.shape != idx_token.shape:
        raise ValueError(
            f"{op}: agg_weight must be [B, N0] like idx_token {list(idx_token.shape)}, got {list(agg_weight.shape)}"
        )
    check_device(op, "x", x, idx_token=idx_token, agg_weight=agg_weight)


def _prepare(op: str, x: Tensor, cluster: Tensor, num_clusters: int, weight: Tensor | None, impl: str) -> Any:
    check_tokens(op, x)
    check_like_tokens(op, "cluster", cluster, x)
    if cluster.is_floating_point() or cluster.dtype == torch.bool:
        raise TypeError(f"{op}: cluster must hold integers, got {cluster.dtype}")
    if num_clusters < 1:
        raise ValueError(f"{op}: num_clusters must be positive, got {num_clusters}")
    if weight is not None:
        check_like_tokens(op, "weight", weight, x)
    return choose(op, impl, BACKENDS, why_not, x, num_clusters), cluster.long(), weight


def _run(
    backend: str, x: Tensor, cluster: Tensor, num_clusters: int, weight: Tensor, idx_token: Any, agg_weight: Any
) -> Any:
    weight = None if weight is None else weight.float()
    kernel_x = x.float() if backend == "cpu" else x
    out = _cluster_merge(kernel_x, cluster, num_clusters, weight, idx_token, agg_weight)
    return out[0].to(x.dtype), *out[1:]


@torch.library.register_fake("tore_fast::cluster_merge")
def _fake(x: Tensor, cluster: Tensor, num_clusters: int, weight: Tensor, idx_token: Any, agg_weight: Any) -> Any:
    batch, tokens, channels = x.shape
    cells = 0 if idx_token is None else idx_token.shape[1]
    return (
        x.new_empty(batch, num_clusters, channels),
        x.new_empty(batch, tokens, dtype=torch.float32),
        x.new_empty(batch, num_clusters, dtype=torch.float32),
        x.new_empty(batch, cells, dtype=torch.int64),
        x.new_empty(batch, cells, dtype=torch.float32),
    )


@torch.library.register_fake("tore_fast::cluster_merge_backward")
def _fake_backward(grad: Tensor, x: Tensor, cluster: Tensor, norm_weight: Any, total: Any, merged: Any) -> Any:
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(norm_weight)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    x, cluster, _, weight, _, _ = inputs
    merged, norm_weight, total, idx_token, agg_weight = output
    ctx.mark_non_differentiable(norm_weight, total, idx_token, agg_weight)
    ctx.save_for_backward(x, cluster, norm_weight, total, merged)
    ctx.weighted = weight is not None


def _backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
    x, cluster, norm_weight, total, merged = ctx.saved_tensors
    grad = grad.contiguous()
    grad_x, grad_weight = torch.ops.tore_fast.cluster_merge_backward(grad, x, cluster, norm_weight, total, merged)
    return grad_x, None, None, grad_weight if ctx.weighted else None, None, None


_cluster_merge = differentiable("cluster_merge", _setup_context, _backward)
