"""dpc_knn_cluster_merge: equal to the two ops one after the other, bits and gradients; every option; hostile inputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.clustering import impls
from ops.test_cluster_merge import one_hot_merge

from tore_fast.ops import cluster_merge, cluster_merge_tokens, dpc_knn_cluster, dpc_knn_cluster_merge
from tore_fast.ops.dpc_knn_cluster_merge import BACKENDS, why_not

OP = "dpc_knn_cluster_merge"


def case(batch, tokens, channels, cells=0, device="cpu", dtype=torch.float32):
    x = torch.randn(batch, tokens, channels, device=device, dtype=dtype)
    dictionary = (torch.randint(0, tokens, (batch, cells), device=device), torch.rand(batch, cells, device=device))
    return x, torch.randn(batch, tokens, device=device).exp(), *(dictionary if cells else (None, None))


@pytest.mark.parametrize(
    "batch,tokens,channels,count",
    [(1, 1, 1, 1), (2, 17, 3, 5), (2, 49, 130, 13), (1, 196, 8, 49), (2, 300, 20, 75), (0, 9, 4, 3)],
)
def test_equals_the_two_ops(device, batch, tokens, channels, count):
    x, weight, idx_token, agg_weight = case(batch, tokens, channels, 90, device)
    k = min(5, tokens)
    for impl in impls(OP, x, k, count):
        for w, i, a in ((weight, idx_token, agg_weight), (None, None, None)):
            out = dpc_knn_cluster_merge(x, count, k, w, i, a, impl=impl)
            clusters = dpc_knn_cluster(x, count, k, impl=impl)
            for name in clusters._fields:
                assert torch.equal(getattr(out, name), getattr(clusters, name)), (impl, name)
            want, share = one_hot_merge(x, out.cluster, count, w)
            torch.testing.assert_close(out.merged.double(), want, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(out.norm_weight.double(), share, rtol=1e-6, atol=1e-12)
            if i is None:
                assert out.idx_token.shape == out.agg_weight.shape == (batch, 0)
            else:
                assert torch.equal(out.idx_token, clusters.cluster.gather(1, i))
                torch.testing.assert_close(out.agg_weight, a * out.norm_weight.gather(1, i))


def test_options(device):
    x, weight, *_ = case(2, 60, 8, device=device)
    mask = torch.rand(2, 60, device=device) < 0.7
    options = dict(exclude=[3, 40], tie="strict", noise=0.01 * torch.rand(2, 60, device=device), order="score")
    for impl in impls(OP, x):
        for more in ({}, dict(mask=mask, masked=-1)):
            out = dpc_knn_cluster_merge(x, 11, 4, weight, **options, **more, impl=impl)
            clusters = dpc_knn_cluster(x, 11, 4, **options, **more, impl=impl)
            assert torch.equal(out.centers, clusters.centers) and torch.equal(out.cluster, clusters.cluster)
            want = cluster_merge(x, clusters.cluster, 11, weight, impl=impl)
            torch.testing.assert_close(out.merged, want.merged, rtol=1e-5, atol=1e-6)


def test_gradients(device):
    x, weight, idx_token, agg_weight = case(2, 40, 6, 50, device)
    g = torch.randn(2, 7, 6, device=device)
    tiny = [t[:1, :9, :n].double().contiguous().requires_grad_() for t, n in ((x, 2), (weight[..., None], 1))]
    assert torch.autograd.gradcheck(
        lambda a, b: dpc_knn_cluster_merge(a, 3, 2, b[..., 0], impl="reference").merged, tiny
    )
    exact = [t.double().requires_grad_() for t in (x, weight)]
    chosen = dpc_knn_cluster(x, 7, 5).cluster
    want = torch.autograd.grad(one_hot_merge(exact[0], chosen, 7, exact[1])[0], exact, g.double())
    for impl in impls(OP, x):
        leaves = [t.detach().requires_grad_() for t in (x, weight)]
        out = dpc_knn_cluster_merge(leaves[0], 7, 5, leaves[1], idx_token, agg_weight, impl=impl)
        for a, b in zip(torch.autograd.grad(out.merged, leaves, g), want, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)
        assert not any(t.requires_grad for t in out[1:])
        (alone,) = torch.autograd.grad(dpc_knn_cluster_merge(leaves[0], 7, 5, impl=impl).merged, leaves[:1], g)
        (ref,) = torch.autograd.grad(one_hot_merge(exact[0], chosen, 7, None)[0], exact[:1], g.double())
        torch.testing.assert_close(alone.double(), ref, rtol=1e-5, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 80), st.integers(1, 40), st.integers(0, 999))
def test_any_shape(batch, tokens, channels, seed):
    torch.manual_seed(seed)
    x, weight, idx_token, agg_weight = case(batch, tokens, channels, 30)
    count, k = -(-tokens // 4), min(5, tokens)
    for impl in impls(OP, x, k):
        out = dpc_knn_cluster_merge(x, count, k, weight, idx_token, agg_weight, impl=impl)
        want = cluster_merge_tokens(x, out.cluster, count, weight, idx_token, agg_weight, impl=impl)
        for a, b in zip(out[:4], want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_half_types_strided_and_non_finite(device):
    wide = torch.randn(64, 2, 32, device=device).transpose(0, 1)[..., ::2]
    for dtype, tol in ((torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)):
        x = wide.to(dtype)
        spoilt = x.clone()
        spoilt[0, ::3, 2] = float("nan")
        for impl in impls(OP, x):
            out = dpc_knn_cluster_merge(x, 16, impl=impl)
            assert out.merged.dtype == dtype
            torch.testing.assert_close(
                out.merged.double(), one_hot_merge(x, out.cluster, 16, None)[0], rtol=tol, atol=tol
            )
            bad = dpc_knn_cluster_merge(spoilt, 16, impl=impl)
            assert ((bad.cluster >= 0) & (bad.cluster < 16)).all() and bad.norm_weight.isfinite().all()


def test_opcheck(device):
    x, weight, idx_token, agg_weight = case(2, 12, 4, 30, device)
    if impls(OP, x) == ["reference"]:
        pytest.skip(f"no compiled kernel: {why_not(BACKENDS[-1], x)}")
    x.requires_grad_(), weight.requires_grad_()
    op = torch.ops.tore_fast.dpc_knn_cluster_merge
    torch.library.opcheck(op, (x, 3, 2, None, None, None, False, True, 0, weight, idx_token, agg_weight))
    torch.library.opcheck(op, (x, 3, 2, x[..., 0] > 0, None, None, True, False, -1, None, None, None))


def test_errors():
    x, weight, idx_token, agg_weight = case(2, 12, 4, 30)
    for text, kwargs in (
        ("num_clusters must be in 1..12", dict(num_clusters=13)),
        ("exclude must hold token indices", dict(num_clusters=3, exclude=12)),
        (r"weight must be \[B, N\]", dict(num_clusters=3, weight=weight[:, :5])),
        ("idx_token and agg_weight come together", dict(num_clusters=3, idx_token=idx_token)),
        ("agg_weight must be", dict(num_clusters=3, idx_token=idx_token, agg_weight=agg_weight[:, :5])),
    ):
        with pytest.raises(ValueError, match=f"{OP}: .*{text}"):
            dpc_knn_cluster_merge(x, **kwargs)
