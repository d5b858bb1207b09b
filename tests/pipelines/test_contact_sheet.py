"""Contact sheets: grids of images are told by their seams, and people are looked for cell by cell."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tore_fast.pipelines.contact_sheet import cells_of
from tore_fast.pipelines.people import PeopleFinder


def sheet_of(rows: int, columns: int, gutter: int, size: int = 64) -> np.ndarray:
    """Smooth random images of different brightness in a grid on white."""
    rng = np.random.default_rng(3)
    pitch = size + gutter
    out = np.full((rows * pitch + gutter, columns * pitch + gutter, 3), 255, np.uint8)
    for y in range(rows):
        for x in range(columns):
            small = Image.fromarray(rng.integers(0, 220, (4, 4, 3), np.uint8))
            tile = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC))
            top, left = gutter + y * pitch, gutter + x * pitch
            out[top : top + size, left : left + size] = tile
    return out


@pytest.mark.parametrize("rows, columns, gutter", [(5, 10, 0), (2, 3, 0), (5, 10, 3), (3, 4, 2)])
def test_the_cells_of_a_sheet(rows, columns, gutter):
    sheet = sheet_of(rows, columns, gutter)
    cells = cells_of(sheet)
    assert len(cells) == rows * columns
    x0, y0, x1, y1 = cells[columns + 1]  # second row, second column
    pitch = 64 + gutter
    assert abs(x0 - pitch) <= gutter + 2 and abs(y0 - pitch) <= gutter + 2
    assert abs(x1 - x0 - pitch) <= gutter + 2 and abs(y1 - y0 - pitch) <= gutter + 2


def test_no_sheet():
    rng = np.random.default_rng(0)
    smooth = np.asarray(Image.fromarray(rng.integers(0, 255, (5, 7, 3), np.uint8)).resize((300, 200)))
    for pixels in (
        np.zeros((1, 1, 3), np.uint8),
        np.zeros((300, 400, 3), np.uint8),
        rng.integers(0, 255, (300, 400, 3), np.uint8),
        smooth,
        np.ascontiguousarray(np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 200, 0).repeat(3, 2)),
    ):
        assert cells_of(pixels) == []


def test_everybody_on_a_sheet_of_portraits():
    """The person is the NASA portrait that scikit-image carries (public domain)."""
    portrait = Image.fromarray(pytest.importorskip("skimage.data").astronaut()).resize((96, 96))
    sheet = np.tile(np.asarray(portrait), (2, 4, 1))
    found = PeopleFinder(device="cpu", mirrored=False)(sheet)
    assert len(found) == 8
    noses = found.points[:, 0]
    cells = {(int(x // 96), int(y // 96)) for x, y in noses}
    assert len(cells) == 8
    np.testing.assert_allclose(noses % 96, np.tile(np.array([222, 115]) * 96 / 512, (8, 1)), atol=5)
    assert len(PeopleFinder(device="cpu", mirrored=False, max_people=3)(sheet)) == 3
