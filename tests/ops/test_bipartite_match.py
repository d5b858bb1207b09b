"""bipartite_match: matching against a plain loop, merge and unmerge against sums over groups, options, gradients."""

from __future__ import annotations

import math

import pytest
import torch

from tore_fast.ops import BackendUnavailable, bipartite_soft_matching, merge, unmerge
from tore_fast.ops.bipartite_match import BACKENDS, why_not


def impls(x):
    return ["reference", *(b for b in BACKENDS if why_not(b, x) is None)]


def by_loops(metric, r, protected, coverage, forced, class_token, distill_token, parity):
    """One item in python floats: best partner of every A token, then the r best rows, lower index first."""
    rows = [[float(v) for v in row] for row in metric.double()]
    norm = [max(math.sqrt(sum(v * v for v in row)), 1e-12) for row in rows]
    a_pos, b_pos = range(parity, len(rows), 2), range(1 - parity, len(rows), 2)
    best, dst = [], []
    for a in a_pos:
        scores = []
        for b in b_pos:
            s = sum(x * y for x, y in zip(rows[a], rows[b])) / norm[a] / norm[b]
            if protected is not None and (protected[a] or protected[b]):
                s = s - 4 * (1 + max(float(coverage[a]), float(coverage[b]))) if forced else -math.inf
            if (class_token and 0 in (a, b)) or (distill_token and 1 in (a, b)):
                s = -math.inf
            scores.append(s)
        best.append(max(scores))
        dst.append(scores.index(max(scores)))
    order = sorted(range(len(best)), key=lambda i: (-best[i], i))
    return order, dst, best


