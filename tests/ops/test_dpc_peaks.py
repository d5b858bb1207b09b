"""The CPU shortcuts of dpc_knn_cluster: what the neighbour lists decide is, bit for bit, what full passes decide.

For more than 384 tokens, or with a mask, the kernel takes delta and the cluster of most tokens from the k nearest
neighbours and runs the full comparison for density peaks and unresolved tokens only. density_delta (which always
compares all pairs of the triangle) and distances in exact arithmetic are the independent answers.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.clustering import cluster_by_rank, grid_points, walk

from tore_fast.ops import density_delta, dpc_knn_cluster
from tore_fast.ops.dpc_knn_cluster import why_not

pytestmark = [
    pytest.mark.cpu_kernels,
    pytest.mark.skipif(why_not("cpu", torch.empty(1, 1, 1)) is not None, reason="the CPU kernels are not built"),
]


def points(kind: str, batch: int, tokens: int, channels: int) -> torch.Tensor:
    if kind == "grid":  # small integers: many exact ties of distance and density
        return grid_points(batch, tokens, channels)
    if kind == "copies":  # every point several times: distances 0, whole lists of copies
        return torch.randn(batch, tokens, channels)[:, torch.randint(0, 1 + tokens // 4, (tokens,))]
    return walk(batch, tokens, channels) if kind == "walk" else torch.randn(batch, tokens, channels)


def check(x: torch.Tensor, count: int, k: int, tie: str = "index", mask=None, noise=None, exclude=None) -> None:
    out = dpc_knn_cluster(x, count, k, mask, exclude, tie, noise, order="score", impl="cpu")
    assert torch.equal(out.delta, density_delta(x, out.rho, mask, tie, impl="cpu").delta)
    score = out.rho * out.delta
    if exclude is not None:
        score[:, exclude] = -torch.inf
    assert torch.equal(out.score, score)
    exact = bool((x == x.round()).all())  # integers: float32 distances are exact and ties are ties
    want = torch.from_numpy(cluster_by_rank(x.double().numpy(), out.centers.numpy()))
    if mask is not None:
        want = torch.where(mask | (out.centers[:, None] == torch.arange(x.shape[1])[:, None]).any(-1), want, 0)
    different = out.cluster != want
    if exact:
        assert not different.any()
    else:  # only where two centres are as near as float32 can tell
        for b, i in different.nonzero().tolist():
            near, other = (
                x[b, out.centers[b, c]].double().sub(x[b, i]).norm() for c in (out.cluster[b, i], want[b, i])
            )
            assert abs(near - other) <= 3e-7 * other


@pytest.mark.parametrize("kind", ["normal", "walk", "grid", "copies"])
@pytest.mark.parametrize("tie", ["index", "strict"])
def test_streamed(kind, tie):
    torch.manual_seed(0)
    for batch, tokens, channels, k in ((1, 900, 64, 5), (3, 401, 3, 1), (2, 500, 7, 9)):
        check(points(kind, batch, tokens, channels), tokens // 4, k, tie)


@pytest.mark.parametrize("kind", ["normal", "walk", "grid", "copies"])
def test_masks_noise_and_exclusion(kind):
    torch.manual_seed(1)
    x = points(kind, 3, 600, 8)
    check(x, 150, 5, noise=torch.rand(3, 600) * 0.05)
    check(x, 150, 5, exclude=[0, 17, 599])
    for share in (0.9, 0.5, 0.02):  # the last leaves images with fewer real tokens than neighbours or centres
        mask = torch.rand(3, 600) < share
        check(x, 150, 5, mask=mask)
        check(x[:, :50], 13, 5, mask=mask[:, :50], noise=torch.rand(3, 50) * 0.05)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(385, 700),
    channels=st.integers(1, 20),
    k=st.integers(1, 32),
    share=st.floats(0.01, 1),
    kind=st.sampled_from(["normal", "walk", "grid", "copies"]),
    tie=st.sampled_from(["index", "strict"]),
    seed=st.integers(0, 99),
    masked=st.booleans(),
    noisy=st.booleans(),
)
def test_any_input(batch, tokens, channels, k, share, kind, tie, seed, masked, noisy):
    torch.manual_seed(seed)
    mask = torch.rand(batch, tokens) < 0.8 if masked else None
    noise = torch.rand(batch, tokens) * 0.01 if noisy else None
    check(points(kind, batch, tokens, channels), max(1, int(tokens * share)), k, tie, mask, noise)


def test_parts_are_the_op_on_each_part():
    torch.manual_seed(2)
    x = walk(2, 1000, 6)
    whole = dpc_knn_cluster(x, 200, parts=2, impl="cpu")
    for part in range(2):
        own = slice(500 * part, 500 * part + 500)
        alone = dpc_knn_cluster(x[:, own].contiguous(), 100, impl="cpu")
        assert torch.equal(whole.cluster[:, own], alone.cluster + 100 * part) and torch.equal(
            whole.delta[:, own], alone.delta
        )
