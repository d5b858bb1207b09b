"""linear: a linear layer with what stands around it, act(norm(x) W^T + b) + residual, in as few passes as possible.

In: rows [..., K] and a weight [N, K]. Out: [..., N]. Backends, both for float32 inference on the CPU:

- "strassen": ops/_strassen.py, a kernel of our own with fewer multiplications, for large products of packed weights;
- "onednn": oneDNN's product, faster than the one behind `F.linear` (MKL's) on AMD, activation or residual included.

Everything else is `F.linear`. Measured on one Zen 4 core (peak 117 GFLOP/s), [4131, 512] x [512, 1024]: 98 F.linear,
107 oneDNN, 113 oneDNN with the weight packed once, 130 Strassen (counted as if it did all multiplications).
Used by layers/linear.py.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ._derived import Derived
from ._dispatch import backend_reason, check_device, choose, is_plain, tensor_reason
from ._strassen import StrassenWeight, deepest_level, is_vectorised, strassen_multiply, strassen_pack, strassen_reason
from .reference.linear import ACTS, linear_reference

BACKENDS = ("strassen", "onednn")
Act = Literal["relu", "gelu"]

# below these oneDNN's per-call cost is more than it gains (one Zen 4 core, 20 shapes from 17 to 14,688 rows)
MIN_ROWS = 100  # unpacked weights are brought into oneDNN's layout at every call
MIN_PRODUCTS = 4 << 20  # multiply-adds

# (level, rows, smaller of K and N) from which a packed product is Strassen's of this level: below, streaming the larger
# packed weight from memory or the smaller blocks cost what the multiplications save (one and two Zen 4 cores, cold
# weights). It depends on sizes alone, so that two passes give the same bits; packing costs 3 to 5 ns a weight, once.
STRASSEN = ((2, 400, 384), (1, 192, 256))


class Norm(NamedTuple):
    """The layer norm in front of a linear layer, over K features."""

    weight: Tensor | None  # [K]
    bias: Tensor | None  # [K]
    eps: float


class PackedWeight(Derived):
    """Keeps a weight in the layouts of the backends: one object for each weight that stays as it is from call to call.

    It is filled by the calls of `linear` that it is given to, several times where they take slices of one weight or
    another number of rows, and notices when the weight, bias or norm is replaced or changed in place. At most about
    five times the memory of the weight.
    """


def strassen_level(rows: int, out_features: int, in_features: int) -> int | None:
    """Level of the Strassen product that a packed float32 product on the CPU takes, or None for oneDNN's."""
    deepest = deepest_level(out_features, in_features) or 0
    for level, min_rows, min_size in STRASSEN:
        if rows >= min_rows and min(out_features, in_features) >= min_size and level <= deepest:
            return level
    return None


def why_not(
    backend: str,
    x: Tensor,
    weight: Tensor | None = None,
    residual: Tensor | None = None,
    act: str | None = None,
    split: int = 1,
) -> str | None:
    """Why `backend` cannot multiply `x` (by `weight`), or None."""
    reason = backend_reason(backend) or tensor_reason(backend, x, (torch.float32,))
    if reason is None and weight is not None:
        reason = tensor_reason(backend, weight, (torch.float32,))
    if reason is None and torch.is_autocast_enabled("cpu"):
        reason = "autocast is on, and it computes in float32"
    if reason is not None or weight is None:
        return reason
    if backend == "strassen":
        return strassen_reason(weight, residual is not None, split)
    if residual is not None and act is not None:
        return "it adds a residual to the plain product only"
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return "it has no gradient"
    return None


