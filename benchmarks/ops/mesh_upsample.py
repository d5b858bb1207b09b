"""mesh_upsample: sparse mesh up-sampling, against torch's sparse product (per item, as the official code) and dense
matmul."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch

from tore_fast.ops import csr_matrix, mesh_upsample
from tore_fast.ops.reference.mesh_upsample import mesh_upsample_reference

from ..harness import Case, Contender

SHAPES = (("body 431-1723", 1723, 431), ("body 1723-6890", 6890, 1723), ("hand 195-778", 778, 195))


def three_per_row(rows: int, cols: int) -> sp.csr_matrix:
    """Random matrix with exactly 3 entries per row, like the official ones; the first `cols` rows copy a vertex."""
    rng = np.random.default_rng(rows)
    col = np.stack([rng.choice(cols, 3, replace=False) for _ in range(rows)])
    value = rng.dirichlet(np.ones(3), rows)
    return sp.csr_matrix((value.ravel(), (np.repeat(np.arange(rows), 3), col.ravel())), shape=(rows, cols))


def cases(device: str, dtype: torch.dtype, quick: bool) -> list[Case]:
    out = []
    for name, rows, cols in SHAPES[:1] if quick else SHAPES:
        matrix = three_per_row(rows, cols)
        ours = csr_matrix(matrix).to(device)
        dense = torch.from_numpy(matrix.toarray()).to(device, dtype)
        sparse = torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr),
            torch.from_numpy(matrix.indices),
            torch.from_numpy(matrix.data).float(),
            size=matrix.shape,
        ).to(device)
        coo = sparse.to_sparse_coo().coalesce()

        def per_item(x, coo=coo):
            return torch.stack([torch.sparse.mm(coo, item.float()) for item in x]).to(x.dtype)

        def batched(x, sparse=sparse):
            b, c, f = x.shape
            return (sparse @ x.float().transpose(0, 1).reshape(c, b * f)).view(-1, b, f).transpose(0, 1).to(x.dtype)

        for batch in (1, 64):

            def make(generator, batch=batch, cols=cols):
                return [torch.randn(batch, cols, 3, device=device, generator=generator).to(dtype)]

            contenders = [
                Contender("tore_fast", lambda x, u=ours: mesh_upsample(x, u), ours=True),
                Contender("torch.sparse.mm per item", per_item, note="the official code's way"),
                Contender("sparse CSR, one product", batched),
                Contender("dense matmul", lambda x, dense=dense: dense @ x),
                Contender("gather + index_add", lambda x, u=ours: mesh_upsample_reference(x, *u[:3])),
            ]
            size = torch.empty((), dtype=dtype).element_size()
            for backward in (False, True):
                traffic = batch * (rows + cols) * 3 * size + rows * 3 * 8
                out.append(
                    Case(
                        "mesh_upsample",
                        f"{name} B{batch}",
                        make,
                        contenders,
                        lambda x, u=ours: mesh_upsample_reference(x, *u[:3]),
                        backward,
                        device,
                        dtype,
                        bytes=traffic * (2 if backward else 1),
                        macs=batch * rows * 9 * (2 if backward else 1),
                        items=batch,
                    )
                )
    return out
