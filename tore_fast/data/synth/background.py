"""Backgrounds: crops of licence-free photographs, multi-octave noise, rectangles; and occluders in front.

In: a Draw; out: [B, H, W, 3] float32 in 0..1. The photographs are those that scikit-image ships with a public-domain or
CC0 statement and that show no person; the `test` split has its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ...io.image import find_images, read_image
from .draw import Draw

PHOTOGRAPHS = {
    "train": (
        "chelsea.png",
        "rocket.jpg",
        "brick.png",
        "grass.png",
        "coins.png",
        "text.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "cell.png",
    ),
    "test": ("coffee.png", "gravel.png", "clock_motion.png", "retina.jpg"),
}
_SIDE = 384  # every pool image is cut to squares of this side


def photograph_pool(split: str, folder: str | Path | None = None) -> Tensor:  # [N, S, S, 3] uint8
    """Square images to cut backgrounds from: scikit-image's, or every image in `folder`.

    Raises:
        RuntimeError: scikit-image is not installed. ValueError: no images in `folder`, unknown split.
    """
    if split not in PHOTOGRAPHS:
        raise ValueError(f"SynthGenerator: split must be one of {', '.join(PHOTOGRAPHS)}, got {split!r}")
    if folder is not None:
        paths = find_images([folder])[0] if Path(folder).is_dir() else []
        if not paths:
            raise ValueError(f"SynthGenerator: no images in background folder {str(folder)!r}")
    else:
        try:
            import skimage.data
        except ImportError as e:
            raise ImportError(
                "SynthGenerator: photographs for backgrounds come with scikit-image, which is not installed "
                "(pip install scikit-image); or give backgrounds='noise' or a folder of images"
            ) from e
        paths = [Path(skimage.data.__file__).parent / name for name in PHOTOGRAPHS[split]]
    squares = []
    for path in paths:
        image = Image.fromarray(read_image(path))
        side = min(image.size)
        starts = {0, max(image.size) - side} if max(image.size) > 1.15 * side else {(max(image.size) - side) // 2}
        for start in sorted(starts):
            corner = (start, 0) if image.width >= image.height else (0, start)
            square = image.crop((*corner, corner[0] + side, corner[1] + side)).resize(
                (_SIDE, _SIDE), Image.Resampling.LANCZOS
            )
            squares.append(torch.from_numpy(np.array(square)))
    return torch.stack(squares)


def photographs(draw: Draw, pool: Tensor, size: int, rows: Tensor) -> Tensor:  # [len(rows), size, size, 3]
    """Random crops, mirrored, with their own scale in x and y; nearest neighbour, about one source texel a pixel.

    Drawn for all images, made for those of `rows` (CPU indices) only; so are noise and rectangles.
    """
    n, side = len(pool), pool.shape[1]
    device = pool.device
    extent = (draw.uniform(low=0.25, high=1.0) * side)[:, None] * draw.uniform(2, low=0.85, high=1.15)
    extent = extent.clamp(max=side - 1)
    start = draw.uniform(2) * (side - 1 - extent)
    mirror = draw.chance(0.5)
    which = draw.integer(n)
    step = (torch.arange(size) + 0.5) / size
    x, y = (start[:, i, None] + extent[:, i, None] * step for i in (0, 1))
    x = torch.where(mirror[:, None], x.flip(1), x)
    line = ((which[:, None] * side + y.long()) * side)[rows].to(device)
    index = line[:, :, None] + x.long()[rows].to(device)[:, None]
    return pool.view(-1, 3).index_select(0, index.flatten()).view(-1, size, size, 3).float() / 255


def noise(draw: Draw, size: int, rows: Tensor, generator: torch.Generator) -> Tensor:  # [len(rows), size, size, 3]
    """Octaves of noise between two colours, from clouds to grain, over a brightness ramp; on the generator's device."""
    device = generator.device
    roughness, coloured = draw.uniform(1, 1, 1, low=0.25, high=0.8), draw.uniform(1, 1, 1, high=0.6)
    tint = torch.where(draw.chance(0.3, 1, 1, 1), torch.tensor(0.9), torch.tensor(0.3))  # most walls are pale or grey
    mean = draw.uniform(1, 1, 1, low=0.1, high=0.9) + tint * (draw.uniform(3, 1, 1) - 0.5)
    contrast = draw.uniform(1, 1, 1, low=0.02, high=0.3)
    ramp = draw.normal(2, std=0.25)
    roughness, coloured, mean, contrast, ramp = (
        t[rows].to(device) for t in (roughness, coloured, mean, contrast, ramp)
    )
    b = len(rows)
    amplitude: Any = 1.0
    k = 4
    x = torch.zeros(b, 3, k, k, device=device)
    while True:
        rough = torch.randn(b, 3, k, k, device=device, generator=generator)
        x = x + amplitude * (coloured * rough + (1 - coloured) * rough[:, :1])
        if k >= size / 2:
            break
        k, amplitude = 2 * k, amplitude * roughness
        x = F.interpolate(x, size=(k, k), mode="bilinear")
    x = F.interpolate(mean + contrast * x, size=(size, size), mode="bilinear")
    t = torch.linspace(-1, 1, size, device=device)
    x += (ramp[:, 0, None, None] * t[:, None] + ramp[:, 1, None, None] * t)[:, None]
    return x.clamp_(0, 1).permute(0, 2, 3, 1)


