"""Plain torch linear: norm, one product, activation, residual. Any device, any floating dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ACTS = {None: lambda x: x, "relu": F.relu, "gelu": F.gelu}  # the exact GELU


def linear_reference(
    x: Tensor,  # [..., K]
    weight: Tensor,  # [N, K]
    bias: Tensor | None,  # [N]
    residual: Tensor | None,  # what broadcasts to [..., N]
    act: str | None = None,
    norm: tuple[Tensor | None, Tensor | None, float] | None = None,  # weight [K], bias [K], eps
    split: int = 1,
) -> Tensor | tuple[Tensor, ...]:  # [..., N], or `split` times [..., N / split]
    if norm is not None:
        x = F.layer_norm(x, x.shape[-1:], *norm)
    if split > 1:
        biases = [None] * split if bias is None else bias.chunk(split)
        return tuple(ACTS[act](F.linear(x, w, b)) for w, b in zip(weight.chunk(split), biases, strict=True))
    if residual is not None and bias is None and act is None and residual.dtype == x.dtype == weight.dtype:
        shape = (*x.shape[:-1], weight.shape[0])  # one pass over the result
        rows = residual.expand(shape).reshape(-1, shape[-1])
        return torch.addmm(rows, x.reshape(-1, x.shape[-1]), weight.t()).view(shape)
    out = ACTS[act](F.linear(x, weight, bias))
    return out if residual is None else residual + out
