"""Argument checks shared by the clustering ops; every message names the op, the argument, what was expected, what
came."""

from __future__ import annotations

import torch
from torch import Tensor

from ._dispatch import backend_reason, check_device, tensor_reason

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
MAX_NEIGHBOURS = 32  # slots of the compiled kernels' register lists
TIES = ("index", "strict", "noise")
FORMS = ("released", "printed")  # of the density and of the densest token's distance
NOISE_SCALE = 1e-6  # of the official code's random density term


def check_tokens(op: str, x: Tensor) -> None:
    if x.dim() != 3:
        raise ValueError(f"{op}: x must be [B, N, C], got {list(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{op}: x must be floating point, got {x.dtype}")
    if x.shape[1] == 0 or x.shape[2] == 0:
        raise ValueError(f"{op}: x must have at least one token and one channel, got {list(x.shape)}")


def check_neighbours(op: str, k: int, tokens: int) -> None:
    if not 1 <= k <= tokens:
        raise ValueError(f"{op}: k must be in 1..{tokens} (the number of tokens), got {k}")


def check_like_tokens(op: str, name: str, t: Tensor, x: Tensor) -> None:
    if t.shape != x.shape[:2]:
        raise ValueError(f"{op}: {name} must be [B, N] = {list(x.shape[:2])} like x, got {list(t.shape)}")
    check_device(op, "x", x, **{name: t})


def as_mask(op: str, mask: Tensor | None, x: Tensor) -> Tensor | None:
    """`mask` as bool [B, N], True = real token."""
    if mask is None:
        return None
    check_like_tokens(op, "mask", mask, x)
    return mask if mask.dtype == torch.bool else mask != 0


def density_noise(op: str, tie: str, noise: Tensor | torch.Generator | None, x: Tensor) -> Tensor | None:
    """The additive density term [B, N] float32 or None: a given tensor, or U[0, 1) * 1e-6 for tie="noise"."""
    if tie not in TIES:
        raise ValueError(f"{op}: tie must be one of {TIES}, got {tie!r}")
    if isinstance(noise, Tensor):
        check_like_tokens(op, "noise", noise, x)
        return noise.detach().to(torch.promote_types(x.dtype, torch.float32))
    if tie == "noise":
        return torch.rand(x.shape[:2], generator=noise, device=x.device, dtype=torch.float32) * NOISE_SCALE
    if noise is not None:
        raise TypeError(f"{op}: noise must be a tensor [B, N], or a torch.Generator with tie='noise', got {noise!r}")
    return None


def cluster_why_not(backend: str, x: Tensor, k: int = 1) -> str | None:
    """Why `backend` cannot cluster the tokens `x` with `k` neighbours, or None."""
    if k > MAX_NEIGHBOURS:
        return f"it takes k <= {MAX_NEIGHBOURS}, got {k}"
    return backend_reason(backend) or tensor_reason(backend, x, FLOATS)


def kernel_input(backend: str, x: Tensor) -> Tensor:
    """`x` as the backend reads it: the CPU kernels compute and read float32, CUDA reads all three types."""
    return x.detach().float() if backend == "cpu" else x.detach()


def printed_tokens(op: str, x: Tensor, k: int) -> tuple[Tensor, int]:
    """Tokens and k with which the released form gives the printed density exp(-(1/k) sum of d^2 to k other tokens).

    The released form divides d^2 by C and counts the token itself, at distance 0: k + 1 of the tokens times
    sqrt(C (k + 1) / k) take both back. 16-bit tokens become float32, which the factor could overflow.
    """
    if not 1 <= k < x.shape[1]:
        raise ValueError(f"{op}: with form='printed' k must be in 1..{x.shape[1] - 1} (the other tokens), got {k}")
    return x.detach().to(torch.promote_types(x.dtype, torch.float32)) * (x.shape[2] * (k + 1) / k) ** 0.5, k + 1


def check_form(op: str, form: str) -> None:
    if form not in FORMS:
        raise ValueError(f"{op}: form must be one of {FORMS}, got {form!r}")


def farthest_of_the_densest(x: Tensor, delta: Tensor, top: Tensor, mask: Tensor | None, strict: bool) -> Tensor:
    """`delta` with the largest distance of its own row for each token of `top` (bool [B, N], nothing is denser).

    With an order of equal densities an image has one such token and one row is computed; without (`strict`) it may
    have many, and all rows are, 256 at a time.
    """
    x = x.detach().to(delta.dtype)

    def row_maximum(rows: Tensor) -> Tensor:
        d = torch.cdist(rows, x, compute_mode="donot_use_mm_for_euclid_dist")
        return (d if mask is None else d.masked_fill(~mask[:, None], 0)).amax(-1)

    if strict:
        return torch.where(top, torch.cat([row_maximum(rows) for rows in x.split(256, 1)], 1), delta)
    first = top.to(torch.uint8).argmax(1, keepdim=True)
    rows = x.gather(1, first[..., None].expand(-1, -1, x.shape[2]))
    only = torch.zeros_like(top).scatter(1, first, True) & top
    return torch.where(only, row_maximum(rows), delta)


def densest(rho: Tensor, mask: Tensor | None, strict: bool) -> Tensor:
    """Bool [B, N]: real tokens than which none is denser; the first of equals unless `strict`."""
    real = rho if mask is None else rho.masked_fill(~mask, -1)
    top = (real == real.amax(1, keepdim=True)) & (real >= 0)
    return top if strict else top & (top.cumsum(1) == 1)
