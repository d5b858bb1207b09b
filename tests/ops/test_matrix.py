"""Every op through the same checks (table: ops/matrix.py): reference in float64, any shape, gradients, fakes, autocast,
torch.compile, torch.export, strides, empty batches, non-finite values; on a GPU also CUDA graphs, streams and devices.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.matrix import CASES, Case
from torch._subclasses.fake_tensor import FakeTensorMode

from tore_fast import ops

SHAPE = (2, 12, 4)


def parameter(case: Case):
    """`linear` and `fit_landmarks` have no GPU kernel: nothing to emulate."""
    backends = ops.op_backends()[case.stem]
    on_gpu = {"cuda", "triton"} & set(backends)
    return pytest.param(case, marks=[] if on_gpu else [pytest.mark.cpu_kernels])


every_case = pytest.mark.parametrize("case", [parameter(c) for c in CASES], ids=str)
differentiable = pytest.mark.parametrize("case", [parameter(c) for c in CASES if c.grads], ids=str)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def doubled(t: dict) -> dict:
    return {name: v.double() if v.is_floating_point() else v for name, v in t.items()}


def check_close(case: Case, got, want, tol: float | None = None) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        if a.is_floating_point():
            tol = case.tol if tol is None else tol
            torch.testing.assert_close(a.double(), b.double(), rtol=tol, atol=tol)
        else:
            assert torch.equal(a.long(), b.long()), case.name


def test_the_table_has_every_op():
    """A new op that is not in the table, or an export that is neither op nor type, fails here."""
    helpers = {
        "csr_matrix",
        "mesh_topology",
        "gather_tokens",
        "cluster_merge_tokens",
        "plain_attention",
        "kept_memory",
        "release_memory",
        "use",
    }
    public = {n for n in ops.__all__ if not isinstance(getattr(ops, n), type)} - helpers
    named = {c.name.split("-")[0] for c in CASES}
    assert public == named
    assert set(ops.op_backends()) == {c.stem for c in CASES}


@every_case
@settings(max_examples=6, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 3), st.integers(2, 40), st.integers(1, 24), st.integers(0, 999))
def test_any_shape_against_float64(case, batch, tokens, channels, seed):
    torch.manual_seed(seed)
    t = case.make(batch, tokens, channels)
    want = case.call(t if case.name == "rasterize" else doubled(t), "reference")
    assert case.name == "rasterize" or all(w.dtype != torch.float32 for w in want if w.dim() == t[next(iter(t))].dim())
    check_close(case, case.call(t, case.backend(t)), want)


@differentiable
def test_gradients(case):
    """gradcheck of the float64 reference; the compiled gradients against it."""
    t = case.make(1, 6, 2)
    exact = {n: v.requires_grad_(n in case.grads) for n, v in doubled(t).items()}
    leaves = [exact[n] for n in case.grads]
    assert torch.autograd.gradcheck(
        lambda *v: case.call(exact | dict(zip(case.grads, v, strict=True)), "reference")[0], leaves
    )
    out = case.call(exact, "reference")[0]
    g = torch.randn_like(out)
    want = torch.autograd.grad(out, leaves, g)
    mine = {n: v.detach().requires_grad_(n in case.grads) for n, v in t.items()}
    got = torch.autograd.grad(case.call(mine, case.backend(t))[0], [mine[n] for n in case.grads], g.float())
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2 * case.tol, atol=2 * case.tol)


@every_case
def test_fake_tensors(case):
    """Shapes, dtypes and strides without data, as torch.compile asks for them."""
    t = case.make(*SHAPE)
    impl = case.backend(t)
    want = case.call(t, impl)
    mode = FakeTensorMode()
    with mode:
        got = case.call({n: mode.from_tensor(v) for n, v in t.items()}, impl)
    for a, b in zip(got, want, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


@pytest.mark.parametrize("case", [c for c in CASES if c.name != "linear-norm"], ids=str)  # norms stay in float32 there
def test_autocast_rule(case):
    """Attention and linear run in the autocast type, every other op in the type of its input."""
    t = case.make(*SHAPE)
    for impl in {"reference", case.backend(t)}:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if impl == "strassen":  # float32 only
                with pytest.raises(ops.BackendUnavailable, match="autocast"):
                    case.call(t, impl)
                continue
            got = case.call(t, impl)
        if case.casts:
            cast = {n: v.bfloat16() if n in case.casts else v for n, v in t.items()}
            want = case.call(cast, impl)
            assert got[0].dtype == want[0].dtype
            check_close(case, got, want, 0.0)
        else:
            check_close(case, got, case.call(t, impl), 0.0)


class Program(torch.nn.Module):
    """A case as torch.compile and torch.export take it."""

    def __init__(self, case: Case, impl: str) -> None:
        super().__init__()
        self.case, self.impl = case, impl

    def forward(self, t: dict) -> tuple:
        return tuple(self.case.call(t, self.impl))


@every_case
def test_compile_fullgraph(case):
    t = case.make(*SHAPE)
    program = Program(case, "auto")
    t = {n: v.requires_grad_(n in case.grads) for n, v in t.items()}
    torch._dynamo.reset()
    got, want = torch.compile(program, fullgraph=True, backend="aot_eager")(t), program(t)
    check_close(case, got, want, 1e-6)
    if case.grads:
        leaves, g = [t[n] for n in case.grads], torch.randn_like(want[0])
        for a, b in zip(torch.autograd.grad(got[0], leaves, g), torch.autograd.grad(want[0], leaves, g), strict=True):
            torch.testing.assert_close(a, b)


@every_case
def test_export(case):
    """One graph, the op one node of it, and it runs with another batch size (the packed form has none)."""
    t, more = case.make(*SHAPE), case.make(3, *SHAPE[1:])
    impl = case.backend(t)
    batch = torch.export.Dim("batch", min=1, max=64)
    fixed = case.name == "pruned_attention_packed"
    dynamic = (
        None
        if fixed
        else ({n: {0: batch} if v.shape[0] == 2 and more[n].shape[0] == 3 else None for n, v in t.items()},)
    )
    program = torch.export.export(Program(case, "auto"), (t,), dynamic_shapes=dynamic)
    nodes = {str(node.target) for node in program.graph.nodes}
    if impl != "reference" and case.name != "unmerge":  # unmerge is a gather
        assert any("tore_fast." in n for n in nodes), nodes
    t = t if fixed else more
    check_close(case, program.module()(t), case.call(t, "auto"), 1e-6)


@every_case
def test_strides_do_not_matter(case):
    """Batch and token dimensions swapped in memory, every second number of a wider tensor (lengths and offsets too):
    the
    same bits."""
    t = case.make(*SHAPE)
    for impl in {"reference", case.backend(t)}:
        want = case.call({n: v.contiguous() for n, v in t.items()}, impl)
        strided = {}
        for n, v in t.items():
            wide = torch.full((*v.shape[:-1], 2 * v.shape[-1]), 77).to(v.dtype)
            if v.dim() > 1:
                wide = wide.transpose(0, 1).contiguous().transpose(0, 1)
            wide[..., ::2] = v
            strided[n] = wide[..., ::2]
            assert not strided[n].is_contiguous()
        check_close(case, case.call(strided, impl), want, 0.0 if impl != "reference" else 1e-6)


@every_case
@pytest.mark.parametrize("shape", [(2, 70, 24), (1, 300, 16)], ids=str)  # several tiles, streamed
@pytest.mark.skipif("not config.getoption('--emulated')", reason="the GPU kernels, emulated")
def test_emulated_matches_float64(case, shape):
    t = case.make(*shape)
    want = case.call(t if case.name == "rasterize" else doubled(t), "reference")
    check_close(case, case.call(t, case.backend(t)), want)


# spec: against float64 on the same rounded inputs; indices are compared by test_half_clusters.py
HALF = {torch.float16: (2e-3, 1e-2), torch.bfloat16: (1.6e-2, 5e-2)}
half_cases = [c for c in CASES if c.grads and not c.name.startswith(("linear", "dpc"))]


@pytest.mark.parametrize("case", half_cases, ids=str)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_types(case, dtype):
    """Results and gradients of 16-bit features; statistics and weights stay float32."""
    t = case.make(2, 20, 16)
    wide = {"q", "k", "v", "x", "map", "y"} & t.keys()
    t = {n: v.to(dtype) if n in wide else v for n, v in t.items()}
    impl = case.backend(t)
    tol, grad_tol = HALF[dtype]
    leaves = {n: t[n].detach().requires_grad_() for n in case.grads}
    exact = {n: v.requires_grad_(n in case.grads) for n, v in doubled(t).items()}
    got, want = case.call(t | leaves, impl)[0], case.call(exact, "reference")[0]
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=tol, atol=tol)
    g = torch.randn_like(want).to(dtype)
    got = torch.autograd.grad(got, list(leaves.values()), g)
    want = torch.autograd.grad(want, [exact[n] for n in case.grads], g.double())
    for a, b in zip(got, want, strict=True):
        scale = 1 + b.abs().max()
        torch.testing.assert_close(a.double() / scale, b / scale, rtol=grad_tol, atol=grad_tol)


@every_case
def test_empty_batch(case):
    t = case.make(0, *SHAPE[1:])
    full = case.call(case.make(*SHAPE), "reference")
    for impl in {"reference", case.backend(t)}:
        got = case.call(t, impl)
        for a, b in zip(got, full, strict=True):
            assert a.shape == (0, *b.shape[1:]) and a.dtype == b.dtype


@pytest.mark.parametrize("case", [c for c in CASES if c.spoil], ids=str)
@pytest.mark.parametrize("tokens", [12, 150])
def test_non_finite_values_keep_indices_in_range(case, tokens):
    for bad in (float("nan"), float("inf"), -float("inf"), 3e38):
        t = case.make(3, tokens, 4)
        x = t[case.spoil]
        x[0], x[1, ::3], x[2, 5] = bad, bad, bad
        for impl in {"reference", case.backend(t)}:
            got = case.call(t, impl)
            for n, limit in case.indices(t).items():
                assert ((got[n] >= -1) & (got[n] < limit)).all(), (bad, impl, n)


def test_inductor_attention_chain():
    """Selection, attention, merging and up-sampling in one inductor graph, with gradients (clustering:
    test_dpc_knn_cluster)."""
    q, k, v = (torch.randn(2, 20, 2, 16).transpose(1, 2).requires_grad_() for _ in range(3))
    matrix = ops.csr_matrix(torch.rand(30, 13) * (torch.rand(30, 13) < 0.3))
    topology = ops.mesh_topology(torch.rand(18, 18) < 0.2, 2)

    def step(q, k, v):
        y = ops.mesh_attention(q, k, v, topology) * 2
        seen = ops.pruned_attention(y, k, v, importance_rows=3, impl="auto")
        y = seen.out.transpose(1, 2).flatten(2) + 1
        kept = ops.gather_tokens(y, ops.ppt_select(seen.importance, 18))
        plan = ops.bipartite_soft_matching(kept, 5)
        return ops.mesh_upsample(ops.merge(plan, kept), matrix).sigmoid()

    got, want = torch.compile(step, fullgraph=True)(q, k, v), step(q, k, v)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    g = torch.randn_like(want)
    for a, b in zip(torch.autograd.grad(got, (q, k, v), g), torch.autograd.grad(want, (q, k, v), g), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def on_gpu(case: Case, index: int = 0, shape: tuple[int, int, int] = SHAPE) -> dict:
    return {n: v.to(f"cuda:{index}") for n, v in case.make(*shape).items()}


@needs_gpu
@every_case
@pytest.mark.parametrize("shape", [SHAPE, (2, 70, 24), (1, 300, 16)], ids=str)  # one launch, several tiles, streamed
def test_cuda_matches_float64(case, shape):
    """Small enough for compute-sanitizer, which benchmarks/gpu_suite.sh runs over this test."""
    t = on_gpu(case, 0, shape)
    want = case.call(t if case.name == "rasterize" else doubled(t), "reference")
    check_close(case, case.call(t, case.backend(t)), want)


@needs_gpu
@every_case
def test_cuda_graph(case):
    """Captured once, replayed on other values: no synchronisation, no allocation outside the pool."""
    t, other = on_gpu(case), on_gpu(case)
    impl = case.backend(t)
    if case.stem == "fit_landmarks" and impl == "reference":
        pytest.skip("fit_landmarks has no CUDA kernel; the reference's factorisation is torch's")
    fixed = {n for n in t if n in (*ops.MeshTopology._fields, "cu", *"abcdef")}
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            case.call(t, impl)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = case.call(t, impl)
    for n in t.keys() - fixed:
        t[n].copy_(other[n])
    graph.replay()
    torch.cuda.synchronize()
    check_close(case, got, case.call(t, impl), 0.0)


@needs_gpu
@every_case
def test_cuda_current_stream(case):
    """The op waits for what its own stream made, not for the default stream."""
    t = on_gpu(case)
    impl = case.backend(t)
    want = case.call(t, impl)
    torch.cuda.synchronize()
    late = {n: torch.zeros_like(v) for n, v in t.items()}
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(20_000_000)  # about 10 ms: a launch on another stream would see the zeros
        for n, v in t.items():
            late[n].copy_(v)
        got = case.call(late, impl)
    torch.cuda.synchronize()
    check_close(case, got, want, 0.0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
@every_case
def test_cuda_other_device(case):
    """Tensors on cuda:1 while cuda:0 is current."""
    t = on_gpu(case, 1)
    got = case.call(t, case.backend(t))
    assert all(g.device.index == 1 for g in got) and torch.cuda.current_device() == 0
    check_close(case, [g.cpu() for g in got], [w.cpu() for w in case.call(t, "reference")])
