"""Train-only dense targets on the image features: where each joint is and which body part a pixel shows.

The mesh losses alone reach the backbone through a few tokens; from random weights and a small budget that is slow. A
1x1 convolution on the token map predicts 14 joint heat maps and the part labels at four times its resolution. It is
thrown away after training: the model's architecture, parameters and checkpoint are untouched.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

UPSCALE = 4  # output cells per token and axis (pixel shuffle)
SIGMA = 1.2  # of the joint heat maps, output cells


class DenseOutput(NamedTuple):
    out: object  # what the model returns
    heatmaps: Tensor  # [B, J, 4h, 4w] logits
    parts: Tensor  # [B, 1 + P, 4h, 4w] logits, class 0 = background


class DenseSupervision(nn.Module):
    """A model with the train-only heads around it; `.model` is what is kept.

    Args:
        model: has `conv_1x1`, whose output is the token map (FastMETRO, FastMETRO_TORE), or `features` is given.
        num_joints, num_parts: classes of the two targets.
        features: (submodule, channels, (rows, columns)): its output is the tokens [B, rows * columns, channels]
            instead.
    """

    def __init__(
        self,
        model: Any,
        num_joints: int,
        num_parts: int,
        features: tuple[nn.Module, int, tuple[int, int]] | None = None,
    ):
        super().__init__()
        self.model, self.num_joints = model, num_joints
        self._grid: tuple[int, int] | None
        source, width, self._grid = features or (model.conv_1x1, model.conv_1x1.out_channels, None)
        self.head = nn.Conv2d(width, (num_joints + 1 + num_parts) * UPSCALE**2, 1)
        self._tokens: Tensor | None = None
        source.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self._tokens = output if self._grid is None else output.transpose(1, 2).unflatten(2, self._grid)

    def forward(self, images: Tensor) -> DenseOutput:
        out = self.model(images)
        maps = F.pixel_shuffle(self.head(self._tokens), UPSCALE)
        self._tokens = None
        return DenseOutput(out, maps[:, : self.num_joints], maps[:, self.num_joints :])


def heatmap_target(joints_2d: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Gaussian maps [B, J, rows, columns] of points [B, J, 2] in [-1, 1]; points outside the crop leave no trace beyond
    their tail."""
    rows, columns = (size, size) if isinstance(size, int) else size
    x, y = (torch.arange(n, device=joints_2d.device, dtype=joints_2d.dtype) for n in (columns, rows))
    dx = (x + 0.5 - (joints_2d[..., :1] + 1) * (columns / 2)).square()[..., None, :]
    dy = (y + 0.5 - (joints_2d[..., 1:] + 1) * (rows / 2)).square()[..., :, None]
    return torch.exp(-(dx + dy) / (2 * SIGMA**2))


def part_target(parts: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Labels [B, rows, columns] from per-pixel part labels [B, H, W] (0 = background), nearest pixel."""
    return F.interpolate(parts[:, None].float(), size, mode="nearest")[:, 0].long()


def dense_losses(dense: DenseOutput, joints_2d: Tensor, parts: Tensor) -> tuple[Tensor, Tensor]:
    """(heat-map loss, part loss): binary cross entropy (positive cells weigh 10), cross entropy."""
    size = (dense.heatmaps.shape[-2], dense.heatmaps.shape[-1])
    target = heatmap_target(joints_2d, size)
    heat = F.binary_cross_entropy_with_logits(dense.heatmaps.float(), target, weight=1 + 9 * target)
    return heat, F.cross_entropy(dense.parts.float(), part_target(parts, size))
