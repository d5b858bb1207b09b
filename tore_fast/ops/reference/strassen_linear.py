"""Plain torch strassen_linear: one product, bias, activation, residual. Any device, any floating dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ACTS = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu}  # the exact GELU


def strassen_linear_reference(
    x: Tensor,  # [..., K]
    weight: Tensor,  # [N, K]
    bias: Tensor | None,  # [N]
    residual: Tensor | None,  # [..., N]
    act: str,
) -> Tensor:  # [..., N]
    with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):  # autocast knows no meta device
        out = ACTS[act](F.linear(x, weight, bias))
        return out if residual is None else residual + out
