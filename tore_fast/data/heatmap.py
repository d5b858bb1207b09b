"""Key points <-> heat-maps: Gaussian targets, arg-max decoding with quarter-pixel or DARK refinement, flip test.

In: key points in crop pixels from data/topdown.py, or heat-maps from a pose model; out: targets for train/keypoints.py,
key points in image pixels for eval/oks.py and eval/nme.py. Coordinates are (x, y); a pixel's index is its position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

REFINEMENTS = ("none", "quarter", "dark")


def encode_heatmaps(
    points: Tensor,  # [..., J, 2] crop pixels
    visible: Tensor,  # [..., J] nonzero = labelled
    map_size: tuple[int, int],
    stride: float = 4.0,
    sigma: float = 2.0,
) -> tuple[Tensor, Tensor]:  # [..., J, H, W], [..., J]
    """Unnormalised Gaussians of radius 3 sigma at the rounded key points, and the weight of each joint.

    A joint whose Gaussian lies outside the map, or that is not labelled, gets weight 0 and an empty map.

    Example:
        >>> target, weight = encode_heatmaps(torch.tensor([[8.0, 12.0]]), torch.ones(1), (64, 48))
        >>> target[0, 3, 2], weight
        (tensor(1.), tensor([1.]))
    """
    h, w = map_size
    center = torch.floor(points / stride + 0.5)
    radius = 3 * sigma
    cx, cy = center[..., 0, None], center[..., 1, None]
    inside = (center[..., 0] - radius < w) & (center[..., 1] - radius < h)
    inside &= (center[..., 0] + radius + 1 >= 0) & (center[..., 1] + radius + 1 >= 0)
    weight = ((visible > 0) & inside).to(points.dtype)
    dx = torch.arange(w, dtype=points.dtype, device=points.device) - cx
    dy = torch.arange(h, dtype=points.dtype, device=points.device) - cy
    gx = torch.exp(-0.5 * (dx / sigma) ** 2) * (dx.abs() <= radius)
    gy = torch.exp(-0.5 * (dy / sigma) ** 2) * (dy.abs() <= radius)
    return gy[..., :, None] * gx[..., None, :] * weight[..., None, None], weight


def decode_heatmaps(
    heatmaps: Tensor,  # [B, J, H, W]
    refine: str = "quarter",
    blur_kernel: int = 11,
) -> tuple[Tensor, Tensor]:  # [B, J, 2] map pixels, [B, J]
    """Key points (x, y) in map pixels and their scores (the maxima); (-1, -1) where the maximum is not positive.

    Args:
        heatmaps: [B, J, H, W].
        refine: "none"; "quarter": 0.25 pixel towards the larger neighbour (inner pixels only); "dark": Taylor step on
            the log of the Gaussian-blurred map (DARK, CVPR 2020, eq. 7-9).
        blur_kernel: width of the DARK blur (11 for sigma 2).
    """
    if refine not in REFINEMENTS:
        raise ValueError(f"decode_heatmaps: refine must be one of {REFINEMENTS}, got {refine!r}")
    maps = heatmaps.float()
    h, w = maps.shape[2:]
    score, at = maps.flatten(2).max(dim=2)
    x, y = at % w, at // w
    points = torch.stack([x, y], dim=2).float()
    if refine == "quarter":
        # the official test moves only points with 1 < x < W - 1 and 1 < y < H - 1
        inner = (x > 1) & (x < w - 1) & (y > 1) & (y < h - 1)
        dx, dy = _gradient(maps, x, y)
        points = points + 0.25 * torch.stack([dx.sign(), dy.sign()], dim=2) * inner[..., None]
    elif refine == "dark":
        points = points + _dark_step(_blur(maps, blur_kernel), x, y)
    return torch.where(score[..., None] > 0, points, -1.0), score


def _pick(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """maps[b, j, y, x], coordinates clamped into the map."""
    h, w = maps.shape[2:]
    index = y.clamp(0, h - 1) * w + x.clamp(0, w - 1)
    return maps.flatten(2).gather(2, index[..., None])[..., 0]


def _gradient(maps: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return _pick(maps, x + 1, y) - _pick(maps, x - 1, y), _pick(maps, x, y + 1) - _pick(maps, x, y - 1)


def _blur(maps: Tensor, kernel: int) -> Tensor:
    """Gaussian blur (sigma as OpenCV derives it from the width), maxima restored."""
    sigma = 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8
    t = torch.arange(kernel, device=maps.device, dtype=maps.dtype) - (kernel - 1) / 2
    g = torch.exp(-0.5 * (t / sigma) ** 2)
    g = g / g.sum()
    flat = maps.flatten(0, 1)[:, None]
    pad = kernel // 2
    flat = F.conv2d(F.conv2d(flat, g[None, None, None], padding=(0, pad)), g[None, None, :, None], padding=(pad, 0))
    blurred = flat[:, 0].view_as(maps)
    top, new_top = maps.amax((2, 3), keepdim=True), blurred.amax((2, 3), keepdim=True)
    return (blurred * (top / new_top.clamp_min(1e-12))).clamp_min(1e-10).log()


def _dark_step(log_maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """-H^-1 g at the maximum of the log map; zero at the border and where the Hessian is singular."""
    h, w = log_maps.shape[2:]
    inner = (x > 1) & (x < w - 2) & (y > 1) & (y < h - 2)
    dx, dy = (0.5 * g for g in _gradient(log_maps, x, y))
    center = _pick(log_maps, x, y)
    dxx = 0.25 * (_pick(log_maps, x + 2, y) - 2 * center + _pick(log_maps, x - 2, y))
    dyy = 0.25 * (_pick(log_maps, x, y + 2) - 2 * center + _pick(log_maps, x, y - 2))
    corners = _pick(log_maps, x + 1, y + 1) - _pick(log_maps, x - 1, y + 1)
    corners = corners - _pick(log_maps, x + 1, y - 1) + _pick(log_maps, x - 1, y - 1)
    dxy = 0.25 * corners
    det = dxx * dyy - dxy * dxy
    usable = inner & (det.abs() > 1e-12)
    det = torch.where(usable, det, 1.0)
    step = -torch.stack([dyy * dx - dxy * dy, dxx * dy - dxy * dx], dim=2) / det[..., None]
    return torch.where(usable[..., None], step, 0.0)


def flip_heatmaps(heatmaps: Tensor, flip_index: Sequence[int], shift: bool = True) -> Tensor:
    """Heat-maps [B, J, H, W] of a mirrored image, brought back: channels swapped, mirrored, shifted right by one pixel.

    `flip_index[j]` is the joint that joint j becomes in the mirror. The shift aligns the maps of a stride-4 network;
    column 0 stays as it is (official test setting).
    """
    back = heatmaps[:, list(flip_index)].flip(3)
    if shift:
        back = torch.cat([back[..., :1], back[..., :-1]], dim=3)
    return back


@torch.no_grad()
def predict_heatmaps(model: Any, image: Tensor, flip_index: Sequence[int] | None = None) -> Tensor:
    """Heat-maps of `image` [B, 3, H, W]; with `flip_index` averaged with those of the mirrored image (flip test)."""
    maps = model(image)
    return maps if flip_index is None else 0.5 * (maps + flip_heatmaps(model(image.flip(3)), flip_index))


def map_to_image(
    points: Tensor,  # [B, J, 2] map pixels
    center: Tensor,  # [B, 2] image pixels
    size: Tensor,  # [B, 2] crop width and height in image pixels
    map_size: tuple[int, int],  # (H, W)
) -> Tensor:  # [B, J, 2] image pixels
    """Map pixels -> image pixels of an unrotated crop."""
    wh = points.new_tensor([map_size[1], map_size[0]])
    return points / wh * size[:, None] + (center - 0.5 * size)[:, None]
