"""Multiply-adds of a TCFormer model by the rules of the official counter, measured on one forward pass.

Rules: convolutions and linear layers count multiply-adds (convolutions plus their bias), a
LayerNorm 2 per element, attention 2 N Nk C, every token <-> map move N0 (C + 4), a CTM N^2 C + N k + N^2 + N C; GELU and
softmax are free. The tables of the README come from here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from ...layers.ctm import CTM
from ...layers.dynamic_block import ReducedAttention
from ...layers.linear import Linear
from ...layers.mta import MTA
from ...layers.token_conv import TokenConv


class Macs(NamedTuple):
    total: int
    clustering: int  # the part of the CTMs' clustering and merging


@torch.no_grad()
def count_macs(model: nn.Module, image_size: tuple[int, int]) -> Macs:
    """Multiply-adds for one image [3, H, W].

    Example:
        >>> from tore_fast.models import create_model
        >>> round(count_macs(create_model("tcformer_light"), (224, 224)).total / 1e9, 2)
        3.85
    """
    total, clustering = [], []

    def conv(m: nn.Conv2d, _, out) -> None:
        per_pixel = m.weight.numel() + (m.out_channels if m.bias is not None else 0)
        total.append(per_pixel * out.shape[-2] * out.shape[-1])

    def linear(m: nn.Linear, args, out) -> None:
        total.append(args[0].numel() * m.out_features)

    def norm(m: nn.LayerNorm, args, out) -> None:
        total.append(2 * args[0].numel())

    def token_conv(m: TokenConv, args, out) -> None:
        tokens = args[0]
        h, w = ((s + 2 * p - k) // d + 1 for s, p, k, d in zip(tokens.map_size, m.padding, m.kernel_size, m.stride))
        cells = tokens.idx_token.shape[1]
        total.append((m.weight.numel() + m.out_channels) * h * w + m.skip.weight.numel() * tokens.num_tokens)
        total.append(cells * (m.in_channels + 4) + cells * (m.out_channels + 4))

    def attention(m: ReducedAttention, args, out) -> None:
        y_query, y_key, keys, (h, w) = args
        r, channels = m.sr_ratio, y_query.shape[2]
        num_keys = y_key.shape[1] if r == 1 else (h // r) * (w // r)
        total.append(2 * y_query.shape[1] * num_keys * channels)
        if r > 1 and not keys.is_grid:
            total.append(keys.idx_token.shape[1] * (channels + 4))

    def ctm(m: CTM, args, out) -> None:
        n, channels = args[0].num_tokens, out[1].x.shape[2]
        clustering.append(n * n * channels + n * m.k + n * n + n * channels)

    def mta(m: MTA, args, out) -> None:
        for i, (tokens, lateral) in enumerate(zip(args[0], m.lateral_convs)):
            channels, cells = lateral.conv.out_channels, tokens.idx_token.shape[1]
            total.append((lateral.conv.weight.numel() + channels) * tokens.num_tokens)
            if i > 0:
                total.append(2 * cells * (channels + 4))  # moved up once, laid out as a map once

    # a Conv2d inside TokenConv or MTA's laterals never fires its own hook: both use the weights directly
    hooks = {
        TokenConv: token_conv,
        nn.Conv2d: conv,
        nn.ConvTranspose2d: conv,
        nn.Linear: linear,
        Linear: linear,
        nn.LayerNorm: norm,
        ReducedAttention: attention,
        CTM: ctm,
        MTA: mta,
    }
    handles = []
    for m in model.modules():
        for kind, hook in hooks.items():
            if type(m) is kind:
                handles.append(m.register_forward_hook(hook))
    training = model.training
    try:
        weight = next(model.parameters())
        model.eval()(torch.zeros(1, 3, *image_size, device=weight.device, dtype=weight.dtype))
    finally:
        model.train(training)
        for h in handles:
            h.remove()
    return Macs(sum(total) + sum(clustering), sum(clustering))
