"""strassen_linear: a linear layer on the CPU with fewer multiplications than K N per row.

Strassen's scheme takes 7 products of half the size instead of 8; done twice, 49 instead of 64. In: rows [..., K] and a
weight packed once (strassen_pack). Out: act(x W^T + b) + residual [..., N]. For weights that stay: layers/dense.py uses
it in frozen models. Kernel: csrc/cpu/strassen_linear_kernel.h; on a GPU the reference (cuBLAS) is the faster one.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _ext
from ._autograd import differentiable
from ._dispatch import backend_reason, check_device, choose, tensor_reason
from .reference.strassen_linear import ACTS, strassen_linear_reference

BACKENDS = ("cpu",)
_ACT_CODE = {"none": 0, "relu": 1, "gelu": 2}
GRAIN = 16  # K and N must be multiples of this times 2^level
MAX_LEVEL = 2


class StrassenWeight(NamedTuple):
    """A weight and what strassen_pack made of it."""

    weight: Tensor  # [N, K]
    packed: Tensor | None  # [7^level, K N / 4^level] float32; None where only the reference can run
    column: Tensor | None  # [N] float32, powers of two
    level: int


def deepest_level(out_features: int, in_features: int) -> int | None:
    """How often both sizes can be halved (2 at most) into blocks the kernel takes, or None."""
    fits = [
        level for level in range(MAX_LEVEL + 1) if not any(n % (GRAIN << level) for n in (out_features, in_features))
    ]
    return max(fits) if fits and out_features and in_features else None


@functools.cache
def pays() -> bool:
    """Whether the kernel runs here in one of its vector builds; the portable one is slower than oneDNN."""
    return _ext.cpu_module is not None and _ext.cpu_module.simd() != "none"


def why_not(backend: str, x: Tensor, weight: StrassenWeight | None = None) -> str | None:
    """Why `backend` cannot multiply `x` (by `weight`), or None."""
    reason = backend_reason(backend) or tensor_reason(backend, x, (torch.float32,))
    if reason is None and weight is not None and weight.packed is None:
        reason = (
            f"a weight {list(weight.weight.shape)} {str(weight.weight.dtype).removeprefix('torch.')} was not packed"
        )
        reason += f": it takes float32 of sizes that are multiples of {GRAIN}, on the CPU"
    return reason


def strassen_pack(
    weight: Tensor,  # [N, K]
    level: int | None = None,
) -> StrassenWeight:
    """Prepares a weight: the sums of its blocks that Strassen's products need, in the order the kernel reads them.

    Args:
        weight: [N, K], of nn.Linear. Packed if it is float32 on the CPU with sizes that are multiples of 16, else
            kept as it is, for the reference.
        level: how often to halve, 0 (plain product), 1 or 2; None: as often as the sizes allow. The packed weight
            takes 1, 1.75 or 3.06 times the memory of the weight.

    Raises:
        ValueError: not a matrix, or sizes that are not multiples of 16 * 2^level.

    Example:
        >>> strassen_pack(torch.randn(64, 128)).packed.shape
        torch.Size([49, 512])
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(
            f"strassen_pack: weight must be [N, K] floating point, got {list(weight.shape)} {weight.dtype}"
        )
    deepest = deepest_level(*weight.shape)
    if level is None:
        level = deepest or 0
    elif deepest is None or not 0 <= level <= deepest:
        raise ValueError(
            f"strassen_pack: level must be 0..{MAX_LEVEL} with both sizes of the weight multiples of {GRAIN} * 2^level, "
            f"got level {level} for {list(weight.shape)}"
        )
    if deepest is None or why_not("cpu", weight) is not None:
        return StrassenWeight(weight, None, None, level)
    return StrassenWeight(weight, *torch.ops.tore_fast.strassen_pack(weight.detach(), level), level)


