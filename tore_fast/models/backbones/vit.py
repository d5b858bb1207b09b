"""ViT of ViTPose as HMR2.0 and CameraHMR use it, with token merging built in.

In: normalised crops [B, 3, 256, 192]; out: tokens [B, N, C] with their sizes (`ViTTokens`) for layers/decoder_head.py,
or the map [B, C, 16, 12] when nothing is merged. Parameter names are those of the official files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

from ...layers.linear import Linear
from ...layers.mask_tome import MergeConfig, TokenState, merge_tokens
from ...layers.pose_blocks import DropPath
from ...layers.prepared import Prepared
from ...layers.proportional import proportional_attention


@dataclass(frozen=True)
class ViTConfig:
    """Sizes; defaults are ViT-H/16 at 256x192. `ratio` > 1 makes patches overlap (stride patch_size / ratio).

    `stem` "conv" replaces the one convolution over patches by a stack of strided ones (Xiao et al. 2021, "Early
    Convolutions Help Transformers See Better"): a host trained from nothing on few images learns about three times
    faster with it (docs/smpl.md). "patch" is the layout of the official files.
    """

    img_size: tuple[int, int] = (256, 192)
    patch_size: int = 16
    embed_dim: int = 1280
    depth: int = 32
    num_heads: int = 16
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    drop_path_rate: float = 0.55
    ratio: int = 1
    stem: str = "patch"  # or "conv"

    @property
    def stride(self) -> int:
        return self.patch_size // self.ratio

    @property
    def padding(self) -> int:
        if self.stem == "conv":
            return 0
        return 4 + 2 * (self.ratio // 2 - 1)  # 2 for ratio 1: the conv sees two rows above the image

    @property
    def grid(self) -> tuple[int, int]:
        h, w = self.img_size
        size = [(s + 2 * self.padding - self.patch_size) // self.stride + 1 for s in (h, w)]
        return size[0], size[1]


class ViTTokens(NamedTuple):
    """Tokens [B, N, C] after the last norm; size [B, N] and source [B, N, N0] are None where nothing merged/tracked."""

    tokens: Tensor
    size: Tensor | None
    source: Tensor | None
    coverage: Tensor | None


class ViTAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int, qkv_bias: bool):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"ViT: embed_dim {dim} must be a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        log_size: Tensor | None = None,
        residual: Tensor | None = None,
        norm: nn.LayerNorm | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attention of norm(x) [B, N, C] -> output [B, N, C] (+ residual) and keys [B, heads, N, d] (the merging
        metric)."""
        q, k, v = self.qkv(x, norm=norm).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = proportional_attention(q, k, v, log_size)
        return self.proj(out.transpose(1, 2).flatten(2), residual), k


class ViTMlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor, residual: Tensor | None = None, norm: nn.LayerNorm | None = None) -> Tensor:
        return self.fc2(self.fc1(x, act="gelu", norm=norm), residual)


