"""Golden cases of DPC-kNN clustering, cluster merge and token <-> map, run on every implementation that is there."""

from __future__ import annotations

import re

import torch

from tore_fast import ops

DENSITY = dict(rtol=3e-6, atol=1e-7)
DELTA = dict(rtol=5e-6, atol=1e-7)
# HoT's own distances come from the matrix-product form: on its smooth walks they are 1.1e-4 off exact arithmetic
DELTA_OF_PRODUCT_FORM = dict(rtol=2e-4, atol=1e-7)
FEATURES = dict(rtol=2e-5, atol=2e-5)


def runner(case):
    model, outputs = case.model, case.meta.get("outputs") or {}
    if "cluster_dpc_knn" in model:
        if "strict_density" in outputs:
            return dpc_ties
        return dpc_with_merge if "centers" in outputs else dpc_selection
    if "token2map" in model:
        return token_map
    return None


def impls(op: str, *args) -> list[str]:
    module = __import__(f"tore_fast.ops.{op}", fromlist=["BACKENDS"])
    return ["reference", *(b for b in module.BACKENDS if module.why_not(b, *args) is None)]


def optional(case, name: str) -> torch.Tensor | None:
    inputs = case.meta.get("inputs") or {}
    return case.input(name) if name in inputs or f"input.{name}" in inputs else None


def exact(case, name: str, got: torch.Tensor) -> None:
    want = case.stored(name)
    assert torch.equal(got.cpu().long(), want.long()), f"{case.path.name}: {name} differs"


def statistics(case, prefix: str, clusters: ops.DpcClusters, delta: dict = DELTA, score_atol: float = 1e-7) -> None:
    if f"{prefix}density" in case.arrays:
        case.close(f"{prefix}density", clusters.rho, **DENSITY)
        case.close(f"{prefix}delta", clusters.delta, **delta)
    case.close(f"{prefix}score", clusters.score, rtol=delta["rtol"] + DENSITY["rtol"], atol=score_atol)


def dpc_with_merge(case) -> None:
    """TCFormer's cluster_dpc_knn and merge_tokens (weighted and uniform, with gradients)."""
    x, weight, mask = case.input("x"), case.input("token_weight")[..., 0], optional(case, "token_mask")
    count, k = case.config["cluster_num"], case.config["k"]
    noise = optional(case, "noise")
    for impl in impls("dpc_knn_cluster", x, k):
        ranked = ops.dpc_knn_cluster(x, count, k, mask=mask, noise=noise, order="score", impl=impl)
        clusters = ops.dpc_knn_cluster(x, count, k, mask=mask, noise=noise, order="index", impl=impl)
        statistics(case, "", clusters)
        exact(case, "centers", clusters.centers)
        exact(case, "idx_cluster_canon", clusters.cluster)
        if case.meta.get("order_robust"):
            exact(case, "index_down", ranked.centers)
            exact(case, "idx_cluster", ranked.cluster)

        merged, _ = ops.cluster_merge(x, clusters.cluster, count, impl=impl)
        case.close("merged_uniform", merged, **FEATURES)
        leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
        cells = torch.arange(x.shape[1]).expand(x.shape[:2])
        out = ops.cluster_merge_tokens(
            leaves[0], clusters.cluster, count, leaves[1], cells, torch.ones(x.shape[:2]), impl=impl
        )
        case.close("merged_weighted", out.merged, **FEATURES)
        case.close("agg_weight_weighted", out.agg_weight[..., None], rtol=1e-5, atol=1e-7)
        assert torch.equal(out.idx_token, clusters.cluster)
        if "grad_x" in case.arrays:
            grads = torch.autograd.grad(out.merged, leaves, case.input("grad_merged_weighted"))
            case.close("grad_x", grads[0], rtol=1e-5, atol=1e-5)
            case.close("grad_weight", grads[1][..., None], rtol=1e-5, atol=2e-5)


