"""Contact sheets: an image that is a regular grid of images, told by its seams.

In: pixels; out: the cells, to be searched one by one. A person's crop in such a grid would hold the neighbours too.
"""

from __future__ import annotations

import numpy as np

MIN_CELLS = 6
_SAMPLES = 512  # rows (columns) that are looked at
_STEP = 6.0  # grey levels, median along a seam
_SHARPER = 4.0  # than the median difference of neighbouring columns
_SMALLEST = 32  # px, side of a cell
_OFF = 0.06  # of the pitch, by which a seam may lie beside the regular grid
_MISSING = 0.2  # share of the grid's seams that may not show
_ON_GRID = 0.6  # share of the seams found that must lie on the grid


def seams(grey: np.ndarray) -> np.ndarray:
    """[n] columns of some rows of an image [H, W] at which everything changes from top to bottom (the first behind)."""
    step = np.median(np.abs(np.diff(grey, axis=1)), 0)
    return 1 + np.flatnonzero((step >= _STEP) & (step >= _SHARPER * np.median(step)))


def cells_along(found: np.ndarray, length: int) -> int:
    """Cells along a side of so many pixels whose seams these are; 1 where they are no regular grid.

    Seams on both sides of a gutter count as one that is a little beside.
    """
    best, most = 1, 1 - _MISSING
    for cells in range(2, length // _SMALLEST + 1) if len(found) else ():
        pitch = length / cells
        wanted = pitch * np.arange(1, cells)
        near = np.abs(found[None] - wanted[:, None]) <= max(1.0, _OFF * pitch)
        edge = np.minimum(found, length - found) <= max(1.0, _OFF * pitch)  # a border round the sheet
        shown = near.any(1).mean()
        if shown >= most and (near.any(0) | edge).mean() >= _ON_GRID:
            best, most = cells, shown
    return best


def _grey(pixels: np.ndarray) -> np.ndarray:
    return pixels.mean(2, dtype=np.float32)


def cells_of(pixels: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Cells (x0, y0, x1, y1) of a contact sheet [H, W, 3] uint8, row by row; none where the image is not one.

    Example:
        >>> cells_of(np.zeros((90, 120, 3), np.uint8))
        []
    """
    height, width = pixels.shape[:2]
    if min(height, width) < _SMALLEST:
        return []
    rows = np.linspace(0, height - 1, min(height, _SAMPLES)).astype(int)
    columns = np.linspace(0, width - 1, min(width, _SAMPLES)).astype(int)
    across = cells_along(seams(_grey(pixels[rows])), width)
    down = cells_along(seams(_grey(pixels[:, columns]).T), height)
    if across * down < MIN_CELLS:
        return []
    x = np.round(np.linspace(0, width, across + 1)).astype(int).tolist()
    y = np.round(np.linspace(0, height, down + 1)).astype(int).tolist()
    return [(x[i], y[j], x[i + 1], y[j + 1]) for j in range(down) for i in range(across)]
