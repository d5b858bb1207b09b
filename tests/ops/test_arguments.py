"""Arguments that address memory: other devices, indices and lengths out of range, launches of very many items.

A meta tensor stands for a tensor on another device; what the bindings themselves say is asked with redispatch, past the
public function and the dispatcher.
"""

from __future__ import annotations

import pytest
import scipy.sparse as sp
import torch
from ops import emulated
from ops.matrix import CASES

from tore_fast import ops
from tore_fast.ops import _dispatch

INT_MIN = -(2**31)


def other_device(t: torch.Tensor) -> torch.Tensor:
    return t.to("meta")


# tensors in a case's table that its call does not use
UNUSED = {
    ("dpc_knn_cluster_merge", "cluster"),
    ("token2map", "map"),
    ("token2map", "agg"),
    ("token2map", "other"),
    ("map2token", "x"),
    ("map2token", "agg"),
    ("map2token", "other"),
    ("token_resample", "map"),
    ("linear-norm", "residual"),
    *((name, part) for name in ("merge", "unmerge") for part in ("unm", "src", "dst", "y", "x")),
    ("unmerge", "size"),
}
SECONDARY = [
    (case, name)
    for case in CASES
    for name in list(case.make(1, 8, 4))[1:]
    if case.name != "token_csr" and (case.name, name) not in UNUSED
]


@pytest.mark.parametrize("case,name", SECONDARY, ids=[f"{c}-{n}" for c, n in SECONDARY])
def test_mixed_devices_raise_before_a_launch(case, name):
    """Every tensor that belongs to a public function's call; the message names it and both devices."""
    t = case.make(2, 8, 4)
    with pytest.raises((ValueError, TypeError), match=r"meta[\s\S]*cpu|cpu[\s\S]*meta"):
        case.call(t | {name: other_device(t[name])}, case.backend(t))


def redispatch(name: str, args: list, namespace: str):
    op = getattr(getattr(torch.ops, namespace), name).default
    return op.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args)


def calls() -> dict[str, list]:
    """Op -> arguments the kernels take."""
    x, rho, ids = torch.rand(1, 8, 4), torch.rand(1, 8), torch.zeros(1, 8, dtype=torch.int64)
    topology = ops.mesh_topology(torch.eye(6), 2)
    q = torch.rand(1, 1, 8, 4)
    matrix = ops.csr_matrix(torch.eye(8))
    owner, flags = torch.arange(8)[None], torch.ones(1, 8, dtype=torch.bool)
    ptr, cells = torch.tensor([[0, 8]], dtype=torch.int32), torch.arange(8, dtype=torch.int32)[None]
    merged, total = torch.rand(1, 1, 4), torch.ones(1, 1)
    lse = torch.zeros(1, 1, 8)
    mesh = [*topology[:7], 0.5, 0.5, torch.zeros(1, dtype=torch.int64)]
    return {
        "mesh_upsample": [x, *matrix],
        "knn_density": [x, 2, flags],
        "density_delta": [x, rho, flags, False],
        "dpc_knn_cluster": [x, 2, 2, flags, flags, rho, False, True, 0],
        "cluster_merge": [x, ids, 1, rho, ids, rho],
        "cluster_merge_backward": [merged, x, ids, rho, total, merged],
        "dpc_knn_cluster_merge": [x, 2, 2, flags, flags, rho, False, True, 0, rho, ids, rho],
        "token_map": [x, ids, ptr, cells, ids, None, None, rho, rho, [1, 8, 1, 8], 1, False],
        "mesh_attention_fwd": [q, q, q, *mesh],
        "mesh_attention_bwd": [q, q, q, q, lse, lse, *mesh],
        "bipartite_match": [x, flags, rho, 2, 0, False, False, 1, False],
        "bipartite_merge": [x, owner, 8, True, rho],
        "rasterize": [torch.rand(1, 8, 3), torch.zeros(1, 3, dtype=torch.int32), 4, 4],
        "pruned_attention_fwd": [q, q, q, torch.zeros(1, 8), ids[0, :1].int(), ids[0, :1].int(), None, None, 8, 8, 1.0],
    }


UNREAD = {("mesh_upsample", 4), ("mesh_upsample", 5), ("mesh_upsample", 6), ("token_map", 1)}  # of the other pass


