"""form="printed": density, delta and choice against loops written from the equations of TCFormer and HoT alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tore_fast.layers.ctm import CTM
from tore_fast.layers.tpc import tpc_select
from tore_fast.models import create_model
from tore_fast.ops import density_delta, dpc_knn_cluster, dpc_knn_cluster_merge, knn_density
from tore_fast.ops.dpc_knn_cluster import why_not

IMPLS = [
    "reference",
    pytest.param(
        "cpu",
        marks=[
            pytest.mark.cpu_kernels,
            pytest.mark.skipif(
                why_not("cpu", torch.empty(1, 1, 1)) is not None, reason="the CPU kernels are not built"
            ),
        ],
    ),
]


def by_the_equations(x: np.ndarray, k: int, count: int):
    """One image [N, C]: rho_i = exp(-1/k sum over the k nearest others of |x_i - x_j|^2); delta_i = min over denser j
    of |x_i - x_j|, or max over all j when none is denser; the `count` largest rho * delta; nearest of them."""
    n = len(x)
    d = [[math.dist(a, b) for b in x] for a in x]
    rho = [math.exp(-sum(sorted(d[i][j] ** 2 for j in range(n) if j != i)[:k]) / k) for i in range(n)]
    delta = [min((d[i][j] for j in range(n) if rho[j] > rho[i]), default=max(d[i])) for i in range(n)]
    score = [r * s for r, s in zip(rho, delta)]
    centers = sorted(sorted(range(n), key=lambda i: -score[i])[:count])
    cluster = [
        centers.index(i) if i in centers else min(range(count), key=lambda c: d[centers[c]][i]) for i in range(n)
    ]
    return rho, delta, score, centers, cluster


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("tokens", "channels", "k"), [(40, 3, 5), (23, 16, 2), (9, 2, 8)])
@pytest.mark.parametrize("tie", ["index", "strict"])
def test_the_equations(impl, tokens, channels, k, tie):
    x = torch.from_numpy(np.random.default_rng(tokens).normal(size=(2, tokens, channels)) / channels**0.5).float()
    count = tokens // 4
    found = dpc_knn_cluster(x, count, k, tie=tie, form="printed", impl=impl)
    rho = knn_density(x, k, form="printed", impl=impl)
    delta = density_delta(x, rho, tie=tie, form="printed", impl=impl).delta
    for b in range(2):
        want = [torch.tensor(v) for v in by_the_equations(x[b].double().numpy(), k, count)]
        pairs = ((rho, 0), (delta, 1), (found.rho, 0), (found.delta, 1), (found.score, 2))
        for got, i in pairs:
            torch.testing.assert_close(got[b].double(), want[i].double(), rtol=2e-5, atol=1e-9)
        assert torch.equal(found.centers[b], want[3]) and torch.equal(found.cluster[b], want[4])


@pytest.mark.parametrize("impl", IMPLS)
def test_it_differs_from_the_released_form_where_the_papers_do(impl):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 64, 8))).float()
    released, printed = (dpc_knn_cluster(x, 16, 5, form=f, impl=impl) for f in ("released", "printed"))
    assert not torch.equal(released.centers, printed.centers)
    assert bool((printed.rho < released.rho).all())


@pytest.mark.parametrize("impl", IMPLS)
def test_parts_mask_and_exclusion(impl):
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 40, 4)) / 2).float()
    both = dpc_knn_cluster(x, 10, 3, parts=2, form="printed", impl=impl)
    for part, rows in enumerate(x.split(20, 1)):
        alone = dpc_knn_cluster(rows, 5, 3, form="printed", impl=impl)
        assert torch.equal(both.centers[:, 5 * part : 5 * part + 5] - 20 * part, alone.centers)
        torch.testing.assert_close(both.delta[:, 20 * part : 20 * part + 20], alone.delta, rtol=1e-6, atol=0)
    mask = torch.ones(1, 40, dtype=torch.bool)
    mask[:, 30:] = False
    padded = dpc_knn_cluster(x, 6, 3, mask=mask, form="printed", impl=impl)
    alone = dpc_knn_cluster(x[:, :30], 6, 3, form="printed", impl=impl)
    assert torch.equal(padded.centers, alone.centers)
    torch.testing.assert_close(padded.delta[:, :30], alone.delta, rtol=1e-6, atol=0)
    top = int(alone.score.argmax())
    without = dpc_knn_cluster(x, 6, 3, exclude=top, form="printed", impl=impl)
    assert top not in without.centers and float(without.score[0, top]) == -math.inf


@pytest.mark.parametrize("impl", IMPLS)
def test_the_merge_takes_the_tokens_as_they_are(impl):
    x = torch.from_numpy(np.random.default_rng(2).normal(size=(2, 20, 4)) / 2).float().requires_grad_()
    out = dpc_knn_cluster_merge(x, 5, 3, form="printed", impl=impl)
    mean = torch.stack([x[0][out.cluster[0] == c].mean(0) for c in range(5)])
    torch.testing.assert_close(out.merged[0], mean, rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad(out.merged.sum(), x)
    torch.testing.assert_close(grad, out.norm_weight[..., None].expand_as(grad), rtol=1e-5, atol=1e-6)
    assert torch.equal(out.centers, dpc_knn_cluster(x, 5, 3, form="printed", impl=impl).centers)


def test_every_layer_that_clusters_takes_it():
    torch.manual_seed(0)
    x = torch.randn(1, 27, 8) / 3
    want = dpc_knn_cluster(x, 9, 1, form="printed").centers
    assert torch.equal(tpc_select(x, 9, 1, form="printed").index, want)
    assert CTM(4, 8, knn_form="printed").neighbors(4) == 3 and CTM(4, 8).neighbors(4) == 4
    small = dict(frames=27, channels=16, depth=2, heads=2, mlp_hidden=16, prune_block=1, keep_frames=9)
    assert create_model("mixste_27", **small, knn=1, knn_form="printed").selector.form == "printed"
    net = create_model("tcformer_light", depths=(1, 1, 1, 1), knn_form="printed").eval()
    with torch.inference_mode():
        assert net(torch.randn(1, 3, 64, 64)).shape == (1, 1000)
    mesh = create_model("fastmetro_s_r50", backbone=None, selector="cluster", keep_ratio=0.5, knn_form="printed").eval()
    with torch.inference_mode():
        assert mesh(torch.randn(1, 2048, 7, 7)).heatmap.shape[1] == 24


def test_wrong_arguments():
    x = torch.rand(1, 8, 2)
    for call in (
        lambda: knn_density(x, 2, form="paper"),
        lambda: knn_density(x, 8, form="printed"),
        lambda: density_delta(x, x[..., 0], form="x"),
        lambda: dpc_knn_cluster(x, 2, 8, form="printed"),
        lambda: dpc_knn_cluster_merge(x, 2, 2, form="x"),
        lambda: create_model("mixste_27", knn_form="x"),
        lambda: create_model("tcformer_light", knn_form="x"),
    ):
        with pytest.raises(ValueError, match="form|k must be"):
            call()
