"""Every op once, in one form: the table that test_matrix.py runs its checks over (no test in here).

A case names its tensors, so that a check can change their dtype, strides or values, and calls the public function.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from ops.clustering import grid_points
from torch import Tensor

from tore_fast import ops
from tore_fast.ops import _dispatch

Tensors = dict[str, Tensor]


class Case(NamedTuple):
    name: str
    stem: str  # module of tore_fast.ops whose BACKENDS and why_not apply
    make: Callable[[int, int, int], Tensors]  # (batch, tokens, channels) -> float32 and integer tensors
    call: Callable[[Tensors, str], tuple]  # (tensors, impl) -> results
    grads: tuple[str, ...] = ()  # inputs the first result is differentiable in
    indices: Callable[[Tensors], dict[int, int]] = lambda t: {}  # result number -> its values lie in -1 .. limit - 1
    casts: tuple[str, ...] = ()  # inputs that autocast brings to its type; none: the op runs in its own
    spoil: str = ""  # input that gets NaN and Inf in the range check
    tol: float = 1e-5  # of float32 against the float64 reference, relative and absolute

    def backend(self, t: Tensors, device: str = "cpu") -> str:
        """The compiled implementation these tensors would run on, or "reference"."""
        module = importlib.import_module(f"tore_fast.ops.{self.stem}")
        probe = next(v for v in t.values() if v.is_floating_point())
        return next((b for b in module.BACKENDS if module.why_not(b, probe) is None), "reference")

    def __str__(self) -> str:
        return self.name


def neighbours(x: Tensor, parts: int = 1) -> int:
    return min(5, x.shape[1] // parts)


def quarter(x: Tensor) -> int:
    return -(-x.shape[1] // 4)


def tokens_only(b: int, n: int, c: int) -> Tensors:
    return {"x": torch.randn(b, n, c)}


def with_density(b: int, n: int, c: int) -> Tensors:
    return {"x": torch.randn(b, n, c), "rho": torch.rand(b, n), "mask": torch.rand(b, n) < 0.8}


def with_options(b: int, n: int, c: int) -> Tensors:
    return {"x": torch.randn(b, 2 * n, c), "noise": 0.01 * torch.rand(b, 2 * n), "mask": torch.rand(b, 2 * n) < 0.8}


def with_clusters(b: int, n: int, c: int) -> Tensors:
    return {
        "x": torch.randn(b, n, c),
        "weight": torch.rand(b, n) + 0.1,
        "cluster": torch.randint(0, -(-n // 4), (b, n)),
        "idx": torch.randint(0, n, (b, 24)),
        "agg": torch.rand(b, 24),
    }


def with_cells(b: int, n: int, c: int) -> Tensors:
    x = {"x": torch.randn(b, n, c), "map": torch.randn(b, c, 4, 3), "agg": torch.rand(b, 48)}
    return x | {"idx": torch.randint(0, n, (b, 48)), "other": torch.randint(0, 5, (b, 48))}


def with_plan(b: int, n: int, c: int) -> Tensors:
    metric = torch.randn(b, n, c)
    plan = ops.bipartite_soft_matching(metric, n // 3, impl="reference")
    parts = dict(zip(("unm", "src", "dst", "owner"), plan[:4], strict=True))
    return {"x": torch.randn(b, n, c), "size": torch.rand(b, n) + 0.5, "y": torch.randn(b, plan.num_out, c)} | parts


def plan_of(t: Tensors) -> ops.MatchPlan:
    return ops.MatchPlan(t["unm"], t["src"], t["dst"], t["owner"], t["y"].shape[1], None)


def heads(b: int, n: int, c: int, names: str = "qkv") -> Tensors:
    return {name: torch.randn(b, n, 2, c).transpose(1, 2) for name in names}


def on_a_mesh(b: int, n: int, c: int) -> Tensors:
    rng = np.random.default_rng(n)
    adjacency = rng.random((n, n)) < 4 / n
    return heads(b, n + 2, c) | ops.mesh_topology(adjacency | adjacency.T, 2).tensors()


def mesh_attention(t: Tensors, impl: str) -> tuple:
    topology = ops.MeshTopology(joints=2, **{n: t[n] for n in t if n in ops.MeshTopology._fields})
    return ops.mesh_attention(t["q"], t["k"], t["v"], topology, return_lse=True, impl=impl)[:2]


def with_lengths(b: int, n: int, c: int) -> Tensors:
    lengths = {"key_len": torch.randint(0, n + 1, (b,)), "query_len": torch.randint(0, n + 1, (b,))}
    return heads(b, n, c) | {"bias": torch.randn(b, n)} | lengths


def pruned_attention(t: Tensors, impl: str) -> tuple:
    lens = (t["key_len"], t["query_len"])
    return ops.pruned_attention(t["q"], t["k"], t["v"], t["bias"], *lens, return_lse=True, impl=impl)[:2]


def packed(b: int, n: int, c: int) -> Tensors:
    cu = torch.cat([torch.zeros(1, dtype=torch.int64), torch.randint(0, n + 1, (b,)).cumsum(0)]).int()
    total = b * n  # rows beyond the last sequence belong to none
    return {name: torch.randn(total, 2, c) for name in "qkv"} | {"bias": torch.randn(total), "cu": cu}


def packed_attention(t: Tensors, impl: str) -> tuple:
    longest = t["q"].shape[0]
    return (
        ops.pruned_attention_packed(t["q"], t["k"], t["v"], t["cu"], t["cu"], longest, longest, t["bias"], impl=impl),
    )


def sparse_matrix(b: int, n: int, c: int) -> Tensors:
    rng = np.random.default_rng(n)
    dense = rng.normal(size=(2 * n + 1, n)) * (rng.random((2 * n + 1, n)) < 3 / n)
    return {"x": torch.randn(b, n, c)} | dict(zip("abcdef", ops.csr_matrix(dense), strict=True))


def linear_layer(b: int, n: int, c: int) -> Tensors:
    k, m = 64 * (1 + c % 2), 64 * (1 + n % 3)
    return {
        "x": torch.randn(b, n, k),
        "w": torch.randn(m, k) / k**0.5,
        "bias": torch.randn(m),
        "residual": torch.randn(b, n, m),
    }


def linear_layer_with_norm(b: int, n: int, c: int) -> Tensors:
    t = linear_layer(b, n, c)
    del t["residual"]
    k = t["x"].shape[-1]
    return t | {"scale": torch.rand(k) + 0.5, "shift": torch.randn(k)}


def linear(t: Tensors, impl: str) -> tuple:
    """ "auto" is the kernel here, so that it is the kernel that gets traced: by itself the op leaves traced programs to
    torch."""
    if impl == "auto":
        impl = "strassen" if _dispatch.backend_reason("strassen") is None else "reference"
    norm = ops.Norm(t["scale"], t["shift"], 1e-5) if "scale" in t else None
    act, split = ("relu", 2) if "scale" in t else ("gelu", 1)
    out = ops.linear(t["x"], t["w"], t["bias"], residual=t.get("residual"), act=act, norm=norm, split=split, impl=impl)
    return out if isinstance(out, tuple) else (out,)


def triangles(b: int, n: int, c: int) -> Tensors:
    corners = torch.rand(b, n + 2, 3) * torch.tensor([20.0, 20.0, 3.0]) - 2
    return {"x": corners, "faces": torch.rand(c, n + 2).argsort(1)[:, :3].int()}


def person(b: int, n: int, c: int) -> Tensors:
    joints, shapes = 4, c
    root = torch.randn(9, 9)
    turns = torch.linalg.qr(torch.randn(b, joints, 3, 3))[0] if b else torch.zeros(0, joints, 3, 3)
    return {
        "points": 0.3 * torch.randn(b, n, 2),
        "weights": torch.rand(b, n, 2),
        "world": 0.5 * torch.randn(b, n, 3),
        "rotations": turns,
        "betas": torch.randn(b, shapes),
        "offsets": 0.3 * torch.randn(n, 3),
        "offset_dirs": 0.02 * torch.randn(n, 3, shapes),
        "bones": 0.3 * torch.randn(joints, 3),
        "bone_dirs": 0.02 * torch.randn(joints, 3, shapes),
        "mean": 0.1 * torch.randn(9),
        "precision": root @ root.T,
    }


def fit_landmarks(t: Tensors, impl: str) -> tuple:
    n = t["points"].shape[1]
    tables = [t[k] for k in ("offsets", "offset_dirs", "bones", "bone_dirs", "mean", "precision")]
    model = ops.LandmarkModel((-1, 0, 1, 0), tuple(k % 4 for k in range(n)), *tables, ((1, 0, 1),), (0, n - 1))
    data = (t["points"], t["weights"], t["world"], model, t["rotations"], t["betas"])
    return tuple(ops.fit_landmarks(*data, steps=2, impl=impl))


CASES = (
    Case(
        "knn_density",
        "knn_density",
        tokens_only,
        lambda t, i: (ops.knn_density(t["x"], neighbours(t["x"]), impl=i),),
        spoil="x",
    ),
    Case(
        "density_delta",
        "density_delta",
        with_density,
        lambda t, i: ops.density_delta(t["x"], t["rho"], t["mask"], impl=i),
        indices=lambda t: {1: t["x"].shape[1]},
        spoil="x",
    ),
    Case(
        "dpc_knn_cluster",
        "dpc_knn_cluster",
        tokens_only,
        lambda t, i: ops.dpc_knn_cluster(t["x"], quarter(t["x"]), neighbours(t["x"]), impl=i),
        indices=lambda t: {0: t["x"].shape[1], 1: quarter(t["x"])},
        spoil="x",
    ),
    Case(
        "dpc_knn_cluster-ties",
        "dpc_knn_cluster",
        lambda b, n, c: {"x": grid_points(b, n, 4, seed=c)},
        lambda t, i: ops.dpc_knn_cluster(
            t["x"], quarter(t["x"]), min(2, t["x"].shape[1]), tie="strict", order="score", impl=i
        )[3:4],
    ),
    Case(
        "dpc_knn_cluster-options",
        "dpc_knn_cluster",
        with_options,
        lambda t, i: ops.dpc_knn_cluster(
            t["x"],
            2,
            neighbours(t["x"], 2),
            t["mask"],
            t["x"].shape[1] - 1 if t["x"].shape[1] > 2 else None,
            noise=t["noise"],
            parts=2,
            masked=-1,
            impl=i,
        ),
        indices=lambda t: {0: t["x"].shape[1], 1: 2},
        spoil="x",
    ),
    Case(
        "cluster_merge",
        "cluster_merge",
        with_clusters,
        lambda t, i: ops.cluster_merge_tokens(
            t["x"], t["cluster"], quarter(t["x"]), t["weight"], t["idx"], t["agg"], impl=i
        ),
        ("x", "weight"),
        lambda t: {2: quarter(t["x"])},
        spoil="x",
    ),
    Case(
        "dpc_knn_cluster_merge",
        "dpc_knn_cluster_merge",
        with_clusters,
        lambda t, i: ops.dpc_knn_cluster_merge(
            t["x"], quarter(t["x"]), neighbours(t["x"]), t["weight"], t["idx"], t["agg"], impl=i
        ),
        ("x", "weight"),
        lambda t: {2: quarter(t["x"]), 4: t["x"].shape[1], 5: quarter(t["x"])},
        spoil="x",
    ),
    Case(
        "token2map",
        "token_map",
        with_cells,
        lambda t, i: (ops.token2map(t["x"], t["idx"], (8, 6), (4, 3), impl=i),),
        ("x",),
    ),
    Case(
        "map2token",
        "token_map",
        with_cells,
        lambda t, i: (ops.map2token(t["map"], t["idx"], (8, 6), t["x"].shape[1], impl=i),),
        ("map",),
    ),
    Case(
        "token_resample",
        "token_map",
        with_cells,
        lambda t, i: (ops.token_resample(t["x"], t["idx"], t["other"], 5, t["agg"], impl=i),),
        ("x",),
    ),
    Case("token_csr", "token_map", with_cells, lambda t, i: ops.token_csr(t["idx"], t["x"].shape[1], impl=i)),
    Case(
        "bipartite_soft_matching",
        "bipartite_match",
        tokens_only,
        lambda t, i: ops.bipartite_soft_matching(t["x"], t["x"].shape[1] // 3, class_token=True, impl=i)[:4],
        indices=lambda t: {n: t["x"].shape[1] for n in range(4)},
        spoil="x",
    ),
    Case(
        "merge",
        "bipartite_match",
        with_plan,
        lambda t, i: ops.merge(plan_of(t), t["x"], "wavg", t["size"], impl=i),
        ("x",),
    ),
    Case("unmerge", "bipartite_match", with_plan, lambda t, i: (ops.unmerge(plan_of(t), t["y"]),), ("y",)),
    Case(
        "mesh_attention", "mesh_attention", on_a_mesh, mesh_attention, ("q", "k", "v"), casts=("q", "k", "v"), tol=2e-5
    ),
    Case(
        "pruned_attention",
        "pruned_attention",
        with_lengths,
        pruned_attention,
        ("q", "k", "v", "bias"),
        casts=("q", "k", "v"),
        tol=2e-5,
    ),
    Case(
        "pruned_attention_packed",
        "pruned_attention",
        packed,
        packed_attention,
        ("q", "k", "v", "bias"),
        casts=("q", "k", "v"),
        tol=2e-5,
    ),
    Case(
        "ppt_select",
        "ppt_select",
        lambda b, n, c: {"score": torch.rand(b, n)},
        lambda t, i: (ops.ppt_select(t["score"], -(-t["score"].shape[1] // 2), impl=i),),
        indices=lambda t: {0: t["score"].shape[1]},
        spoil="score",
    ),
    Case(
        "mesh_upsample",
        "mesh_upsample",
        sparse_matrix,
        lambda t, i: (ops.mesh_upsample(t["x"], ops.CsrMatrix(*(t[n] for n in "abcdef")), impl=i),),
        ("x",),
    ),
    Case("linear", "linear", linear_layer, linear, ("x", "w", "bias", "residual"), casts=("x", "w", "bias"), spoil="x"),
    Case(
        "linear-norm",
        "linear",
        linear_layer_with_norm,
        linear,
        ("x", "w", "bias", "scale", "shift"),
        spoil="x",
        tol=4e-5,
    ),
    Case(
        "rasterize",
        "rasterize",
        triangles,
        lambda t, i: ops.rasterize(t["x"], t["faces"], 16, 14, impl=i),
        indices=lambda t: {0: max(t["faces"].shape[0], 1)},
        spoil="x",
    ),
    Case("fit_landmarks", "fit_landmarks", person, fit_landmarks, spoil="points", tol=2e-5),
)