@pytest.mark.parametrize("name", calls())
@pytest.mark.parametrize("bindings", ["cpu", "cuda"])
def test_bindings_compare_devices(name, bindings):
    if bindings == "cuda":
        if emulated.missing or name == "pruned_attention_fwd":
            pytest.skip("Triton, or " + emulated.NEEDS)
        emulated.load()
    elif name == "dpc_knn_cluster_merge" or _dispatch.backend_reason("cpu") or _dispatch.DEVICE_TYPES["cpu"] != "cpu":
        pytest.skip("no C++ kernel of this name")
    namespace = {"cpu": "tore_fast", "cuda": emulated.NAMESPACE}[bindings]
    args = calls()[name]
    redispatch(name, args, namespace)
    first = next(i for i, a in enumerate(args) if isinstance(a, torch.Tensor))
    for i, a in enumerate(args):
        if not isinstance(a, torch.Tensor) or i == first or (name, i) in UNREAD:
            continue
        if name == "cluster_merge_backward" and i == 1:
            continue  # the tensor the others are compared with
        if name == "mesh_attention_bwd" and i == 1:
            continue
        with pytest.raises(RuntimeError, match=r"is on .*must be on"):
            redispatch(name, [other_device(b) if j == i else b for j, b in enumerate(args)], namespace)


@pytest.mark.cpu_kernels
def test_triton_launchers_compare_devices():
    pytest.importorskip("triton")
    from tore_fast.triton_kernels import pruned_attention as kernels

    q = torch.rand(2, 1, 8, 4)
    vectors = {n: torch.ones(2, dtype=torch.int32) for n in ("key_len", "query_len")}
    for name in vectors:
        given = vectors | {name: vectors[name].to("meta")}
        with pytest.raises(ValueError, match=f"{name} is on meta, q on cpu"):
            kernels.fwd(q, q, q, None, given["key_len"], given["query_len"], None, None, 8, 8, 1.0)


@pytest.mark.cpu_kernels
def test_csr_indices_are_looked_at_forward_and_backward():
    if _dispatch.backend_reason("cpu"):
        pytest.skip(_dispatch.backend_reason("cpu"))
    good = ops.csr_matrix(torch.eye(5)[:, :4])
    x = torch.rand(2, 4, 3, requires_grad=True)
    for bad in (4, 2000, 2**28, -1, INT_MIN):
        matrix = good._replace(col_idx=good.col_idx.clone().index_fill_(0, torch.tensor([1]), bad))
        with pytest.raises(RuntimeError, match=r"mesh_upsample: col_idx out of range: must lie in 0\.\.3"):
            ops.mesh_upsample(x, matrix)
        matrix = good._replace(t_col_idx=good.t_col_idx.clone().index_fill_(0, torch.tensor([1]), bad))
        if bad > 4 or bad < 0:
            with pytest.raises(RuntimeError, match="mesh_upsample: col_idx out of range"):
                ops.mesh_upsample(x, matrix).sum().backward()
        for name in ("row_ptr", "t_row_ptr"):
            pointer = getattr(good, name).clone()
            pointer[1] = bad
            with pytest.raises(RuntimeError, match="mesh_upsample: row_ptr out of range"):
                ops.mesh_upsample(x, good._replace(**{name: pointer})).sum().backward()
    empty = good._replace(row_ptr=torch.zeros(0, dtype=torch.int32))
    with pytest.raises((RuntimeError, ValueError), match="mesh_upsample"):
        torch.ops.tore_fast.mesh_upsample(x.detach(), *empty)


def test_large_integers_do_not_wrap():
    """2^32 + n is not n."""
    vertices = torch.rand(1, 4, 3)
    faces = torch.tensor([[0, 1, 2**32 + 2]])
    for impl in {"reference", *(b for b in ("cpu",) if _dispatch.backend_reason(b) is None)}:
        if impl == "cpu" and _dispatch.DEVICE_TYPES["cpu"] != "cpu":
            impl = "cuda"  # does not look at indices on the host: the face is left out
            assert (ops.rasterize(vertices * 8, faces, 8, 8, impl=impl).face_index == -1).all()
            continue
        with pytest.raises((ValueError, RuntimeError), match="rasterize: faces"):
            ops.rasterize(vertices, faces, 4, 4, impl=impl)
    q = torch.rand(2, 1, 6, 8)
    full = ops.pruned_attention(q, q, q)
    for impl in ("auto", "reference"):
        got = ops.pruned_attention(q, q, q, key_len=torch.tensor([2**32 + 1, 6]), impl=impl)
        torch.testing.assert_close(got, full)
        none = ops.pruned_attention(q, q, q, key_len=torch.tensor([-(2**32) + 3, INT_MIN]), impl=impl)
        assert (none == 0).all()


