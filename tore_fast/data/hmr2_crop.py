"""HMR2.0's person crops: box rule, affine, anti-aliasing, normalisation; masks and letterboxes alike.

In: upright RGB frames [H, W, 3] uint8 and boxes; out: normalised [3, 256, 256] for models/smpl/hmr2.py, person masks
[256, 256] warped by the same affine, letterboxed images for models/smpl/humanfov.py. Runs on the tensor's device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CROP_PX = 256
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
RULES = ("hmr2", "tight")


class Square(NamedTuple):
    """Square window of a image: centre and side, px."""

    x: float
    y: float
    side: float


def square_of_box(box: Sequence[float], rule: str = "hmr2", margin: float = 1.0) -> Square:
    """Square crop of a box (x0, y0, x1, y1).

    Args:
        rule: "hmr2" grows the shorter side to 192:256 first, so that cutting 32 columns per side keeps the box;
            "tight" is CameraHMR's demo: the longer side, wide boxes lose their sides.
        margin: side over that side (HMR2Config.box_margin).

    Example:
        >>> square_of_box((0, 0, 192, 100))
        Square(x=96.0, y=50.0, side=256.0)
    """
    if rule not in RULES:
        raise ValueError(f"square_of_box: rule must be one of {RULES}, got {rule!r}")
    x0, y0, x1, y1 = map(float, box)
    w, h = x1 - x0, y1 - y0
    if not (w > 0 and h > 0 and math.isfinite(w * h)):
        raise ValueError(f"square_of_box: box must be x0 < x1 and y0 < y1, got {tuple(box)}")
    side = max(h, w * 4 / 3) if rule == "hmr2" else max(w, h)
    return Square((x0 + x1) / 2, (y0 + y1) / 2, side * margin)


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian of [1, C, H, W], kernel cut at 4 sigma, edges mirrored as scipy does (half-sample symmetric)."""
    radius = int(4 * sigma + 0.5)
    t = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (t / sigma) ** 2)
    kernel = kernel / kernel.sum()
    c = x.shape[1]
    for dim in (2, 3):
        n = x.shape[dim]
        at = torch.arange(-radius, n + radius, device=x.device) % (2 * n)
        x = x.index_select(dim, torch.where(at >= n, 2 * n - 1 - at, at))
        shape = (c, 1, -1, 1) if dim == 2 else (c, 1, 1, -1)
        x = F.conv2d(
            x, kernel.reshape(1, 1, *shape[2:]).expand(c, 1, *(s if s > 0 else len(t) for s in shape[2:])), groups=c
        )
    return x


def warp_square(
    image: Tensor,  # [H, W, C] uint8 or float
    square: Square,
    size: int = CROP_PX,
    antialias: bool = True,
) -> Tensor:  # [C, size, size] float32, in the image's units
    """Square window mapped to size x size: centre -> (size/2, size/2), bilinear, 0 outside the image.

    Windows more than 1.1 times too large (side / size / 2) are blurred first with sigma (side / size / 2 - 1) / 2; only
    the window and 4 sigma around it are touched, which gives what blurring the whole image gives.
    """
    if image.dim() != 3:
        raise ValueError(f"warp_square: image must be [H, W, C], got {list(image.shape)}")
    h, w = image.shape[:2]
    scale = square.side / size
    strength = scale / 2
    sigma = (strength - 1) / 2 if antialias and strength > 1.1 else 0.0
    margin = int(4 * sigma + 0.5) + 2
    half = square.side / 2
    x0, y0 = max(0, math.floor(square.x - half) - margin), max(0, math.floor(square.y - half) - margin)
    x1, y1 = min(w, math.ceil(square.x + half) + margin + 1), min(h, math.ceil(square.y + half) + margin + 1)
    channels = image.shape[2]
    if x0 >= x1 or y0 >= y1:
        return torch.zeros(channels, size, size, device=image.device)
    window = image[y0:y1, x0:x1].permute(2, 0, 1)[None].float()
    if sigma:
        window = _blur(window, sigma)
    at = (torch.arange(size, dtype=torch.float64, device=image.device) - size / 2) * scale
    # align_corners=True: -1 and 1 are the centres of the first and last pixel of the window
    gx = ((at + square.x - x0) / max(x1 - x0 - 1, 1) * 2 - 1).float()
    gy = ((at + square.y - y0) / max(y1 - y0 - 1, 1) * 2 - 1).float()
    if x1 - x0 == 1:
        gx = ((at + square.x - x0) * 2 - 1).float()
    if y1 - y0 == 1:
        gy = ((at + square.y - y0) * 2 - 1).float()
    grid = torch.stack(torch.broadcast_tensors(gx[None, :], gy[:, None]), -1)[None]
    return F.grid_sample(window, grid, mode="bilinear", padding_mode="zeros", align_corners=True)[0]


def normalise(crops: Tensor) -> Tensor:  # [..., 3, S, S] in 0..255 -> normalised
    """(v - 255 mean) / (255 std) with ImageNet's statistics."""
    shape = (3, 1, 1)
    mean = torch.tensor(MEAN, device=crops.device).reshape(shape) * 255
    std = torch.tensor(STD, device=crops.device).reshape(shape) * 255
    return (crops - mean) / std


def as_tensor(image: np.ndarray | Tensor, device=None) -> Tensor:
    """Frame as a tensor [H, W, C] on `device` (uint8 travels, floats are made there)."""
    if isinstance(image, np.ndarray):
        # torch wants writable memory; Pillow's arrays are not
        image = torch.from_numpy(np.ascontiguousarray(image) if image.flags.writeable else image.copy())
    return image.to(device) if device is not None else image


def person_crops(image: Tensor, squares: Sequence[Square], antialias: bool = True, size: int = CROP_PX) -> Tensor:
    """Normalised crops [P, 3, size, size] of one frame."""
    if not squares:
        return torch.zeros(0, 3, size, size, device=image.device)
    return normalise(torch.stack([warp_square(image, s, size, antialias) for s in squares]))


def mask_crop(mask: Tensor, square: Square, antialias: bool = True, size: int = CROP_PX) -> Tensor:
    """Person mask of a frame [H, W] (bool, 0/1 or 0/255) warped like the crop -> [size, size] in 0..1."""
    if mask.dim() != 2:
        raise ValueError(f"mask_crop: mask must be [H, W], got {list(mask.shape)}")
    return warp_square((mask > 0).to(torch.uint8)[..., None], square, size, antialias)[0]


def letterbox(image: Tensor, size: int = CROP_PX) -> Tensor:
    """Whole frame [H, W, 3] shrunk by area into a white size x size square, centred, normalised [3, size, size]."""
    h, w = image.shape[:2]
    scale = size / max(h, w)
    nh, nw = max(1, round(h * scale)), max(1, round(w * scale))
    small = F.interpolate(image.permute(2, 0, 1)[None].float(), size=(nh, nw), mode="area")[0]
    out = torch.full((3, size, size), 255.0, device=image.device)
    top, left = (size - nh) // 2, (size - nw) // 2
    out[:, top : top + nh, left : left + nw] = small
    return normalise(out)
