"""Boxes of people as files hold them: CSV with or without a header, MOT, COCO results and annotations, our JSON forms.

In: a path; out: `BoxRow` after `BoxRow`, corners in pixels, nothing checked but that they are numbers. Next on the way:
data/boxes.py (images) and video.py:TrackBoxes (videos).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .image import EXTENSIONS
from .open_file import as_json, read_text

Box = tuple[float, float, float, float]
PERSON = "1"  # COCO's category


class BoxFileError(ValueError):
    """The box file cannot be used; the text names it, the place and what was expected."""


class BoxRow(NamedTuple):
    """One box."""

    where: str  # in the file, for messages
    image: str | None  # name, where the file names images
    frame: int | None  # number, where it numbers frames
    track: int | None
    box: Box  # x0, y0, x1, y1


def read_box_rows(path: str | Path, videos: bool) -> list[BoxRow]:
    """All boxes of a .json or .csv (.txt, .tsv) file.

    Args:
        videos: what rows without a header mean: frame,track,x0,y0,x1,y1 (six columns) or MOT (seven and more; frames
            count from 1, boxes are left, top, width, height). For images: image,x0,y0,x1,y1.

    Raises:
        BoxFileError: one line that names the file and the place.
    """
    path = Path(path)
    try:
        text = read_text(path, "box file")
    except (OSError, ValueError) as e:
        raise BoxFileError(str(e)) from None
    if not text.strip():
        raise BoxFileError(f"{path}: the file is empty, it holds no box")
    if path.suffix.lower() == ".json":
        try:
            return list(_json_rows(as_json(text, str(path)), path, videos))
        except BoxFileError:
            raise
        except (ValueError, OverflowError) as e:
            raise BoxFileError(str(e) if str(path) in str(e) else f"{path}: {e}") from None
    return list(_csv_rows(text, path, videos))


# ---- CSV

_CORNERS = ("x0 y0 x1 y1", "x1 y1 x2 y2", "xmin ymin xmax ymax", "left top right bottom", "x_min y_min x_max y_max")
_SIZES: tuple[str, ...] = ("x y w h", "x y width height", "left top width height", "bb_left bb_top bb_width bb_height")
_SIZES += ("bbox_left bbox_top bbox_width bbox_height", "x0 y0 w h", "x1 y1 w h", "xmin ymin width height", "l t w h")
_CENTRES = ("cx cy w h", "xc yc w h", "x_center y_center width height", "xcenter ycenter width height")
_IMAGE = ("image", "file", "filename", "file_name", "name", "image_id", "path", "img")
_FRAME = ("frame", "frame_id", "frame_number", "frame_index", "frame_idx", "f")
_TRACK = ("track", "track_id", "id", "person", "person_id", "object_id", "tid")


def _csv_rows(text: str, path: Path, videos: bool) -> Iterator[BoxRow]:
    wanted = "frame,track,x0,y0,x1,y1" if videos else "image,x0,y0,x1,y1"
    lines = text.splitlines()
    sign = next((s for s in (";", "\t") if lines and s in lines[0]), ",")
    columns: _Columns | None = None
    first = True
    for number, row in enumerate(csv.reader(lines, delimiter=sign), start=1):
        row = [v.strip() for v in row]
        if not any(row) or row[0].startswith("#"):
            continue
        if sign != ",":
            row = [re.sub(r"^([-+]?\d+),(\d+)$", r"\1.\2", v) for v in row]
        where, shown = f"line {number}", ",".join(row)[:80]
        if first:
            first = False
            if _is_header(row, videos):
                columns = _columns_of(row, path, videos)
                continue
        yield _row(row, columns, videos, path, where, f"expected {wanted}, got {shown!r}")


class _Columns(NamedTuple):
    image: int | None
    frame: int | None
    track: int | None
    box: tuple[int, int, int, int]
    kind: str  # corners, sizes or centres


def _is_header(row: list[str], videos: bool) -> bool:
    """Whether the first row names columns: none of its cells is a number, and none an image file."""
    if any(_number(v) is not None for v in row):
        return False
    return videos or Path(row[0]).suffix.lower() not in EXTENSIONS


def _columns_of(header: list[str], path: Path, videos: bool) -> _Columns:
    low = [h.lower().strip("\"' ") for h in header]

    def find(names: tuple[str, ...]) -> int | None:
        return next((low.index(n) for n in names if n in low), None)

    for kind, forms in (("corners", _CORNERS), ("sizes", _SIZES), ("centres", _CENTRES)):
        for form in forms:
            names = form.split()
            if set(names) <= set(low):
                a, b, c, d = (low.index(n) for n in names)
                columns = _Columns(find(_IMAGE), find(_FRAME), find(_TRACK), (a, b, c, d), kind)
                if (columns.frame if videos else columns.image) is None:
                    missing = "frame" if videos else "image"
                    raise BoxFileError(f"{path}: line 1: no column {missing!r} in {','.join(header)[:80]!r}")
                return columns
    raise BoxFileError(
        f"{path}: line 1: no box in the columns {','.join(header)[:80]!r}; expected x0,y0,x1,y1 (corners), "
        "x,y,w,h (left, top, width, height) or cx,cy,w,h (centre)"
    )


def _row(row: list[str], columns: _Columns | None, videos: bool, path: Path, where: str, expected: str) -> BoxRow:
    def need(text: str) -> float:
        value = _number(text)
        if value is None:
            raise BoxFileError(f"{path}: {where}: {expected}")
        return value

    def whole(text: str) -> int:
        value = need(text)
        if value != value or abs(value) > 1e9 or value != int(value):
            raise BoxFileError(f"{path}: {where}: {expected}")
        return int(value)

    if columns is not None:
        if len(row) <= max(v for v in (*columns.box, columns.image, columns.frame, columns.track) if v is not None):
            raise BoxFileError(f"{path}: {where}: fewer columns than the header; got {','.join(row)[:80]!r}")
        a, b, c, d = (need(row[i]) for i in columns.box)
        track = None if columns.track is None else whole(row[columns.track])
        frame = whole(row[columns.frame]) if videos and columns.frame is not None else None
        image = row[columns.image] if columns.image is not None else None
        return BoxRow(where, image, frame, track, _corners((a, b, c, d), columns.kind))
    if not videos:
        if len(row) < 5:
            raise BoxFileError(f"{path}: {where}: {expected}")
        a, b, c, d = (need(v) for v in row[1:5])
        return BoxRow(where, row[0], None, None, (a, b, c, d))
    if len(row) >= 7:  # MOT counts from 1
        a, b, c, d = (need(v) for v in row[2:6])
        return BoxRow(where, None, whole(row[0]) - 1, whole(row[1]), _corners((a, b, c, d), "sizes"))
    if len(row) != 6:
        raise BoxFileError(f"{path}: {where}: {expected}")
    a, b, c, d = (need(v) for v in row[2:6])
    return BoxRow(where, None, whole(row[0]), whole(row[1]), (a, b, c, d))


def _corners(values: Box, kind: str) -> Box:
    a, b, c, d = values
    if kind == "corners":
        return values
    if kind == "centres":
        return a - c / 2, b - d / 2, a + c / 2, b + d / 2
    return a, b, a + c, b + d


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


# ---- JSON


def _json_rows(data: Any, path: Path, videos: bool) -> Iterator[BoxRow]:
    own = '{"0": [[frame, x0, y0, x1, y1], ...]}' if videos else '{"image.jpg": [[x0, y0, x1, y1], ...]}'
    if isinstance(data, dict) and isinstance(data.get("annotations"), list):
        yield from _coco(data["annotations"], data, path, videos)
    elif isinstance(data, list) and data and isinstance(data[0], dict) and "bbox" in data[0]:
        yield from _coco(data, {}, path, videos)
    elif not isinstance(data, dict):
        raise BoxFileError(f"{path}: expected {own} or COCO's results or annotations, got {type(data).__name__}")
    else:
        for name, rows in data.items():
            if not videos and _is_row(rows, 4):
                rows = [rows]  # a single box without the outer list
            if not isinstance(rows, list):
                what = f"track {name[:40]!r}: expected {own}" if videos else f"{name[:80]!r}: expected a list of boxes"
                raise BoxFileError(f"{path}: {what}, got {type(rows).__name__}")
            for k, row in enumerate(rows):
                if videos:
                    if not _is_row(row, 5) or not name.isdigit() or row[0] != int(row[0]):
                        raise BoxFileError(f"{path}: track {name[:40]!r}: expected {own}, got {str(row)[:80]}")
                    frame, a, b, c, d = map(float, row)  # NumPy cannot test integers beyond 64 bits
                    yield BoxRow(f"track {name}", None, int(frame), int(name), (a, b, c, d))
                else:
                    values = tuple(row) if isinstance(row, list) else row
                    yield BoxRow(f"{name[:80]!r}: box {k}", name, None, None, values)


def _is_row(row: Any, length: int) -> bool:
    numbers = (int, float)
    return isinstance(row, list) and len(row) == length and all(isinstance(v, numbers) and abs(v) < 1e300 for v in row)


def _coco(rows: list, data: dict, path: Path, videos: bool) -> Iterator[BoxRow]:
    """COCO: bbox is left, top, width, height. Images by id; in videos the numbers of their names, else the ids, are
    frames."""
    images = {str(i.get("id")): i for i in data.get("images") or [] if isinstance(i, dict)}
    people = {
        str(c.get("id")) for c in data.get("categories") or [] if isinstance(c, dict) and c.get("name") == "person"
    }
    known = {str(r.get("category_id")) for r in rows if isinstance(r, dict)}
    people = people or ({PERSON} if PERSON in known else known)
    for k, row in enumerate(rows):
        where = f"box {k}"
        box = row.get("bbox") if isinstance(row, dict) else None
        if box is None or not _is_row(box, 4):
            raise BoxFileError(f"{path}: {where}: expected a bbox [left, top, width, height], got {str(box)[:80]}")
        if str(row.get("category_id")) not in people:
            continue
        key = str(row.get("image_id"))
        name = images.get(key, {}).get("file_name", key)
        frame = None
        if videos:
            digits = re.findall(r"\d+", Path(str(name)).stem)
            if not digits or len(digits[-1]) > 9:
                raise BoxFileError(f"{path}: {where}: image {str(name)[:60]!r} tells no frame number")
            frame = int(digits[-1])
        track = row.get("track_id", row.get("instance_id"))
        track = track if type(track) is int else None
        numbers: Any = tuple(float(v) for v in box)
        yield BoxRow(where, str(name), frame, track, _corners(numbers, "sizes"))
