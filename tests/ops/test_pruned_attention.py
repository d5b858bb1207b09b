"""pruned_attention: every implementation against SDPA on the valid part, gradients incl. the bias, packed form."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F

from tore_fast.ops import BackendUnavailable, pruned_attention, pruned_attention_packed
from tore_fast.ops.pruned_attention import BACKENDS, why_not


def qkv(batch, heads, queries, keys, dim, device="cpu", dtype=torch.float32):
    return [torch.randn(batch, n, heads, dim, device=device).to(dtype).transpose(1, 2) for n in (queries, keys, keys)]


def impls(q):
    return ["auto", "reference", *(b for b in BACKENDS if why_not(b, q) is None)]


@pytest.mark.parametrize(
    "queries,keys,dim,batch",
    [
        (196, 49, 64, 2),
        (50, 50, 16, 2),
        (445, 14, 64, 1),
        (17, 273, 24, 1),
        (90, 90, 80, 1),
        (1, 1, 7, 3),
        (63, 17, 20, 2),
        (5, 9, 8, 0),
    ],
)
@pytest.mark.parametrize("with_bias", [False, True])
def test_forward_and_gradients(device, queries, keys, dim, batch, with_bias):
    q, k, v = qkv(batch, 3, queries, keys, dim, device)
    bias = torch.randn(batch, keys, device=device) if with_bias else None
    g = torch.randn_like(q)
    leaves = [t.detach().double().requires_grad_() for t in (q, k, v, bias) if t is not None]
    mask = leaves[3][:, None, None] if with_bias else None
    want = F.scaled_dot_product_attention(*leaves[:3], attn_mask=mask)
    # an empty batch leaves the mask out of torch's graph (from 2.15 on)
    want_grads = torch.autograd.grad(want, leaves, g.double(), allow_unused=True, materialize_grads=True)
    for impl in impls(q):
        mine = [t.detach().requires_grad_() for t in (q, k, v, bias) if t is not None]
        got = pruned_attention(*mine, impl=impl)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=2e-6)
        for a, b in zip(torch.autograd.grad(got, mine, g), want_grads):
            torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=2e-5 * (1 + batch * queries / 100))


def test_lengths_are_slices(device):
    """Lengths equal attention on the valid slices; what lies beyond is never read into a result, zero keys give
    zeros."""
    q, k, v = qkv(4, 2, 20, 30, 24, device)
    key_len, query_len = torch.tensor([30, 7, 0, 1], device=device), torch.tensor([20, 20, 20, 5], device=device)
    bias = torch.randn(4, 30, device=device)
    for b in range(4):
        k[b, :, key_len[b] :], v[b, :, key_len[b] :], bias[b, key_len[b] :] = float("nan"), float("inf"), float("nan")
    for impl in impls(q)[1:]:
        leaves = [t.detach().requires_grad_() for t in (q, k, v, bias)]
        r = pruned_attention(*leaves, key_len, query_len, return_lse=True, impl=impl)
        for b in range(4):
            nq, nk = int(query_len[b]), int(key_len[b])
            assert (r.out[b, :, nq:] == 0).all() and (r.lse[b, :, nq:] == float("-inf")).all()
            if nk == 0:
                assert (r.out[b] == 0).all() and (r.lse[b] == float("-inf")).all()
                continue
            want = F.scaled_dot_product_attention(
                q[b, :, :nq], k[b, :, :nk], v[b, :, :nk], attn_mask=bias[b, :nk].expand(nq, nk)
            )
            torch.testing.assert_close(r.out[b, :, :nq], want, rtol=1e-5, atol=2e-6)
        if impl != "reference":  # autograd through masked NaN is not defined for the plain formula
            for grad, axis, length in zip(
                torch.autograd.grad(r.out.sum(), leaves), (2, 2, 2, 1), (query_len, key_len, key_len, key_len)
            ):
                assert grad.isfinite().all()
                for b in range(4):
                    assert (grad[b].narrow(axis - 1, int(length[b]), grad.shape[axis] - int(length[b])) == 0).all()


def test_excluded_keys_and_lse_gradient(device):
    q, k, v = qkv(2, 2, 12, 16, 16, device)
    bias = torch.randn(2, 16, device=device)
    bias[0, 3], bias[1] = float("-inf"), float("-inf")
    want = None
    for impl in impls(q)[1:]:
        leaves = [t.detach().requires_grad_() for t in (q, k, v, bias)]
        r = pruned_attention(*leaves, return_lse=True, impl=impl)
        assert (r.out[1] == 0).all() and (r.lse[1] == float("-inf")).all()
        kept = [i for i in range(16) if i != 3]
        part = F.scaled_dot_product_attention(
            q[0], k[0][:, kept], v[0][:, kept], attn_mask=bias[0, kept].expand(12, 15)
        )
        torch.testing.assert_close(r.out[0], part, rtol=1e-5, atol=2e-6)
        grads = torch.autograd.grad(r.out.square().sum() + r.lse[0].sin().sum(), leaves)
        want = want or grads
        for a, b in zip(grads, want):
            torch.testing.assert_close(a[0], b[0], rtol=2e-5, atol=2e-5)


def test_log_size_bias_makes_merging_duplicates_lossless(device):
    """Two equal keys are one key with bias log 2 (ToMe's proportional attention)."""
    q, k, v = qkv(1, 2, 10, 6, 16, device)
    doubled = [torch.cat([t, t[:, :, :2]], 2) for t in (k, v)]
    size = torch.tensor([[2.0, 2, 1, 1, 1, 1]], device=device)
    for impl in impls(q):
        got = pruned_attention(q, k, v, size.log(), impl=impl)
        torch.testing.assert_close(got, F.scaled_dot_product_attention(q, *doubled), rtol=1e-5, atol=2e-6)


def test_importance(device):
    q, k, v = qkv(2, 3, 25, 20, 24, device)
    weights = (q.double() @ k.double().transpose(-2, -1) * 24**-0.5).softmax(-1).mean(1)
    for impl in impls(q):
        r = pruned_attention(q, k, v, importance_rows=5, impl=impl)
        torch.testing.assert_close(r.importance.double(), weights[:, :5].sum(1), rtol=1e-5, atol=1e-6)
        rows = torch.tensor([3, 17], device=device)
        r = pruned_attention(q, k, v, importance_rows=rows, impl=impl)
        torch.testing.assert_close(r.importance.double(), weights[:, rows].sum(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype,limit", [(torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)])
def test_half_types_and_autocast(device, dtype, limit):
    q, k, v = qkv(2, 2, 33, 49, 24, device, dtype)
    bias = torch.randn(2, 49, device=device)
    want = F.scaled_dot_product_attention(*(t.double() for t in (q, k, v)), attn_mask=bias.double()[:, None, None])
    for impl in impls(q):
        got = pruned_attention(q, k, v, bias, impl=impl)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=limit, atol=limit)
    with torch.autocast(device, dtype=dtype):
        assert pruned_attention(q.float(), k.float(), v.float(), bias).dtype == dtype


def test_packed_equals_items_one_by_one(device):
    lengths = [(3, 5), (0, 4), (7, 0), (7, 11), (1, 1)]
    cu_q, cu_k = (
        torch.tensor([0, *torch.tensor([x[i] for x in lengths]).cumsum(0)], dtype=torch.int32, device=device)
        for i in (0, 1)
    )
    q = torch.randn(18, 2, 24, device=device)
    k, v = (torch.randn(21, 2, 24, device=device) for _ in range(2))
    bias = torch.randn(21, device=device)
    probe = q.transpose(0, 1)[None]
    for impl in impls(probe):
        leaves = [t.detach().requires_grad_() for t in (q, k, v, bias)]
        r = pruned_attention_packed(*leaves[:3], cu_q, cu_k, 7, 11, leaves[3], return_lse=True, impl=impl)
        single = [t.detach().requires_grad_() for t in (q, k, v, bias)]
        parts = []
        for b in range(len(lengths)):
            i, j = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
            a = [t.transpose(0, 1)[None] for t in (single[0][i], single[1][j], single[2][j])]
            parts.append(pruned_attention(*a, single[3][None, j], impl="reference")[0].transpose(0, 1))
        want = torch.cat(parts)
        torch.testing.assert_close(r.out, want, rtol=1e-5, atol=2e-6)
        g = torch.randn_like(want)
        for a, b in zip(torch.autograd.grad(r.out, leaves, g), torch.autograd.grad(want, single, g)):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


def test_gradcheck_opcheck_compile():
    q, k, v = qkv(2, 1, 5, 7, 4)
    bias, key_len = torch.randn(2, 7), torch.tensor([7, 3])
    leaves = [t.double().requires_grad_() for t in (q, k, v, bias)]
    assert torch.autograd.gradcheck(lambda *x: pruned_attention(*x, key_len, impl="reference"), leaves)
    if why_not("cpu", q) is not None:
        pytest.skip(f"no compiled kernel: {why_not('cpu', q)}")
    mine = [t.detach().requires_grad_() for t in (q, k, v, bias)]
    torch.library.opcheck(torch.ops.tore_fast.pruned_attention_fwd, (*mine, key_len.int(), None, None, None, 5, 7, 0.5))

    def step(*x):
        return pruned_attention(*x, key_len, impl="cpu").square().sum()

    got = torch.autograd.grad(torch.compile(step, fullgraph=True, backend="aot_eager")(*mine), mine)
    for a, b in zip(got, torch.autograd.grad(step(*mine), mine)):
        torch.testing.assert_close(a, b)


@pytest.mark.cpu_kernels
def test_errors():
    q, k, v = qkv(2, 1, 5, 7, 4)
    with pytest.raises(ValueError, match=r"pruned_attention: key_bias must be \[2, 7\]"):
        pruned_attention(q, k, v, torch.zeros(2, 5))
    with pytest.raises(ValueError, match="pruned_attention: v must be"):
        pruned_attention(q, k, v[:, :, 1:])
    with pytest.raises(ValueError, match=r"key_len must be \[2\] integers"):
        pruned_attention(q, k, v, key_len=torch.tensor([1.0, 2.0]))
    with pytest.raises(BackendUnavailable, match="impl='triton' cannot run here"):
        pruned_attention(q, k, v, impl="triton")


def test_auto_asks_whether_sdpa_is_faster_on_cuda():
    """The rule alone, on fake CUDA tensors: no GPU is needed to ask."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    module = sys.modules["tore_fast.ops.pruned_attention"]
    with FakeTensorMode():
        for dtype, keys, bias, want in (
            (torch.bfloat16, 197, False, True),
            (torch.bfloat16, 49, False, False),
            (torch.bfloat16, 197, True, False),
            (torch.float32, 197, False, False),
        ):
            q = torch.empty(2, 8, 197, 64, dtype=dtype, device="cuda")
            k = torch.empty(2, 8, keys, 64, dtype=dtype, device="cuda")
            key_bias = torch.empty(2, keys, device="cuda") if bias else None
            assert module._sdpa_is_faster(q, k, k, key_bias) == want