def slower(backend: str, x: Tensor, weight: Tensor, split: int = 1, packed: PackedWeight | None = None) -> str | None:
    """Why impl="auto" leaves this product to the next backend although `backend` can compute it, or None."""
    out_features, in_features = weight.shape
    parts = split if backend == "onednn" else 1  # oneDNN multiplies once for each part
    if x.numel() * out_features < MIN_PRODUCTS * parts:
        return f"under {MIN_PRODUCTS} multiply-adds a call costs more than it gains"
    if backend == "onednn":
        if packed is None and x.numel() < MIN_ROWS * in_features:
            return f"it would lay the weight out anew for less than {MIN_ROWS} rows"
        return None
    if packed is None:
        return "the weight is not packed"
    if not is_vectorised():
        return "this processor has neither AVX2 nor AVX-512"
    rows = x.numel() // in_features
    if strassen_level(rows, out_features, in_features) is None:
        return f"the product is too small: {rows} rows, {out_features} x {in_features}"
    return None


def _auto(
    x: Tensor, weight: Tensor, residual: Tensor | None, act: str | None, split: int, packed: PackedWeight | None
) -> str:
    """The fastest backend; the reference where gradients are recorded or the program is traced or counted."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "reference"
    for backend in BACKENDS:
        if (
            slower(backend, x, weight, split, packed) is None
            and why_not(backend, x, weight, residual, act, split) is None
        ):
            # FLOP counters and fake tensors know aten only
            return backend if _get_current_dispatch_mode() is None else "reference"
    return "reference"


@overload
def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    act: Act | None = None,
    norm: Norm | None = None,
    impl: str = "auto",
    packed: PackedWeight | None = None,
) -> Tensor: ...
@overload
def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    act: Act | None = None,
    norm: Norm | None = None,
    split: int,
    impl: str = "auto",
    packed: PackedWeight | None = None,
) -> Any: ...  # a tensor, or a tuple of `split` ones
def linear(
    x: Tensor,  # [..., K]
    weight: Tensor,  # [N, K]
    bias: Tensor | None = None,  # [N]
    *,
    residual: Tensor | None = None,  # [..., N] or what broadcasts to it
    act: Act | None = None,
    norm: Norm | None = None,
    split: int = 1,
    impl: str = "auto",
    packed: PackedWeight | None = None,
) -> Tensor | tuple[Tensor, ...]:  # [..., N]
    """act(norm(x) W^T + b) + residual.

    Relative l2 errors of 1000 x 512 x 512 normal numbers: 2.4e-7 MKL (its sums are in blocks), 6e-7 and 9e-7 Strassen
    at level 1 and 2, whose results also depend in the last digits on the number of rows and threads.

    Args:
        x: [..., K] floating point. Under autocast the product is in the autocast type, as that of `F.linear`.
        act: "relu", "gelu" (exact) or None.
        norm: the layer norm that x goes through first.
        split: above 1 the result is so many contiguous tensors [..., N / split] (q, k and v of one product).
        impl: "auto", "reference", "strassen" or "onednn"; "auto" takes oneDNN and Strassen in inference on the CPU
            only.
        packed: keeps the weight in a backend's layout from call to call; without it `impl="strassen"` packs each time.

    Returns:
        [..., N], or a tuple with `split`. Differentiable in x, weight, bias, residual and norm, except with "onednn".

    Raises:
        ValueError: wrong shape or activation. BackendUnavailable: an explicit `impl` cannot run.

    Example:
        >>> x, weight = torch.randn(2, 17, 128), torch.randn(64, 128)
        >>> linear(x, weight, act="gelu").shape
        torch.Size([2, 17, 64])

    Source of "strassen": see ops/_strassen.py.
    """
    _check(x, weight, bias, residual, act, split)
    scale, shift = (None, None) if norm is None else norm[:2]
    check_device("linear", "x", x, weight=weight, bias=bias, residual=residual, norm_weight=scale, norm_bias=shift)
    if impl == "auto" and is_plain():
        backend = "reference"
    elif impl == "auto":
        backend = _auto(x, weight, residual, act, split, packed)
    else:
        backend = choose("linear", impl, BACKENDS, why_not, x, weight, residual, act, split)
    if backend == "strassen":
        return _strassen(x, weight, bias, residual, act, norm, split, packed)
    if backend == "onednn":
        return _onednn(x, weight, bias, residual, act, norm, split, packed)
    return linear_reference(x, weight, bias, residual, act, norm, split)


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, act: str | None, split: int
) -> None:
    if weight.dim() != 2 or x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"linear: x must be [..., K] for a weight [N, K], got {list(x.shape)} and weight {list(weight.shape)}"
        )
    out_features = weight.shape[0]
    if act not in ACTS:
        raise ValueError(f"linear: act must be one of {tuple(ACTS)}, got {act!r}")
    if bias is not None and bias.shape != (out_features,):
        raise ValueError(f"linear: bias must be [{out_features}], got {list(bias.shape)}")
    if residual is not None:
        shape = (*x.shape[:-1], out_features)
        if residual.shape != shape and (
            residual.dim() > len(shape) or any(r not in (1, s) for r, s in zip(residual.shape[::-1], shape[::-1]))
        ):
            raise ValueError(f"linear: residual must be {list(shape)} or broadcast to it, got {list(residual.shape)}")
    if split < 1 or out_features % split or (split > 1 and residual is not None):
        raise ValueError(
            f"linear: split must divide N and goes without residual, got split {split} for N {out_features}"
        )


def _position(weight: Tensor) -> tuple:
    """Which part of its parameter a weight is: slices of one matrix are packed apart."""
    return (weight.storage_offset(), *weight.shape)


def _strassen(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    act: str | None,
    norm: Norm | None,
    split: int,
    packed: PackedWeight | None,
) -> Tensor | tuple[Tensor, ...]:
    level = deepest_level(*weight.shape) or 0
    if not torch.compiler.is_compiling():  # a traced program serves any number of rows
        best = strassen_level(x.numel() // max(weight.shape[1], 1), *weight.shape)
        level = level if best is None else best
    shape = (*x.shape[:-1], weight.shape[0])
    residual = None if residual is None else residual.expand(shape)

    def pack() -> tuple[StrassenWeight, Tensor | None]:
        if norm is None:
            return strassen_pack(weight, level), bias
        scaled = weight if norm.weight is None else weight * norm.weight
        shift = bias if norm.bias is None else F.linear(norm.bias, weight.contiguous(), bias)
        return strassen_pack(scaled, level), shift

    sources = (weight,) if norm is None else tuple(t for t in (weight, bias, norm.weight, norm.bias) if t is not None)
    if (
        packed is None
        or torch.compiler.is_compiling()
        or (torch.is_grad_enabled() and any(t.requires_grad for t in sources))
    ):
        made, shift = pack()
    else:
        name = ("strassen", level, norm is not None, *_position(weight))
        made, shift = packed.get(name, sources, pack)
        shift = bias if norm is None else shift
    return strassen_multiply(x, made, shift, residual, act, split, None if norm is None else norm.eps)


def _onednn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    act: str | None,
    norm: Norm | None,
    split: int,
    packed: PackedWeight | None,
) -> Tensor | tuple[Tensor, ...]:
    if norm is not None:
        x = F.layer_norm(x, x.shape[-1:], *norm)
    if split > 1:
        biases = [None] * split if bias is None else bias.chunk(split)
        parts = zip(weight.chunk(split), biases, strict=True)
        return tuple(_onednn_product(x, w, b, None, act, packed) for w, b in parts)
    return _onednn_product(x, weight, bias, residual, act, packed)


def _onednn_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    act: str | None,
    packed: PackedWeight | None,
) -> Tensor:
    rows, shape = x.numel() // max(x.shape[-1], 1), (*x.shape[:-1], weight.shape[0])
    if not rows or not weight.numel():  # nothing to multiply: oneDNN refuses empty matrices
        empty = linear_reference(x, weight, bias, residual, act)
        assert isinstance(empty, Tensor)  # one product
        return empty
    if packed is not None:
        source = weight
        name = ("onednn", *_position(weight))
        weight = packed.get(name, (source,), lambda: torch.ops.mkldnn._reorder_linear_weight(source.detach(), rows))
    product = torch.ops.mkldnn._linear_pointwise
    if residual is not None:
        return product.binary(x, residual.expand(shape), weight, bias, "add")
    return product(x, weight, bias, act or "none", [], "none" if act == "gelu" else "")
