"""Drawings of attention: joints by joints as a table, joints over the image, joints and vertices on the mesh.

In: arrays of the maps that image-to-mesh models return with `return_attention=True` (models/mesh/_base.py); out: RGB
arrays, and a matplotlib file for the table. After FastMETRO figure 6 and TORE figures B3, B4 and E7. Caller:
cli/viz_attention.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..ops import rasterize
from .overlay import _average, _light, rotated

_RAMP = np.array(
    [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], np.float64
)  # dark to light
_LABEL_PX, _GAP_PX = 16, 6
_SAMPLES = 2  # per pixel and axis, as overlay.py


class MissingMatplotlib(ImportError):  # noqa: N818 (a kind of ImportError)
    """The table needs the optional package matplotlib."""


class MapLayout(NamedTuple):
    """What the rows and columns of one map are: kind ("camera", "joint", "vertex", "image") -> slice."""

    rows: dict[str, slice]
    cols: dict[str, slice]


def map_layout(name: str, shape: tuple[int, int], joints: int, vertices: int, image_tokens: int) -> MapLayout:
    """Tokens behind a map of MeshOutput.attention, from its name and size.

    Args:
        name: "encoder_I" (camera first), "decoder_I", "cross_I" or "bert_I"; I = 3 is the shape regressor (NSR).
        shape: queries, keys.
        image_tokens: that reach the transformers (after pruning).

    Raises:
        ValueError: the size fits no sequence of these tokens.
    """
    kind, _, number = name.partition("_")
    mesh = [("joint", joints)], [("vertex", vertices)], [("joint", joints), ("vertex", vertices)]
    grid = [("image", image_tokens)]
    context = [("joint", joints)] if number == "3" else grid
    found: Any
    if kind == "encoder":
        context = [("camera", 1), *context]
        found = context, context
    elif kind == "cross":
        found = _first_of(mesh, shape[0]), context
    else:
        both = _first_of((*mesh, mesh[2] + grid), shape[0])
        found = both, both
    for side, size in zip(found, shape):
        if side is None or sum(n for _, n in side) != size:
            raise ValueError(
                f"map_layout: {name} of size {list(shape)} fits no sequence of {joints} joints, {vertices} vertices "
                f"and {image_tokens} image tokens"
            )
    return MapLayout(*(_slices(side) for side in found))


def _first_of(candidates: Sequence[list], size: int) -> list | None:
    return next((c for c in candidates if sum(n for _, n in c) == size), None)


def _slices(tokens: list[tuple[str, int]]) -> dict[str, slice]:
    out, start = {}, 0
    for kind, count in tokens:
        out[kind] = slice(start, start + count)
        start += count
    return out


def to_cells(weights: np.ndarray, heatmap: np.ndarray | None) -> np.ndarray:
    """Attention to kept tokens [..., M] as attention to grid cells [..., h * w], through the selector's heat map.

    Each row of `heatmap` [M, h * w] sums to one (layers/itp.py), so the rows of the result sum to what they did.
    None (nothing was pruned): unchanged.

    Raises:
        ValueError: not as many weights as the heat map has rows.
    """
    if heatmap is None:
        return weights
    if weights.shape[-1] != heatmap.shape[0]:
        raise ValueError(f"to_cells: {weights.shape[-1]} weights for a heat map of {heatmap.shape[0]} tokens")
    return weights @ heatmap


def colours(values: np.ndarray, top: float | None = None) -> np.ndarray:  # [...] -> [..., 3] float, 0..255
    """Dark violet (0) to yellow (`top`, default the largest value)."""
    top = float(np.max(values)) if top is None else top
    x = np.clip(np.asarray(values, np.float64) / max(top, 1e-12), 0, 1)
    at = np.linspace(0, 1, len(_RAMP))
    return np.stack([np.interp(x, at, _RAMP[:, c]) for c in range(3)], -1)


def over_image(
    image: np.ndarray,  # [H, W, 3] uint8, the crop the model saw
    cells: np.ndarray,  # [h * w] attention to each cell, row-major
    grid: tuple[int, int],
    point: Sequence[float] | None = None,  # x, y pixels, marked by a ring
    alpha: float = 0.6,
) -> np.ndarray:  # [H, W, 3] uint8
    """The image with every cell of the token grid tinted by its attention.

    Raises:
        ValueError: `cells` does not have the grid's size.
    """
    cells = np.asarray(cells)
    if cells.shape != (grid[0] * grid[1],):
        raise ValueError(
            f"over_image: cells must be [{grid[0] * grid[1]}] ({grid[0]}x{grid[1]}), got {list(cells.shape)}"
        )
    height, width = image.shape[:2]
    rows, cols = np.arange(height) * grid[0] // height, np.arange(width) * grid[1] // width
    tint = colours(cells.reshape(grid))[rows[:, None], cols]
    grey = image.mean(-1, keepdims=True)  # colours of the photograph would be read as attention
    out = Image.fromarray((grey * (1 - alpha) + tint * alpha).round().astype(np.uint8))
    if point is not None and np.isfinite(point).all():
        x, y = point
        draw = ImageDraw.Draw(out)
        for r, colour in ((5, "black"), (4, "white"), (3, "white")):
            draw.ellipse((x - r, y - r, x + r, y + r), outline=colour)
    return np.asarray(out)


def on_mesh(
    vertices: np.ndarray,  # [V, 3] metres, x right, y down, z away
    faces: np.ndarray,  # [F, 3]
    values: np.ndarray,  # [V]
    size: int = 256,
    marked: int | None = None,  # vertex drawn in red
) -> np.ndarray:  # [size, 2 size, 3] uint8
    """The lit mesh, coloured by the values of its vertices, from the front and from behind, on white.

    Raises:
        ValueError: not one value per vertex, or vertices that are not finite.
    """
    points, values = np.asarray(vertices, np.float64), np.asarray(values)
    if points.ndim != 2 or points.shape[1] != 3 or values.shape != points.shape[:1]:
        raise ValueError(f"on_mesh: one value per vertex: vertices {list(points.shape)}, values {list(values.shape)}")
    if not np.isfinite(points).all():
        raise ValueError("on_mesh: vertices must be finite")
    points = points - (points.min(0) + points.max(0)) / 2
    tint = colours(values)
    if marked is not None:
        tint[marked] = (255, 40, 40)
    scale = (
        0.92 * size / max(2 * float(np.linalg.norm(points[:, [0, 2]], axis=1).max()), float(np.ptp(points[:, 1])), 1e-9)
    )
    return np.concatenate([_render(rotated(points, yaw), faces, tint, scale, size) for yaw in (0.0, 180.0)], 1)


def _render(points: np.ndarray, faces: np.ndarray, tint: np.ndarray, scale: float, size: int) -> np.ndarray:
    x = torch.from_numpy(np.asarray(points)).float()
    index = torch.from_numpy(np.ascontiguousarray(faces, dtype=np.int32))
    pixels = torch.cat(((x[:, :2] * scale + size / 2) * _SAMPLES, x[:, 2:]), 1)
    raster = rasterize(pixels[None], index, size * _SAMPLES, size * _SAMPLES)
    hit = raster.face_index[0] >= 0
    corners = index[raster.face_index[0][hit].long()].long()
    # half of the light is everywhere, so that a colour can be read in the shade, too
    lit = torch.from_numpy(tint).float() * (0.5 + 0.5 * _light(x, index).clamp(max=1))[:, None]
    canvas = torch.full((*hit.shape, 3), 255.0)
    canvas[hit] = (lit[corners] * raster.barycentric[0][hit][..., None].float()).sum(1)
    smooth = torch.stack([_average(c) for c in canvas.unbind(-1)], -1)
    return smooth.round().clamp(0, 255).to(torch.uint8).numpy()


def sheet(tiles: Sequence[tuple[np.ndarray, str]], columns: int = 4) -> np.ndarray:  # [H, W, 3] uint8
    """Labelled tiles of one size in rows of at most `columns`."""
    if not tiles:
        raise ValueError("sheet: no tiles")
    height, width = tiles[0][0].shape[:2]
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    step = width + _GAP_PX, height + _LABEL_PX + _GAP_PX
    page = Image.new("RGB", (columns * step[0] - _GAP_PX, rows * step[1] - _GAP_PX), "white")
    draw = ImageDraw.Draw(page)
    for i, (pixels, text) in enumerate(tiles):
        x, y = i % columns * step[0], i // columns * step[1]
        page.paste(Image.fromarray(pixels), (x, y + _LABEL_PX))
        draw.text((x + 2, y + 2), text, fill="black")
    return np.asarray(page)


def require_matplotlib() -> None:
    """Raises MissingMatplotlib with the remedy where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as e:
        raise MissingMatplotlib("the joint table needs matplotlib: pip install 'tore_fast[viz]'") from e


def save_table(matrix: np.ndarray, names: Sequence[str], path: str | Path, title: str = "") -> None:
    """Writes the heat map of a [J, J] matrix (rows attend to columns) with joint names as a PNG.

    Raises:
        ValueError: not as many names as rows and columns. MissingMatplotlib: see `require_matplotlib`.
    """
    if matrix.shape != (len(names), len(names)):
        raise ValueError(
            f"save_table: matrix must be [{len(names)}, {len(names)}] for these names, got {list(matrix.shape)}"
        )
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # not pyplot: it would pick a display of the user's
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 + 0.36 * len(names), 1.4 + 0.36 * len(names)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = axes.imshow(matrix, cmap="viridis", vmin=0)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("attended joint (key)")
    axes.set_ylabel("joint (query)")
    axes.set_title(title)
    figure.colorbar(shown, ax=axes, shrink=0.8)
    figure.savefig(path, format="png")
