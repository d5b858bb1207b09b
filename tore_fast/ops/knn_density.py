"""knn_density: how crowded the surroundings of each token are.

In: tokens of a model stage; out: the density that ops/density_delta.py compares and ops/dpc_knn_cluster.py ranks.
Kernels: csrc/cpu/knn_density.cpp, csrc/cuda/knn_density.cu; plain torch: ops/reference/knn_density.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ._cluster_args import (
    as_mask,
    check_form,
    check_neighbours,
    check_tokens,
    cluster_why_not,
    kernel_input,
    printed_tokens,
)
from ._dispatch import choose
from .reference.knn_density import knn_density_reference

BACKENDS = ("cuda", "cpu")
why_not = cluster_why_not


def knn_density(
    x: Tensor,  # [B, N, C]
    k: int,
    mask: Tensor | None = None,  # [B, N]
    form: str = "released",
    *,
    impl: str = "auto",
) -> Tensor:  # [B, N]
    """Density of every token: rho_i = exp(-(1/k) * sum of the k smallest d2(i, .)), d2(i, j) = ||x_i - x_j||^2 / C.

    The token itself is one of the k, at distance exactly 0. Distances are direct differences accumulated in float32
    (16-bit tokens on CUDA: matrix units with norms of the rounded values), never stored as an N x N matrix.

    Args:
        x: [B, N, C] float32/float16/bfloat16 (float64 with the reference).
        k: neighbours, 1 <= k <= N; the kernels take up to 32.
        mask: [B, N], non-zero = real token. Empty tokens are nobody's neighbour and have density 0; where fewer than k
            real tokens exist the missing ones count as (largest distance of the batch + 1)^2.
        form: "released", or "printed": rho_i = exp(-(1/k) * sum of ||x_i - x_j||^2 over the k nearest other tokens), so
            without the division by C and without the token itself. It is 0 in float32 where that mean exceeds 104,
            which tokens after a LayerNorm easily do.
        impl: "auto", "reference", "cpu" or "cuda".

    Returns:
        [B, N] float32, no gradient.

    Raises:
        ValueError: wrong shape, k or device. BackendUnavailable: an explicit `impl` cannot run.

    Example:
        >>> knn_density(torch.rand(2, 49, 512), k=5).shape
        torch.Size([2, 49])

    Source: TCFormer (CVPR 2022) eq. 1; the official code's k counts the token itself.
    """
    check_tokens("knn_density", x)
    check_form("knn_density", form)
    if form == "printed":
        x, k = printed_tokens("knn_density", x, k)
    check_neighbours("knn_density", k, x.shape[1])
    mask = as_mask("knn_density", mask, x)
    backend = choose("knn_density", impl, BACKENDS, why_not, x, k)
    if backend == "reference":
        return knn_density_reference(x.detach(), k, mask)
    return torch.ops.tore_fast.knn_density(kernel_input(backend, x), k, mask)


@register_flop_formula(torch.ops.tore_fast.knn_density)
def _flops(x_shape: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * x_shape[0] * x_shape[1] ** 2 * x_shape[2]  # the distances


@torch.library.register_fake("tore_fast::knn_density")
def _fake(x: Tensor, k: Tensor, mask: Any) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=torch.float32)
