"""cluster_merge: every implementation against a one-hot matrix product, exact gradients, bookkeeping, hostile ids."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.clustering import impls

from tore_fast.ops import cluster_merge, cluster_merge_tokens
from tore_fast.ops.cluster_merge import BACKENDS, why_not


def one_hot_merge(x, cluster, count, weight):
    """Second formula, float64: Y = (diag(1 / W) A^T) X with A the weighted membership matrix."""
    x = x.double()
    weight = torch.ones(x.shape[:2], dtype=torch.float64, device=x.device) if weight is None else weight.double()
    member = (cluster[..., None] == torch.arange(count, device=x.device)) * weight[..., None]  # [B, N, M]
    share = member / (member.sum(1, keepdim=True) + 1e-6)
    return share.mT @ x, share.sum(2)


def case(batch, tokens, channels, count, device="cpu", dtype=torch.float32):
    x = torch.randn(batch, tokens, channels, device=device, dtype=dtype)
    cluster = torch.randint(0, count, (batch, tokens), device=device)
    return x, cluster, torch.randn(batch, tokens, device=device).exp()


@pytest.mark.parametrize(
    "batch,tokens,channels,count",
    [(1, 1, 1, 1), (2, 17, 3, 5), (3, 196, 130, 49), (2, 300, 64, 1), (1, 33, 7, 200), (0, 5, 3, 2)],
)
def test_against_one_hot(device, batch, tokens, channels, count):
    x, cluster, weight = case(batch, tokens, channels, count, device)
    for w in (None, weight):
        want, share = one_hot_merge(x, cluster, count, w)
        for impl in impls("cluster_merge", x):
            got = cluster_merge(x, cluster, count, w, impl=impl)
            torch.testing.assert_close(got.merged.double(), want, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(got.norm_weight.double(), share, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype,tol", [(torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)])
def test_half_types(device, dtype, tol):
    x, cluster, weight = case(2, 60, 24, 9, device, dtype)
    want, _ = one_hot_merge(x, cluster, 9, weight)
    for impl in impls("cluster_merge", x):
        got = cluster_merge(x, cluster, 9, weight, impl=impl).merged
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=tol, atol=tol)


def test_gradients(device):
    x, cluster, weight = case(2, 40, 11, 7, device, torch.float64)
    x.requires_grad_()
    weight = weight.double().detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: cluster_merge(a, cluster, 7, b, impl="reference").merged, (x, weight))
    leaves = x.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    g = torch.randn(2, 7, 11, device=device)
    want = torch.autograd.grad(one_hot_merge(x, cluster, 7, weight)[0], (x, weight), g.double())
    for impl in impls("cluster_merge", leaves[0]):
        got = torch.autograd.grad(cluster_merge(leaves[0], cluster, 7, leaves[1], impl=impl).merged, leaves, g)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)
        out = cluster_merge(leaves[0], cluster, 7, leaves[1], impl=impl)
        assert out.merged.requires_grad and not out.norm_weight.requires_grad
        (got,) = torch.autograd.grad(cluster_merge(leaves[0], cluster, 7, impl=impl).merged, leaves[:1], g)
        (ref,) = torch.autograd.grad(one_hot_merge(x, cluster, 7, None)[0], (x,), g.double())
        torch.testing.assert_close(got.double(), ref, rtol=1e-5, atol=1e-5)


def test_bookkeeping(device):
    x, cluster, weight = case(2, 20, 4, 6, device)
    idx_token = torch.randint(0, 20, (2, 90), device=device)
    agg_weight = torch.rand(2, 90, device=device)
    for impl in impls("cluster_merge", x):
        out = cluster_merge_tokens(x, cluster, 6, weight, idx_token, agg_weight, impl=impl)
        plain = cluster_merge(x, cluster, 6, weight, impl=impl)
        assert torch.equal(out.merged, plain.merged) and torch.equal(out.norm_weight, plain.norm_weight)
        assert torch.equal(out.idx_token, cluster.gather(1, idx_token))
        torch.testing.assert_close(out.agg_weight, agg_weight * plain.norm_weight.gather(1, idx_token))
        first = cluster_merge_tokens(
            x, cluster, 6, weight, torch.arange(20, device=device).expand(2, -1), torch.ones_like(weight), impl=impl
        )
        sums = torch.zeros(2, 6, device=device).scatter_add(1, first.idx_token, first.agg_weight)
        filled = sums > 0
        torch.testing.assert_close(sums[filled], torch.ones_like(sums[filled]), rtol=0, atol=1e-5)


def test_ids_outside_leave_their_tokens_out(device):
    x, cluster, weight = case(2, 30, 5, 4, device)
    cluster[:, ::3] = -1
    cluster[0, 1] = 4
    x[:, 0] = float("nan")  # also what such a token holds must not matter
    kept = (cluster >= 0) & (cluster < 4)
    want, _ = one_hot_merge(x.masked_fill(~kept[..., None], 0), cluster, 4, weight)
    x.requires_grad_()
    for impl in impls("cluster_merge", x):
        out = cluster_merge(x, cluster, 4, weight, impl=impl)
        torch.testing.assert_close(out.merged.double(), want, rtol=1e-5, atol=1e-6)
        assert (out.norm_weight[~kept] == 0).all()
        (grad,) = torch.autograd.grad(out.merged.sum(), x)
        assert (grad[~kept] == 0).all() and (grad[kept] != 0).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 90), st.integers(1, 40), st.integers(1, 60), st.integers(0, 99))
def test_any_shape(batch, tokens, channels, count, seed):
    torch.manual_seed(seed)
    x, cluster, weight = case(batch, tokens, channels, count)
    want, _ = one_hot_merge(x, cluster, count, weight)
    for impl in impls("cluster_merge", x):
        got = cluster_merge(x, cluster, count, weight, impl=impl).merged
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


def test_strided_and_repeatable(device):
    x, cluster, weight = case(2, 64, 16, 8, device)
    wide = torch.randn(64, 2, 32, device=device).transpose(0, 1)[..., ::2]
    for impl in impls("cluster_merge", x):
        a = cluster_merge(wide, cluster, 8, weight, impl=impl).merged
        assert torch.equal(a, cluster_merge(wide.contiguous(), cluster, 8, weight, impl=impl).merged)


def test_opcheck(device):
    x, cluster, weight = case(2, 12, 4, 3, device)
    if impls("cluster_merge", x) == ["reference"]:
        pytest.skip(f"no compiled kernel: {why_not(BACKENDS[-1], x)}")
    x.requires_grad_(), weight.requires_grad_()
    op = torch.ops.tore_fast.cluster_merge
    cells = torch.randint(0, 12, (2, 30), device=device)
    torch.library.opcheck(op, (x, cluster, 3, weight, cells, torch.rand(2, 30, device=device)))
    torch.library.opcheck(op, (x, cluster, 3, None, None, None))


def test_errors():
    x, cluster, weight = case(2, 12, 4, 3)
    with pytest.raises(ValueError, match=r"cluster_merge: cluster must be \[B, N\] = \[2, 12\]"):
        cluster_merge(x, cluster[:, :5], 3)
    with pytest.raises(ValueError, match=r"cluster_merge: weight must be \[B, N\]"):
        cluster_merge(x, cluster, 3, weight[..., None])
    with pytest.raises(TypeError, match="cluster must hold integers"):
        cluster_merge(x, cluster.float(), 3)
    with pytest.raises(ValueError, match="agg_weight must be"):
        cluster_merge_tokens(x, cluster, 3, weight, cluster, weight[:, :5])
