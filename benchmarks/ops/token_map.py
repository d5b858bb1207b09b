"""token2map, map2token and token_resample, forward and backward, against sparse products (official) and index_add."""

from __future__ import annotations

import torch
from torch import Tensor

from tore_fast.ops import TokenCsr, map2token, token2map, token_csr, token_resample
from tore_fast.ops.reference.token_map import EPS, cell_mean_reference, cell_pixels

from ..harness import Case, Contender

GRID = (56, 56)  # TCFormer at 224
SHAPES = ((1, 784, 256, (28, 28)), (1, 196, 640, (14, 14)), (8, 784, 128, (28, 28)))  # batch, tokens, channels, map
KINDS = ("token2map", "map2token", "resample up")


def sparse_product(x: Tensor, src: Tensor, dst: Tensor, num_dst: int) -> Tensor:
    """The official way: a COO matrix [B * dst, B * src] built in every call, then one sparse product."""
    batch, num_src, channels = x.shape
    offset = torch.arange(batch, device=x.device)[:, None]
    rows, cols = (dst + num_dst * offset).flatten(), (src + num_src * offset).flatten()
    value = torch.ones(rows.numel(), device=x.device)
    total = torch.zeros(batch * num_dst, device=x.device).index_add_(0, rows, value) + EPS
    matrix = torch.sparse_coo_tensor(torch.stack([rows, cols]), value / total[rows], (batch * num_dst, batch * num_src))
    return (matrix @ x.reshape(-1, channels).float()).to(x.dtype).view(batch, num_dst, channels)


def ours(kind: str, size: tuple[int, int], tokens: int):
    def run(x: Tensor, idx: Tensor, ptr: Tensor, cells: Tensor) -> Tensor:
        csr = TokenCsr(ptr, cells)
        if kind == "token2map":
            return token2map(x, idx, GRID, size, csr).flatten(2).mT
        if kind == "map2token":
            return map2token(x.mT.unflatten(2, size), idx, GRID, tokens, csr)
        cell = torch.arange(idx.shape[1], device=x.device).expand_as(idx)
        one = torch.ones(idx.shape, device=x.device)
        return token_resample(x, idx, cell, idx.shape[1], one, None, csr)

    return run


def theirs(kind: str, size: tuple[int, int], tokens: int, product):
    def run(x: Tensor, idx: Tensor, *_) -> Tensor:
        pixel = cell_pixels(GRID, size, x.device).expand_as(idx)
        if kind == "token2map":
            return product(x, idx, pixel, size[0] * size[1])
        if kind == "map2token":
            return product(x, pixel, idx, tokens)
        return product(x, idx, torch.arange(idx.shape[1], device=x.device).expand_as(idx), idx.shape[1])

    return run


def cases(device: str, dtype: torch.dtype, quick: bool) -> list[Case]:
    out = []
    size_of = torch.empty((), dtype=dtype).element_size()
    for batch, tokens, channels, size in SHAPES[1:2] if quick else SHAPES:
        batch = batch if device == "cpu" else 64
        cells, pixels = GRID[0] * GRID[1], size[0] * size[1]
        for kind in KINDS:
            rows_in, rows_out = {
                "token2map": (tokens, pixels),
                "map2token": (pixels, tokens),
                "resample up": (tokens, cells),
            }[kind]

            def make(generator, batch=batch, tokens=tokens, channels=channels, rows=rows_in, cells=cells):
                x = torch.randn(batch, rows, channels, device=device, generator=generator).to(dtype)
                idx = torch.randint(0, tokens, (batch, cells), device=device, generator=generator)
                return [x, idx, *token_csr(idx, tokens)]

            contenders = [
                Contender("tore_fast", ours(kind, size, tokens), ours=True),
                Contender("sparse product", theirs(kind, size, tokens, sparse_product), note="the official code's way"),
                Contender("gather + index_add", theirs(kind, size, tokens, cell_mean_reference)),
            ]
            for backward in (False, True):
                traffic = batch * (cells * 8 + (rows_in + rows_out) * channels * size_of)
                out.append(
                    Case(
                        "token_map",
                        f"{kind} B{batch} N{tokens} C{channels}",
                        make,
                        contenders,
                        theirs(kind, size, tokens, cell_mean_reference),
                        backward,
                        device,
                        dtype,
                        bytes=traffic * (2 if backward else 1),
                        macs=batch * cells * channels * (2 if backward else 1),
                        items=batch,
                    )
                )
    return out
