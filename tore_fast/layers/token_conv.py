"""Dynamic tokens and the convolution on them (TCFormer).

In: token features plus the bookkeeping that says which token owns which cell of the stage-1 grid (`Tokens`).
Out: tokens again. `layers/ctm.py` makes new `Tokens` by clustering, `layers/dynamic_block.py` runs attention on them;
the resampling itself is ops/token_map.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops import linear
from ..ops.token_map import map2token, token2map
from ._tokens import Tokens


def tokens_to_map(tokens: Tokens, x: Tensor | None = None, map_size: tuple[int, int] | None = None) -> Tensor:
    """Map [B, C, H, W] (channels-last in memory) of `x` (default the tokens' features) at `map_size` (default
    nominal)."""
    x = tokens.x if x is None else x
    size = tokens.map_size if map_size is None else map_size
    if tokens.is_grid and size == tokens.map_size:
        return x.unflatten(1, size).permute(0, 3, 1, 2)
    return token2map(x, tokens.idx_token, tokens.init_grid, size, tokens.csr)


def map_to_tokens(feature_map: Tensor, tokens: Tokens) -> Tensor:
    """Token values [B, N, C]: mean of `feature_map` [B, C, H, W] over the cells each token owns."""
    size = tuple(feature_map.shape[2:])
    if tokens.is_grid and size == tokens.map_size:
        return feature_map.flatten(2).transpose(1, 2)
    return map2token(feature_map, tokens.idx_token, tokens.init_grid, tokens.num_tokens, tokens.csr)


class TokenConv(nn.Conv2d):
    """Convolution on tokens: skip(x) + map2token(conv(token2map(x))); the skip is a 1x1 convolution without bias.

    Keys: weight, bias, skip.weight [C_out, C_in / groups, 1] as in the official files.

    Example:
        >>> from tore_fast.layers._tokens import grid_tokens
        >>> conv = TokenConv(64, 128, 3, stride=2, padding=1)
        >>> conv(grid_tokens(torch.rand(2, 48, 64), (8, 6))).shape
        torch.Size([2, 48, 128])
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, **conv: Any) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **conv)
        self.skip = nn.Conv1d(in_channels, out_channels, 1, bias=False, groups=self.groups)

    def forward(  # type: ignore[override]  # a convolution of tokens, with the weights of a Conv2d
        self,
        tokens: Tokens,
        x: Tensor | None = None,  # [B, N, C_in], default tokens.x
    ) -> Tensor:  # [B, N, C_out]
        x = tokens.x if x is None else x
        moved = map_to_tokens(super().forward(tokens_to_map(tokens, x)), tokens)
        if self.groups == 1:
            return linear(x, self.skip.weight[..., 0], residual=moved)
        if self.groups == self.in_channels == self.out_channels:
            return torch.addcmul(moved, x, self.skip.weight[:, 0, 0].to(x.dtype))
        return moved + self.skip(x.transpose(1, 2)).transpose(1, 2)


class MapConv(nn.Module):
    """Depth-wise 3x3 convolution of grid tokens (stage 1); the key is `dwconv.weight` as in the official files."""

    def __init__(self, channels: int):
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, tokens: Tokens, x: Tensor) -> Tensor:
        return map_to_tokens(self.dwconv(tokens_to_map(tokens, x)), tokens)
