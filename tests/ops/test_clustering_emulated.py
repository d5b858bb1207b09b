"""The CUDA clustering kernels, compiled by g++ and run by tests/cuda_emulator, against the plain torch references.

This needs no GPU and no CUDA toolkit: what the emulator models and refuses stands in cuda_emulator/cuda_runtime_api.h.
`pytest tests/ops --emulated` runs the tests of the public functions on the same kernels.
"""

from __future__ import annotations

import pytest
import torch
from ops import emulated
from ops.clustering import grid_points, walk

from tore_fast.ops.reference.cluster_merge import cluster_merge_reference
from tore_fast.ops.reference.density_delta import density_delta_reference
from tore_fast.ops.reference.dpc_knn_cluster import dpc_knn_cluster_reference
from tore_fast.ops.reference.knn_density import knn_density_reference
from tore_fast.ops.reference.token_map import cell_mean_reference, cell_pixels, token_csr_reference

pytestmark = pytest.mark.skipif(emulated.missing, reason=emulated.NEEDS)


@pytest.fixture(scope="module")
def lib():
    """The ops of csrc/torch_cuda for CPU tensors."""
    return emulated.kernels()


def dpc(lib, x, count, k, mask=None, exclude=None, noise=None, strict=False, by_index=True, masked=0):
    return lib.dpc_knn_cluster(x, count, k, mask, exclude, noise, strict, by_index, masked)


def compare(got, want):
    assert torch.equal(got[0], want[0]), "centers"
    assert torch.equal(got[1], want[1]), "cluster"
    for a, b in zip(got[2:], want[2:], strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=5e-6, atol=1e-12)


@pytest.mark.parametrize("tokens,channels,k", [(1, 1, 1), (63, 5, 2), (70, 33, 5), (130, 64, 7), (129, 36, 20)])
@pytest.mark.parametrize("masked", [False, True])
def test_density_and_delta(lib, tokens, channels, k, masked):
    x = torch.randn(2, tokens, channels)
    mask = (torch.rand(2, tokens) < 0.6) if masked else None
    if masked and tokens > 1:
        mask[1], mask[1, :2] = False, True  # fewer real tokens than neighbours
    rho = lib.knn_density(x, k, mask)
    torch.testing.assert_close(rho.double(), knn_density_reference(x.double(), k, mask), rtol=3e-6, atol=1e-12)
    for strict in (False, True):
        delta, parent = lib.density_delta(x, rho, mask, strict)
        want_delta, want_parent = density_delta_reference(x.double(), rho.double(), mask, strict)
        assert torch.equal(parent, want_parent)
        torch.testing.assert_close(delta.double(), want_delta, rtol=5e-6, atol=0)


