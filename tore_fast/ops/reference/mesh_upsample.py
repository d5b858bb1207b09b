"""Plain torch mesh_upsample: gather, scale, add. Any device, any floating dtype; sums in float32 or better."""

from __future__ import annotations

import torch
from torch import Tensor


def entry_rows(row_ptr: Tensor, count: int) -> Tensor:
    """[count] int64 row of each entry of a CSR matrix, without a host read and in operators that ONNX has.

    Entry e lies in the row that is as many rows in as row ends lie at or before e.
    """
    ends = torch.zeros(count + 1, dtype=torch.int64, device=row_ptr.device)
    return ends.scatter_add(0, row_ptr[1:].long(), torch.ones_like(row_ptr[1:], dtype=torch.int64)).cumsum(0)[:-1]


def mesh_upsample_reference(
    x: Tensor,  # [B, C, F]
    row_ptr: Tensor,  # [R + 1] int32
    col_idx: Tensor,  # [nnz] int32
    values: Tensor,  # [nnz] float32
) -> Tensor:  # [B, R, F]
    acc = torch.promote_types(x.dtype, torch.float32)
    num_rows = row_ptr.shape[0] - 1
    rows = entry_rows(row_ptr, col_idx.shape[0])
    terms = x.to(acc).index_select(1, col_idx.long()) * values.to(acc)[:, None]
    out = torch.zeros(x.shape[0], num_rows, x.shape[2], dtype=acc, device=x.device)
    return out.index_add(1, rows, terms).to(x.dtype)
