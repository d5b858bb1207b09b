"""nn.Linear with what stands around it, a norm, an activation and a residual, as one call of ops.linear.

In: [..., K]. Out: [..., N]. Used by all transformers here; which kernel multiplies is the op's choice.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import Norm, linear
from ..ops.linear import Act
from .prepared import Prepared


class Linear(Prepared, nn.Linear):
    """dropout(act(norm(x) W^T + b)) + residual; parameters and keys of nn.Linear.

    Args:
        drop: dropout rate, in training mode.

    Example:
        >>> import torch
        >>> x = torch.randn(2, 17, 8)
        >>> Linear(8, 8)(x, residual=x).shape
        torch.Size([2, 17, 8])
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, drop: float = 0.0) -> None:
        super().__init__(in_features, out_features, bias)
        self.drop = drop

    def forward(
        self,
        x: Tensor,  # [..., K]
        residual: Tensor | None = None,  # [..., N] or what broadcasts to it
        act: Act | None = None,
        norm: nn.LayerNorm | None = None,  # what x goes through first
        split: int = 1,  # above 1: a tuple of so many contiguous tensors [..., N / split]
    ) -> Tensor:  # [..., N]
        first = None if norm is None else Norm(norm.weight, norm.bias, norm.eps)
        drops = self.training and self.drop > 0
        out = linear(
            x,
            self.weight,
            self.bias,
            residual=None if drops else residual,
            act=act,
            norm=first,
            split=split,
            packed=self.packed,
        )
        if not drops:
            return out
        out = F.dropout(out, self.drop)
        return out if residual is None else residual + out