def rectangles(draw: Draw, image: Tensor, count: int, chance: float) -> None:
    """Draws up to `count` rectangles into `image` [B, S, S, 3]: walls, furniture, half-transparent panes, floors."""
    size, device = image.shape[1], image.device
    for _ in range(count):
        on = draw.chance(chance)
        x0, y0 = draw.uniform(low=-0.3, high=0.95), draw.uniform(low=-0.3, high=0.95)
        w, h = draw.uniform(low=0.05, high=0.9) ** 1.3, draw.uniform(low=0.05, high=0.9) ** 1.3
        floor = draw.chance(0.15)
        wide = torch.tensor([-1.0, 3.0, 3.0]).expand(draw.batch, 3)
        x0, w, h = torch.where(floor[:, None], wide, torch.stack((x0, w, h), 1)).unbind(1)
        y0 = torch.where(floor, y0.clamp(min=0.45), y0)
        alpha = torch.where(draw.chance(0.6), torch.ones(()), draw.uniform(low=0.2, high=0.8))
        grey = draw.uniform(1)
        colour = (grey + (draw.uniform(3) - 0.5) * draw.uniform(1) * 0.8).clamp(0, 1)
        mixed = (colour * alpha[:, None]).to(device)
        box = (torch.stack((x0, x0 + w, y0, y0 + h)) * size).round().long().clamp(0, size)
        box[1] = torch.where(on, box[1], box[0])  # nothing to fill
        # a GPU would have to be told of every image on its own: whole batches at once there, covered pixels only on a
        # CPU
        (_fill_slices if device.type == "cpu" else _fill_batch)(image, box, alpha, mixed)


def _fill_slices(image: Tensor, box: Tensor, alpha: Tensor, mixed: Tensor) -> None:
    """image [B, S, S, 3] inside box [4, B] (left, right, top, bottom) becomes (1 - alpha) image + mixed; alpha [B],
    mixed [B, 3]."""
    for i, (left, right, top, bottom) in enumerate(box.T.tolist()):
        if left < right and top < bottom:
            image[i, top:bottom, left:right].mul_(1 - alpha[i]).add_(mixed[i])


def _fill_batch(image: Tensor, box: Tensor, alpha: Tensor, mixed: Tensor) -> None:
    """The same without a loop: box and alpha travel to the image's device."""
    device = image.device
    left, right, top, bottom = box.to(device)[..., None]
    t = torch.arange(image.shape[1], device=device)
    inside = ((t >= top) & (t < bottom))[:, :, None] & ((t >= left) & (t < right))[:, None]
    kept = (1 - alpha).to(device)[:, None, None, None]
    image.copy_(torch.where(inside[..., None], image * kept + mixed[:, None, None], image))


def occluder_masks(draw: Draw, size: int, box: Tensor, rows: Tensor) -> Tensor:  # box [B, 4] -> [len(rows), S, S] bool
    """A rectangle or an ellipse over part of the person, for the images of `rows`."""
    device = box.device
    ellipse = draw.chance(0.4)[rows].to(device)
    place = draw.uniform(2, low=0.05, high=0.95)[rows].to(device)
    extent = draw.uniform(2, low=0.12, high=0.5)[rows].to(device)
    box = box.index_select(0, rows.to(device))
    low, high = box[:, :2].clamp(0, size), box[:, 2:].clamp(0, size)
    centre, half = low + place * (high - low), extent * (high - low).amax(1, keepdim=True) / 2
    t = torch.arange(size, device=device) + 0.5
    x, y = ((t - centre[:, i, None]) / half[:, i, None].clamp(min=1) for i in (0, 1))
    square = (y.abs() < 1)[:, :, None] & (x.abs() < 1)[:, None]
    round_ = (y * y)[:, :, None] + (x * x)[:, None] < 1
    return torch.where(ellipse[:, None, None], round_, square)