def strassen_linear(
    x: Tensor,  # [..., K]
    weight: StrassenWeight,  # of [N, K]
    bias: Tensor | None = None,  # [N]
    residual: Tensor | None = None,  # [..., N]
    act: str = "none",
    *,
    split: int = 1,
    norm_eps: float | None = None,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, ...]:  # [..., N]
    """act(x W^T + b) + residual, of x or of its normalised rows.

    Errors are a little larger than those of a plain product: relative l2 for 1000 x 512 x 512 normal numbers 4e-7 at level 0,
    6e-7 at level 1, 9e-7 at level 2 (MKL, whose sums are in blocks: 2.4e-7). Rows are scaled by powers of two first, so a row does not lose digits to a
    larger neighbour, and rows with NaN or Inf are computed apart: they spoil no other row. Which rows are taken together
    depends on their number and on the number of threads, so another batch size may change the last digits.

    Args:
        x: [..., K] float32 on the CPU; with the reference any floating dtype and device.
        act: "none", "relu" or "gelu" (exact).
        split: above 1 the result is so many contiguous tensors [..., N / split] (q, k and v of one product).
        norm_eps: rows of x are first brought to mean 0 and variance 1, as F.layer_norm(x, (K,), eps=norm_eps) does; a
            norm's weight and bias belong into W and b.
        impl: "auto", "reference" or "cpu".

    Returns:
        [..., N] in x's dtype, or a tuple. Differentiable with respect to x, the weight inside `weight`, bias and residual.

    Raises:
        ValueError: wrong shape or activation. BackendUnavailable: an explicit `impl` cannot run.

    Example:
        >>> w = strassen_pack(torch.randn(64, 128))
        >>> strassen_linear(torch.randn(2, 17, 128), w, act="gelu").shape
        torch.Size([2, 17, 64])

    Source: V. Strassen, Gaussian elimination is not optimal (1969); sums made while operands are packed, results added
    from registers: Huang et al., Strassen's algorithm reloaded (SC 2016); scaling: Ballard et al. (SIMAX 2016).
    """
    out_features, in_features = weight.weight.shape
    if x.dim() == 0 or x.shape[-1] != in_features:
        raise ValueError(
            f"strassen_linear: x must be [..., {in_features}] for a weight {out_features}x{in_features}, got {list(x.shape)}"
        )
    if act not in _ACT_CODE:
        raise ValueError(f"strassen_linear: act must be one of {tuple(ACTS)}, got {act!r}")
    shape = (*x.shape[:-1], out_features)
    for name, tensor, want in (("bias", bias, (out_features,)), ("residual", residual, shape)):
        if tensor is not None and tensor.shape != want:
            raise ValueError(f"strassen_linear: {name} must be {list(want)}, got {list(tensor.shape)}")
    if split < 1 or out_features % (split * GRAIN if split > 1 else 1) or (split > 1 and residual is not None):
        raise ValueError(
            f"strassen_linear: split must divide N into multiples of {GRAIN} and goes without residual, got {split} for N {out_features}"
        )
    check_device("strassen_linear", "x", x, weight=weight.weight, bias=bias, residual=residual)
    backend = choose("strassen_linear", impl, BACKENDS, why_not, x, weight)
    if backend == "reference":
        out = strassen_linear_reference(x, weight.weight, bias, residual, act, norm_eps)
        return out if split == 1 else tuple(part.contiguous() for part in out.chunk(split, dim=-1))
    rows = None if residual is None else residual.reshape(-1, out_features)
    eps = -1.0 if norm_eps is None else norm_eps
    packed = (weight.weight, weight.packed, weight.column, bias, rows, weight.level, _ACT_CODE[act], split, eps)
    out = _strassen_linear(x.reshape(-1, in_features), *packed)
    return out.view(shape) if split == 1 else out.view(split, *x.shape[:-1], out_features // split).unbind()


@torch.library.register_fake("tore_fast::strassen_pack")
def _pack_fake(weight, level):
    return weight.new_empty(7**level, weight.numel() // 4**level), weight.new_empty(weight.shape[0])


@torch.library.register_fake("tore_fast::strassen_linear")
def _fake(x, weight, packed, column, bias, residual, level, act, split, norm_eps):
    return x.new_empty(split, x.shape[0], weight.shape[0] // split)


def _setup_context(ctx, inputs, output):
    x, weight, _, _, bias, residual, _, ctx.act, _, ctx.norm_eps = inputs
    ctx.has_residual = residual is not None
    ctx.save_for_backward(x, weight, bias)


def _backward(ctx, grad):
    x, weight, bias = ctx.saved_tensors
    grad_residual = grad[0] if ctx.has_residual else None
    grad = grad.transpose(0, 1).flatten(1)
    rows, mean, scale = x, None, None
    if ctx.norm_eps >= 0:
        rows, mean, scale = torch.native_layer_norm(x, x.shape[1:], None, None, ctx.norm_eps)
    if ctx.act:
        before = torch.nn.functional.linear(rows, weight, bias)
        if ctx.act == _ACT_CODE["relu"]:
            grad = grad * (before > 0)
        else:
            grad = torch.ops.aten.gelu_backward(grad, before)
    grad_bias = None if bias is None else grad.sum(0)
    grad_x = grad @ weight
    if mean is not None:
        grad_x = torch.ops.aten.native_layer_norm_backward(
            grad_x, x, x.shape[1:], mean, scale, None, None, [True, False, False]
        )[0]
    return grad_x, grad.t() @ rows, None, None, grad_bias, grad_residual, None, None, None, None


_strassen_linear = differentiable("strassen_linear", _setup_context, _backward)
