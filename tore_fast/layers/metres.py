"""float32 islands for what is measured in metres, and for cameras: heads, up-sampling, skip connections of coordinates.

At one metre the steps of bfloat16 are 4 mm, those of float16 0.5 mm. Under autocast, and in a model cast to 16 bit,
features stay in 16 bit and the last linear map is computed in float32 from the weights as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def exact(like: Tensor) -> torch.autocast:
    """Context without autocast on the device of `like`."""
    return torch.autocast("cpu" if like.is_meta else like.device.type, enabled=False)  # autocast knows no meta device


def wide(t: Tensor) -> Tensor:
    """`t` in float32 if it has 16 bits, else as it is."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def metres(head: Callable[[Tensor], Tensor], tokens: Tensor, residual: Tensor | None = None) -> Tensor:
    """head(tokens) + residual, in float32 also under autocast and, if `head` is one nn.Linear, with 16-bit weights.

    Example:
        >>> head = nn.Linear(8, 3).bfloat16()
        >>> metres(head, torch.randn(2, 5, 8, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    one = head if isinstance(head, nn.Linear) else None
    narrow = one is not None and one.weight.dtype in (torch.float16, torch.bfloat16)
    if not tokens.is_meta and torch.is_autocast_enabled(tokens.device.type) or narrow:
        tokens = wide(tokens)
    with exact(tokens):
        out = (
            F.linear(tokens, wide(one.weight), None if one.bias is None else wide(one.bias))
            if one is not None and narrow
            else head(tokens)
        )
        return out if residual is None else out + residual
