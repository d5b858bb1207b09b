"""Linear layer with what follows it, an activation or a residual, in the same pass over the result.

In: [..., K]. Out: [..., N]. On the CPU in inference oneDNN's product is used, which is faster than the one behind
`F.linear` (MKL's) on AMD and applies both while the result is in registers; in a frozen model large products are
ops/strassen_linear.py's, with fewer multiplications; elsewhere this is `F.linear`.
Measured on one Zen 4 core (peak 117 GFLOP/s), [4131, 512] x [512, 1024]: 98 F.linear, 107 oneDNN, 113 oneDNN with the weight
packed once, 130 Strassen (counted as if it did all multiplications). Next on the way: attention.py, bert_block.py,
pose_blocks.py, dynamic_block.py, tra.py, models/backbones/vit.py; the motion models and PPT keep nn.Linear (not measured there).
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Hashable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ..ops.strassen_linear import StrassenWeight, deepest_level, pays, strassen_linear, strassen_pack
from .frozen import Frozen

Act = Literal["none", "gelu", "relu"]
ACTS = {"none": lambda x: x, "gelu": F.gelu, "relu": F.relu}  # the exact GELU

# below these oneDNN's per-call cost is more than it gains (one Zen 4 core, 20 shapes from 17 to 14,688 rows)
MIN_ROWS = 100  # unpacked weights are brought into oneDNN's layout at every call
MIN_PRODUCTS = 4 << 20  # multiply-adds

# (rows, smaller of K and N) from which a frozen product is Strassen's of this level: below, streaming the larger packed
# weight from memory or the smaller blocks cost what the multiplications save (one and two Zen 4 cores, cold weights). It
# depends on sizes alone, so that two passes give the same bits; packing costs 3 to 5 ns a weight, once.
STRASSEN = ((2, 400, 384), (1, 192, 256))

_ATEN: contextvars.ContextVar[bool] = contextvars.ContextVar("tore_fast_aten_products", default=False)


@contextlib.contextmanager
def aten_products() -> Iterator[None]:
    """Within this context products are `F.linear`: for baselines that stand for code without ours."""
    token = _ATEN.set(True)
    try:
        yield
    finally:
        _ATEN.reset(token)


def onednn_fits(x: Tensor, weight: Tensor, packed: bool) -> bool:
    """Whether x W^T is one for oneDNN: float32 inference on the CPU, run (not traced or counted), large enough."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    products = x.numel() * weight.shape[0]
    return bool(
        x.dtype == weight.dtype == torch.float32
        and products >= MIN_PRODUCTS
        and (packed or x.numel() >= MIN_ROWS * x.shape[-1])
        and not _ATEN.get()
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and _get_current_dispatch_mode() is None  # FLOP counters and fake tensors know aten only
    )


def strassen_level(rows: int, out_features: int, in_features: int) -> int | None:
    """Level of the Strassen product that a frozen float32 product on the CPU takes, or None for oneDNN's."""
    deepest = deepest_level(out_features, in_features) or 0
    for level, min_rows, min_size in STRASSEN:
        if rows >= min_rows and min(out_features, in_features) >= min_size and level <= deepest:
            return level
    return None


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, act: Act) -> Tensor:
    product = torch.ops.mkldnn._linear_pointwise
    if residual is not None:
        return product.binary(x, residual, weight, bias, "add")
    return product(x, weight, bias, act, [], "none" if act == "gelu" else "")


def _strassen(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm: nn.LayerNorm | None, owner: Frozen, name: Hashable
) -> tuple[StrassenWeight, Tensor | None, float | None] | None:
    """What strassen_linear takes beside x, kept by `owner`, or None where oneDNN's product is the better one."""
    rows = x.numel() // x.shape[-1]
    level = strassen_level(rows, *weight.shape)
    if level is None or not pays():
        return None
    if norm is None:
        return owner.kept(("strassen", level, name), (weight,), lambda: strassen_pack(weight, level)), bias, None

    def folded() -> tuple[StrassenWeight, Tensor]:
        shift = F.linear(norm.bias, weight, bias)
        return strassen_pack(weight * norm.weight, level), shift

    sources = tuple(t for t in (weight, bias, norm.weight, norm.bias) if t is not None)
    return *owner.kept(("strassen", level, name, "norm"), sources, folded), norm.eps


def product(
    x: Tensor,  # [..., K]
    weight: Tensor,  # [N, K]
    bias: Tensor | None = None,  # [N]
    residual: Tensor | None = None,  # [..., N] or what broadcasts to it
    act: Act = "none",
    owner: Frozen | None = None,
    name: Hashable = None,
    norm: nn.LayerNorm | None = None,
    strassen: bool = True,
) -> Tensor:  # [..., N]
    """act(norm(x) W^T + b) + residual.

    Args:
        owner, name: a module that keeps the packed weight under this name while it is frozen.
        strassen: whether it may become Strassen's product.
    """
    packed = owner is not None and owner.frozen
    fits = (residual is None or act == "none") and onednn_fits(x, weight, packed)
    if fits and residual is not None:
        residual = residual.expand(*x.shape[:-1], weight.shape[0])
    if fits and packed and strassen:
        made = _strassen(x, weight, bias, norm, owner, name)
        if made is not None:
            weight, bias, eps = made
            return strassen_linear(x, weight, bias, residual, act, norm_eps=eps)
    x = x if norm is None else norm(x)
    if not fits:
        out = ACTS[act](F.linear(x, weight, bias))
        return out if residual is None else residual + out
    if packed:
        pack = torch.ops.mkldnn._reorder_linear_weight
        weight = owner.kept(("packed", name), (weight,), lambda: pack(weight, x.numel() // x.shape[-1]))
    return _onednn(x, weight, bias, residual, act)


class Dense(Frozen, nn.Linear):
    """dropout(act(norm(x) W^T + b)) + residual; parameters and keys of nn.Linear.

    Args:
        drop: dropout rate, in training mode.

    Example:
        >>> x = torch.randn(2, 17, 8)
        >>> Dense(8, 8)(x, residual=x).shape
        torch.Size([2, 17, 8])
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, drop: float = 0.0) -> None:
        super().__init__(in_features, out_features, bias)
        self.drop = drop

    def forward(
        self,
        x: Tensor,  # [..., K]
        residual: Tensor | None = None,  # [..., N]
        act: Act = "none",
        norm: nn.LayerNorm | None = None,
    ) -> Tensor:  # [..., N]
        """`norm`: what x goes through first."""
        if not (self.training and self.drop):
            return product(x, self.weight, self.bias, residual, act, self, norm=norm)
        x = x if norm is None else norm(x)
        out = F.dropout(ACTS[act](F.linear(x, self.weight, self.bias)), self.drop)
        return out if residual is None else residual + out

    def parts(self, x: Tensor, count: int, norm: nn.LayerNorm | None = None) -> tuple[Tensor, ...]:
        """The outputs in `count` contiguous tensors [..., N / count]: q, k and v of one layer."""
        if self.frozen and onednn_fits(x, self.weight, True):
            made = _strassen(x, self.weight, self.bias, norm, self, None)
            if made is not None:
                weight, bias, eps = made
                return strassen_linear(x, weight, bias, split=count, norm_eps=eps)
        x = x if norm is None else norm(x)
        width = self.out_features // count
        bounds = [slice(i * width, (i + 1) * width) for i in range(count)]
        biases = [None if self.bias is None else self.bias[b] for b in bounds]
        return tuple(
            product(x, self.weight[b], bias, owner=self, name=("part", b.start), strassen=False)
            for b, bias in zip(bounds, biases, strict=True)
        )
