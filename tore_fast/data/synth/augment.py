"""What a camera and a file format do to a picture: blur, low resolution, gain, gamma, noise, JPEG blocks.

In and out: [B, 3, H, W] float32 in 0..1. Everything is batched torch, so a GPU does it too; JPEG is its lossy part
(8x8 DCT, quantisation by the tables of the standard's annex K, chroma not subsampled), not a file.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .draw import Draw

_LUMA = [16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
         87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
         72, 92, 95, 98, 112, 100, 103, 99]  # fmt: skip
_CHROMA = [17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99,
           99, 99, 99] + [99] * 32  # fmt: skip
_YCC = [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
_BANK = 1 << 20


class Augment:
    """Tables that do not change; `__call__` augments one batch."""

    def __init__(self, device: torch.device):
        g = torch.Generator().manual_seed(1)
        self.bank = torch.randn(_BANK, generator=g).to(device)  # fresh normals would cost more than all the rest
        k, n = torch.arange(8.0)[:, None], torch.arange(8.0)
        dct = torch.cos(math.pi * (2 * n + 1) * k / 16) * torch.where(k == 0, math.sqrt(1 / 8), 0.5)
        self.dct = torch.kron(dct, dct).to(device)  # [64, 64], orthogonal
        self.tables = torch.tensor([_LUMA, _CHROMA, _CHROMA], dtype=torch.float32, device=device)
        self.ycc = torch.tensor(_YCC, device=device)

    def __call__(self, draw: Draw, image: Tensor, strength: float) -> Tensor:
        device, b, size = image.device, image.shape[0], image.shape[-1]
        gain = 1 + strength * draw.uniform(3, 1, 1, low=-0.18, high=0.18)
        bright = 1 + strength * draw.uniform(1, 1, 1, low=-0.35, high=0.3)
        offset = strength * draw.uniform(1, 1, 1, low=-0.08, high=0.08)
        image = image * (gain * bright).to(device) + offset.to(device)
        image = _some(draw.chance(0.06), image, lambda x: x.mean(1, keepdim=True).expand(-1, 3, -1, -1))
        amount = (draw.uniform(1, 1, 1) * draw.chance(0.75)[:, None, None, None]).to(device)
        image = torch.lerp(image, _blur(image), amount)
        image = _some(draw.chance(0.15 * strength), image, lambda x: _coarsen(x, 2))
        image = _some(draw.chance(0.06 * strength), image, lambda x: _coarsen(x, 3))
        sigma = strength * 0.05 * draw.uniform(1, 1, 1) ** 2
        image = image + self._noise(draw, b, size) * sigma.to(device)
        quality = draw.uniform(low=25, high=90)
        jpeg = draw.chance(0.3)
        return _some(jpeg, image.clamp(0, 1), lambda x: self._jpeg(x, quality[jpeg]))

    def _noise(self, draw: Draw, batch: int, size: int) -> Tensor:  # [B, 3, size, size]
        count = 3 * size * size
        start = draw.integer(_BANK)
        reach = -(-count // _BANK) + 1
        bank = self.bank.repeat(reach) if start.max() + count > _BANK else self.bank
        return torch.stack([bank[s : s + count] for s in start.tolist()]).view(batch, 3, size, size)

    def _jpeg(self, image: Tensor, quality: Tensor) -> Tensor:
        b, _, h, w = image.shape
        image = F.pad(image, (0, -w % 8, 0, -h % 8), mode="replicate") if h % 8 or w % 8 else image
        hb, wb = image.shape[2] // 8, image.shape[3] // 8
        ycc = torch.einsum("ij,bjhw->bihw", self.ycc, image) * 255
        blocks = ycc.view(b, 3, hb, 8, wb, 8).permute(0, 1, 2, 4, 3, 5).reshape(b, 3, hb * wb, 64)
        scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality).to(image.device)
        table = ((self.tables * scale[:, None, None]) / 100).round().clamp(1, 255)[:, :, None]
        blocks[:, 0] -= 128
        blocks = ((blocks @ self.dct.T) / table).round() * table @ self.dct
        blocks[:, 0] += 128
        ycc = blocks.view(b, 3, hb, wb, 8, 8).permute(0, 1, 2, 4, 3, 5).reshape(b, 3, hb * 8, wb * 8)
        return torch.einsum("ij,bjhw->bihw", torch.linalg.inv(self.ycc), ycc)[..., :h, :w] / 255


def _some(mask: Tensor, image: Tensor, change) -> Tensor:
    """Applies `change` to the images of `mask` (a CPU mask, so no device sync)."""
    index = mask.nonzero()[:, 0].to(image.device)
    if not len(index):
        return image
    return image.index_copy(0, index, change(image[index]).contiguous())


def _blur(x: Tensor) -> Tensor:
    """3x3 binomial filter."""
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    x = x[..., 1:-1] * 0.5 + (x[..., :-2] + x[..., 2:]) * 0.25
    return x[..., 1:-1, :] * 0.5 + (x[..., :-2, :] + x[..., 2:, :]) * 0.25


def _coarsen(x: Tensor, factor: int) -> Tensor:
    size = x.shape[-2:]
    small = F.interpolate(x, size=(size[0] // factor, size[1] // factor), mode="area")
    return F.interpolate(small, size=size, mode="bilinear")