def test_offsets_that_are_none():
    q = torch.rand(6, 1, 8)
    for cu in ([0, INT_MIN, 6], [INT_MIN, 2**31 - 1, 6], [0, 2**31 - 1, 6], [0, 4, 7]):
        offsets = torch.tensor(cu, dtype=torch.int32)
        if _dispatch.DEVICE_TYPES["cpu"] != "cpu":  # no look at values on a GPU: cut to the tensor
            assert ops.pruned_attention_packed(q, q, q, offsets, offsets, 6, 6).isfinite().all()
        elif _dispatch.backend_reason("cpu") is None:
            with pytest.raises(RuntimeError, match="offsets must ascend and stay inside"):
                ops.pruned_attention_packed(q, q, q, offsets, offsets, 6, 6, impl="cpu")


def test_empty_dimensions():
    """Head dimension 0 is refused; tensors of length 0, whose pointers are null, are no fault."""
    topology = ops.mesh_topology(torch.eye(4), 1)
    with pytest.raises(ValueError, match="head dimension must be positive"):
        ops.mesh_attention(*(torch.rand(1, 2, 5, 0) for _ in "qkv"), topology)
    with pytest.raises(ValueError, match="D >= 1"):
        ops.pruned_attention(*(torch.rand(1, 2, 5, 0) for _ in "qkv"))
    nothing = ops.csr_matrix(sp.csr_matrix((3, 4)))
    assert (ops.mesh_upsample(torch.rand(2, 4, 3), nothing) == 0).all()
    assert ops.mesh_upsample(torch.rand(2, 4, 0), nothing).shape == (2, 3, 0)
    cu = torch.zeros(3, dtype=torch.int32)
    for k in (torch.rand(0, 2, 8), torch.rand(4, 2, 8)):
        assert (ops.pruned_attention_packed(torch.rand(4, 2, 8), k, k, cu, cu, 0, 0) == 0).all()
    assert (ops.rasterize(torch.rand(1, 0, 3), torch.zeros(0, 3).int(), 3, 3).face_index == -1).all()


def test_more_items_than_a_grid_is_high(monkeypatch):
    """Launches have one dimension, which holds 2^31 - 1 blocks; along y and z it would be 65,535."""
    pytest.importorskip("triton")
    from tore_fast.triton_kernels import ppt_select, pruned_attention

    grids = []

    class Recorded:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *args, **options: None

    for module, names in ((pruned_attention, ("fwd", "dkv", "dq")), (ppt_select, ("fwd",))):
        for name in names:
            monkeypatch.setattr(module, f"{module.__name__.split('.')[-1]}_{name}_kernel", Recorded())
    q, lse = torch.zeros(70_000, 1, 2, 8), torch.zeros(70_000, 1, 2)
    none = (None,) * 4
    pruned_attention.fwd(q, q, q, None, *none, 2, 2, 1.0)
    pruned_attention.bwd(q, q, q, q, None, lse, lse, *none, 2, 2, 1.0)
    ppt_select.select(torch.zeros(70_000, 4), 2, False)
    assert len(grids) >= 3 and all(len(g) == 1 and g[0] >= 70_000 for g in grids)
    with pytest.raises(ValueError, match="exceed a launch"):
        pruned_attention._grid(2**16, 2**8, 2**8)


@pytest.mark.skipif(emulated.missing, reason=emulated.NEEDS)
def test_emulated_launches_of_many_items():
    kernels = emulated.kernels()
    x = torch.rand(66_000, 2, 1)
    merged = kernels.bipartite_merge(x, torch.zeros(66_000, 2, dtype=torch.int64), 1, True, None)
    torch.testing.assert_close(merged[:, 0], x.mean(1), rtol=1e-5, atol=1e-5)
    one = ops.csr_matrix(torch.ones(1, 2))
    torch.testing.assert_close(kernels.mesh_upsample(x, *one)[:, 0], x.sum(1), rtol=1e-5, atol=1e-5)
