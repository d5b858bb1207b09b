"""knn_density: every implementation against NumPy float64, masks, exact zeros, odd shapes, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.clustering import density, grid_points, impls, walk

from tore_fast.ops import BackendUnavailable, knn_density
from tore_fast.ops.knn_density import BACKENDS, why_not

SHAPES = [(1, 1, 1, 1), (2, 17, 3, 2), (3, 49, 65, 5), (2, 63, 130, 32), (1, 431, 16, 5), (0, 9, 4, 3)]


@pytest.mark.parametrize("batch,tokens,channels,k", SHAPES)
def test_against_numpy(device, batch, tokens, channels, k):
    x = torch.randn(batch, tokens, channels)
    want = torch.from_numpy(density(x.numpy(), k))
    for impl in impls("knn_density", x.to(device), k):
        got = knn_density(x.to(device), k, impl=impl)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.cpu().double(), want, rtol=3e-6, atol=1e-12)


def test_smooth_tokens_keep_their_digits(device):
    """1 - rho is 1e-5 here: distances from norms and dot products would lose all of it."""
    x = 0.02 * walk(1, 400, 64)
    want = -np.log(density(x.numpy(), 2))
    for impl in impls("knn_density", x.to(device), 2):
        got = -np.log(knn_density(x.to(device), 2, impl=impl).cpu().double().numpy())
        assert want.max() < 1e-4 and np.abs(got - want).max() < 1.2e-7  # float32 spacing just below 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_use_the_rounded_tokens(device, dtype):
    x = torch.randn(2, 70, 48).to(dtype)
    want = torch.from_numpy(density(x.double().numpy(), 5))
    for impl in impls("knn_density", x.to(device), 5):
        torch.testing.assert_close(knn_density(x.to(device), 5, impl=impl).cpu().double(), want, rtol=2e-5, atol=0)


@pytest.mark.parametrize("tokens", [40, 500])
def test_mask(device, tokens):
    x = torch.randn(3, tokens, 24)
    mask = torch.rand(3, tokens) < 0.6
    mask[1] = True
    mask[2] = False
    mask[2, 7:9] = True  # fewer real tokens than k
    want = torch.from_numpy(density(x.numpy(), 5, mask.numpy()))
    for impl in impls("knn_density", x.to(device), 5):
        got = knn_density(x.to(device), 5, mask.float().to(device), impl=impl).cpu()
        assert (got[~mask] == 0).all()
        torch.testing.assert_close(got.double(), want, rtol=5e-6, atol=1e-12)


def test_copies_have_density_one(device):
    x = torch.randn(1, 6, 33).repeat(1, 20, 1)
    for impl in impls("knn_density", x.to(device), 5):
        assert (knn_density(x.to(device), 5, impl=impl) == 1).all()


def test_mutual_nearest_neighbours_tie_exactly(device):
    x = walk(1, 300, 20)
    d = torch.cdist(x.double(), x.double())[0].fill_diagonal_(torch.inf)
    nearest = d.argmin(1)
    mutual = (nearest[nearest] == torch.arange(300)).nonzero()[:, 0]
    assert len(mutual) > 50
    for impl in impls("knn_density", x.to(device), 2):
        rho = knn_density(x.to(device), 2, impl=impl)[0].cpu()
        assert torch.equal(rho[mutual], rho[nearest[mutual]])


def test_strided_input(device):
    x = torch.randn(30, 2, 12, device=device).transpose(0, 1)[:, ::2]
    for impl in impls("knn_density", x, 3):
        assert torch.equal(knn_density(x, 3, impl=impl), knn_density(x.contiguous(), 3, impl=impl))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 90), st.integers(1, 80), st.integers(1, 32), st.integers(0, 99), st.booleans())
def test_any_shape(batch, tokens, channels, k, seed, ties):
    k = min(k, tokens)
    x = grid_points(batch, tokens, channels, seed=seed) if ties else walk(batch, tokens, channels, seed=seed)
    want = torch.from_numpy(density(x.numpy(), k))
    for impl in impls("knn_density", x, k):
        torch.testing.assert_close(knn_density(x, k, impl=impl).double(), want, rtol=4e-6, atol=1e-12)


def test_opcheck(device):
    x = torch.randn(2, 21, 8, device=device)
    if impls("knn_density", x, 3) == ["reference"]:
        pytest.skip(f"no compiled kernel: {why_not(BACKENDS[-1], x, 3)}")
    for mask in (None, torch.rand(2, 21, device=device) < 0.5):
        torch.library.opcheck(torch.ops.tore_fast.knn_density, (x, 3, mask))


def test_errors():
    x = torch.zeros(1, 4, 2)
    with pytest.raises(ValueError, match=r"knn_density: k must be in 1..4"):
        knn_density(x, 5)
    with pytest.raises(ValueError, match=r"knn_density: x must be \[B, N, C\]"):
        knn_density(x[0], 1)
    with pytest.raises(ValueError, match=r"knn_density: mask must be \[B, N\] = \[1, 4\]"):
        knn_density(x, 1, torch.ones(1, 3))
    with pytest.raises(TypeError, match="floating point"):
        knn_density(x.long(), 1)
    with pytest.raises(BackendUnavailable, match="k <= 32"):
        knn_density(torch.zeros(1, 40, 2), 33, impl="cpu")
    assert knn_density(torch.zeros(1, 40, 2), 33).shape == (1, 40)  # auto: the reference takes any k
