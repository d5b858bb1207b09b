"""Golden cases of the attention and matching ops: mesh attention, ToMe / Mask-ToMe matching, TRA cross attention.

A case is known by its model text and its inputs; every implementation that runs here is compared.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tore_fast.ops import (
    MeshTopology,
    bipartite_soft_matching,
    merge,
    mesh_attention,
    mesh_topology,
    pruned_attention,
    unmerge,
)

ATTENTION_TOL = dict(atol=2e-6, rtol=1e-5)
MERGE_TOL = dict(atol=1e-6, rtol=2e-5)


def runner(case):
    inputs = {k.removeprefix("input.") for k in case.meta.get("inputs") or {}}
    model = case.model.lower()
    if {"q", "k", "v", "row_ptr", "col_idx"} <= inputs:
        return run_mesh_attention
    if "bipartite" in model and "metric_0" in inputs:
        return run_chained_matching
    if "bipartite" in model and "metric" in inputs:
        return run_matching
    if model.startswith("tra ") and {"x_token", "x"} <= inputs:
        return run_token_recovery
    return None


def _impls(module, *args) -> list[str]:
    return ["reference", *(b for b in module.BACKENDS if module.why_not(b, *args) is None)]


def _module(function):
    """The module ops/<stem>.py behind a public function of the same name."""
    import importlib

    return importlib.import_module(function.__module__)


def run_mesh_attention(case) -> None:
    q, k, v = (case.input(n) for n in "qkv")
    row_ptr, col_idx = case.input("row_ptr").int(), case.input("col_idx").int()
    joints = case.config["joints"]
    vertices = row_ptr.shape[0] - 1
    adjacency = torch.zeros(vertices, vertices)
    for r in range(vertices):
        adjacency[r, col_idx[row_ptr[r] : row_ptr[r + 1]].long()] = 1
    topology: MeshTopology = mesh_topology(adjacency, joints)
    assert torch.equal(topology.col_idx, col_idx) and torch.equal(topology.row_ptr, row_ptr)
    for impl in _impls(_module(mesh_attention), q):
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        result = mesh_attention(*leaves, topology, case.config.get("scale"), return_lse=True, impl=impl)
        case.close("out", result.out, **ATTENTION_TOL)
        case.close("lse", result.lse, atol=1e-5)
        if "grad_out" in (case.meta.get("inputs") or {}):
            grads = torch.autograd.grad(result.out, leaves, case.input("grad_out"))
            for name, grad in zip("qkv", grads):
                if f"grad_{name}_head0" in case.arrays:
                    case.close(f"grad_{name}_head0", grad[:, 0], atol=2e-5, rtol=2e-5)
                elif f"grad_{name}" in case.arrays:
                    case.close(f"grad_{name}", grad, atol=2e-5, rtol=2e-5)


def run_chained_matching(case) -> None:
    """Several ToMe steps, sizes and membership carried along, then proportional attention."""
    cfg = case.config
    for impl in _impls(_module(bipartite_soft_matching), case.input("metric_0")):
        x, size = case.input("x"), None
        source = torch.arange(x.shape[1]).expand(x.shape[:2])
        for step, r in enumerate(cfg["r"]):
            metric = case.input(f"metric_{step}")
            plan = bipartite_soft_matching(
                metric,
                r,
                class_token=bool(cfg.get("class_token")),
                distill_token=bool(cfg.get("distill_token")),
                impl=impl,
            )
            for name in ("unm_idx", "src_idx", "dst_idx"):
                assert torch.equal(getattr(plan, name).int(), case.stored(f"{name}_{step}").int()), (impl, name, step)
            x, size = merge(plan, x, "wavg", size, impl=impl)
            source = plan.owner.gather(1, source)
            case.close(f"x_{step}", x, **MERGE_TOL)
            case.close(f"size_{step}", size[..., None], atol=0)
            assert torch.equal(source.int(), case.stored(f"source_of_token_{step}").int()), (impl, "source", step)
            mean = merge(plan, case.input(f"y_{step}"), "mean", impl=impl)
            case.close(f"mean_{step}", mean, **MERGE_TOL)
            if f"unmerge_mean_{step}" in case.arrays:
                case.close(f"unmerge_mean_{step}", unmerge(plan, mean), **MERGE_TOL)
        if "prop_attn_out" in case.arrays:
            q, k, v = (case.input(n) for n in "qkv")
            for attn in _impls(_module(pruned_attention), q):
                case.close("prop_attn_out", pruned_attention(q, k, v, key_bias=size.log(), impl=attn), **ATTENTION_TOL)


def run_matching(case) -> None:
    """One step; output rows are compared after lining them up by the token that heads each (ties have no order)."""
    cfg = case.config
    metric, x = case.input("metric"), case.input("x")
    protected = case.input("person").bool() if "person" in case.meta["inputs"] else None
    for impl in _impls(_module(bipartite_soft_matching), metric):
        plan = bipartite_soft_matching(
            metric,
            cfg["r"],
            protected=protected,
            protect="never",
            class_token=bool(cfg.get("class_token")),
            distill_token=bool(cfg.get("distill_token")),
            impl=impl,
        )
        want_pairs, got_pairs = (
            [dict(zip(s.tolist(), d.tolist())) for s, d in zip(src, dst)]
            for src, dst in ((case.stored("src_idx"), case.stored("dst_idx")), (plan.src_idx, plan.dst_idx))
        )
        assert got_pairs == want_pairs, impl
        head = torch.cat([plan.unm_idx * 2, torch.arange(1, metric.shape[1], 2).expand(metric.shape[0], -1)], 1)
        order, want_order = head.argsort(1), case.stored("out_index").long().argsort(1)

        def same(name, got, order=order, want_order=want_order, impl=impl):
            want = case.stored(name)
            rows = want_order[..., None].expand(-1, -1, want.shape[2])
            mine = order[..., None].expand(-1, -1, want.shape[2])
            torch.testing.assert_close(
                got.gather(1, mine), want.gather(1, rows), msg=lambda m: f"{impl} {name}: {m}", **MERGE_TOL
            )

        merged, size = merge(plan, x, "wavg", impl=impl)
        same("x_wavg", merged)
        same("size", size[..., None])
        same("x_mean", merge(plan, x, "mean", impl=impl))
        membership = F.one_hot(plan.owner, plan.num_out).transpose(1, 2)
        same("source", membership.to(case.stored("source").dtype))
        case.close("unmerged", unmerge(plan, merged), **MERGE_TOL)


def run_token_recovery(case) -> None:
    """TRA of HoT: x_token + proj(attention(linear_q x_token, linear_k x, linear_v x)); x_token is shared by all
    items."""
    state, heads = case.state_dict(), case.config["heads"]
    x_token, x = case.input("x_token"), case.input("x")
    items = x.shape[0]
    x_token = x_token.repeat_interleave(items // x_token.shape[0], 0)

    def split(t):
        return t.unflatten(-1, (heads, -1)).transpose(1, 2)

    q, k, v = (
        split(F.linear(t, state[f"linear_{n}.weight"], state.get(f"linear_{n}.bias")))
        for n, t in zip("qkv", (x_token, x, x))
    )
    for impl in _impls(_module(pruned_attention), q):
        out = pruned_attention(q, k, v, impl=impl).transpose(1, 2).flatten(2)
        out = x_token + F.linear(out, state["proj.weight"], state["proj.bias"])
        name = next(n for n in case.arrays if n.startswith("output"))
        limit = 2e-5 * float(abs(case.arrays[name]).max())
        case.close(name, out, atol=limit)