@pytest.mark.parametrize("tokens,r", [(196, 13), (111, 30), (17, 8), (2, 1), (64, 64)])
@pytest.mark.parametrize("src", ["even", "odd"])
def test_matching(device, tokens, r, src):
    metric = torch.randn(2, tokens, 20, device=device)
    for impl in impls(metric):
        plan = bipartite_soft_matching(metric, r, src=src, impl=impl)
        count = min(r, tokens // 2)
        for b in range(2):
            order, dst, _ = by_loops(metric[b], r, None, None, False, False, False, int(src == "odd"))
            assert plan.src_idx[b].tolist() == order[:count], impl
            assert plan.unm_idx[b].tolist() == order[count:], impl
            assert plan.dst_idx[b].tolist() == [dst[i] for i in order[:count]], impl
        assert plan.num_out == tokens - count


@pytest.mark.parametrize("class_token,distill_token", [(True, False), (True, True)])
@pytest.mark.parametrize("src", ["even", "odd"])
def test_special_tokens_stay_in_front(device, class_token, distill_token, src):
    metric = torch.randn(3, 21, 8, device=device)
    x = torch.randn(3, 21, 5, device=device)
    for impl in impls(metric):
        plan = bipartite_soft_matching(
            metric, 10, class_token=class_token, distill_token=distill_token, src=src, impl=impl
        )
        for b in range(3):
            order, dst, _ = by_loops(metric[b], 10, None, None, False, class_token, distill_token, int(src == "odd"))
            assert plan.src_idx[b].tolist() == order[: plan.src_idx.shape[1]]
        y = merge(plan, x, impl=impl)
        if src == "even" or distill_token:
            assert torch.equal(y[:, 0], x[:, 0])
        if distill_token:
            assert torch.equal(y[:, 1], x[:, 1])
        assert (plan.owner == plan.owner[:, :1]).sum() == 3  # nothing merged into the class token
        back = unmerge(plan, y)
        for b in range(3):
            for t in range(21):
                assert torch.equal(back[b, t], y[b, plan.owner[b, t]])


@pytest.mark.parametrize("forced", [True, False])
def test_protected_tokens(device, forced):
    metric = torch.randn(4, 40, 12, device=device)
    coverage = torch.rand(4, 40, device=device)
    protected = coverage > 0.6
    protected[3] = coverage[3] > 0.2
    for impl in impls(metric):
        plan = bipartite_soft_matching(
            metric, 15, protected, coverage if forced else None, protect="forced" if forced else "never", impl=impl
        )
        r = plan.src_idx.shape[1]
        if forced:
            assert r == 15
        for b in range(4):
            order, dst, best = by_loops(metric[b], 15, protected[b], coverage[b], forced, False, False, 0)
            assert plan.src_idx[b].tolist() == order[:r], impl
            assert plan.dst_idx[b].tolist() == [dst[i] for i in order[:r]], impl
            if not forced:
                assert not protected[b, plan.src_idx[b] * 2].any() and not protected[b, plan.dst_idx[b] * 2 + 1].any()
        if not forced:
            available = [
                sum(
                    v > -math.inf for v in by_loops(metric[b], 15, protected[b], coverage[b], False, False, False, 0)[2]
                )
                for b in range(4)
            ]
            assert r == min(15, *available)


@pytest.mark.parametrize("keep_order", [False, True])
def test_ragged(device, keep_order):
    metric, x = torch.randn(3, 30, 8, device=device), torch.randn(3, 30, 6, device=device)
    protected = torch.zeros(3, 30, dtype=torch.bool, device=device)
    protected[1, :20], protected[2] = True, True
    for impl in impls(metric):
        plan = bipartite_soft_matching(
            metric, 12, protected, protect="never", ragged=True, keep_order=keep_order, impl=impl
        )
        y, size = merge(plan, x, "wavg", impl=impl)
        assert plan.lengths.tolist()[0] == 18 and plan.lengths.tolist()[2] == 30
        for b in range(3):
            n = int(plan.lengths[b])
            assert sorted(set(plan.owner[b].tolist())) == list(range(n))
            assert (y[b, n:] == 0).all() and (size[b, n:] == 0).all() and size[b].sum() == 30
            for row in range(n):
                group = plan.owner[b] == row
                torch.testing.assert_close(y[b, row], x[b, group].mean(0), rtol=1e-5, atol=1e-6)
        if keep_order:
            assert torch.equal(y[2], x[2])


def test_ties_zero_vectors_and_nan(device):
    metric = torch.zeros(1, 12, 4, device=device)
    for impl in impls(metric):
        plan = bipartite_soft_matching(metric, 4, impl=impl)  # every similarity is 0
        assert plan.src_idx.tolist() == [[0, 1, 2, 3]] and plan.dst_idx.tolist() == [[0, 0, 0, 0]]
        assert plan.unm_idx.tolist() == [[4, 5]]
        spoilt = torch.randn(1, 12, 4, device=device)
        spoilt[0, 4] = float("nan")
        plan = bipartite_soft_matching(spoilt, 6, impl=impl)
        assert plan.src_idx[0, -1] == 2 and 0 <= plan.dst_idx.min() and plan.dst_idx.max() < 6


@pytest.mark.parametrize("order", ["tome", "index"])
@pytest.mark.parametrize("keep_order", [False, True])
def test_merge_modes_and_gradients(device, order, keep_order):
    metric, x = torch.randn(2, 31, 8, device=device), torch.randn(2, 31, 7, device=device, dtype=torch.float64)
    size = torch.rand(2, 31, device=device, dtype=torch.float64) + 0.5
    for impl in impls(metric):
        plan = bipartite_soft_matching(metric, 9, order=order, keep_order=keep_order, impl=impl)
        heads = torch.cat([plan.unm_idx * 2, torch.arange(1, 31, 2, device=device).expand(2, -1)], 1)
        if keep_order:
            heads = heads.sort(1).values
        if order == "index" or keep_order:
            assert (plan.unm_idx.diff() > 0).all() or order == "tome"
        for b in range(2):
            assert plan.owner[b, heads[b]].tolist() == list(range(22))
        for mode in ("sum", "mean", "amax", "wavg"):
            leaf = x.float().requires_grad_() if impl != "reference" else x.clone().requires_grad_()
            result = merge(plan, leaf, mode, size if mode == "wavg" else None, impl="auto" if mode == "amax" else impl)
            y = result.x if mode == "wavg" else result
            for b in range(2):
                for row in range(22):
                    group = (plan.owner[b] == row).nonzero()[:, 0]
                    part = x[b, group]
                    want = {
                        "sum": part.sum(0),
                        "mean": part.mean(0),
                        "amax": part.amax(0),
                        "wavg": (part * size[b, group, None]).sum(0) / size[b, group].sum(),
                    }[mode]
                    torch.testing.assert_close(y[b, row].double(), want, rtol=1e-5, atol=1e-6)
            g = torch.randn_like(y)
            (grad,) = torch.autograd.grad(y, leaf, g)
            again = x.clone().requires_grad_()
            exact = merge(plan, again, mode, size if mode == "wavg" else None, impl="reference")
            (want,) = torch.autograd.grad(exact.x if mode == "wavg" else exact, again, g.double())
            torch.testing.assert_close(grad.double(), want, rtol=1e-5, atol=1e-5)
        if impl != "reference":
            assert torch.allclose(merge(plan, x.float(), "wavg", size[..., None]).size.sum(), size.sum().float())


def test_gradcheck_opcheck_compile():
    metric, x = torch.randn(2, 13, 4), torch.randn(2, 13, 3, dtype=torch.float64, requires_grad=True)
    plan = bipartite_soft_matching(metric, 4)
    for mode in ("sum", "mean", "wavg"):
        assert torch.autograd.gradcheck(lambda t, m=mode: merge(plan, t, m, impl="reference")[0], x)
    if why_not("cpu", metric) is not None:
        pytest.skip(f"no compiled kernel: {why_not('cpu', metric)}")
    flag = torch.rand(2, 13) < 0.3
    torch.library.opcheck(
        torch.ops.tore_fast.bipartite_match, (metric, flag, torch.rand(2, 13), 4, 0, False, False, 1, False)
    )
    weight = torch.rand(2, 13) + 0.5
    leaf = torch.randn(2, 13, 3, requires_grad=True)
    torch.library.opcheck(torch.ops.tore_fast.bipartite_merge, (leaf, plan.owner, plan.num_out, True, weight))

    def step(metric, x):
        plan = bipartite_soft_matching(metric, 4, class_token=True)
        return unmerge(plan, merge(plan, x, "wavg").x).square().sum()

    (got,) = torch.autograd.grad(torch.compile(step, fullgraph=True, backend="aot_eager")(metric, leaf), leaf)
    torch.testing.assert_close(got, torch.autograd.grad(step(metric, leaf), leaf)[0])


@pytest.mark.cpu_kernels
def test_shapes_and_errors():
    assert bipartite_soft_matching(torch.randn(0, 8, 4), 2).owner.shape == (0, 8)
    assert bipartite_soft_matching(torch.randn(1, 1, 4), 2).num_out == 1
    metric = torch.randn(1, 8, 4)
    plan = bipartite_soft_matching(metric, 0)
    assert torch.equal(merge(plan, metric)[:, :4], metric[:, 0::2][:, plan.unm_idx[0]])
    with pytest.raises(ValueError, match="protect must be one of"):
        bipartite_soft_matching(metric, 2, protect="maybe")
    with pytest.raises(ValueError, match=r"merge: x must be \[1, 8\]"):
        merge(plan, torch.randn(1, 7, 4))
    with pytest.raises(BackendUnavailable, match="impl='cuda' cannot run here"):
        bipartite_soft_matching(metric, 2, impl="cuda")
