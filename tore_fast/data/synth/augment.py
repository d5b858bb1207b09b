"""What a camera and a file format do to a image: blur, low resolution, gain, gamma, noise, JPEG blocks.

In and out: [B, 3, H, W] float32 in 0..1, changed in place. Everything is batched torch, so a GPU does it too; JPEG is
its lossy part (8x8 DCT, quantisation by the tables of the standard's annex K, chroma not subsampled), not a file.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .draw import Draw

_LUMA = [
    16,
    11,
    10,
    16,
    24,
    40,
    51,
    61,
    12,
    12,
    14,
    19,
    26,
    58,
    60,
    55,
    14,
    13,
    16,
    24,
    40,
    57,
    69,
    56,
    14,
    17,
    22,
    29,
    51,
    87,
    80,
    62,
    18,
    22,
    37,
    56,
    68,
    109,
    103,
    77,
    24,
    35,
    55,
    64,
    81,
    104,
    113,
    92,
    49,
    64,
    78,
    87,
    103,
    121,
    120,
    101,
    72,
    92,
    95,
    98,
    112,
    100,
    103,
    99,
]
_CHROMA = [
    17,
    18,
    24,
    47,
    99,
    99,
    99,
    99,
    18,
    21,
    26,
    66,
    99,
    99,
    99,
    99,
    24,
    26,
    56,
    99,
    99,
    99,
    99,
    99,
    47,
    66,
    99,
    99,
    99,
    99,
    99,
    99,
] + [99] * 32
_YCC = [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
_BANK = 1 << 22


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
        self.rgb = torch.linalg.inv(torch.tensor(_YCC, dtype=torch.float64)).float().to(device)

    def __call__(self, draw: Draw, image: Tensor, strength: float) -> Tensor:
        device, b, size = image.device, image.shape[0], image.shape[-1]
        gain = 1 + strength * draw.uniform(3, 1, 1, low=-0.18, high=0.18)
        bright = 1 + strength * draw.uniform(1, 1, 1, low=-0.35, high=0.3)
        offset = strength * draw.uniform(1, 1, 1, low=-0.08, high=0.08)
        image = image.mul_((gain * bright).to(device)).add_(offset.to(device))
        image = _some(draw.chance(0.06), image, lambda x: x.mean(1, keepdim=True).expand(-1, 3, -1, -1))
        amount, blurred = draw.uniform(1, 1, 1), draw.chance(0.75)
        image = _some(blurred, image, lambda x: _blur(x, amount[blurred].to(device)))
        image = _some(draw.chance(0.15 * strength), image, lambda x: _coarsen(x, 2))
        image = _some(draw.chance(0.06 * strength), image, lambda x: _coarsen(x, 3))
        sigma = strength * 0.05 * draw.uniform(1, 1, 1) ** 2
        image = image.addcmul_(self._noise(draw, b, size), sigma.to(device))
        quality = draw.uniform(low=25, high=90)
        jpeg = draw.chance(0.3)
        return _some(jpeg, image.clamp_(0, 1), lambda x: self._jpeg(x, quality[jpeg]))

    def _noise(self, draw: Draw, batch: int, size: int) -> Tensor:  # [B, 3, size, size]
        count = 3 * size * size
        start = int(draw.integer(_BANK)[0])
        if batch * count + start <= _BANK:
            return self.bank[start : start + batch * count].view(batch, 3, size, size)
        reach = -(-(batch * count + start) // _BANK)
        return self.bank.repeat(reach)[start : start + batch * count].view(batch, 3, size, size)

    def _jpeg(self, image: Tensor, quality: Tensor) -> Tensor:
        b, _, h, w = image.shape
        image = F.pad(image, (0, -w % 8, 0, -h % 8), mode="replicate") if h % 8 or w % 8 else image
        hb, wb = image.shape[2] // 8, image.shape[3] // 8
        ycc = torch.einsum("ij,bjhw->bihw", self.ycc, image) * 255
        blocks = ycc.reshape(b, 3, hb, 8, wb, 8).permute(0, 1, 2, 4, 3, 5).reshape(b, 3, hb * wb, 64)
        scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality).to(image.device)
        table = ((self.tables * scale[:, None, None]) / 100).round().clamp(1, 255)[:, :, None]
        blocks[:, 0] -= 128
        blocks = ((blocks @ self.dct.T) / table).round() * table @ self.dct
        blocks[:, 0] += 128
        ycc = blocks.reshape(b, 3, hb, wb, 8, 8).permute(0, 1, 2, 4, 3, 5).reshape(b, 3, hb * 8, wb * 8)
        return torch.einsum("ij,bjhw->bihw", self.rgb, ycc)[..., :h, :w] / 255


def _some(mask: Tensor, image: Tensor, change: Any) -> Tensor:
    """Applies `change` to the images of `mask` (a CPU mask, so no device sync), in place."""
    index = mask.nonzero()[:, 0].to(image.device)
    if len(index):
        image.index_copy_(0, index, change(image.index_select(0, index)).contiguous())
    return image


def _blur(x: Tensor, amount: Tensor) -> Tensor:
    """3x3 binomial filter (the outermost pixels stay), mixed in by `amount` [B, 1, 1, 1]."""
    y = x.clone()
    y[..., 1:-1] = (x[..., :-2] + x[..., 2:]).mul_(0.25).add_(x[..., 1:-1], alpha=0.5)
    z = (y[..., :-2, :] + y[..., 2:, :]).mul_(0.25).add_(y[..., 1:-1, :], alpha=0.5)
    inner = x[..., 1:-1, :]
    inner.add_(z.sub_(inner).mul_(amount))
    return x


def _coarsen(x: Tensor, factor: int) -> Tensor:
    size = x.shape[-2:]
    small = F.interpolate(x, size=(size[0] // factor, size[1] // factor), mode="area")
    return F.interpolate(small, size=size, mode="bilinear")
