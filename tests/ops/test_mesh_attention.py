"""mesh_attention: every implementation against a float64 loop-free dense softmax, gradients, dropout, registration."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tore_fast.ops import BackendUnavailable, MeshTopology, mesh_attention, mesh_topology
from tore_fast.ops.mesh_attention import BACKENDS, why_not
from tore_fast.ops.reference.mesh_attention import drop_threshold, dropout_keep


def random_topology(vertices: int, joints: int, degree: int = 6, symmetric: bool = True) -> MeshTopology:
    rng = np.random.default_rng(vertices)
    adjacency = rng.random((vertices, vertices)) < degree / max(vertices, 1) / (2 if symmetric else 1)
    return mesh_topology(adjacency | adjacency.T if symmetric else adjacency, joints)


def qkv(batch, heads, tokens, dim, device="cpu", dtype=torch.float32):
    """As models make them: heads seen through a transpose of one projection."""
    packed = torch.randn(batch, tokens, 3, heads, dim, device=device).to(dtype)
    return packed.permute(2, 0, 3, 1, 4).unbind(0)


def impls(q):
    return ["reference", *(b for b in BACKENDS if why_not(b, q) is None)]


def dense(q, k, v, topology):
    """Independent formula: SDPA with the dense boolean mask, in float64."""
    return F.scaled_dot_product_attention(*(t.double() for t in (q, k, v)), attn_mask=topology.dense_mask())


@pytest.mark.parametrize(
    "joints,vertices,dim,batch",
    [
        (14, 431, 64, 1),
        (14, 431, 16, 2),
        (0, 431, 16, 1),
        (21, 195, 24, 1),
        (3, 17, 20, 2),
        (1, 1, 8, 1),
        (2, 0, 8, 1),
        (5, 63, 13, 1),
        (14, 30, 32, 0),
    ],
)
def test_forward_and_gradients(device, joints, vertices, dim, batch):
    topology = random_topology(vertices, joints).to(device)
    q, k, v = qkv(batch, 3, joints + vertices, dim, device)
    g = torch.randn_like(q)
    leaves = [t.detach().double().requires_grad_() for t in (q, k, v)]
    want = dense(*leaves, topology)
    want_grads = torch.autograd.grad(want, leaves, g.double())
    for impl in impls(q):
        mine = [t.detach().requires_grad_() for t in (q, k, v)]
        got = mesh_attention(*mine, topology, impl=impl)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=2e-6)
        for a, b in zip(torch.autograd.grad(got, mine, g), want_grads):
            torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=2e-5)


def test_asymmetric_rows_and_rows_without_keys(device):
    """The transposed pattern is not assumed equal; a row without keys gives 0 and lse -inf."""
    topology = random_topology(40, 0, symmetric=False).to(device)
    counts = (topology.row_ptr[1:] - topology.row_ptr[:-1]).cpu()
    counts[7] = 0
    keep = torch.repeat_interleave(torch.arange(40), (topology.row_ptr[1:] - topology.row_ptr[:-1]).cpu().long()) != 7
    adjacency = torch.zeros(40, 40)
    rows = torch.repeat_interleave(torch.arange(40), (topology.row_ptr[1:] - topology.row_ptr[:-1]).cpu().long())
    adjacency[rows[keep], topology.col_idx.cpu().long()[keep]] = 1
    t = mesh_topology(adjacency.T, 0)  # transposed here, and back below: mesh_topology would add row 7's self loop
    row_ptr = torch.cat([torch.zeros(1), adjacency.sum(1).cumsum(0)]).int()
    empty = MeshTopology(
        row_ptr.to(device), adjacency.nonzero()[:, 1].int().to(device), t.row_ptr.to(device), t.col_idx.to(device), 0
    )
    q, k, v = qkv(1, 2, 40, 16, device)
    for impl in impls(q):
        if impl == "cuda":
            continue  # its backward reads the transposed pattern, which this hand-made topology does not have
        r = mesh_attention(q, k, v, empty, return_lse=True, impl=impl)
        if impl != "reference":
            assert (r.out[:, :, 7] == 0).all() and (r.lse[:, :, 7] == float("-inf")).all()
        others = [i for i in range(40) if i != 7]
        torch.testing.assert_close(
            r.out.double()[:, :, others], dense(q, k, v, empty)[:, :, others], rtol=1e-5, atol=2e-6
        )
    for impl in impls(q):
        torch.testing.assert_close(
            mesh_attention(q, k, v, topology, impl=impl).double(), dense(q, k, v, topology), rtol=1e-5, atol=2e-6
        )


@pytest.mark.parametrize("dtype,limit", [(torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)])
def test_half_types(device, dtype, limit):
    topology = random_topology(100, 5).to(device)
    q, k, v = qkv(1, 2, 105, 32, device, dtype)
    want = dense(q, k, v, topology)
    for impl in impls(q):
        got = mesh_attention(q, k, v, topology, impl=impl)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=limit, atol=limit)


def test_lse_weights_and_their_gradient(device):
    topology = random_topology(50, 4).to(device)
    q, k, v = qkv(2, 2, 54, 16, device)
    scores = (q.double() @ k.double().transpose(-2, -1) * 0.3).masked_fill(~topology.dense_mask(), float("-inf"))
    result = mesh_attention(q, k, v, topology, 0.3, return_weights=True)
    torch.testing.assert_close(result.weights.double(), scores.softmax(-1).mean(1), rtol=1e-5, atol=1e-6)
    assert result.weights[:, 4:, 4:][:, ~topology.dense_mask()[4:, 4:]].abs().max() == 0
    want = None
    for impl in impls(q):
        leaves = [t.detach().requires_grad_() for t in (q, k, v)]
        r = mesh_attention(*leaves, topology, 0.3, return_lse=True, impl=impl)
        torch.testing.assert_close(r.lse.double(), scores.logsumexp(-1), rtol=0, atol=1e-5)
        grads = torch.autograd.grad(r.lse.sin().sum() + r.out.square().sum(), leaves)
        want = want or grads
        for a, b in zip(grads, want):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


def test_dropout_is_the_same_mask_everywhere(device):
    topology = random_topology(60, 14).to(device)
    q, k, v = qkv(2, 2, 74, 16, device)
    g = torch.randn_like(q)
    seed = torch.tensor([2**40 + 12345], device=device)
    results = []
    for impl in impls(q):
        leaves = [t.detach().requires_grad_() for t in (q, k, v)]
        out = mesh_attention(*leaves, topology, dropout_p=0.3, seed=seed, impl=impl)
        results.append([out, *torch.autograd.grad(out, leaves, g)])
    for other in results[1:]:
        for a, b in zip(other, results[0]):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)
    assert not torch.allclose(results[0][0], mesh_attention(q, k, v, topology))
    first, second = (mesh_attention(q, k, v, topology, dropout_p=0.3) for _ in range(2))
    assert not torch.equal(first, second)  # a fresh seed per call


def test_dropout_words():
    """Philox 2x32-10 against an independent integer loop, and the drop rate."""

    def philox(lo, hi, key):
        for _ in range(10):
            product = lo * 0xD256D193
            lo, hi, key = (product >> 32) ^ key ^ hi, product & 0xFFFFFFFF, (key + 0x9E3779B9) & 0xFFFFFFFF
        return lo

    keep = dropout_keep(torch.tensor([-77]), 3, 5, 40, 0.25)
    want = [
        [[philox(r * 40 + c, g, -77 & 0xFFFFFFFF) >= drop_threshold(0.25) for c in range(40)] for r in range(5)]
        for g in range(3)
    ]
    assert keep.tolist() == want
    assert abs(dropout_keep(torch.tensor([1]), 8, 100, 100, 0.1).float().mean() - 0.9) < 0.005


def test_equals_full_attention_and_follows_permutations():
    full = mesh_topology(torch.ones(30, 30), 2)
    q, k, v = qkv(1, 2, 32, 16)
    for impl in impls(q):
        torch.testing.assert_close(
            mesh_attention(q, k, v, full, impl=impl), F.scaled_dot_product_attention(q, k, v), rtol=1e-5, atol=2e-6
        )
    adjacency = random_topology(30, 2).dense_mask()[2:, 2:]
    order = torch.randperm(30)
    tokens = torch.cat([torch.arange(2), 2 + order])
    moved = mesh_topology(adjacency[order][:, order], 2)
    a = mesh_attention(q, k, v, mesh_topology(adjacency, 2))[:, :, tokens]
    b = mesh_attention(q[:, :, tokens], k[:, :, tokens], v[:, :, tokens], moved)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)


def test_gradcheck_opcheck_and_nan():
    topology = random_topology(9, 2, 3)
    q, k, v = qkv(1, 1, 11, 4)
    leaves = [t.double().requires_grad_() for t in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *x: mesh_attention(*x, topology, impl="reference"), leaves)
    if impls(q) == ["reference"]:
        pytest.skip(f"no compiled kernel: {why_not(BACKENDS[-1], q)}")
    seed = torch.tensor([3])
    for dropout in (0.0, 0.2):
        args = ([t.detach().requires_grad_() for t in (q, k, v)], topology, 0.5, dropout, seed)
        torch.library.opcheck(torch.ops.tore_fast.mesh_attention_fwd, (*args[0], *args[1][:7], *args[2:]))
    q = q.clone()
    q[0, 0, 0] = float("nan")
    assert mesh_attention(q, k, v, topology, impl=impls(q)[-1])[0, 0, 2:].isfinite().all()  # only joint row 0 is spoilt


def test_compile_fullgraph():
    topology = random_topology(20, 3)
    q, k, v = qkv(1, 2, 23, 16)

    def step(q, k, v):
        return mesh_attention(q * 1.5, k, v, topology, dropout_p=0.0).square().sum()

    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    want = torch.autograd.grad(step(*leaves), leaves)
    got = torch.autograd.grad(torch.compile(step, fullgraph=True, backend="aot_eager")(*leaves), leaves)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b)


def test_cuda_limits_are_said(monkeypatch):
    """Head dimension and joint strip, told before a launch; the body's and the hand's shapes fit every GPU."""
    module = sys.modules["tore_fast.ops.mesh_attention"]
    monkeypatch.setattr(module, "backend_reason", lambda backend: None)
    monkeypatch.setattr(module, "tensor_reason", lambda *args: None)
    for tokens, joints in ((445, 14), (216, 21), (431, 0)):
        assert why_not("cuda", torch.empty(64, 8, tokens, 64), False, joints) is None
    assert "head dimensions up to 64, got 80" in why_not("cuda", torch.empty(1, 1, 20, 80), False, 2)
    assert "shared memory, up to 101376, got 107520 with 16 joints and 772 tokens" in why_not(
        "cuda", torch.empty(1, 1, 772, 64), False, 16
    )


@pytest.mark.cpu_kernels
def test_errors():
    topology = random_topology(10, 2)
    q, k, v = qkv(1, 1, 12, 8)
    with pytest.raises(ValueError, match=r"mesh_attention: q has 11 tokens, the topology 2 joints \+ 10 vertices"):
        mesh_attention(q[:, :, 1:], k[:, :, 1:], v[:, :, 1:], topology)
    with pytest.raises(ValueError, match="mesh_attention: k must be like q"):
        mesh_attention(q, k[..., :4], v, topology)
    with pytest.raises(ValueError, match="dropout_p must be in"):
        mesh_attention(q, k, v, topology, dropout_p=1.0)
    with pytest.raises(BackendUnavailable, match="impl='cuda' cannot run here"):
        mesh_attention(q, k, v, topology, impl="cuda")
    if why_not("cpu", q) is None:
        bad = topology._replace(col_idx=topology.col_idx + 100)
        with pytest.raises(RuntimeError, match="out of range"):
            mesh_attention(q, k, v, bad, impl="cpu")
