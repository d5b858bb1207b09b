"""Pixels of a crop, as each family of models was trained to have them.

The filters differ in how they reduce a large crop: "spin" cuts whole pixels and samples without antialiasing, "hmr2"
blurs before it samples, "pillow" is Pillow's antialiased resize, "affine" Pillow's affine transform. All are black
outside the image. Pixel (0, 0) has its centre at (0.5, 0.5) for "pillow" and at (0, 0) for the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .crop import Crop, height_width

FILTERS = ("spin", "hmr2", "pillow", "affine")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise_image(image: Tensor) -> Tensor:  # [..., 3, H, W] in 0..255 -> the same, floating
    """(v / 255 - mean) / std with ImageNet's statistics; integers give float32."""
    x = image if image.is_floating_point() else image.float()
    mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (x / 255 - mean) / std


def warp(
    image: np.ndarray,  # [H, W, 3] uint8
    crop: Crop,
    size: int | tuple[int, int],
    filter: str = "pillow",
) -> np.ndarray:  # [h, w, 3]
    """Pixels of a crop in 0..255: uint8 for "pillow" and "affine", float64 for "spin", float32 for "hmr2".

    Args:
        size: (height, width) of the result, or the side of a square.
        filter: "spin", "hmr2", "pillow" or "affine".

    Raises:
        ValueError: unknown filter, an image of another shape, or a crop that the filter cannot take ("spin", "hmr2" and
            "pillow" want squares, the last two unrotated ones).
    """
    if filter not in FILTERS:
        raise ValueError(f"warp: filter must be one of {FILTERS}, got {filter!r}")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"warp: image must be [H, W, 3], got {list(image.shape)}")
    h, w = height_width(size)
    if filter == "affine":
        return _affine(image, crop.matrix((h, w)), h, w)
    if h != w or crop.size[0] != crop.size[1]:
        raise ValueError(f"warp: filter {filter!r} makes squares of squares, got a crop of {crop.size} for {h} x {w}")
    if filter == "spin":
        return _spin(image, crop, h)
    if crop.rotation_deg:
        raise ValueError(f"warp: filter {filter!r} does not turn the image, got rotation_deg {crop.rotation_deg}")
    if filter == "pillow":
        return _pillow(image, crop, h)
    return warp_tensor(as_tensor(image), crop, h).permute(1, 2, 0).numpy()


def model_input(image: np.ndarray, crop: Crop, size: int | tuple[int, int], filter: str = "pillow") -> Tensor:
    """Normalised float32 [3, h, w] of a crop; arguments as `warp`."""
    pixels = torch.from_numpy(np.array(warp(image, crop, size, filter))).permute(2, 0, 1)
    return normalise_image(pixels).float().contiguous()


