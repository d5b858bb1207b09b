"""mesh_upsample: coarse vertices to fine vertices by a fixed sparse matrix.

In: vertices [B, C, F] from a model head; out: [B, R, F] for body/ joints, vis/ overlays. The matrix is a CsrMatrix
prepared once (ops/_sparse.py). Kernels: csrc/cpu/mesh_upsample.cpp, csrc/cuda/mesh_upsample.cu.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ._autograd import differentiable
from ._dispatch import backend_reason, check_device, choose, tensor_reason
from ._sparse import CsrMatrix
from .reference.mesh_upsample import mesh_upsample_reference

BACKENDS = ("cuda", "cpu")
_DTYPES = {"cuda": (torch.float32, torch.float16, torch.bfloat16), "cpu": (torch.float32,)}

_ARRAYS = tuple(f"matrix.{name}" for name in CsrMatrix._fields)


def why_not(backend: str, x: Tensor) -> str | None:
    """Why `backend` cannot upsample `x`, or None."""
    return backend_reason(backend) or tensor_reason(backend, x, _DTYPES[backend])


def mesh_upsample(
    x: Tensor,  # [B, C, F]
    matrix: CsrMatrix,  # [R, C]
    *,
    impl: str = "auto",
) -> Tensor:  # [B, R, F]
    """Multiplies every item of a batch of vertex features by one sparse matrix: y_b = U x_b.

    Args:
        x: [B, C, F] float32/float16/bfloat16 (float64 with the reference); F is 3 for positions.
        matrix: CsrMatrix [R, C], float32 entries, on x's device.
        impl: "auto", "reference", "cpu" or "cuda".

    Returns:
        [B, R, F] in x's dtype, accumulated in float32. Differentiable with respect to x (by U^T).

    Raises:
        ValueError: wrong shape or device. BackendUnavailable: an explicit `impl` cannot run.

    Example:
        >>> from tore_fast.ops import csr_matrix
        >>> u = csr_matrix(torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]))
        >>> mesh_upsample(torch.rand(4, 2, 3), u).shape
        torch.Size([4, 3, 3])

    Source: up-sampling matrices U of METRO, FastMETRO and TORE (431 -> 1723 -> 6890 vertices).
    """
    rows, cols = matrix.shape
    if x.dim() != 3 or x.shape[1] != cols:
        raise ValueError(f"mesh_upsample: x must be [B, {cols}, F] for a matrix {rows}x{cols}, got {list(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"mesh_upsample: x must be floating point, got {x.dtype}")
    check_device("mesh_upsample", "x", x, **dict(zip(_ARRAYS, matrix, strict=True)))
    backend = choose("mesh_upsample", impl, BACKENDS, why_not, x)
    if backend == "reference":
        return mesh_upsample_reference(x, matrix.row_ptr, matrix.col_idx, matrix.values)
    return _mesh_upsample(x, *matrix)


@register_flop_formula(torch.ops.tore_fast.mesh_upsample)
def _flops(x_shape: Any, row_ptr: Tensor, col_idx: Tensor, *args: Any, **kwargs: Any) -> int:
    return 2 * x_shape[0] * col_idx[0] * x_shape[2]  # the stored entries only


@torch.library.register_fake("tore_fast::mesh_upsample")
def _fake(
    x: Tensor, row_ptr: Tensor, col_idx: Tensor, values: Any, t_row_ptr: Tensor, t_col_idx: Tensor, t_values: Any
) -> Tensor:
    return x.new_empty(x.shape[0], row_ptr.shape[0] - 1, x.shape[2])


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward(ctx: Any, grad: Tensor) -> Any:
    row_ptr, col_idx, values, t_row_ptr, t_col_idx, t_values = ctx.saved_tensors
    grad_x = torch.ops.tore_fast.mesh_upsample(
        grad.contiguous(), t_row_ptr, t_col_idx, t_values, row_ptr, col_idx, values
    )
    return grad_x, None, None, None, None, None, None


_mesh_upsample = differentiable("mesh_upsample", _setup_context, _backward)
