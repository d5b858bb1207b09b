"""mesh_upsample: every implementation against a dense float64 product, gradients, registration."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from tore_fast.ops import BackendUnavailable, csr_matrix, mesh_upsample
from tore_fast.ops.mesh_upsample import BACKENDS, why_not


def random_matrix(rows: int, cols: int, per_row: int = 3) -> sp.csr_matrix:
    rng = np.random.default_rng(rows * 1000 + cols)
    col = np.concatenate([rng.choice(cols, min(per_row, cols), replace=False) for _ in range(rows)] or [[]])
    row = np.repeat(np.arange(rows), min(per_row, cols))
    return sp.csr_matrix((rng.normal(size=col.size), (row, col.astype(int))), shape=(rows, cols))


def impls(x):
    return ["reference", *(b for b in BACKENDS if why_not(b, x) is None)]


@pytest.mark.parametrize("batch,cols,rows,features", [(1, 1, 1, 3), (2, 17, 63, 3), (3, 431, 445, 5), (0, 4, 5, 3)])
def test_against_dense(device, batch, cols, rows, features):
    matrix = random_matrix(rows, cols)
    x = torch.randn(batch, cols, features, device=device)
    want = torch.from_numpy(matrix.toarray()).to(device) @ x.double()
    for impl in impls(x):
        got = mesh_upsample(x, csr_matrix(matrix).to(device), impl=impl)
        torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-5)


def test_strided_input_and_empty_rows(device):
    matrix = random_matrix(9, 6)
    matrix[4] = 0
    x = torch.randn(6, 2, 3, device=device).transpose(0, 1)
    u = csr_matrix(matrix).to(device)
    for impl in impls(x):
        torch.testing.assert_close(mesh_upsample(x, u, impl=impl), mesh_upsample(x.contiguous(), u, impl="reference"))


def test_gradient(device):
    matrix = random_matrix(20, 7)
    u = csr_matrix(matrix).to(device)
    ref = torch.randn(2, 7, 3, device=device, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: mesh_upsample(v, u, impl="reference"), ref)
    x = ref.detach().float().requires_grad_()
    g = torch.randn(2, 20, 3, device=device)
    for impl in impls(x):
        (got,) = torch.autograd.grad(mesh_upsample(x, u, impl=impl), x, g)
        want = torch.from_numpy(matrix.toarray().T).to(device) @ g.double()
        torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-5)


def test_opcheck(device):
    x = torch.randn(2, 7, 3, device=device, requires_grad=True)
    if impls(x) == ["reference"]:
        pytest.skip(f"no compiled kernel: {why_not(BACKENDS[-1], x)}")
    torch.library.opcheck(torch.ops.tore_fast.mesh_upsample, (x, *csr_matrix(random_matrix(11, 7)).to(device)))


@pytest.mark.cpu_kernels
def test_errors():
    u = csr_matrix(random_matrix(5, 4))
    with pytest.raises(ValueError, match=r"mesh_upsample: x must be \[B, 4, F\]"):
        mesh_upsample(torch.zeros(1, 5, 3), u)
    with pytest.raises(ValueError, match="impl must be one of"):
        mesh_upsample(torch.zeros(1, 4, 3), u, impl="triton")
    with pytest.raises(BackendUnavailable, match="impl='cuda' cannot run here"):
        mesh_upsample(torch.zeros(1, 4, 3), u, impl="cuda")
