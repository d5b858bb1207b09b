"""The CUDA attention, matching and upsampling kernels, compiled by g++ and run by tests/cuda_emulator, against the
references.

This needs no GPU and no CUDA toolkit: what the emulator models and refuses stands in cuda_emulator/cuda_runtime_api.h.
`pytest tests/ops --emulated` runs the tests of the public functions on the same kernels.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from ops import emulated
from ops.test_mesh_attention import random_topology

from tore_fast.ops import csr_matrix, mesh_topology
from tore_fast.ops.bipartite_match import _owners
from tore_fast.ops.reference.bipartite_match import bipartite_match_reference, segment_merge_reference
from tore_fast.ops.reference.mesh_attention import mesh_attention_reference
from tore_fast.ops.reference.mesh_upsample import mesh_upsample_reference

LIMIT = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}

pytestmark = pytest.mark.skipif(emulated.missing, reason=emulated.NEEDS)


@pytest.fixture(scope="module")
def lib():
    """The ops of csrc/torch_cuda for CPU tensors."""
    return emulated.kernels()


@pytest.mark.parametrize(
    "joints,vertices,dim,dtype,dropout",
    [
        (14, 70, 64, torch.float32, 0.0),
        (14, 70, 64, torch.bfloat16, 0.2),
        (5, 67, 16, torch.float16, 0.0),
        (0, 65, 24, torch.float32, 0.3),
        (33, 20, 32, torch.float32, 0.2),
        (3, 9, 13, torch.float32, 0.0),
        (2, 0, 8, torch.float32, 0.0),
        (4, 40, 48, torch.float32, 0.0),
    ],
)
def test_mesh_attention(lib, joints, vertices, dim, dtype, dropout):
    batch, heads, tokens = 2, 2, joints + vertices
    degree = 6 if joints != 33 else 80  # once more than 32 neighbours: several rounds
    topology = random_topology(vertices, joints, degree, symmetric=vertices != 40)
    q, k, v, g = (torch.randn(batch, tokens, heads, dim).to(dtype) for _ in range(4))
    seed = torch.tensor([987654321012])
    leaves = [t.double().transpose(1, 2).requires_grad_() for t in (q, k, v)]
    want, want_lse, _ = mesh_attention_reference(
        *leaves, topology.row_ptr, topology.col_idx, joints, 0.4, dropout, seed
    )
    grads = torch.autograd.grad(want, leaves, g.double().transpose(1, 2))
    rest = (*topology[:7], 0.4, dropout, seed)
    q, k, v, g = (t.transpose(1, 2) for t in (q, k, v, g))
    out, lse = lib.mesh_attention_fwd(q, k, v, *rest)
    limit = LIMIT[dtype]
    torch.testing.assert_close(out.double().transpose(1, 2), want, rtol=limit, atol=limit)
    torch.testing.assert_close(lse.double(), want_lse, rtol=0, atol=1e-5)
    delta = (g.double() * want.detach()).sum(-1).float()
    for got, exact in zip(lib.mesh_attention_bwd(g, q, k, v, delta, lse, *rest), grads):
        torch.testing.assert_close(got.double().transpose(1, 2), exact, rtol=3 * limit, atol=3 * limit)


@pytest.mark.parametrize(
    "joints,vertices,dim,dtype,dropout",
    [
        (14, 431, 64, torch.bfloat16, 0.0),  # FastMETRO's body
        (21, 195, 16, torch.float16, 0.0),  # its hand: two tiles of joints
        (0, 131, 16, torch.bfloat16, 0.3),  # no joints; dropout
        (20, 45, 32, torch.float16, 0.3),
        (14, 70, 24, torch.bfloat16, 0.2),  # fewer dimensions than the kernel's
        (3, 9, 8, torch.float16, 0.0),
        (5, 17, 48, torch.float16, 0.0),
        (40, 0, 64, torch.bfloat16, 0.0),  # joints alone
        (100, 0, 64, torch.float16, 0.0),  # their parts are larger than keys and values
    ],
)
def test_mesh_attention_on_matrix_units(lib, joints, vertices, dim, dtype, dropout):
    """One launch for all rows, against float64 on the same rounded tokens."""
    topology = random_topology(vertices, joints, 6, symmetric=vertices != 45)
    q, k, v = torch.randn(joints + vertices, 3, 2, dim).to(dtype)[None].permute(2, 0, 3, 1, 4)
    q, k, v = (t.expand(2, -1, -1, -1) for t in (q, k, v))
    seed = torch.tensor([-5])
    args = (topology.row_ptr, topology.col_idx, joints, 0.4, dropout, seed)
    leaves = [t.double().requires_grad_() for t in (q, k, v)]
    want, want_lse, _ = mesh_attention_reference(*leaves, *args)
    emulated.setup()
    out, lse = lib.mesh_attention_fwd(q, k, v, *topology[:7], 0.4, dropout, seed)
    assert emulated.launches() == 1
    limit = LIMIT[dtype]
    torch.testing.assert_close(out.double().transpose(1, 2), want, rtol=limit, atol=limit)
    torch.testing.assert_close(lse.double(), want_lse, rtol=0, atol=1e-5)
    g = torch.randn_like(q)
    delta = (g.double() * want).sum(-1).float().detach()
    got = lib.mesh_attention_bwd(g, q, k, v, delta, lse, *topology[:7], 0.4, dropout, seed)
    assert emulated.launches() == 3  # one for query rows, one for key rows
    for a, b in zip(got, torch.autograd.grad(want, leaves, g.double()), strict=True):
        torch.testing.assert_close(a.double().transpose(1, 2), b, rtol=3 * limit, atol=3 * limit)


def test_mesh_attention_rows_without_keys(lib):
    """Rows of a hand-made table that see nothing give 0 and -inf; tokens of a table stay inside the tensors."""
    topology = mesh_topology(torch.eye(20), 0)
    tiles = topology.tiles.clone()
    tiles[0, 80:112] = 0
    tiles[1, 16:80] = 10**6
    q, k, v = torch.randn(3, 1, 1, 20, 16).half()
    out, lse = lib.mesh_attention_fwd(q, k, v, *topology._replace(tiles=tiles)[:7], 0.4, 0.0, None)
    rows = tiles[0, :16].long()
    assert (out[0, rows] == 0).all() and (lse[0, 0, rows] == float("-inf")).all()


def test_mesh_tiles():
    """The table says exactly what the pattern says, each row once, columns without repetition."""
    for vertices, joints, symmetric in ((131, 14, True), (60, 3, False), (17, 0, True)):
        topology = random_topology(vertices, joints, 6, symmetric)
        for tiles, transposed in ((topology.tiles, False), (topology.t_tiles, True)):
            mask = topology.dense_mask().T if transposed else topology.dense_mask()
            got = torch.zeros_like(mask)
            for entry in tiles.tolist():
                used = entry[112]
                assert used % 16 == 0 and used <= 64
                for lane in range(32):
                    for n in range(8):
                        for e in range(4):
                            row, column = entry[lane // 4 + 8 * (e // 2)], 8 * n + 2 * (lane % 4) + e % 2
                            if entry[80 + lane] >> (4 * n + e) & 1:
                                assert row >= 0 and column < used and not got[row, entry[16 + column]]
                                got[row, entry[16 + column]] = True
            assert torch.equal(got[joints:], mask[joints:])
            rows = tiles[:, :16].flatten()
            assert torch.equal(rows[rows >= 0].sort().values, torch.arange(vertices, dtype=torch.int32) + joints)
    assert mesh_topology(torch.ones(60, 60), 5).tiles is None  # a row of 65 columns


@pytest.mark.parametrize(
    "tokens,channels,r,parity,dtype",
    [
        (97, 40, 13, 0, torch.float32),
        (66, 80, 33, 1, torch.float32),
        (35, 33, 5, 1, torch.float16),
        (2, 4, 1, 0, torch.float32),
        (1, 4, 0, 0, torch.float32),
    ],
)
@pytest.mark.parametrize("options", ["plain", "forced", "never", "special"])
def test_bipartite_match(lib, tokens, channels, r, parity, dtype, options):
    metric = torch.randn(2, tokens, channels).to(dtype)
    metric[0, : tokens // 2] = metric[0, :1]  # ties
    protected = torch.rand(2, tokens) < 0.4 if options in ("forced", "never") else None
    coverage = torch.rand(2, tokens) if options == "forced" else None
    special = options == "special"
    r = max(0, min(r, (tokens - 2) // 2)) if special else r
    by_index = special or parity == 1
    num_a = tokens // 2 if parity else tokens - tokens // 2
    flags = (r, parity, special, special, int(options == "forced"), by_index)
    unm, src, dst, best = lib.bipartite_match(metric, protected, coverage, *flags)
    want = bipartite_match_reference(metric, protected, coverage, *flags)
    torch.testing.assert_close(best, want[3], rtol=1e-5, atol=1e-6)
    # equal tokens have equal scores here, but the two products round differently: compare by the kernel's own scores
    for b in range(2):
        order = sorted(range(num_a), key=lambda i, b=b: (-float(best[b, i]), i))
        assert src[b].tolist() == order[:r]
        assert unm[b].tolist() == (sorted(order[r:]) if by_index else order[r:])
    if protected is None and not special and tokens > 2:
        assert torch.equal(dst[1], want[2][1]) or not torch.equal(src[1], want[1][1])


@pytest.mark.parametrize("mode", ["sum", "mean", "wavg"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bipartite_merge(lib, mode, dtype):
    metric, x = torch.randn(2, 41, 8), torch.randn(2, 41, 150).to(dtype)
    unm, src, dst, _ = bipartite_match_reference(metric, None, None, 17, 0, False, False, 1, False)
    owner = _owners(unm.long(), src.long(), dst.long(), 41, 0, False)
    weight = torch.rand(2, 41) + 0.5 if mode == "wavg" else None
    y = lib.bipartite_merge(x, owner, 24, mode != "sum", weight)
    want = segment_merge_reference(x.double(), owner, 24, mode, weight)
    torch.testing.assert_close(y.double(), want, rtol=LIMIT[dtype], atol=LIMIT[dtype])


def test_mesh_upsample(lib):
    rng = np.random.default_rng(0)
    matrix = csr_matrix(sp.random(90, 37, 0.1, random_state=rng, format="csr"))
    x = torch.randn(3, 37, 5)
    y = lib.mesh_upsample(x, *matrix)
    torch.testing.assert_close(y.double(), mesh_upsample_reference(x.double(), *matrix[:3]), rtol=1e-6, atol=1e-6)
