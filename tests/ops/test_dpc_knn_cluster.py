"""dpc_knn_cluster: statistics, centres and clusters against independent formulas; every option; hostile inputs."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.clustering import cluster_by_rank, delta_loop, density, grid_points, impls, walk

from tore_fast.ops import cluster_merge, density_delta, dpc_knn_cluster, knn_density
from tore_fast.ops.dpc_knn_cluster import BACKENDS, why_not

OP = "dpc_knn_cluster"


def check_consistent(x, out, num_clusters, impl):
    """Centres are the top of the returned score, clusters the nearest of the returned centres."""
    score = out.score.cpu().double().numpy()
    for b in range(x.shape[0]):
        order = np.lexsort((np.arange(x.shape[1]), -score[b]))[:num_clusters]
        assert out.centers[b].tolist() == order.tolist(), impl
    want = cluster_by_rank(x.cpu().double().numpy(), out.centers.cpu().numpy())
    assert np.array_equal(out.cluster.cpu().numpy(), want), impl


@pytest.mark.parametrize(
    "batch,tokens,channels,count,k",
    [
        (1, 1, 1, 1, 1),
        (2, 17, 3, 5, 2),
        (2, 49, 512, 13, 5),
        (3, 100, 20, 100, 5),
        (2, 385, 32, 97, 5),
        (1, 700, 9, 175, 2),
        (0, 9, 4, 3, 2),
    ],
)
def test_against_formulas(device, batch, tokens, channels, count, k):
    x = torch.randn(batch, tokens, channels)
    rho = density(x.numpy(), k)
    for impl in impls(OP, x.to(device), k):
        out = dpc_knn_cluster(x.to(device), count, k, order="score", impl=impl)
        torch.testing.assert_close(out.rho.cpu().double(), torch.from_numpy(rho), rtol=3e-6, atol=1e-12)
        if tokens < 200:
            delta, _ = delta_loop(x.numpy(), out.rho.cpu().numpy(), None, False)
            torch.testing.assert_close(out.delta.cpu().double(), torch.from_numpy(delta), rtol=5e-6, atol=1e-12)
        check_consistent(x, out, count, impl)


@pytest.mark.parametrize("tokens", [150, 500])  # distances kept in a scratch block / streamed
def test_is_the_sum_of_its_parts(device, tokens):
    x = walk(2, tokens, 40).to(device)
    for impl in impls(OP, x, 5):
        out = dpc_knn_cluster(x, tokens // 4, impl=impl)
        rho = knn_density(x, 5, impl=impl)
        delta = density_delta(x, rho, impl=impl).delta
        torch.testing.assert_close(out.rho, rho, rtol=1e-6, atol=0)
        torch.testing.assert_close(out.delta, delta, rtol=1e-6, atol=0)
        torch.testing.assert_close(out.score, out.rho * out.delta, rtol=1e-6, atol=0)


@pytest.mark.parametrize("tokens", [48, 400])
@pytest.mark.parametrize("tie", ["index", "strict"])
def test_exact_ties(device, tokens, tie):
    x = grid_points(2, tokens, 4)
    want = dpc_knn_cluster(x.double(), tokens // 4, 3, tie=tie, order="score", impl="reference")
    for impl in impls(OP, x.to(device), 3):
        out = dpc_knn_cluster(x.to(device), tokens // 4, 3, tie=tie, order="score", impl=impl)
        check_consistent(x, out, tokens // 4, impl)
        torch.testing.assert_close(out.delta.cpu().double(), want.delta, rtol=1e-6, atol=1e-7)


def test_order_by_index_renumbers(device):
    x = torch.randn(2, 60, 8, device=device)
    for impl in impls(OP, x, 5):
        ranked = dpc_knn_cluster(x, 15, order="score", impl=impl)
        sorted_ = dpc_knn_cluster(x, 15, impl=impl)
        assert torch.equal(sorted_.centers, ranked.centers.sort(1).values)
        assert torch.equal(sorted_.centers.gather(1, sorted_.cluster), ranked.centers.gather(1, ranked.cluster))


def test_exclude(device):
    x = torch.randn(2, 60, 8, device=device)
    for impl in impls(OP, x, 5):
        plain = dpc_knn_cluster(x, 15, order="score", impl=impl)
        best = plain.centers[:, :2]
        out = dpc_knn_cluster(x, 13, exclude=best, order="score", impl=impl)
        assert torch.equal(out.centers, plain.centers[:, 2:])
        assert torch.equal(out.score.isinf(), torch.zeros_like(out.score, dtype=torch.bool).scatter(1, best, True))
        for same in (7, [7], torch.tensor([7], device=device)):
            assert 7 not in dpc_knn_cluster(x, 59, exclude=same, impl=impl).centers


@pytest.mark.parametrize("tokens", [49, 450])
def test_mask(device, tokens):
    x = torch.randn(3, tokens, 16)
    mask = torch.rand(3, tokens) < 0.7
    mask[1] = True
    rho = density(x.numpy(), 5, mask.numpy())
    want = dpc_knn_cluster(x.double(), 8, mask=mask, order="score", impl="reference")
    for impl in impls(OP, x.to(device), 5):
        out = dpc_knn_cluster(x.to(device), 8, mask=mask.to(device), order="score", impl=impl)
        torch.testing.assert_close(out.rho.cpu().double(), torch.from_numpy(rho), rtol=5e-6, atol=1e-12)
        torch.testing.assert_close(out.delta.cpu().double(), want.delta, rtol=5e-6, atol=0)
        assert torch.equal(out.centers.cpu(), want.centers) and torch.equal(out.cluster.cpu(), want.cluster)
        assert (out.cluster.cpu()[~mask] == 0).all()
        dropped = dpc_knn_cluster(x.to(device), 8, mask=mask.to(device), masked=-1, impl=impl).cluster.cpu()
        assert (dropped[~mask] == -1).all() and (dropped[mask] >= 0).all()


def test_more_centres_than_real_tokens(device):
    x = torch.randn(2, 20, 4, device=device)
    mask = torch.arange(20, device=device).expand(2, -1) < 3
    for impl in impls(OP, x, 2):
        out = dpc_knn_cluster(x, 6, 2, mask=mask, impl=impl)
        assert set(range(3)) <= set(out.centers[0].tolist())
        assert torch.equal(out.cluster.gather(1, out.centers), torch.arange(6, device=device).expand(2, -1))


def test_parts_are_independent(device):
    x = torch.randn(2, 64, 8, device=device)
    noise = 0.01 * torch.rand(2, 64, device=device)
    for impl in impls(OP, x, 5):
        out = dpc_knn_cluster(x, 16, noise=noise, parts=4, exclude=[3, 40], impl=impl)
        for part in range(4):
            cut = slice(16 * part, 16 * part + 16)
            exclude = {0: 3, 2: 8}.get(part)
            alone = dpc_knn_cluster(x[:, cut], 4, noise=noise[:, cut], exclude=exclude, impl=impl)
            assert torch.equal(out.cluster[:, cut], alone.cluster + 4 * part)
            assert torch.equal(out.centers[:, 4 * part : 4 * part + 4], alone.centers + 16 * part)
            assert torch.equal(out.delta[:, cut], alone.delta)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 80), st.integers(1, 40), st.integers(0, 999), st.booleans(), st.booleans())
def test_any_shape(batch, tokens, channels, seed, ties, strict):
    x = grid_points(batch, tokens, channels, seed=seed) if ties else walk(batch, tokens, channels, seed=seed)
    count, k = 1 + seed % tokens, min(1 + seed % 7, tokens)
    tie = "strict" if strict else "index"
    for impl in impls(OP, x, k)[1:]:
        out = dpc_knn_cluster(x, count, k, tie=tie, order="score", impl=impl)
        delta, _ = delta_loop(x.numpy(), out.rho.numpy(), None, strict)
        torch.testing.assert_close(out.delta.double(), torch.from_numpy(delta), rtol=5e-6, atol=1e-12)
        if ties:  # distances of walks may differ from float64 in the last bit, these are exact
            check_consistent(x, out, count, impl)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("tokens", [60, 400])
def test_non_finite_input_keeps_indices_in_range(device, bad, tokens):
    x = torch.randn(3, tokens, 8)
    x[0, 5] = bad
    x[1, ::2, 3] = bad
    x[2] = bad
    mask = torch.rand(3, tokens) < 0.7
    for impl in impls(OP, x.to(device), 5):
        for m in (None, mask.to(device)):
            out = dpc_knn_cluster(x.to(device), 12, mask=m, impl=impl)
            assert ((out.centers >= 0) & (out.centers < tokens)).all()
            assert (out.centers.sort(1).values.diff(dim=1) > 0).all()
            assert ((out.cluster >= 0) & (out.cluster < 12)).all()
            parent = density_delta(x.to(device), out.rho, m, impl=impl).parent
            assert ((parent >= -1) & (parent < tokens)).all()
            assert cluster_merge(x.to(device), out.cluster, 12, impl=impl).merged.shape == (3, 12, 8)


def test_same_bits_for_any_thread_count():
    x = torch.randn(1, 600, 24)
    threads = torch.get_num_threads()
    try:
        outs = []
        for n in (1, 2):
            torch.set_num_threads(n)
            outs.append([dpc_knn_cluster(x, 150, impl=impl) for impl in impls(OP, x, 5)[1:]])
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(*outs, strict=True):
        assert all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


@pytest.mark.cpu_kernels
def test_portable_loops(tmp_path):
    """The build of the loops without AVX2 gives the same clustering (another process: the choice is made once)."""
    x = torch.randn(2, 420, 70)
    if impls(OP, x, 5) == ["reference"]:
        pytest.skip(f"no compiled kernel: {why_not('cpu', x, 5)}")
    code = (
        "import sys, torch; from tore_fast.ops import dpc_knn_cluster as f; x = torch.load(sys.argv[1]); "
        "torch.save([tuple(f(x[:, :n], 60, impl='cpu')) for n in (200, 420)], sys.argv[2])"
    )
    torch.save(x, tmp_path / "x.pt")
    env = {**os.environ, "TORE_FAST_CPU": "portable"}
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "x.pt", tmp_path / "y.pt"], check=True, env=env, cwd=tmp_path
    )
    for n, got in zip((200, 420), torch.load(tmp_path / "y.pt"), strict=True):
        want = dpc_knn_cluster(x[:, :n], 60, impl="cpu")
        assert torch.equal(got[0], want.centers) and torch.equal(got[1], want.cluster)
        for a, b in zip(got[2:], want[2:], strict=True):
            torch.testing.assert_close(a, b, rtol=3e-6, atol=0)


def test_memory_is_linear_in_tokens():
    """N = 4000: one N x N matrix is 64 MB, the op may add 20 MB to the peak."""
    x = torch.randn(1, 4000, 4)
    if impls(OP, x, 5) == ["reference"]:
        pytest.skip(f"no compiled kernel: {why_not('cpu', x, 5)}")
    code = (
        "import resource, torch; from tore_fast.ops import dpc_knn_cluster as f; x = torch.randn(1, 4000, 4); "
        "f(x[:, :400], 9); a = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; f(x, 1000); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - a)"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd="/")
    assert int(out.stdout) < 20_000


def test_opcheck(device):
    x = torch.randn(2, 30, 8, device=device)
    if impls(OP, x, 3) == ["reference"]:
        pytest.skip(f"no compiled kernel: {why_not(BACKENDS[-1], x, 3)}")
    flags = torch.rand(2, 30, device=device) < 0.5
    op = torch.ops.tore_fast.dpc_knn_cluster
    torch.library.opcheck(op, (x, 7, 3, None, None, None, False, True, 0))
    torch.library.opcheck(op, (x, 7, 3, flags, ~flags, torch.rand(2, 30, device=device), True, False, -1))


def test_compiles_without_graph_break(device):
    """Clustering, weighted merge and the way back to a map in one graph, with gradients."""
    from tore_fast.ops import cluster_merge_tokens, token2map

    def step(x, weight):
        tokens = x.shape[1]
        clusters = dpc_knn_cluster(x, tokens // 4)
        cells = torch.arange(tokens, device=x.device).expand(x.shape[0], -1)
        out = cluster_merge_tokens(x, clusters.cluster, tokens // 4, weight, cells, torch.ones_like(weight))
        return token2map(out.merged, out.idx_token, (8, 8), (4, 4))

    x = torch.randn(2, 64, 16, device=device, requires_grad=True)
    weight = torch.rand(2, 64, device=device, requires_grad=True)
    compiled = torch.compile(step, fullgraph=True)
    got, want = compiled(x, weight), step(x, weight)
    torch.testing.assert_close(got, want)
    g = torch.randn_like(want)
    for a, b in zip(torch.autograd.grad(got, (x, weight), g), torch.autograd.grad(want, (x, weight), g), strict=True):
        torch.testing.assert_close(a, b)


def test_errors():
    x = torch.zeros(2, 12, 2)
    for text, kwargs in (
        ("num_clusters must be in 1..12", dict(num_clusters=13)),
        ("parts must divide", dict(num_clusters=4, parts=5)),
        ("k must be in 1..3", dict(num_clusters=4, parts=4, k=5)),
        ("order must be one of", dict(num_clusters=4, order="rank")),
        ("exclude must hold token indices in 0..11", dict(num_clusters=4, exclude=12)),
        ("12 tokens with 2 excluded", dict(num_clusters=11, exclude=[0, 1])),
        ("masked must be 0 or -1", dict(num_clusters=4, masked=3)),
        (r"noise must be \[B, N\]", dict(num_clusters=4, noise=torch.zeros(2, 11))),
    ):
        with pytest.raises(ValueError, match=f"dpc_knn_cluster: .*{text}"):
            dpc_knn_cluster(x, **kwargs)
