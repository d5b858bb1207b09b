"""token_map: dynamic tokens to a regular map, a map to tokens, tokens of one stage to those of another.

In: token features and idx_token, the token that owns each cell of the initial grid (bookkeeping of
ops/cluster_merge.py); out: maps for convolutions in layers/ctm.py, tokens for its blocks, up-sampling in layers/mta.py.
All three are one primitive, a weighted mean over cells from source rows to destination rows.
Kernels: csrc/cpu/token_map.cpp, csrc/cuda/token_map.cu; plain torch: ops/reference/token_map.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._autograd import differentiable
from ._cluster_args import FLOATS
from ._dispatch import backend_reason, check_device, choose, tensor_reason
from .cluster_merge import MAX_CUDA_GROUPS
from .reference.token_map import cell_mean_reference, cell_pixels, token_csr_reference

BACKENDS = ("cuda", "cpu")


class TokenCsr(NamedTuple):
    """Cells of the initial grid grouped by token; build it once per merge with token_csr and reuse it in every
    block."""

    row_ptr: Tensor  # [B, N + 1] int32
    cells: Tensor  # [B, N0] int32, ascending inside a token


def why_not(backend: str, x: Tensor, num_tokens: int = 1) -> str | None:
    """Why `backend` cannot move the features `x` from or to `num_tokens` tokens, or None."""
    if backend == "cuda" and num_tokens > MAX_CUDA_GROUPS:
        return f"it takes at most {MAX_CUDA_GROUPS} tokens, got {num_tokens}"
    return backend_reason(backend) or tensor_reason(backend, x, FLOATS)


def token_csr(
    idx_token: Tensor,  # [B, N0]
    num_tokens: int,
    *,
    impl: str = "auto",
) -> TokenCsr:
    """Groups the cells of the initial grid by the token that owns them (a counting sort).

    Args:
        idx_token: [B, N0] int64, token of each cell, 0 <= id < num_tokens.
        num_tokens: N.
        impl: "auto", "reference", "cpu" or "cuda".

    Returns:
        TokenCsr(row_ptr [B, N + 1] int32, cells [B, N0] int32).

    Raises:
        ValueError: wrong shape. BackendUnavailable: an explicit `impl` cannot run.

    Example:
        >>> token_csr(torch.tensor([[1, 0, 1]]), 2).row_ptr
        tensor([[0, 1, 3]], dtype=torch.int32)
    """
    if idx_token.dim() != 2 or idx_token.is_floating_point():
        raise ValueError(
            f"token_csr: idx_token must be integers [B, N0], got {idx_token.dtype} {list(idx_token.shape)}"
        )
    probe = torch.empty(0, device=idx_token.device)
    backend = choose("token_csr", impl, BACKENDS, why_not, probe, num_tokens)
    if backend == "reference":
        return TokenCsr(*token_csr_reference(idx_token.long(), num_tokens))
    return TokenCsr(*torch.ops.tore_fast.token_map_csr(idx_token.long(), num_tokens))


def token2map(
    x: Tensor,  # [B, N, C]
    idx_token: Tensor,  # [B, N0]
    init_grid: tuple[int, int],
    map_size: tuple[int, int],
    csr: TokenCsr | None = None,
    *,
    impl: str = "auto",
) -> Tensor:  # [B, C, H, W]
    """Map from tokens: pixel = sum over its cells of x[token of cell] / (number of its cells + 1e-6).

    Cell (r, c) of the initial grid belongs to pixel (floor(r * H / H0), floor(c * W / W0)). If N == N0 == H * W the
    tokens are the map and are only reshaped.

    Args:
        x: [B, N, C] float32/float16/bfloat16 (float64 with the reference).
        idx_token: [B, N0] int64, token of each cell of the initial grid.
        init_grid: (H0, W0) with H0 * W0 == N0.
        map_size: (H, W), not finer than the initial grid.
        csr: token_csr(idx_token, N), used by the backward pass; built there when not given.
        impl: "auto", "reference", "cpu" or "cuda".

    Returns:
        [B, C, H, W] in x's dtype, in channels-last memory order (`.flatten(2).mT` is free). Differentiable w.r.t. x.

    Raises:
        ValueError: wrong shape or device. BackendUnavailable: an explicit `impl` cannot run.

    Example:
        >>> token2map(torch.rand(1, 4, 8), torch.arange(4)[None].repeat_interleave(4, 1), (4, 4), (2, 2)).shape
        torch.Size([1, 8, 2, 2])

    Source: TCFormer (CVPR 2022) section 3.3; `token2map` of the official code.
    """
    op = "token2map"
    _check_features(op, "x", x, idx_token)
    _check_grids(op, idx_token, init_grid, map_size)
    _check_csr(op, "csr", csr, x, idx_token, x.shape[1])
    batch, tokens, channels = x.shape
    pixels = map_size[0] * map_size[1]
    if not tokens == idx_token.shape[1] == pixels:
        backend = choose(op, impl, BACKENDS, why_not, x, tokens)
        if backend == "reference":
            dst = cell_pixels(init_grid, map_size, x.device).expand(batch, -1)
            x = cell_mean_reference(x, idx_token.long(), dst, pixels)
        else:
            tables = _Tables(None, None, idx_token.long(), csr, None, init_grid, map_size)
            x = _cell_mean(backend, x, tables, pixels)
    # not x.mT.unflatten: for B = 1 that leaves a batch stride that torch does not take for channels-last
    return x.unflatten(1, map_size).permute(0, 3, 1, 2)


def map2token(
    feature_map: Tensor,  # [B, C, H, W]
    idx_token: Tensor,  # [B, N0]
    init_grid: tuple[int, int],
    num_tokens: int,
    csr: TokenCsr | None = None,
    *,
    impl: str = "auto",
) -> Tensor:  # [B, N, C]
    """Tokens from a map: token = sum over its cells of map[pixel of cell] / (number of its cells + 1e-6).

    Args:
        feature_map: [B, C, H, W] float32/float16/bfloat16 (float64 with the reference); channels-last memory is read
            without a copy.
        idx_token: [B, N0] int64, token of each cell of the initial grid.
        init_grid: (H0, W0) with H0 * W0 == N0.
        num_tokens: N.
        csr: token_csr(idx_token, N); built here when not given.
        impl: "auto", "reference", "cpu" or "cuda".

    Returns:
        [B, N, C] in the map's dtype; a token without cells is 0. Differentiable w.r.t. feature_map.

    Raises:
        ValueError: wrong shape or device. BackendUnavailable: an explicit `impl` cannot run.

    Source: `map2token` of the official TCFormer code (agg_weight is not used, on purpose).
    """
    op = "map2token"
    if feature_map.dim() != 4 or feature_map.shape[0] != idx_token.shape[0]:
        raise ValueError(
            f"{op}: feature_map must be [B, C, H, W] with B = {idx_token.shape[0]}, got {list(feature_map.shape)}"
        )
    map_size = (feature_map.shape[2], feature_map.shape[3])
    x = feature_map.flatten(2).mT
    _check_features(op, "feature_map", x, idx_token)
    _check_grids(op, idx_token, init_grid, map_size)
    _check_csr(op, "csr", csr, x, idx_token, num_tokens)
    if num_tokens == idx_token.shape[1] == map_size[0] * map_size[1]:
        return x
    backend = choose(op, impl, BACKENDS, why_not, x, num_tokens)
    if backend == "reference":
        src = cell_pixels(init_grid, map_size, x.device).expand(x.shape[0], -1)
        return cell_mean_reference(x, src, idx_token.long(), num_tokens)
    csr = token_csr(idx_token, num_tokens, impl=backend) if csr is None else csr
    tables = _Tables(idx_token.long(), csr, None, None, None, init_grid, map_size)
    return _cell_mean(backend, x, tables, num_tokens)


def token_resample(
    x_src: Tensor,  # [B, Ns, C]
    idx_src: Tensor,  # [B, N0]
    idx_dst: Tensor,  # [B, N0]
    num_dst: int,
    agg_dst: Tensor,  # [B, N0]
    csr_dst: TokenCsr | None = None,
    csr_src: TokenCsr | None = None,
    *,
    impl: str = "auto",
) -> Tensor:  # [B, num_dst, C]
    """Features of one token dictionary at the tokens of another: mean over the target's cells, weighted by agg_dst.

    out[t] = sum over cells of t of agg_dst(cell) * x_src[idx_src(cell)] / (sum of agg_dst + 1e-6); works both ways
    (coarse to fine and fine to coarse).

    Args:
        x_src: [B, Ns, C] float32/float16/bfloat16 (float64 with the reference).
        idx_src, idx_dst: [B, N0] int64, source and target token of each cell of the initial grid.
        num_dst: number of target tokens.
        agg_dst: [B, N0] share of each cell in its target token; a constant (no gradient).
        csr_dst, csr_src: token_csr of the two dictionaries; built when not given (csr_src only by a backward pass).
        impl: "auto", "reference", "cpu" or "cuda".

    Returns:
        [B, num_dst, C] in x_src's dtype. Differentiable w.r.t. x_src.

    Raises:
        ValueError: wrong shape or device. BackendUnavailable: an explicit `impl` cannot run.

    Source: `token_downup` of the official TCFormer code (`token_interp` in mmpose).
    """
    op = "token_resample"
    _check_features(op, "x_src", x_src, idx_src)
    for name, t in (("idx_dst", idx_dst), ("agg_dst", agg_dst)):
        if t.shape != idx_src.shape or t.device != x_src.device:
            raise ValueError(
                f"{op}: {name} must be {list(idx_src.shape)} on {x_src.device} like idx_src, "
                f"got {list(t.shape)} on {t.device}"
            )
    _check_csr(op, "csr_dst", csr_dst, x_src, idx_src, num_dst)
    _check_csr(op, "csr_src", csr_src, x_src, idx_src, x_src.shape[1])
    backend = choose(op, impl, BACKENDS, why_not, x_src, max(x_src.shape[1], num_dst))
    if backend == "reference":
        return cell_mean_reference(x_src, idx_src.long(), idx_dst.long(), num_dst, agg_dst)
    csr_dst = token_csr(idx_dst, num_dst, impl=backend) if csr_dst is None else csr_dst
    tables = _Tables(idx_dst.long(), csr_dst, idx_src.long(), csr_src, agg_dst.detach().float(), (1, 1), (1, 1))
    return _cell_mean(backend, x_src, tables, num_dst)


class _Tables(NamedTuple):
    """Destination and source row of every cell; None = the pixel rule of `grid` -> `map_size`."""

    dst_idx: Tensor | None
    dst_csr: TokenCsr | None
    src_idx: Tensor | None
    src_csr: TokenCsr | None
    weight: Tensor | None
    grid: tuple[int, int]
    map_size: tuple[int, int]


def _cell_mean(backend: str, x: Tensor, t: _Tables, num_dst: int) -> Tensor:
    out, _ = _token_map(
        x.float() if backend == "cpu" else x,
        t.dst_idx,
        *(t.dst_csr or (None, None)),
        t.src_idx,
        *(t.src_csr or (None, None)),
        t.weight,
        None,
        [*t.grid, *t.map_size],
        num_dst,
        True,
    )
    return out.to(x.dtype)


def _check_features(op: str, name: str, x: Tensor, idx: Tensor) -> None:
    if x.dim() != 3 or not x.is_floating_point():
        raise ValueError(f"{op}: {name} must be floating point [B, N, C], got {x.dtype} {list(x.shape)}")
    if idx.dim() != 2 or idx.shape[0] != x.shape[0] or idx.is_floating_point():
        raise ValueError(
            f"{op}: token indices must be integers [B, N0] with B = {x.shape[0]}, got {idx.dtype} {list(idx.shape)}"
        )
    check_device(op, name, x, **{"the token index tensor": idx})


def _check_csr(op: str, name: str, csr: TokenCsr | None, x: Tensor, idx: Tensor, tokens: int) -> None:
    if csr is None:
        return
    check_device(op, "the features", x, **{f"{name}.row_ptr": csr.row_ptr, f"{name}.cells": csr.cells})
    want = [idx.shape[0], tokens + 1], list(idx.shape)
    if [list(t.shape) for t in csr] != list(want) or any(t.dtype != torch.int32 for t in csr):
        got = ", ".join(f"{list(t.shape)} {t.dtype}" for t in csr)
        raise ValueError(
            f"{op}: {name} must be int32 {want[0]} and {want[1]} (token_csr of {tokens} tokens), got {got}"
        )


def _check_grids(op: str, idx_token: Tensor, grid: tuple[int, int], map_size: tuple[int, int]) -> None:
    if grid[0] * grid[1] != idx_token.shape[1]:
        raise ValueError(f"{op}: init_grid {tuple(grid)} must have N0 = {idx_token.shape[1]} cells")
    if not (1 <= map_size[0] <= grid[0] and 1 <= map_size[1] <= grid[1]):
        raise ValueError(f"{op}: map_size {tuple(map_size)} must not be finer than init_grid {tuple(grid)}")


@torch.library.register_fake("tore_fast::token_map")
def _fake(
    x: Tensor,
    dst_idx: Any,
    dst_ptr: Any,
    dst_cells: Any,
    src_idx: Any,
    src_ptr: Any,
    src_cells: Any,
    weight: Tensor,
    src_scale: Any,
    grid: Any,
    num_dst: Any,
    normalize: Any,
) -> Any:
    return x.new_empty(x.shape[0], num_dst, x.shape[2]), x.new_empty(x.shape[0], num_dst, dtype=torch.float32)


@torch.library.register_fake("tore_fast::token_map_csr")
def _fake_csr(idx_token: Any, num_tokens: Any) -> Any:
    row_ptr = idx_token.new_empty(idx_token.shape[0], num_tokens + 1, dtype=torch.int32)
    return row_ptr, torch.empty_like(idx_token, dtype=torch.int32, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    x, dst_idx, dst_ptr, dst_cells, src_idx, src_ptr, src_cells, weight, src_scale, grid, num_dst, normalize = inputs
    if src_scale is not None or not normalize:
        raise RuntimeError("tore_fast::token_map: only the forward form (normalize, no src_scale) is differentiable")
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(dst_idx, dst_ptr, dst_cells, src_idx, src_ptr, src_cells, weight, output[1])
    ctx.grid, ctx.num_src = grid, x.shape[1]


def _backward(ctx: Any, grad: Tensor, _: Any) -> Any:
    """The transposed sum: roles of source and destination swap, the normaliser moves to the rows that are read."""
    dst_idx, dst_ptr, dst_cells, src_idx, src_ptr, src_cells, weight, scale = ctx.saved_tensors
    if src_idx is not None and src_ptr is None:
        src_ptr, src_cells = torch.ops.tore_fast.token_map_csr(src_idx, ctx.num_src)
    grad_x, _ = torch.ops.tore_fast.token_map(
        grad.contiguous(),
        src_idx,
        src_ptr,
        src_cells,
        dst_idx,
        dst_ptr,
        dst_cells,
        weight,
        scale,
        ctx.grid,
        ctx.num_src,
        False,
    )
    return grad_x, *(None,) * 11


_token_map = differentiable("token_map", _setup_context, _backward)
