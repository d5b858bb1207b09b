"""density_delta: distance from each token to the nearest denser one.

In: tokens and the density of ops/knn_density.py; out: the second factor of the centre score in ops/dpc_knn_cluster.py.
Kernels: csrc/cpu/density_delta.cpp, csrc/cuda/density_delta.cu; plain torch: ops/reference/density_delta.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ._cluster_args import (
    as_mask,
    check_form,
    check_like_tokens,
    check_tokens,
    cluster_why_not,
    density_noise,
    farthest_of_the_densest,
    kernel_input,
)
from ._dispatch import choose
from .reference.density_delta import density_delta_reference

BACKENDS = ("cuda", "cpu")
why_not = cluster_why_not


class DensityDelta(NamedTuple):
    delta: Tensor  # [B, N] float32
    parent: Tensor  # [B, N] int64, -1 where no token is denser


def density_delta(
    x: Tensor,  # [B, N, C]
    rho: Tensor,  # [B, N]
    mask: Tensor | None = None,  # [B, N]
    tie: str = "index",
    noise: Tensor | torch.Generator | None = None,
    form: str = "released",
    *,
    impl: str = "auto",
) -> DensityDelta:
    """Distance to the nearest denser token and which one it is: delta_i = min of D(i, j) over j denser than i.

    D = ||x_i - x_j|| / sqrt(C). A token with no denser one gets the largest D of its image (with a mask and an empty
    token in the image: the largest D of the batch + 1, as in the official code) and parent -1. Ties go to the lower j.

    Args:
        x: [B, N, C] float32/float16/bfloat16 (float64 with the reference).
        rho: [B, N] densities of x, float32.
        mask: [B, N], non-zero = real token; an empty token is nobody's parent.
        tie: "index": of two equal densities the lower index counts as denser (deterministic, independent of a seed);
            "strict": neither does; "noise": U[0, 1) * 1e-6 is added to rho first, then strict (the official code).
        noise: the generator of tie="noise", or with any tie an additive density term [B, N].
        form: "released", or "printed": D = ||x_i - x_j|| without the division, and a token with no denser one gets
            the largest D of its own row (to real tokens).
        impl: "auto", "reference", "cpu" or "cuda".

    Returns:
        DensityDelta(delta [B, N] float32, parent [B, N] int64), no gradient.

    Raises:
        ValueError: wrong shape, device or tie. BackendUnavailable: an explicit `impl` cannot run.

    Example:
        >>> from tore_fast.ops import knn_density
        >>> x = torch.rand(2, 49, 512)
        >>> delta, parent = density_delta(x, knn_density(x, 5))

    Source: TCFormer (CVPR 2022) eq. 2, with the official code's matrix maximum in place of the row maximum.
    """
    check_tokens("density_delta", x)
    check_form("density_delta", form)
    check_like_tokens("density_delta", "rho", rho, x)
    mask = as_mask("density_delta", mask, x)
    noise = density_noise("density_delta", tie, noise, x)
    rho = rho.detach()
    if noise is not None:
        rho = rho + noise if mask is None else (rho + noise) * mask
    backend = choose("density_delta", impl, BACKENDS, why_not, x)
    strict = tie != "index"
    if backend == "reference":
        found = DensityDelta(*density_delta_reference(x.detach(), rho, mask, strict))
    else:
        found = DensityDelta(*torch.ops.tore_fast.density_delta(kernel_input(backend, x), rho.float(), mask, strict))
    if form == "released":
        return found
    delta, top = found.delta * x.shape[2] ** 0.5, found.parent < 0
    return DensityDelta(farthest_of_the_densest(x, delta, top, mask, strict), found.parent)


@register_flop_formula(torch.ops.tore_fast.density_delta)
def _flops(x_shape: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * x_shape[0] * x_shape[1] ** 2 * x_shape[2]  # the distances


@torch.library.register_fake("tore_fast::density_delta")
def _fake(x: Tensor, rho: Tensor, mask: Any, strict: bool) -> Any:
    return x.new_empty(x.shape[:2], dtype=torch.float32), x.new_empty(x.shape[:2], dtype=torch.int64)
