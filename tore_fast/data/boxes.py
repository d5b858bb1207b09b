"""Person boxes of images that a user hands in: a JSON or CSV file, read once, errors by line.

JSON: {"photo.jpg": [[x0, y0, x1, y1], ...], ...}, COCO results or annotations. CSV: rows image,x0,y0,x1,y1, or columns
as the header names them (x,y,w,h too). Pixels of the upright image. Names are matched by the path as given, else by the
file name alone, and COCO's results without file names by the stem.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..io.boxes import Box, BoxFileError, read_box_rows

__all__ = ["Box", "BoxFileError", "boxes_of", "read_boxes", "unmatched"]


def read_boxes(path: str | Path) -> dict[str, list[Box]]:
    """Boxes by image name from a file (io/boxes.py has the forms)."""
    table: dict[str, list[Box]] = {}
    for row in read_box_rows(path, videos=False):
        if row.image is None:
            raise BoxFileError(f"{path}: {row.where}: names no image")
        table.setdefault(row.image, []).append(row.box)
    return table


def _keys(image: str | Path) -> tuple[str, ...]:
    """How a table may name an image; COCO's ids are the file names' numbers without zeros in front."""
    path = Path(image)
    bare = path.stem.lstrip("0") or path.stem
    return str(image), path.name, *((path.stem, bare) if path.stem.isdigit() else ())


def boxes_of(table: dict[str, list[Box]], image: str | Path) -> list[Box] | None:
    """Boxes of one image, or None where the table does not name it."""
    return next((table[key] for key in _keys(image) if key in table), None)


def unmatched(table: dict[str, list[Box]], images: Iterable[str | Path]) -> list[str]:
    """Names in the table that are none of the images."""
    found = {key for image in images for key in _keys(image)}
    return [name for name in table if name not in found]
