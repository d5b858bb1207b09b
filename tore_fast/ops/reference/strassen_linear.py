"""Plain torch strassen_linear: norm, one product, bias, activation, residual. Any device, any floating dtype."""

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
    norm_eps: float | None = None,
) -> Tensor:  # [..., N]
    with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):  # autocast knows no meta device
        if norm_eps is not None:
            x = F.layer_norm(x, x.shape[-1:], eps=norm_eps)
        out = ACTS[act](F.linear(x, weight, bias))
        return out if residual is None else residual + out
