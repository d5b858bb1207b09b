"""MTA, multi-stage token aggregation: from four stages of dynamic tokens to feature maps (TCFormer section 3.3).

In: the `Tokens` of every backbone stage; out: one map per stage at its nominal size. Tokens are aggregated coarse to
fine by ops/token_map.py (token_resample), mixed by a `TCBlock` per stage, and only then laid out as maps. Keys:
lateral_convs.{i}.conv, merge_blocks.{i} as in the official pose files.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..ops import linear
from ..ops.token_map import token_resample
from ._tokens import Tokens
from .dynamic_block import TCBlock
from .token_conv import tokens_to_map


class _Lateral(nn.Module):
    """1x1 convolution of tokens (a linear layer), kept as `conv` for the official keys."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.conv.weight[:, :, 0, 0], self.conv.bias)


class MTA(nn.Module):
    """Multi-stage token aggregation neck.

    Args:
        in_channels: channels of the stages.
        out_channels: channels of every output map.
        num_heads, mlp_ratios, sr_ratios: per stage; the last stage has no block, its entries are not used.
        use_sr_layer: strided convolution in the attention of the blocks; False = average pooling (the pose models).
        norm_eps: LayerNorm eps of the blocks.

    Example:
        >>> import torch
        >>> from tore_fast.models import create_model
        >>> backbone = create_model("tcformer_light", embed_dims=(16, 32, 48, 64), num_heads=(1, 2, 3, 4))
        >>> maps = MTA((16, 32, 48, 64), 32)(backbone.forward_features(torch.rand(1, 3, 64, 48)))
        >>> maps[0].shape
        torch.Size([1, 32, 16, 12])
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        num_heads: Sequence[int] = (4, 4, 4, 4),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        qkv_bias: bool = True,
        use_sr_layer: bool = False,
        norm_eps: float = 1e-5,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.lateral_convs = nn.ModuleList(_Lateral(c, out_channels) for c in in_channels)
        self.merge_blocks = nn.ModuleList(
            TCBlock(
                out_channels,
                num_heads[i],
                mlp_ratios[i],
                sr_ratios[i],
                qkv_bias,
                drop_path,
                use_sr_layer=use_sr_layer,
                norm_eps=norm_eps,
            )
            for i in range(len(in_channels) - 1)
        )

    def forward(self, stages: Sequence[Tokens]) -> list[Tensor]:
        """Maps [B, out_channels, H_i, W_i], finest first."""
        if len(stages) != len(self.lateral_convs):
            raise ValueError(f"MTA: expected {len(self.lateral_convs)} stages, got {len(stages)}")
        out = [t._replace(x=conv(t.x)) for t, conv in zip(stages, self.lateral_convs)]
        for i in range(len(out) - 2, -1, -1):
            fine, coarse = out[i], out[i + 1]
            up = token_resample(
                coarse.x, coarse.idx_token, fine.idx_token, fine.num_tokens, fine.agg_weight, fine.csr, coarse.csr
            )
            out[i] = self.merge_blocks[i](fine._replace(x=fine.x + up))
        return [tokens_to_map(t) for t in out]
