"""Perspective camera, crop around the person, truncation, and the weak-perspective fit (s, tx, ty).

In: root-centred vertices in camera axes; out: pixels of the crop. The crop is [-1, 1]: pixel = (v + 1) * size / 2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .draw import Draw


class CropView(NamedTuple):
    translation: Tensor  # [B, 3] metres, of the pelvis in camera axes
    centre: Tensor  # [B, 2] of the crop on the plane z = 1
    half: Tensor  # [B, 1] half its side there

    def project(self, points: Tensor) -> Tensor:  # [B, N, 3] root-centred -> [B, N, 2] in the crop's [-1, 1]
        x = points + self.translation[:, None]
        return (x[..., :2] / x[..., 2:] - self.centre[:, None]) / self.half[:, None]


class Framing(NamedTuple):
    distance: tuple[float, float] = (2.5, 9.0)  # metres from the camera
    fill: tuple[float, float] = (0.68, 0.92)  # share of the crop's side that the subject takes
    cut: float = 1.0  # how often and how much parts are cut off, times the difficulty


PERSON = Framing()


def sample_view(
    draw: Draw,
    points: Tensor,  # [B, N, 3] root-centred
    difficulty: float,
    framing: Framing = PERSON,
) -> CropView:
    """A camera and a crop around the subject; with difficulty some crops cut parts off."""
    d, device = difficulty, points.device
    near, far = framing.distance
    distance = near * (far / near) ** draw.uniform(1)
    offset = draw.normal(2, std=0.08 * d).clamp(-0.25, 0.25) * distance  # person beside the optical axis
    translation = torch.cat((offset, distance), 1)
    fill = draw.uniform(1, low=framing.fill[0], high=framing.fill[1])
    jitter = draw.uniform(2, low=-1, high=1) * 0.06 * (0.5 + 0.5 * d)
    keep = _truncation(draw, d * framing.cut)
    translation, fill, jitter, keep = (t.to(device) for t in (translation, fill, jitter, keep))

    x = points + translation[:, None]
    plane = x[..., :2] / x[..., 2:].clamp(min=0.12 * near)
    low, high = plane.amin(1), plane.amax(1)
    size = high - low
    low, high = low + keep[:, :2] * size, high - keep[:, 2:] * size
    half = (high - low).amax(1, keepdim=True) / 2 / fill
    return CropView(translation, (low + high) / 2 + jitter * 2 * half, half)


def _truncation(draw: Draw, d: float) -> Tensor:  # [B, 4] shares cut off left, top, right, bottom
    kind = draw.choice(torch.tensor([1 - 0.4 * d, 0.24 * d, 0.08 * d, 0.05 * d, 0.03 * d]))
    low, high = draw.uniform(4), draw.uniform(4)
    cut = torch.zeros(draw.batch, 4)
    legs = 0.15 + 0.45 * low[:, 3]
    cut[:, 3] = torch.where((kind == 1) | (kind == 3), legs, cut[:, 3])
    side = 0.1 + 0.25 * low[:, 0]
    left = high[:, 0] < 0.5
    cut[:, 0] = torch.where(((kind == 2) | (kind == 3)) & left, side, cut[:, 0])
    cut[:, 2] = torch.where(((kind == 2) | (kind == 3)) & ~left, side, cut[:, 2])
    cut[:, 1] = torch.where(kind == 4, 0.05 + 0.2 * low[:, 1], cut[:, 1])
    return cut


def weak_perspective(points: Tensor, image: Tensor) -> Tensor:  # [B, N, 3], [B, N, 2] -> [B, 3]
    """(s, tx, ty) that minimise the sum of |s (xy + t) - image|^2."""
    xy = points[..., :2]
    mean_xy, mean_uv = xy.mean(1), image.mean(1)
    a, b = xy - mean_xy[:, None], image - mean_uv[:, None]
    s = (a * b).sum((1, 2)) / (a * a).sum((1, 2)).clamp(min=1e-9)
    s = s.clamp(min=1e-3)[:, None]
    return torch.cat((s, mean_uv / s - mean_xy), 1)
