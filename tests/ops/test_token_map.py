"""token2map, map2token, token_resample, token_csr: against explicit loops over cells, gradients, odd grids."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.clustering import impls

from tore_fast.ops import map2token, token2map, token_csr, token_resample
from tore_fast.ops.reference.token_map import cell_pixels
from tore_fast.ops.token_map import BACKENDS, why_not

GRIDS = [
    ((8, 6), (8, 6)),
    ((15, 11), (8, 6)),
    ((16, 12), (4, 3)),
    ((7, 5), (1, 1)),
    ((1, 9), (1, 4)),
    ((14, 10), (13, 9)),
]


def pixel_of(cell: int, grid, size) -> int:
    """The rule in exact integer arithmetic."""
    r, c = divmod(cell, grid[1])
    return r * size[0] // grid[0] * size[1] + c * size[1] // grid[1]


def mean_matrix(src, dst, num_src, num_dst, weight=None) -> np.ndarray:
    """[num_dst, num_src] float64: out = matrix @ x, cell by cell."""
    m, total = np.zeros((num_dst, num_src)), np.full(num_dst, 1e-6)
    for cell, (s, d) in enumerate(zip(src, dst, strict=True)):
        w = 1.0 if weight is None else float(weight[cell])
        m[d, s] += w
        total[d] += w
    return m / total[:, None]


def matrices(batch, src, dst, num_src, num_dst, weight=None) -> torch.Tensor:
    rows = [mean_matrix(src[b], dst[b], num_src, num_dst, None if weight is None else weight[b]) for b in range(batch)]
    return torch.from_numpy(np.stack(rows))


@pytest.mark.parametrize("grid,size", GRIDS)
def test_cell_rule(grid, size):
    got = cell_pixels(grid, size).tolist()
    assert got == [pixel_of(i, grid, size) for i in range(grid[0] * grid[1])]


@pytest.mark.parametrize("grid,size", GRIDS)
@pytest.mark.parametrize("tokens", [1, 23])
def test_token2map_and_map2token(device, grid, size, tokens):
    batch, channels, cells, pixels = 2, 9, grid[0] * grid[1], size[0] * size[1]
    idx = torch.randint(0, tokens, (batch, cells))
    pix = [[pixel_of(i, grid, size) for i in range(cells)]] * batch
    x = torch.randn(batch, tokens, channels)
    feature_map = torch.randn(batch, channels, *size)
    to_map = matrices(batch, idx, pix, tokens, pixels)
    to_tokens = matrices(batch, pix, idx, pixels, tokens)
    want_map = (to_map @ x.double()).mT.unflatten(2, size)
    want_tokens = to_tokens @ feature_map.flatten(2).mT.double()
    for impl in impls("token_map", x.to(device)):
        leaf = x.to(device).requires_grad_()
        got = token2map(leaf, idx.to(device), grid, size, impl=impl)
        torch.testing.assert_close(got.cpu().double(), want_map, rtol=1e-5, atol=1e-6)
        g = torch.randn_like(got)
        (grad,) = torch.autograd.grad(got, leaf, g)
        want = to_map.mT @ g.cpu().double().flatten(2).mT
        torch.testing.assert_close(grad.cpu().double(), want, rtol=1e-5, atol=1e-5)

        leaf = feature_map.to(device).requires_grad_()
        for csr in (None, token_csr(idx.to(device), tokens)):
            got = map2token(leaf, idx.to(device), grid, tokens, csr, impl=impl)
            torch.testing.assert_close(got.cpu().double(), want_tokens, rtol=1e-5, atol=1e-6)
            g = torch.randn_like(got)
            (grad,) = torch.autograd.grad(got, leaf, g)
            want = (to_tokens.mT @ g.cpu().double()).mT.unflatten(2, size)
            torch.testing.assert_close(grad.cpu().double(), want, rtol=1e-5, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 60), st.integers(1, 30), st.integers(1, 30), st.integers(0, 99))
def test_resample(batch, cells, num_src, num_dst, seed):
    torch.manual_seed(seed)
    src, dst = torch.randint(0, num_src, (batch, cells)), torch.randint(0, num_dst, (batch, cells))
    weight, x = torch.rand(batch, cells), torch.randn(batch, num_src, 5)
    m = matrices(batch, src, dst, num_src, num_dst, weight)
    g = torch.randn(batch, num_dst, 5)
    for impl in impls("token_map", x):
        for csr_dst, csr_src in ((None, None), (token_csr(dst, num_dst), token_csr(src, num_src))):
            leaf = x.clone().requires_grad_()
            got = token_resample(leaf, src, dst, num_dst, weight, csr_dst, csr_src, impl=impl)
            torch.testing.assert_close(got.double(), m @ x.double(), rtol=1e-5, atol=1e-6)
            (grad,) = torch.autograd.grad(got, leaf, g)
            torch.testing.assert_close(grad.double(), m.mT @ g.double(), rtol=1e-5, atol=1e-5)


def test_gradcheck(device):
    idx, x = torch.randint(0, 5, (1, 12), device=device), torch.randn(1, 5, 2, device=device, dtype=torch.float64)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: token2map(v, idx, (4, 3), (2, 3), impl="reference"), x)
    assert torch.autograd.gradcheck(
        lambda v: token_resample(v, idx, idx.flip(1), 5, torch.ones(1, 12, device=device), impl="reference"), x
    )


def test_identity_is_a_reshape(device):
    x = torch.randn(2, 12, 3, device=device)
    idx = torch.arange(12, device=device).expand(2, -1)
    for impl in impls("token_map", x):
        feature_map = token2map(x, idx, (4, 3), (4, 3), impl=impl)
        assert torch.equal(feature_map.flatten(2).mT, x)
        assert torch.equal(map2token(feature_map, idx, (4, 3), 12, impl=impl), x)


@pytest.mark.parametrize("dtype,tol", [(torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)])
def test_half_types(device, dtype, tol):
    idx, x = torch.randint(0, 20, (2, 48), device=device), torch.randn(2, 20, 8, device=device).to(dtype)
    want = token2map(x.double(), idx, (8, 6), (4, 3), impl="reference")
    for impl in impls("token_map", x):
        got = token2map(x, idx, (8, 6), (4, 3), impl=impl)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=tol, atol=tol)


def test_csr(device):
    idx = torch.randint(0, 9, (3, 50), device=device)
    for impl in impls("token_map", torch.empty(0, device=device)):
        row_ptr, cells = token_csr(idx, 11, impl=impl)
        assert row_ptr.dtype == cells.dtype == torch.int32 and row_ptr.shape == (3, 12)
        for b in range(3):
            for token in range(11):
                group = cells[b, row_ptr[b, token] : row_ptr[b, token + 1]].tolist()
                assert group == (idx[b] == token).nonzero()[:, 0].tolist()
    assert token_csr(idx[:0], 11).row_ptr.shape == (0, 12)


def test_empty_batch_and_empty_token(device):
    x = torch.randn(1, 4, 3, device=device)
    idx = torch.zeros(1, 6, dtype=torch.int64, device=device)
    for impl in impls("token_map", x):
        tokens = map2token(torch.ones(1, 3, 3, 2, device=device), idx, (3, 2), 4, impl=impl)
        assert (tokens[:, 1:] == 0).all() and (tokens[:, 0] > 0.99).all()
        assert token2map(x[:0], idx[:0], (3, 2), (1, 1), impl=impl).shape == (0, 3, 1, 1)


def test_map_is_channels_last_and_read_without_copy():
    x, idx = torch.randn(2, 20, 8), torch.randint(0, 20, (2, 48))
    feature_map = token2map(x, idx, (8, 6), (4, 3))
    assert feature_map.is_contiguous(memory_format=torch.channels_last)
    assert feature_map.flatten(2).mT.data_ptr() == feature_map.data_ptr()


def test_opcheck(device):
    x, idx = torch.randn(2, 5, 3, device=device, requires_grad=True), torch.randint(0, 5, (2, 12), device=device)
    if impls("token_map", x) == ["reference"]:
        pytest.skip(f"no compiled kernel: {why_not(BACKENDS[-1], x)}")
    op, csr = torch.ops.tore_fast.token_map, token_csr(idx, 5)
    grid = [4, 3, 2, 3]
    torch.library.opcheck(op, (x, None, None, None, idx, *csr, None, None, grid, 6, True))
    y = torch.randn(2, 6, 3, device=device, requires_grad=True)
    torch.library.opcheck(op, (y, idx, *csr, None, None, None, None, None, grid, 5, True))
    weight = torch.rand(2, 12, device=device)
    torch.library.opcheck(op, (x, idx, *csr, idx, *csr, weight, None, [1, 1, 1, 1], 5, True))
    torch.library.opcheck(torch.ops.tore_fast.token_map_csr, (idx, 5))


def test_errors():
    x, idx = torch.zeros(2, 5, 3), torch.zeros(2, 12, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"token2map: init_grid \(4, 4\) must have N0 = 12"):
        token2map(x, idx, (4, 4), (2, 2))
    with pytest.raises(ValueError, match=r"token2map: map_size \(8, 3\) must not be finer"):
        token2map(x, idx, (4, 3), (8, 3))
    with pytest.raises(ValueError, match=r"map2token: feature_map must be \[B, C, H, W\]"):
        map2token(x, idx, (4, 3), 5)
    with pytest.raises(ValueError, match="token_resample: agg_dst must be"):
        token_resample(x, idx, idx, 5, torch.ones(2, 11))
