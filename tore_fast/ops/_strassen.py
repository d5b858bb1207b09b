"""The "strassen" backend of linear: a product on the CPU with fewer multiplications than K N per row.

Strassen's scheme takes 7 products of half the size instead of 8; done twice, 49 instead of 64. In: rows [..., K] and a
weight packed once (strassen_pack). Out: act(x W^T + b) + residual [..., N]. Kernel: csrc/cpu/linear_kernel.h.

Source: V. Strassen, Gaussian elimination is not optimal (1969); sums made while operands are packed, results added from
registers: Huang et al., Strassen's algorithm reloaded (SC 2016); scaling: Ballard et al. (SIMAX 2016).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import _ext
from ._autograd import differentiable

_ACT_CODE = {None: 0, "relu": 1, "gelu": 2}
GRAIN = 16  # K and N must be multiples of this times 2^level
MAX_LEVEL = 2


class StrassenWeight(NamedTuple):
    """A weight and what strassen_pack made of it."""

    weight: Tensor  # [N, K]
    packed: Tensor  # [7^level, K N / 4^level] float32
    column: Tensor  # [N] float32, powers of two
    level: int


def deepest_level(out_features: int, in_features: int) -> int | None:
    """How often both sizes can be halved (2 at most) into blocks the kernel takes, or None."""
    fits = [
        level for level in range(MAX_LEVEL + 1) if not any(n % (GRAIN << level) for n in (out_features, in_features))
    ]
    return max(fits) if fits and out_features and in_features else None


@functools.cache
def is_vectorised() -> bool:
    """Whether the kernel runs here in one of its vector builds; the portable one is slower than oneDNN."""
    return _ext.cpu_module is not None and _ext.cpu_module.simd() != "none"


def strassen_reason(weight: Tensor, has_residual: bool = False, split: int = 1) -> str | None:
    """Why a float32 weight on the CPU cannot be multiplied this way, or None."""
    out_features, in_features = weight.shape
    if deepest_level(out_features, in_features) is None:
        return f"it takes sizes that are multiples of {GRAIN}, got a weight {list(weight.shape)}"
    if split > 1 and (has_residual or out_features % (split * GRAIN)):
        return f"it splits N into multiples of {GRAIN}, without a residual, got {split} parts of {out_features}"
    return None


def strassen_pack(
    weight: Tensor,  # [N, K]
    level: int | None = None,
) -> StrassenWeight:
    """Prepares a weight: the sums of its blocks that Strassen's products need, in the order the kernel reads them.

    Args:
        weight: [N, K] float32 on the CPU, sizes multiples of 16.
        level: how often to halve, 0 (plain product), 1 or 2; None: as often as the sizes allow. The packed weight
            takes 1, 1.75 or 3.06 times the memory of the weight.

    Raises:
        ValueError: not a matrix, or sizes that are not multiples of 16 * 2^level.
    """
    if weight.dim() != 2 or weight.dtype != torch.float32:
        raise ValueError(f"strassen_pack: weight must be [N, K] float32, got {list(weight.shape)} {weight.dtype}")
    deepest = deepest_level(*weight.shape)
    if deepest is None or not 0 <= (deepest if level is None else level) <= deepest:
        raise ValueError(
            f"strassen_pack: level must be 0..{MAX_LEVEL} with both sizes of the weight multiples of {GRAIN} * "
            f"2^level, got level {level} for {list(weight.shape)}"
        )
    level = deepest if level is None else level
    packed, column = torch.ops.tore_fast.strassen_pack(weight.detach(), level)
    return StrassenWeight(weight, packed, column, level)


def strassen_multiply(
    x: Tensor,  # [..., K]
    weight: StrassenWeight,  # of [N, K]
    bias: Tensor | None = None,  # [N]
    residual: Tensor | None = None,  # [..., N]
    act: str | None = None,
    split: int = 1,
    norm_eps: float | None = None,
) -> Tensor | tuple[Tensor, ...]:  # [..., N]
    """act(x W^T + b) + residual, of x or of its normalised rows; float32 on the CPU.

    Errors are a little larger than those of a plain product: relative l2 for 1000 x 512 x 512 normal numbers 4e-7 at
    level 0, 6e-7 at level 1, 9e-7 at level 2 (MKL, whose sums are in blocks: 2.4e-7). Rows are scaled by powers of two
    first, so a row does not lose digits to a larger neighbour, and rows with NaN or Inf are computed apart: they spoil
    no other row. Which rows are taken together depends on their number and on the number of threads, so another batch
    size may change the last digits.

    Args:
        split: above 1 the result is so many contiguous tensors [..., N / split].
        norm_eps: rows of x are first brought to mean 0 and variance 1, as F.layer_norm(x, (K,), eps=norm_eps) does; a
            norm's weight and bias belong into W and b.

    Returns:
        [..., N], or a tuple. Differentiable with respect to x, the weight inside `weight`, bias and residual.
    """
    out_features, in_features = weight.weight.shape
    rows = None if residual is None else residual.reshape(-1, out_features)
    eps = -1.0 if norm_eps is None else norm_eps
    packed = (weight.weight, weight.packed, weight.column, bias, rows, weight.level, _ACT_CODE[act], split, eps)
    out = _multiply(x.reshape(-1, in_features), *packed)
    lead = x.shape[:-1]
    return out.view(*lead, out_features) if split == 1 else out.view(split, *lead, out_features // split).unbind()


@torch.library.register_fake("tore_fast::strassen_pack")
def _pack_fake(weight: Tensor, level: int) -> Any:
    return weight.new_empty(7**level, weight.numel() // 4**level), weight.new_empty(weight.shape[0])


@register_flop_formula(torch.ops.tore_fast.strassen_linear)
def _flops(x_shape: Any, weight_shape: Any, *args: Any, **kwargs: Any) -> int:
    """Those of the plain product, so that rates compare; the kernel multiplies 7/8 as often at each level."""
    return 2 * x_shape[0] * weight_shape[0] * weight_shape[1]


@torch.library.register_fake("tore_fast::strassen_linear")
def _fake(
    x: Tensor,
    weight: Tensor,
    packed: Tensor,
    column: Any,
    bias: Any,
    residual: Any,
    level: int,
    act: str,
    split: int,
    norm_eps: float,
) -> Tensor:
    return x.new_empty(split, x.shape[0], weight.shape[0] // split)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, _, _, bias, residual, _, ctx.act, _, ctx.norm_eps = inputs
    ctx.has_residual = residual is not None
    ctx.save_for_backward(x, weight, bias)


def _backward(ctx: Any, grad: Tensor) -> Any:
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


_multiply = differentiable("strassen_linear", _setup_context, _backward)
