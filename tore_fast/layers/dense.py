"""Linear layer with what follows it, GELU or a residual, in the same pass over the result.

In: [..., K]. Out: [..., N]. On the CPU in inference oneDNN's product is used, which is faster than the one behind
`F.linear` (MKL's) on AMD and applies both while the result is in registers; elsewhere this is `F.linear`.
Measured on one Zen 4 core, [4131, 512] x [512, 1024]: 97 -> 107 GFLOP/s, 111 with the weight packed once (`freeze`);
with GELU 48.7 -> 43.5 -> 40.8 ms. Used by layers/{pose_blocks,tra}.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .frozen import Frozen

# below these oneDNN's per-call cost is more than it gains (one Zen 4 core, 20 shapes from 17 to 14,688 rows)
MIN_ROWS = 100  # unpacked weights are brought into oneDNN's layout at every call
MIN_PRODUCTS = 4 << 20  # multiply-adds


def onednn_fits(x: Tensor, weight: Tensor, packed: bool) -> bool:
    """Whether x W^T is one for oneDNN: float32 inference on the CPU, run (not traced or counted), large enough."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    products = x.numel() * weight.shape[0]
    return (
        x.dtype == weight.dtype == torch.float32
        and products >= MIN_PRODUCTS
        and (packed or x.numel() >= MIN_ROWS * x.shape[-1])
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and _get_current_dispatch_mode() is None  # FLOP counters and fake tensors know aten only
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, gelu: bool) -> Tensor:
    product = torch.ops.mkldnn._linear_pointwise
    if residual is not None:
        return product.binary(x, residual, weight, bias, "add")
    return product(x, weight, bias, "gelu" if gelu else "none", [], "none" if gelu else "")


class Dense(Frozen, nn.Linear):
    """dropout(act(x W^T + b)) + residual with act the exact GELU or nothing; parameters and keys of nn.Linear.

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
        gelu: bool = False,
        part: tuple[int, int] | None = None,
    ) -> Tensor:  # [..., N]
        """`part`: only the outputs from .. to (rows of the weight)."""
        weight, bias = self.weight, self.bias
        if part is not None:
            weight, bias = weight[slice(*part)], None if bias is None else bias[slice(*part)]
        dropped = self.training and self.drop > 0
        if not dropped and not (gelu and residual is not None) and onednn_fits(x, weight, self.frozen):
            if self.frozen:
                pack = torch.ops.mkldnn._reorder_linear_weight
                weight = self.kept(part, (self.weight,), lambda: pack(weight, x.numel() // x.shape[-1]))
            return _onednn(x, weight, bias, residual, gelu)
        out = F.linear(x, weight, bias)
        out = F.dropout(F.gelu(out) if gelu else out, self.drop, self.training)
        return out if residual is None else residual + out
