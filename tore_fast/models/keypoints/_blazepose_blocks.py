"""Blocks of the BlazePose nets (models/keypoints/blazepose.py): convolutions with bias, ReLU6, no norm layers.

Sources: MobileNetV2 (arXiv:1801.04381) for the inverted residuals, BlazePose (arXiv:2006.10204) for the layout.
Every tensor is [B, C, H, W]; sides are even, as in the published files.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Block = tuple[int, int, int, int]  # expanded channels, kernel side, stride, output channels


def relu6(x: Tensor) -> Tensor:
    """In place: the nets are for inference, and a fifth of their time went into fresh memory."""
    return F.relu6(x, inplace=not torch.is_grad_enabled())


def depthwise(channels: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """One filter a channel; zeros around, kernel // 2 on every side."""
    return nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels)


def pointwise(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 1)


class InvertedResidual(nn.Module):
    """Expand, filter, project; the input is added where the shape allows."""

    def __init__(self, channels: int, block: Block):
        super().__init__()
        expanded, kernel, stride, out = block
        self.expand, self.depth = pointwise(channels, expanded), depthwise(expanded, kernel, stride)
        self.project = pointwise(expanded, out)
        self.residual = stride == 1 and out == channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(relu6(self.depth(relu6(self.expand(x)))))
        return x + y if self.residual else y


class Separable(nn.Module):
    """Depthwise 3x3 and pointwise with ReLU6; `linear_depth`: none between the two."""

    def __init__(self, channels: int, out: int, linear_depth: bool = False):
        super().__init__()
        self.depth, self.point, self.linear_depth = depthwise(channels), pointwise(channels, out), linear_depth

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(x)
        return relu6(self.point(y if self.linear_depth else relu6(y)))


class SeparableResidual(nn.Module):
    """ReLU6 of the input plus a separable convolution of it."""

    def __init__(self, channels: int, linear_depth: bool = False):
        super().__init__()
        self.depth, self.point, self.linear_depth = depthwise(channels), pointwise(channels, channels), linear_depth

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(x)
        return relu6(x + self.point(y if self.linear_depth else relu6(y)))


class Down(nn.Module):
    """Half the side: separable convolution of stride 2 plus max pooling; new channels of the pooled path are zero.

    The files pad this convolution with one row and column *behind* only ("SAME" on an even side).
    """

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.depth = nn.Conv2d(channels, channels, 3, 2, groups=channels)
        self.point, self.extra = pointwise(channels, out), out - channels

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool2d(x, 2)
        if self.extra:
            pooled = F.pad(pooled, (0, 0, 0, 0, 0, self.extra))
        return relu6(pooled + self.point(relu6(self.depth(F.pad(x, (0, 1, 0, 1))))))


class Trunk(nn.Module):
    """Stem at half the side, inverted residuals, and a wide last layer.

    Args:
        stem: channels of the first convolution and of the first output.
        blocks: the inverted residuals; each with stride 2 starts a new level.
        head: channels of the last layer (1x1, then depthwise 3x3).
    """

    def __init__(self, stem: tuple[int, int], blocks: Sequence[Block], head: int):
        super().__init__()
        wide, narrow = stem
        self.stem = nn.ModuleList([nn.Conv2d(3, wide, 3, 2, 1), depthwise(wide), pointwise(wide, narrow)])
        channels, self.widths, self.ends = narrow, [], []
        layers = []
        for i, block in enumerate(blocks):
            if block[2] == 2:
                self.widths.append(channels)
                self.ends.append(i)
            layers.append(InvertedResidual(channels, block))
            channels = block[3]
        self.blocks = nn.ModuleList(layers)
        self.head = nn.ModuleList([pointwise(channels, head), depthwise(head)])

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """(last output of every level but the deepest, the wide layer on the deepest)."""
        first, depth, point = self.stem
        x = point(relu6(depth(relu6(first(x)))))
        levels = []
        for i, block in enumerate(self.blocks):
            if i in self.ends:
                levels.append(x)
            x = block(x)
        expand, depth = self.head
        return levels, relu6(depth(relu6(expand(x))))


def enlarge(x: Tensor) -> Tensor:
    """Twice the side, bilinear at pixel centres."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def depth_to_space(x: Tensor) -> Tensor:
    """[B, 4 C, H, W] -> [B, C, 2 H, 2 W] in the files' channel order (row, column, channel); pixel_shuffle has channels
    first."""
    b, c, h, w = x.shape
    return x.reshape(b, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, c // 4, 2 * h, 2 * w)