class Block(nn.Module):
    """Pre-norm block; with r > 0, r tokens merge between attention and MLP."""

    def __init__(self, cfg: ViTConfig, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(cfg.embed_dim, eps=1e-6)
        self.attn = ViTAttention(cfg.embed_dim, cfg.num_heads, cfg.qkv_bias)
        self.norm2 = nn.LayerNorm(cfg.embed_dim, eps=1e-6)
        self.mlp = ViTMlp(cfg.embed_dim, int(cfg.embed_dim * cfg.mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Tensor, state: TokenState | None = None, r: int = 0, merging: MergeConfig | None = None
    ) -> Tensor:
        log_size = state.log_size if merging is not None and merging.prop_attn and state is not None else None
        drops = self.training and self.drop_path.p > 0
        out, k = self.attn(x, log_size, None if drops else x, self.norm1)
        x = x + self.drop_path(out) if drops else out
        if r:
            assert state is not None and merging is not None
            x = merge_tokens(x, k.mean(1), r, state, merging)
        return x + self.drop_path(self.mlp(self.norm2(x))) if drops else self.mlp(x, x, self.norm2)


class ViTPatchEmbed(nn.Module):
    """Image [B, 3, H, W] -> tokens [B, N, C]: one convolution over patches."""

    def __init__(self, cfg: ViTConfig):
        super().__init__()
        self.proj = nn.Conv2d(3, cfg.embed_dim, cfg.patch_size, cfg.stride, cfg.padding)

    def forward(self, img: Tensor) -> Tensor:
        return self.proj(img).flatten(2).transpose(1, 2)


class ConvStem(Prepared):
    """Image [B, 3, H, W] -> tokens [B, N, C] through strided 3x3 convolutions: each halves the image and doubles the
    channels.

    The last map is 1.5 times as wide as a token; after the first, every strided convolution is followed by a plain one.
    """

    def __init__(self, cfg: ViTConfig):
        super().__init__()
        steps = cfg.patch_size.bit_length() - 1
        if cfg.patch_size != 2**steps or cfg.ratio != 1 or any(s % cfg.patch_size for s in cfg.img_size):
            raise ValueError(
                "ViTConfig: stem 'conv' needs ratio 1 and an img_size that is a multiple of patch_size, a "
                f"power of two; got img_size {tuple(cfg.img_size)}, patch_size {cfg.patch_size}, ratio {cfg.ratio}"
            )
        layers: list[nn.Module] = []
        for cin, cout, stride in _stem_convs(cfg):
            layers += [nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(inplace=True)]
        self.proj = nn.Sequential(*layers, nn.Conv2d(cout, cfg.embed_dim, 1))

    def keep_terms(self) -> None:
        self.keep("convolutions", (self.proj,), self._convolutions)

    def _convolutions(self) -> list[tuple[Tensor, Tensor]]:
        """Weights and biases of the 3x3 convolutions with their batch normalisation folded in."""
        pairs: Any = zip(
            self.proj[0:-1:3], self.proj[1:-1:3]
        )  # an engine has put the norms into the convolutions before
        fused = (conv if isinstance(norm, nn.Identity) else fuse_conv_bn_eval(conv, norm) for conv, norm in pairs)
        return [(conv.weight.detach(), conv.bias.detach()) for conv in fused]

    def forward(self, img: Tensor) -> Tensor:
        folded = self.recall("convolutions")
        if folded is None:
            return self.proj(img).flatten(2).transpose(1, 2)
        x, convolutions = img, self.proj[0:-1:3]
        conv: Any
        for conv, (weight, bias) in zip(convolutions, folded):
            x = F.relu_(F.conv2d(x, weight, bias, conv.stride, conv.padding))
        return self.proj[-1](x).flatten(2).transpose(1, 2)


def _stem_convs(cfg: ViTConfig) -> list[tuple[int, int, int]]:
    """(channels in, channels out, stride) of a ConvStem's 3x3 convolutions."""
    steps = cfg.patch_size.bit_length() - 1
    widths = [3 * cfg.embed_dim // 2 ** (steps - i) for i in range(steps)]
    convs = [(3, widths[0], 2)]
    for before, width in zip(widths, widths[1:]):
        convs += [(before, width, 2), (width, width, 1)]
    return convs


STEMS = {"patch": ViTPatchEmbed, "conv": ConvStem}


class ViT(nn.Module):
    """ViTPose backbone.

    Args:
        cfg: sizes. merging: token merging, None keeps all tokens (can be changed later: it is not a weight).
        checkpointing: recompute blocks in the backward pass (training memory).
    """

    def __init__(self, cfg: ViTConfig, merging: MergeConfig | None = None, checkpointing: bool = False):
        super().__init__()
        self.cfg, self.merging, self.checkpointing = cfg, merging, checkpointing
        if cfg.stem not in STEMS:
            raise ValueError(f"ViTConfig: stem must be one of {', '.join(STEMS)}, got {cfg.stem!r}")
        rows, columns = cfg.grid
        self.patch_embed = STEMS[cfg.stem](cfg)
        self.pos_embed = nn.Parameter(torch.zeros(1, rows * columns + 1, cfg.embed_dim))
        rates = torch.linspace(0, cfg.drop_path_rate, cfg.depth, device="cpu").tolist() if cfg.depth else []
        self.blocks = nn.ModuleList(Block(cfg, rate) for rate in rates)
        self.last_norm = nn.LayerNorm(cfg.embed_dim, eps=1e-6)
        self._init_weights()

    def _init_weights(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.trunc_normal_(m.weight, std=0.02)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    def embed(self, img: Tensor) -> Tensor:
        """[B, 3, H, W] -> tokens with positions [B, N, C]."""
        h, w = self.cfg.img_size
        if img.dim() != 4 or img.shape[1:] != (3, h, w):
            raise ValueError(f"ViT: img must be [B, 3, {h}, {w}], got {list(img.shape)}")
        return self.patch_embed(img) + self.pos_embed[:, 1:] + self.pos_embed[:, :1]

    def run_blocks(self, x: Tensor, state: TokenState, first: int = 0, last: int | None = None) -> Tensor:
        """Blocks first..last-1 on tokens x; `state` is updated."""
        merging, depth = self.merging, len(self.blocks)
        schedule = [0] * depth if merging is None else merging.schedule(self.num_tokens, depth)
        for i in range(first, depth if last is None else last):
            if self.checkpointing and self.training and not schedule[i]:
                x = checkpoint(self.blocks[i], x, state, 0, merging, use_reentrant=False)
            else:
                x = self.blocks[i](x, state, schedule[i], merging)
        return x

    @property
    def num_tokens(self) -> int:
        rows, columns = self.cfg.grid
        return rows * columns

    def forward_tokens(self, img: Tensor, coverage: Tensor | None = None) -> ViTTokens:
        """Crops -> tokens.

        Args:
            img: [B, 3, H, W] normalised.
            coverage: [B, N] person coverage per token (layers/mask_tome.py:mask_coverage); None is plain ToMe.
        """
        if coverage is not None and coverage.shape != (img.shape[0], self.num_tokens):
            raise ValueError(
                f"ViT: coverage must be [{img.shape[0]}, {self.num_tokens}] (tokens of the grid {self.cfg.grid}), "
                f"got {list(coverage.shape)}"
            )
        state = TokenState(coverage if self.merging is not None else None)
        x = self.last_norm(self.run_blocks(self.embed(img), state))
        return ViTTokens(x, state.size, state.source, state.coverage)

    def forward(self, img: Tensor) -> Tensor:
        """Feature map [B, C, rows, columns]; ValueError when tokens merge (there is no grid any more)."""
        out = self.forward_tokens(img)
        if out.size is not None:
            raise ValueError("ViT: tokens were merged, so there is no feature map; use forward_tokens")
        return out.tokens.transpose(1, 2).unflatten(2, self.cfg.grid)