def dpc_ties(case) -> None:
    """Exact ties: upstream with its noise at zero ("strict") and with the lower index counting as denser ("index")."""
    x, count, k = case.input("x"), case.config["cluster_num"], case.config["k"]
    for impl in impls("dpc_knn_cluster", x, k):
        for prefix, tie in (("strict_", "strict"), ("index_rule_", "index")):
            clusters = ops.dpc_knn_cluster(x, count, k, tie=tie, order="score", impl=impl)
            statistics(case, prefix, clusters, score_atol=5e-6 if tie == "index" else 1e-7)
            exact(case, f"{prefix}index_down", clusters.centers)
            exact(case, f"{prefix}idx_cluster", clusters.cluster)


def dpc_selection(case) -> None:
    """HoT's frame selection: additive density term, optional mask, optional centre frame left to the caller."""
    x, count, k = case.input("x"), case.config["cluster_num"], case.config["k"]
    noise, mask, center = optional(case, "noise"), optional(case, "token_mask"), case.config.get("center")
    for impl in impls("dpc_knn_cluster", x, k):
        clusters = ops.dpc_knn_cluster(x, count, k, mask=mask, noise=noise, exclude=center, order="score", impl=impl)
        statistics(case, "", clusters, DELTA_OF_PRODUCT_FORM)
        exact(case, "index_down", clusters.centers)
        exact(case, "idx_cluster", clusters.cluster)
        ordered = ops.dpc_knn_cluster(x, count, k, mask=mask, noise=noise, exclude=center, impl=impl)
        exact(case, "index_sorted", ordered.centers)


def token_map(case) -> None:
    """merge_tokens bookkeeping over two levels, token2map, map2token and token_downup between all levels."""
    x, grid = case.input("x"), tuple(case.config["init_grid"])
    for impl in impls("token_map", x):
        batch, cells = x.shape[0], grid[0] * grid[1]
        levels = [(x, torch.arange(cells).expand(batch, -1), torch.ones(batch, cells))]
        for level in (1, 2):
            features, idx_token, agg_weight = levels[-1]
            out = ops.cluster_merge_tokens(
                features,
                case.input(f"idx_cluster_{level}"),
                case.config[f"N{level}"],
                case.input(f"weight_{level}")[..., 0],
                idx_token,
                agg_weight,
                impl=impl,
            )
            levels.append((out.merged, out.idx_token, out.agg_weight))
            case.close(f"x_{level}", out.merged, **FEATURES)
            exact(case, f"idx_token_{level}", out.idx_token)
            case.close(f"agg_weight_{level}", out.agg_weight[..., None], rtol=1e-5, atol=1e-7)
        for name in case.arrays:
            token_map_output(case, name, grid, levels, impl)


def token_map_output(case, name: str, grid: tuple[int, int], levels: list, impl: str) -> None:
    if m := re.fullmatch(r"(grad_)?(token2map|map2token)_(\d)_(\d+)x(\d+)", name):
        want_grad, op, level, *size = m.groups()
        features, idx_token, _ = levels[int(level)]
        size = (int(size[0]), int(size[1]))
        if op == "token2map":
            leaf = features.detach().clone().requires_grad_()
            got = ops.token2map(leaf, idx_token, grid, size, impl=impl)
            upstream = "grad_map"
        else:
            leaf = case.input(f"map_{size[0]}x{size[1]}").requires_grad_()
            got = ops.map2token(leaf, idx_token, grid, features.shape[1], impl=impl)
            upstream = "grad_tokens"
        if want_grad:
            (got,) = torch.autograd.grad(got, leaf, case.input(upstream))
        case.close(name, got, **FEATURES)
    elif m := re.fullmatch(r"(?:up|down)_(\d)_to_(\d)", name):
        source, target = (levels[int(i)] for i in m.groups())
        got = ops.token_resample(source[0], source[1], target[1], target[0].shape[1], target[2], impl=impl)
        case.close(name, got, **FEATURES)
