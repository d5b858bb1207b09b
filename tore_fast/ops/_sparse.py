"""Static sparse structures of a mesh, prepared once on the host: a float matrix in CSR, and an attention topology.

Both are NamedTuples of tensors, so they pass through torch.compile, move with `.to(device)` and need no module.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from ._mesh_tiles import mesh_tiles

_BIAS_TOKENS = 1024  # beyond, a dense mask of 2 MB and more is kept for nobody


def _csr_arrays(m: sp.csr_matrix) -> tuple[Tensor, Tensor, Tensor]:
    m.sort_indices()
    return (
        torch.from_numpy(m.indptr.astype(np.int32)),
        torch.from_numpy(m.indices.astype(np.int32)),
        torch.from_numpy(m.data.astype(np.float32)),
    )


class CsrMatrix(NamedTuple):
    """Sparse float32 matrix [R, C] with its transpose (for the backward pass)."""

    row_ptr: Tensor  # [R + 1] int32
    col_idx: Tensor  # [nnz] int32
    values: Tensor  # [nnz] float32
    t_row_ptr: Tensor  # [C + 1] int32
    t_col_idx: Tensor  # [nnz] int32
    t_values: Tensor  # [nnz] float32

    @property
    def shape(self) -> tuple[int, int]:
        return self.row_ptr.shape[0] - 1, self.t_row_ptr.shape[0] - 1

    def to(self, device: torch.device | str | None) -> CsrMatrix:
        return CsrMatrix(*(t.to(device) for t in self))


def csr_matrix(matrix: Any) -> CsrMatrix:
    """CsrMatrix from a scipy sparse matrix, a dense array or a dense tensor [R, C]; stored zeros are kept."""
    if isinstance(matrix, Tensor):
        matrix = matrix.detach().cpu().numpy()
    m = sp.csr_matrix(matrix)
    m.check_format(full_check=True)  # ValueError: scipy itself does not look at indices of a given structure
    if not np.isfinite(m.data).all():
        raise ValueError("csr_matrix: the matrix has non-finite entries")
    return CsrMatrix(*_csr_arrays(m), *_csr_arrays(m.T.tocsr()))


class MeshTopology(NamedTuple):
    """Who attends to whom: the first `joints` tokens see and are seen by all, vertex v sees its CSR row (self
    included)."""

    row_ptr: Tensor  # [V + 1] int32
    col_idx: Tensor  # [nnz] int32, ascending inside a row
    t_row_ptr: Tensor  # [V + 1] int32, transposed pattern
    t_col_idx: Tensor  # [nnz] int32
    joints: int
    # the two patterns as _mesh_tiles.py packs them for CUDA's matrix units; None: they are not used
    tiles: Tensor | None = None  # [n, 128] int32
    t_tiles: Tensor | None = None  # [m, 128] int32
    # the mask as scaled_dot_product_attention reads it fastest: 0 or -inf, rows padded to 16 bytes; None: too large
    bias: Tensor | None = None  # [T, ceil(T / 8) * 8] bfloat16

    @property
    def num_vertices(self) -> int:
        return self.row_ptr.shape[0] - 1

    def to(self, device: torch.device | str | None) -> MeshTopology:
        moved: dict[str, Any] = {name: t.to(device) for name, t in self.tensors().items()}
        return self._replace(**moved)

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are tensors."""
        return {name: t for name, t in self._asdict().items() if isinstance(t, Tensor)}

    def dense_mask(self) -> Tensor:
        """[T, T] bool, True = attends (T = joints + vertices)."""
        v, j = self.num_vertices, self.joints
        counts = (self.row_ptr[1:] - self.row_ptr[:-1]).long()
        rows = torch.repeat_interleave(torch.arange(v, device=counts.device), counts, output_size=self.col_idx.shape[0])
        mask = torch.ones(j + v, j + v, dtype=torch.bool, device=counts.device)
        mask[j:, j:] = False
        mask[rows + j, self.col_idx.long() + j] = True
        return mask


def mesh_topology(adjacency: Any, joints: int = 0) -> MeshTopology:
    """MeshTopology from an adjacency [V, V] (scipy sparse, array or tensor; non-zero = attends); self loops are
    added."""
    if isinstance(adjacency, Tensor):
        adjacency = adjacency.to_dense() if adjacency.is_sparse else adjacency
        adjacency = adjacency.detach().cpu().numpy()
    m = sp.csr_matrix(adjacency)
    m.check_format(full_check=True)
    if m.shape[0] != m.shape[1]:
        raise ValueError(f"mesh_topology: adjacency must be square, got {m.shape}")
    m.eliminate_zeros()
    m = ((m != 0) + sp.identity(m.shape[0], dtype=bool, format="csr")).tocsr()
    t = m.T.tocsr()
    row_ptr, col_idx, _ = _csr_arrays(m)
    t_row_ptr, t_col_idx, _ = _csr_arrays(t)
    tiles = mesh_tiles(m, joints)
    symmetric = torch.equal(row_ptr, t_row_ptr) and torch.equal(col_idx, t_col_idx)
    topology = MeshTopology(
        row_ptr, col_idx, t_row_ptr, t_col_idx, joints, tiles, tiles if symmetric else mesh_tiles(t, joints)
    )
    tokens = joints + topology.num_vertices
    if tokens > _BIAS_TOKENS:
        return topology
    bias = torch.full((tokens, -(-tokens // 8) * 8), float("-inf"), dtype=torch.bfloat16)
    bias[:, :tokens].masked_fill_(topology.dense_mask(), 0.0)
    return topology._replace(bias=bias)
