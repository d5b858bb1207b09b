"""Images of dynamic tokens: each token's region in its mean colour, with borders (paper figures 5 and 7).

In: an RGB image and the `Tokens` of every stage; out: RGB arrays for PNG files (cli/viz_tokens.py).
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..layers._tokens import Tokens


def token_of_pixel(idx_token: Tensor, init_grid: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """[H, W] token that owns each pixel, from the owners [N0] of the initial grid's cells."""
    cells = idx_token.cpu().numpy().reshape(init_grid)
    rows = np.arange(size[0]) * init_grid[0] // size[0]
    cols = np.arange(size[1]) * init_grid[1] // size[1]
    return cells[rows[:, None], cols]


def region_borders(owner: np.ndarray, width: int = 1) -> np.ndarray:
    """[H, W] bool: pixels within `width` of another region (above or to the left)."""
    edge = np.zeros(owner.shape, bool)
    for shift in range(1, width + 1):
        edge[shift:] |= owner[shift:] != owner[:-shift]
        edge[:, shift:] |= owner[:, shift:] != owner[:, :-shift]
    return edge


def draw_regions(
    image: np.ndarray,  # [H, W, 3] uint8
    owner: np.ndarray,  # [H, W] region of each pixel
    border: tuple[int, int, int] | None = (255, 255, 255),
) -> np.ndarray:  # [H, W, 3] uint8
    """Every region in its mean colour; borders only where neighbouring regions differ."""
    flat, colours = owner.ravel(), image.reshape(-1, 3).astype(np.float64)
    count = np.maximum(np.bincount(flat), 1)
    means = np.stack([np.bincount(flat, colours[:, c]) / count for c in range(3)], axis=1)
    out = means[owner].round().astype(np.uint8)
    if border is not None:
        out[region_borders(owner)] = border
    return out


def feature_image(tokens: Tokens, size: tuple[int, int], item: int = 0) -> np.ndarray:
    """[H, W, 3] uint8: the token features as a map, every cell that of its token; the three strongest principal
    components of the image's tokens as red, green and blue (TCFormer, figures 5c and 5d)."""
    x = tokens.x[item].double().cpu()
    x = x - x.mean(0)
    axes = torch.linalg.svd(x, full_matrices=False)[2][:3]
    axes = axes * torch.sign(axes.sum(1, keepdim=True))  # one of the two signs, the same on every machine
    parts = x @ axes.T
    low, high = parts.amin(0), parts.amax(0)
    colours = ((parts - low) / (high - low).clamp_min(1e-12) * 255).round().byte().numpy()
    return colours[token_of_pixel(tokens.idx_token[item], tokens.init_grid, size)]


def token_panel(image: np.ndarray, stages: list[Tokens], item: int = 0, features: bool = False) -> np.ndarray:
    """The image and the regions of stages 2, 3, ... side by side, labelled with their token counts.

    Args:
        image: [H, W, 3] uint8, the pixels the model saw.
        stages: from `TCFormer.forward_features`.
        item: which image of the batch.
        features: the tokens' features as a map (`feature_image`) instead of the image's colours.
    """
    h, w = image.shape[:2]
    panels = [(image, "image")]
    for number, tokens in enumerate(stages[1:], start=2):
        owner = token_of_pixel(tokens.idx_token[item], tokens.init_grid, (h, w))
        drawn = feature_image(tokens, (h, w), item) if features else draw_regions(image, owner)
        panels.append((drawn, f"stage {number}: {tokens.num_tokens} tokens"))
    gap, label = 6, 16
    sheet = Image.new("RGB", (len(panels) * (w + gap) - gap, h + label), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (pixels, text) in enumerate(panels):
        sheet.paste(Image.fromarray(pixels), (i * (w + gap), label))
        draw.text((i * (w + gap) + 2, 2), text, fill="black")
    return np.asarray(sheet)