def _affine(image: np.ndarray, matrix: np.ndarray, h: int, w: int) -> np.ndarray:
    """Bilinear samples by an image -> crop matrix between pixel indices."""
    inverse = np.linalg.inv(np.concatenate([matrix, [[0.0, 0.0, 1.0]]]))[:2]
    # Pillow maps pixel centres (index + 0.5), the matrix maps indices
    offset = inverse[:, 2] - 0.5 * inverse[:, :2].sum(1) + 0.5
    coefficients = (*inverse[0, :2], offset[0], *inverse[1, :2], offset[1])
    out = Image.fromarray(image).transform((w, h), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    return np.asarray(out)


def _window(image: np.ndarray, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:  # [y1 - y0, x1 - x0, 3]
    """Whole pixels of the image, zero outside."""
    height, width = image.shape[:2]
    out = np.zeros((y1 - y0, x1 - x0, 3), image.dtype)
    sx0, sy0, sx1, sy1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if sx0 < sx1 and sy0 < sy1:
        out[sy0 - y0 : sy1 - y0, sx0 - x0 : sx1 - x0] = image[sy0:sy1, sx0:sx1]
    return out


def _pillow(image: np.ndarray, crop: Crop, size: int) -> np.ndarray:
    """Whole pixels around the crop, then Pillow's resize of the exact window in them."""
    left, top = crop.center[0] - crop.side / 2, crop.center[1] - crop.side / 2
    x0, y0 = int(np.floor(left)), int(np.floor(top))
    x1, y1 = int(np.ceil(left + crop.side)), int(np.ceil(top + crop.side))
    box = (left - x0, top - y0, min(left - x0 + crop.side, x1 - x0), min(top - y0 + crop.side, y1 - y0))
    window = Image.fromarray(_window(image, x0, y0, x1, y1))
    return np.asarray(window.resize((size, size), Image.Resampling.BILINEAR, box=box))


def _spin(image: np.ndarray, crop: Crop, size: int) -> np.ndarray:
    """[size, size, 3] float64: cut at whole pixels (truncated), turned by bilinear sampling, resized without
    antialiasing."""
    upright = Crop(crop.center, crop.size).matrix(size)
    inverse = np.linalg.inv(np.concatenate([upright, [[0.0, 0.0, 1.0]]]))
    upper_left = (inverse @ [0, 0, 1.0])[:2].astype(np.int64)
    lower_right = (inverse @ [size, size, 1.0])[:2].astype(np.int64)
    if (lower_right <= upper_left).any():
        raise ValueError(f"warp: a crop of side {crop.side} at {list(crop.center)} has no pixels")
    pad = 0
    if crop.rotation_deg:
        diagonal = lower_right - upper_left
        pad = int(np.linalg.norm(diagonal) / 2 - diagonal[1] / 2)
    window = _window(image, *map(int, upper_left - pad), *map(int, lower_right + pad))
    inner = np.array(window.shape[:2]) - 2 * pad
    rows, cols = (((np.arange(size) + 0.5) * (n / size) - 0.5).clip(0, n - 1) for n in inner)
    if not pad:
        return _resize(window, rows, cols)
    # only the pixels that the resize reads are turned: 448 x 448 at most, whatever the box
    need_y, need_x = (np.unique(np.concatenate(_neighbours(v, n)[:2])) for v, n in zip((rows, cols), inner))
    turned = _rotate(window, crop.rotation_deg, need_y + pad, need_x + pad)
    return _resize(turned, rows, cols, inner, need_y, need_x)


def _neighbours(v: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whole places below and above v in 0..n-1, and how far v lies towards the upper one."""
    low = np.minimum(v.astype(np.int64), max(n - 2, 0))
    return low, np.minimum(low + 1, n - 1), v - low


def _resize(
    image: np.ndarray,
    rows: np.ndarray,
    cols: np.ndarray,
    extent: np.ndarray | None = None,
    have_y: np.ndarray | None = None,
    have_x: np.ndarray | None = None,
) -> np.ndarray:  # [len(rows), len(cols), 3]
    """Bilinear samples at rows x cols of an image of `extent`, of which `image` holds the lines have_y and have_x
    (None: all)."""
    height, width = image.shape[:2] if extent is None else extent
    y0, y1, fy = _neighbours(rows, height)
    x0, x1, fx = _neighbours(cols, width)
    if have_y is not None and have_x is not None:
        y0, y1, x0, x1 = (np.searchsorted(h, v) for h, v in ((have_y, y0), (have_y, y1), (have_x, x0), (have_x, x1)))
    fy, fx = fy[:, None, None], fx[:, None]
    upper, lower = image[y0], image[y1]
    top = upper[:, x0] * (1 - fx) + upper[:, x1] * fx
    return top * (1 - fy) + (lower[:, x0] * (1 - fx) + lower[:, x1] * fx) * fy


def _rotate(
    image: np.ndarray, degrees: float, rows: np.ndarray, cols: np.ndarray
) -> np.ndarray:  # [len(rows), len(cols), 3]
    """Pixels rows x cols of the image turned counter-clockwise about its middle pixel, zero outside."""
    h, w = image.shape[:2]
    a, cx, cy = np.deg2rad(degrees), (w - 1) / 2, (h - 1) / 2
    y, x = rows[:, None] - cy, cols - cx
    from_x, from_y = np.cos(a) * x - np.sin(a) * y + cx, np.sin(a) * x + np.cos(a) * y + cy
    # places in 1/32 pixel, as OpenCV's fixed-point warp takes them; one black pixel around for the border
    from_x, from_y = (np.floor(v * 32 + 0.5) / 32 + 1 for v in (from_x, from_y))
    return _sample(np.pad(image, ((1, 1), (1, 1), (0, 0))), from_y, from_x)


def _sample(image: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Bilinear samples at (y, x); places outside take the border."""
    h, w = image.shape[:2]
    y0, y1, fy = _neighbours(y.clip(0, h - 1), h)
    x0, x1, fx = _neighbours(x.clip(0, w - 1), w)
    fy, fx, flat = fy[..., None], fx[..., None], image.reshape(h * w, -1)
    y0, y1 = y0 * w, y1 * w
    top = flat.take(y0 + x0, 0) * (1 - fx) + flat.take(y0 + x1, 0) * fx
    return top * (1 - fy) + (flat.take(y1 + x0, 0) * (1 - fx) + flat.take(y1 + x1, 0) * fx) * fy


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian of [1, C, H, W], kernel cut at 4 sigma, edges mirrored as scipy does (half-sample
    symmetric)."""
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


def warp_tensor(
    image: Tensor,  # [H, W, C] uint8 or float
    crop: Crop,
    size: int,
    antialias: bool = True,
) -> Tensor:  # [C, size, size] float32, in the image's units
    """The filter "hmr2" on any device: crop centre -> (size/2, size/2), bilinear, 0 outside the image.

    Windows more than 1.1 times too large (side / size / 2) are blurred first with sigma (side / size / 2 - 1) / 2; only
    the window and 4 sigma around it are touched, which gives what blurring the whole image gives.
    """
    if image.dim() != 3:
        raise ValueError(f"warp_tensor: image must be [H, W, C], got {list(image.shape)}")
    h, w = image.shape[:2]
    scale = crop.side / size
    strength = scale / 2
    sigma = (strength - 1) / 2 if antialias and strength > 1.1 else 0.0
    margin = int(4 * sigma + 0.5) + 2
    half = crop.side / 2
    x0, y0 = max(0, math.floor(crop.center[0] - half) - margin), max(0, math.floor(crop.center[1] - half) - margin)
    x1, y1 = (
        min(w, math.ceil(crop.center[0] + half) + margin + 1),
        min(h, math.ceil(crop.center[1] + half) + margin + 1),
    )
    channels = image.shape[2]
    if x0 >= x1 or y0 >= y1:
        return torch.zeros(channels, size, size, device=image.device)
    window = image[y0:y1, x0:x1].permute(2, 0, 1)[None].float()
    if sigma:
        window = _blur(window, sigma)
    at = (torch.arange(size, dtype=torch.float64, device=image.device) - size / 2) * scale
    # align_corners=True: -1 and 1 are the centres of the first and last pixel of the window
    gx = ((at + crop.center[0] - x0) / max(x1 - x0 - 1, 1) * 2 - 1).float()
    gy = ((at + crop.center[1] - y0) / max(y1 - y0 - 1, 1) * 2 - 1).float()
    if x1 - x0 == 1:
        gx = ((at + crop.center[0] - x0) * 2 - 1).float()
    if y1 - y0 == 1:
        gy = ((at + crop.center[1] - y0) * 2 - 1).float()
    grid = torch.stack(torch.broadcast_tensors(gx[None, :], gy[:, None]), -1)[None]
    return F.grid_sample(window, grid, mode="bilinear", padding_mode="zeros", align_corners=True)[0]


def as_tensor(image: np.ndarray | Tensor, device: torch.device | str | None = None) -> Tensor:
    """Frame as a tensor [H, W, C] on `device` (uint8 travels, floats are made there)."""
    if isinstance(image, np.ndarray):
        # torch wants writable memory; Pillow's arrays are not
        image = torch.from_numpy(np.ascontiguousarray(image) if image.flags.writeable else image.copy())
    return image.to(device) if device is not None else image


def person_crops(image: Tensor, crops: Sequence[Crop], size: int, antialias: bool = True) -> Tensor:
    """Normalised crops [P, 3, size, size] of one frame [H, W, 3] by the filter "hmr2"."""
    if not crops:
        return torch.zeros(0, 3, size, size, device=image.device)
    return normalise_image(torch.stack([warp_tensor(image, c, size, antialias) for c in crops]))


def mask_crop(mask: Tensor, crop: Crop, size: int, antialias: bool = True) -> Tensor:
    """Person mask of a frame [H, W] (bool, 0/1 or 0/255) warped like the crop -> [size, size] in 0..1."""
    if mask.dim() != 2:
        raise ValueError(f"mask_crop: mask must be [H, W], got {list(mask.shape)}")
    return warp_tensor((mask > 0).to(torch.uint8)[..., None], crop, size, antialias)[0]


def letterbox(image: Tensor, size: int, fill: float = 255.0) -> Tensor:  # [H, W, 3] -> [3, size, size]
    """Whole frame shrunk by area into a square of `fill`, centred; float32 in 0..255."""
    h, w = image.shape[:2]
    scale = size / max(h, w)
    nh, nw = max(1, round(h * scale)), max(1, round(w * scale))
    small = F.interpolate(image.permute(2, 0, 1)[None].float(), size=(nh, nw), mode="area")[0]
    out = torch.full((3, size, size), fill, device=image.device)
    top, left = (size - nh) // 2, (size - nw) // 2
    out[:, top : top + nh, left : left + nw] = small
    return out
