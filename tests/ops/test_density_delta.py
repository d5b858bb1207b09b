"""density_delta: every implementation against a loop over the definition; ties, masks, noise, odd shapes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.clustering import delta_loop, grid_points, impls, walk

from tore_fast.ops import density_delta, knn_density
from tore_fast.ops.density_delta import BACKENDS, why_not


def check(x, rho, mask, tie, device="cpu"):
    numpy_mask = None if mask is None else mask.numpy()
    delta, parent = delta_loop(x.numpy(), rho.numpy(), numpy_mask, tie == "strict")
    for impl in impls("density_delta", x.to(device)):
        args = [x.to(device), rho.to(device), None if mask is None else mask.to(device)]
        got = density_delta(*args, tie=tie, impl=impl)
        torch.testing.assert_close(got.delta.cpu().double(), torch.from_numpy(delta), rtol=5e-6, atol=1e-12)
        assert torch.equal(got.parent.cpu(), torch.from_numpy(parent)), impl


@pytest.mark.parametrize("tie", ["index", "strict"])
@pytest.mark.parametrize("tokens,channels", [(1, 1), (17, 3), (49, 65), (130, 16)])
def test_against_loop(device, tokens, channels, tie):
    x = torch.randn(2, tokens, channels)
    check(x, knn_density(x, min(5, tokens)), None, tie, device)


@pytest.mark.parametrize("tie", ["index", "strict"])
def test_exact_ties(device, tie):
    """Tokens and densities from tiny sets: equal distances, equal densities, copies."""
    x = grid_points(2, 70, 3)
    rho = torch.randint(0, 4, (2, 70)) / 4
    check(x, rho, None, tie, device)
    check(x, torch.full((2, 70), 0.5), None, tie, device)


@pytest.mark.parametrize("tie", ["index", "strict"])
def test_mask(device, tie):
    x = torch.randn(3, 40, 6)
    mask = torch.rand(3, 40) < 0.5
    mask[1], mask[2] = True, False
    rho = knn_density(x, 3, mask)
    rho[0, :5] = 0  # real tokens whose density has underflowed tie with the empty ones
    check(x, rho, mask, tie, device)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 2), st.integers(1, 50), st.integers(1, 20), st.integers(0, 99), st.booleans(), st.booleans())
def test_any_shape(batch, tokens, channels, seed, ties, strict):
    x = grid_points(batch, tokens, channels, seed=seed) if ties else walk(batch, tokens, channels, seed=seed)
    check(x, knn_density(x, min(3, tokens), impl="reference"), None, "strict" if strict else "index")


def test_noise_comes_from_the_generator(device):
    x = torch.ones(2, 64, 4, device=device)
    rho = torch.ones(2, 64, device=device)
    for impl in impls("density_delta", x):
        parents = [
            density_delta(x, rho, tie="noise", noise=torch.Generator(device).manual_seed(s), impl=impl).parent
            for s in (1, 1, 2)
        ]
        assert torch.equal(parents[0], parents[1]) and not torch.equal(parents[0], parents[2])
        ramp = torch.arange(64, device=device).expand(2, -1) / 64
        shifted = density_delta(x, rho, noise=ramp, impl=impl).parent
        assert (shifted[:, :-1] > torch.arange(63, device=device)).all() and (shifted[:, -1] == -1).all()


def test_opcheck(device):
    x, rho = torch.randn(2, 21, 8, device=device), torch.rand(2, 21, device=device)
    if impls("density_delta", x) == ["reference"]:
        pytest.skip(f"no compiled kernel: {why_not(BACKENDS[-1], x)}")
    torch.library.opcheck(torch.ops.tore_fast.density_delta, (x, rho, rho > 0.3, True))


def test_errors():
    x, rho = torch.zeros(1, 4, 2), torch.zeros(1, 4)
    with pytest.raises(ValueError, match=r"density_delta: rho must be \[B, N\] = \[1, 4\]"):
        density_delta(x, rho[:, :3])
    with pytest.raises(ValueError, match="tie must be one of"):
        density_delta(x, rho, tie="first")
    with pytest.raises(TypeError, match="noise must be"):
        density_delta(x, rho, noise=torch.Generator())
