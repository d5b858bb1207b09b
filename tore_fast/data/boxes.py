"""Person boxes a user hands in: a JSON or CSV file, read once, errors by line.

JSON: {"photo.jpg": [[x0, y0, x1, y1], ...], ...}. CSV: a header or none, then rows image,x0,y0,x1,y1. Pixels of the
upright image. Names are matched by the path as given, else by the file name alone.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

from ..io.image import EXTENSIONS

Box = tuple[float, float, float, float]


class BoxFileError(ValueError):
    """The box file cannot be used; the text names it, the place and what was expected."""


def read_boxes(path: str | Path) -> dict[str, list[Box]]:
    """Boxes by image name from a .json or .csv file."""
    path = Path(path)
    if not path.is_file():
        raise BoxFileError(f"{path}: no such box file")
    text = path.read_text(encoding="utf-8-sig")
    return _from_json(path, text) if path.suffix.lower() == ".json" else _from_csv(path, text)


def boxes_of(table: dict[str, list[Box]], image: str | Path) -> list[Box] | None:
    """Boxes of one image, or None where the table does not name it."""
    for key in (str(image), Path(image).name):
        if key in table:
            return table[key]
    return None


def _from_json(path: Path, text: str) -> dict[str, list[Box]]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as e:
        raise BoxFileError(f"{path}: not JSON (line {e.lineno}: {e.msg})") from None
    if not isinstance(data, dict):
        raise BoxFileError(
            f'{path}: expected an object {{"image.jpg": [[x0, y0, x1, y1], ...]}}, got {type(data).__name__}'
        )
    table: dict[str, list[Box]] = {}
    for name, rows in data.items():
        if isinstance(rows, list) and len(rows) == 4 and all(isinstance(v, (int, float)) for v in rows):
            rows = [rows]  # a single box without the outer list
        if not isinstance(rows, list):
            raise BoxFileError(f"{path}: {name!r}: expected a list of boxes, got {type(rows).__name__}")
        table[name] = [tuple(r) if isinstance(r, list) else r for r in rows]
    return table


def _from_csv(path: Path, text: str) -> dict[str, list[Box]]:
    table: dict[str, list[Box]] = {}
    for number, row in enumerate(csv.reader(text.splitlines()), start=1):
        if not row or row[0].startswith("#"):
            continue
        try:
            numbers = tuple(float(v) for v in row[1:5])
        except ValueError:
            if number == 1 and Path(row[0].strip()).suffix.lower() not in EXTENSIONS:  # a header
                continue
            raise BoxFileError(f"{path}: line {number}: expected image,x0,y0,x1,y1, got {','.join(row)!r}") from None
        if len(numbers) != 4:
            raise BoxFileError(f"{path}: line {number}: expected image,x0,y0,x1,y1, got {','.join(row)!r}")
        table.setdefault(row[0], []).append(numbers)
    return table