@pytest.mark.parametrize(
    "tokens,channels,k",
    [
        (1, 3, 1),
        (2, 4, 2),
        (31, 8, 5),
        (49, 70, 5),
        (64, 32, 2),
        (81, 130, 2),
        (96, 3, 5),
        (97, 40, 5),
        (243, 36, 2),
        (256, 12, 8),
    ],
)
def test_one_launch(lib, tokens, channels, k):
    x, count = torch.randn(2, tokens, channels), -(-tokens // 4)
    emulated.setup()
    dpc(lib, x, count, k)
    assert emulated.launches() == 1
    for by_index in (True, False):
        compare(
            dpc(lib, x, count, k, by_index=by_index), dpc_knn_cluster_reference(x.double(), count, k, by_index=by_index)
        )


def test_one_launch_options(lib):
    x = torch.randn(2, 60, 12)
    exclude = torch.rand(2, 60) < 0.2
    noise = 0.01 * torch.rand(2, 60)
    want = dpc_knn_cluster_reference(x.double(), 11, 3, None, exclude, noise, True, False)
    compare(dpc(lib, x, 11, 3, None, exclude, noise, True, False), want)


@pytest.mark.parametrize("tokens,masked", [(257, False), (70, True), (300, True)])
def test_streamed(lib, tokens, masked):
    x, count = torch.randn(2, tokens, 20), tokens // 4
    mask = (torch.rand(2, tokens) < 0.7) if masked else None
    exclude, noise = torch.rand(2, tokens) < 0.1, 0.01 * torch.rand(2, tokens)
    compare(dpc(lib, x, count, 5, mask), dpc_knn_cluster_reference(x.double(), count, 5, mask))
    args = (count, 5, mask, exclude, noise, True, False, -1)
    compare(dpc(lib, x, *args), dpc_knn_cluster_reference(x.double(), *args))


@pytest.mark.parametrize(
    "kind,k,dtype",
    [
        ("random", 1, torch.float32),
        ("random", 5, torch.float32),
        ("walk", 5, torch.float32),
        ("grid", 2, torch.float32),
        ("grid", 5, torch.float32),
        ("copies", 8, torch.float32),
        ("walk", 5, torch.float16),
        ("copies", 5, torch.float16),
    ],
)
def test_neighbour_lists_decide_what_full_passes_decide(lib, kind, k, dtype):
    """Bit for bit: a mask of all tokens takes the way without lists."""
    x = {
        "random": lambda: torch.randn(2, 260, 8),
        "walk": lambda: walk(2, 260, 8),
        "grid": lambda: grid_points(2, 260, 8),
        "copies": lambda: torch.randn(2, 260, 8)[:, torch.randint(0, 60, (260,))],
    }[kind]().to(dtype)
    every = torch.ones(2, 260, dtype=torch.bool)
    exclude, noise = torch.rand(2, 260) < 0.2, 0.01 * torch.rand(2, 260)
    for options in ((None, None, False, True), (exclude, noise, True, False)):
        got, want = (dpc(lib, x, 70, k, mask, *options) for mask in (None, every))
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize(
    "kind,tokens,channels,k",
    [(kind, 300, 13, 5) for kind in ("random", "copies", "grid", "outlier", "large", "tiny", "overflow", "nan")]
    + [("walk", 270, 72, 6), ("close", 257, 4, 2)],
)
def test_float32_filter_changes_no_bit(lib, kind, tokens, channels, k):
    """The filter by float16 products against direct differences alone, which a mask of all tokens asks for."""
    x = torch.randn(2, tokens, channels)
    if kind == "walk":
        x = walk(2, tokens, channels)
    elif kind == "close":  # nearer to each other than float16 can tell
        x = torch.randn(2, 1, channels) + 1e-4 * x
    elif kind == "copies":
        x = x[:, torch.randint(0, 60, (tokens,))]
    elif kind == "grid":
        x = grid_points(2, tokens, channels)
    elif kind == "outlier":
        x[0, 17], x[1, 40:43] = 50.0, -30.0
    elif kind == "large":
        x *= 1e3
    elif kind == "tiny":
        x *= 1e-6
    elif kind == "overflow":
        x[0, 5] = 1e6
        x[1] *= 1e5
    elif kind == "nan":
        x[0, 3, 1] = float("nan")
    every = torch.ones(2, tokens, dtype=torch.bool)
    emulated.setup()
    got = lib.knn_density(x, k, None)
    assert emulated.launches() == 4  # rounding, products, the nearest again, open rows
    want = lib.knn_density(x, k, every)
    if kind == "nan":  # a token near nobody: density 0, with a mask that of one without missing neighbours
        assert got[0, 3] == 0
        want[0, 3] = 0
    assert torch.equal(got, want)
    if kind != "nan":
        for a, b in zip(dpc(lib, x, tokens // 4, k), dpc(lib, x, tokens // 4, k, every), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("tokens", [90, 270])
@pytest.mark.parametrize("strict", [False, True])
def test_exact_ties(lib, tokens, strict):
    x = grid_points(1, tokens, 4)
    got = dpc(lib, x, tokens // 4, 4, strict=strict, by_index=False)
    rho = got[2]
    delta, _ = density_delta_reference(x.double(), rho.double(), None, strict)
    torch.testing.assert_close(got[3].double(), delta, rtol=1e-6, atol=1e-7)
    ranking = got[4].sort(dim=1, descending=True, stable=True).indices
    assert torch.equal(got[0], ranking[:, : tokens // 4])
    d = torch.cdist(x.double(), x.double()).gather(1, got[0][..., None].expand(-1, -1, tokens))
    nearest = (d == d.amin(1, keepdim=True)).int().argmax(1)
    nearest.scatter_(1, got[0], torch.arange(tokens // 4)[None])
    assert torch.equal(got[1], nearest)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tokens,channels", [(49, 36), (260, 10)])
def test_half_types(lib, dtype, tokens, channels):
    x = torch.randn(1, tokens, channels).to(dtype)
    compare(dpc(lib, x, tokens // 4, 5), dpc_knn_cluster_reference(x.double(), tokens // 4, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [8, 72, 200])
def test_matrix_units(lib, dtype, channels):
    """16-bit tokens in whole 16-byte pieces: norms and products, density, delta and nearest centre of 150 tokens."""
    x = torch.randn(2, 150, channels).to(dtype)
    x[1, 140:] = x[1, :10]  # copies
    mask = torch.rand(2, 150) < 0.8
    rho = lib.knn_density(x, 5, None)
    want = knn_density_reference(x.double(), 5)
    torch.testing.assert_close(rho.double(), want, rtol=2e-5, atol=1e-9)
    delta, parent = lib.density_delta(x, want.float(), None, False)
    want_delta, want_parent = density_delta_reference(x.double(), want.float())
    copied = torch.zeros(2, 150, dtype=torch.bool)
    copied[1, 140:] = copied[1, :10] = True
    assert torch.equal(parent[~copied], want_parent[~copied])
    torch.testing.assert_close(delta[~copied].double(), want_delta[~copied], rtol=3e-5, atol=0)
    assert (delta[1, 140:] < 2e-3).all()  # sqrt of the rounding of norms and products
    centers, cluster, *_ = dpc(lib, x, 30, 5, mask, by_index=False)
    d = torch.cdist(x.double(), x.double()).gather(1, centers[..., None].expand(-1, -1, 150))
    chosen = d.gather(1, cluster[:, None])[:, 0]
    own = torch.zeros_like(mask).scatter(1, centers, True)
    assert (chosen <= d.amin(1) * (1 + 1e-4) + 2e-3)[mask & ~own].all()
    assert (cluster[~mask & ~own] == 0).all()


@pytest.mark.parametrize("tokens", [60, 260])
def test_non_finite_input_keeps_indices_in_range(lib, tokens):
    x = walk(2, tokens, 8)
    x[0, ::2, 3] = float("nan")
    x[1, 5:50] = float("inf")
    for mask in (None, torch.rand(2, tokens) < 0.5):
        centers, cluster, *_ = dpc(lib, x, 12, 5, mask)
        assert ((centers >= 0) & (centers < tokens)).all() and (centers.diff(dim=1) > 0).all()
        assert ((cluster >= 0) & (cluster < 12)).all()


def test_thread_order_does_not_matter(lib):
    """Other interleavings of the threads between barriers give the same bits: no race."""
    small, large = walk(2, 100, 40), walk(1, 270, 40)
    outs = []
    for seed in (0, 1, 2, 3, 5):
        emulated.setup(seed=seed)
        outs.append([*dpc(lib, small, 25, 5), *dpc(lib, large, 60, 5)])
    for other in outs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outs[0], other, strict=True))


def test_small_shared_memory_streams_instead(lib):
    try:
        for tokens, one in ((81, True), (200, False)):
            emulated.setup(shared_limit=48 * 1024)
            x = torch.randn(1, tokens, 6)
            compare(dpc(lib, x, tokens // 4, 5), dpc_knn_cluster_reference(x.double(), tokens // 4, 5))
            assert (emulated.launches() == 1) == one
    finally:
        emulated.setup()


@pytest.mark.parametrize("dtype,tol", [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)])
@pytest.mark.parametrize("tokens,channels,count", [(1, 1, 1), (100, 37, 23), (70, 300, 400)])
def test_merge(lib, dtype, tol, tokens, channels, count):
    x = torch.randn(2, tokens, channels).to(dtype)
    cluster = torch.randint(-1, count + 1, (2, tokens))
    weight = torch.rand(2, tokens) + 0.1
    idx_token, agg_weight = torch.randint(0, tokens, (2, 150)), torch.rand(2, 150)
    for w in (None, weight):
        merged, share, total, new_idx, new_agg = lib.cluster_merge(x, cluster, count, w, idx_token, agg_weight)
        leaves = x.double().requires_grad_(), (torch.ones(2, tokens) if w is None else w).double().requires_grad_()
        want, want_share = cluster_merge_reference(leaves[0], cluster, count, leaves[1])
        torch.testing.assert_close(merged.double(), want, rtol=tol, atol=tol)
        torch.testing.assert_close(share.double(), want_share, rtol=1e-6, atol=0)
        assert torch.equal(new_idx, cluster.gather(1, idx_token))
        torch.testing.assert_close(new_agg, agg_weight * share.gather(1, idx_token))

        grad = torch.randn(2, count, channels).to(dtype)
        grad_x, grad_weight = lib.cluster_merge_backward(grad, x, cluster, share, total, merged)
        want_x, want_weight = torch.autograd.grad(want, leaves, grad.double())
        torch.testing.assert_close(grad_x.double(), want_x, rtol=tol, atol=tol)
        scale = want_weight.abs().amax() + 1
        torch.testing.assert_close(grad_weight.double() / scale, want_weight / scale, rtol=10 * tol, atol=10 * tol)


@pytest.mark.parametrize("count,groups", [(1, 1), (33, 5), (500, 700), (1000, 3)])
def test_group_by_id(lib, count, groups):
    ids = torch.randint(0, groups, (2, count))
    row_ptr, items = lib.token_map_csr(ids, groups)
    want = token_csr_reference(ids, groups)
    assert torch.equal(row_ptr, want[0]) and torch.equal(items, want[1])
    ids[:, ::2] = -1
    ids[0, 0] = groups
    row_ptr, items = lib.token_map_csr(ids, groups)
    for b in range(2):
        inside = row_ptr[b, groups]
        assert inside == ((ids[b] >= 0) & (ids[b] < groups)).sum() and (items[b, inside:] == -1).all()
        assert (ids[b, items[b, :inside].long()].diff() >= 0).all()


@pytest.mark.parametrize("grid,size", [((15, 11), (8, 6)), ((16, 12), (4, 3)), ((9, 1), (2, 1))])
@pytest.mark.parametrize("channels", [3, 140])
def test_token_map(lib, grid, size, channels):
    tokens, cells, pixels = 9, grid[0] * grid[1], size[0] * size[1]
    idx = torch.randint(0, tokens, (2, cells))
    pix = cell_pixels(grid, size).expand(2, -1).contiguous()
    csr = token_csr_reference(idx, tokens)
    x, y, weight = torch.randn(2, tokens, channels), torch.randn(2, pixels, channels), torch.rand(2, cells)
    scale = torch.rand(2, tokens)

    def run(source, ptr, members, src, w, src_scale, num_dst, normalize):
        sizes = [*grid, *size]
        out, _ = lib.token_map(source, None, ptr, members, src, None, None, w, src_scale, sizes, num_dst, normalize)
        return out.double()

    tol = dict(rtol=1e-5, atol=1e-6)
    to_map = run(x, None, None, idx, None, None, pixels, True)
    torch.testing.assert_close(to_map, cell_mean_reference(x.double(), idx, pix, pixels), **tol)
    to_tokens = run(y, *csr, None, None, None, tokens, True)
    torch.testing.assert_close(to_tokens, cell_mean_reference(y.double(), pix, idx, tokens), **tol)
    other = torch.randint(0, tokens, (2, cells))
    resampled = run(x, *csr, other, weight, None, tokens, True)
    torch.testing.assert_close(resampled, cell_mean_reference(x.double(), other, idx, tokens, weight), **tol)
    backward = run(x, None, None, idx, weight, scale, pixels, False)
    want = torch.zeros(2, pixels, channels, dtype=torch.float64)
    rows = (x * scale[..., None]).double().gather(1, idx[..., None].expand(-1, -1, channels)) * weight[..., None]
    want.scatter_add_(1, pix[..., None].expand(-1, -1, channels), rows)
    torch.testing.assert_close(backward, want, **tol)


def dpc_merge(lib, x, count, k, weight=None, cells=0, mask=None, masked=0):
    """All eleven results of dpc_knn_cluster_merge, and the token dictionary that went in."""
    batch, tokens, channels = x.shape
    idx_token, agg_weight = torch.randint(0, tokens, (batch, cells)), torch.rand(batch, cells)
    dictionary = (weight, idx_token, agg_weight)
    out = lib.dpc_knn_cluster_merge(x, count, k, mask, None, None, False, True, masked, *dictionary)
    out = (*out[5:], *out[:5])  # clusters first
    return out, idx_token, agg_weight


@pytest.mark.parametrize("dtype,tol", [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)])
@pytest.mark.parametrize(
    "tokens,channels,weighted",
    [(1, 1, False), (49, 130, True), (96, 32, False), (97, 7, True), (200, 24, True), (256, 5, False), (270, 9, True)],
)
def test_one_launch_merge(lib, dtype, tol, tokens, channels, weighted):
    """Clusters as without the merge, bit for bit; merged tokens, shares and dictionary as the reference has them."""
    x, count, k = torch.randn(2, tokens, channels).to(dtype), -(-tokens // 4), min(5, tokens)
    weight = torch.rand(2, tokens) + 0.1 if weighted else None
    out, idx_token, agg_weight = dpc_merge(lib, x, count, k, weight, 150)
    plain = dpc(lib, x, count, k)
    assert all(torch.equal(a, b) for a, b in zip(out, plain, strict=False))
    cluster, (merged, share, total, new_idx, new_agg) = out[1], out[5:]
    want, want_share = cluster_merge_reference(x.double(), cluster, count, None if weight is None else weight.double())
    torch.testing.assert_close(merged.double(), want, rtol=tol, atol=tol)
    torch.testing.assert_close(share.double(), want_share, rtol=1e-6, atol=0)
    sums = torch.zeros(2, count).scatter_add(1, cluster, torch.ones(2, tokens) if weight is None else weight)
    torch.testing.assert_close(total, sums + 1e-6)
    assert torch.equal(new_idx, cluster.gather(1, idx_token))
    torch.testing.assert_close(new_agg, agg_weight * share.gather(1, idx_token))


def test_merge_of_masked_and_spoilt_tokens(lib):
    x, mask = torch.randn(2, 70, 8), torch.rand(2, 70) < 0.6
    out, *_ = dpc_merge(lib, x, 12, 5, None, 90, mask, -1)
    assert (out[1][~mask] == -1).all() and (out[6][~mask] == 0).all() and out[5].isfinite().all()
    x[0, ::2, 3], x[1, 5:50] = float("nan"), float("inf")
    out, *_ = dpc_merge(lib, x, 12, 5, None, 90)
    assert ((out[1] >= 0) & (out[1] < 12)).all() and ((out[8] >= 0) & (out[8] < 12)).all()
    assert out[6].isfinite().all() and out[6].sum(1).allclose(torch.tensor(12.0), atol=1e-4)
