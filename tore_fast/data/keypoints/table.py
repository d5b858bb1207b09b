"""Key points in .csv: rows of frames, with a header that names joints or numbers them, or bare numbers; "," ";" or tab
between.

Out: Found (found.py). Called by clip.py.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np

from ...io.open_file import read_text
from .found import Found, SeenPerson, clean, track_id
from .orders import BY_COUNT, KeypointError, joint_name, order_of_names

_SURE = ("c", "conf", "confidence", "score", "s", "likelihood", "visibility", "vis", "v", "p")
_FRAME = ("frame", "frame_id", "frame_number", "frame_idx", "image_id", "index", "idx", "")
_TRACK = ("track", "track_id", "person", "person_id", "id")


def read_csv_file(path: Path) -> Found:
    """See the top of the file."""
    rows = _rows(read_text(path, "key-point file"))
    if not rows:
        raise KeypointError(f"{path}: the file is empty")
    header = None
    if any(not _is_number(v) for v in rows[0] if v.strip()):
        header = [h.strip() for h in rows.pop(0)]
        if not rows:
            raise KeypointError(f"{path}: a header and no rows")
    width = max(map(len, rows)) if header is None else len(header)
    values = np.full((len(rows), width), np.nan)
    ids: list[list[str]] = []
    for i, row in enumerate(rows):
        if len(row) > width:
            raise KeypointError(f"{path}: row {i + 1} has {len(row)} columns, the header {width}")
        ids.append(row)
        for j, text in enumerate(row):
            values[i, j] = _number(text)
    return _bare(values, path) if header is None else _headed(header, values, ids, path)


def _rows(text: str) -> list[list[str]]:
    """Cells; decimal commas of files with another sign between the cells become points."""
    lines = [line for line in text.splitlines() if line.strip()]
    sign = next((s for s in (";", "\t") if lines and s in lines[0]), ",")
    rows = list(csv.reader(lines, delimiter=sign))
    if sign != ",":
        rows = [[re.sub(r"^(\s*[-+]?\d+),(\d+)", r"\1.\2", v) for v in row] for row in rows]
    if rows and len(rows[0]) == 1 and len(lines[0].split()) > 1:  # blanks between
        rows = [line.split() for line in lines]
    return [row for row in rows if any(v.strip() for v in row)]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _is_number(text: str) -> bool:
    return text.strip().lower() in ("nan", "null", "none") or not np.isnan(_number(text))


def _headed(header: list[str], values: np.ndarray, cells: list[list[str]], path: Path) -> Found:
    joints: dict[str, dict[str, int]] = {}
    frame_column = track_column = None
    for column, text in enumerate(header):
        low = text.lower()
        if low in _FRAME and frame_column is None:
            frame_column = column
        elif low in _TRACK and track_column is None:
            track_column = column
        elif part := _joint_and_part(low):
            joints.setdefault(part[0], {})[part[1]] = column
    joints = {name: at for name, at in joints.items() if {"x", "y"} <= at.keys()}
    if not joints:
        expected = "x0,y0,c0,x1,... or nose_x,nose_y,nose_score,..."
        raise KeypointError(f"{path}: expected columns {expected}, got {','.join(header)[:80]!r}")
    names, order, places = list(joints), None, list(range(len(joints)))
    if all(n.isdigit() for n in names):
        places = sorted(places, key=lambda k: int(names[k]))
        if [int(names[k]) for k in places] != list(range(len(names))):
            raise KeypointError(f"{path}: the header's joints are {', '.join(names[:6])} ..., expected 0, 1, 2 ...")
    elif (found := order_of_names(names)) is not None:
        order, places = found
    else:
        shown = ", ".join(joint_name(n) for n in names[:6])
        raise KeypointError(f"{path}: {len(names)} joints ({shown} ...) are no known order")
    raw = np.ones((len(values), len(names), 3))
    for k, place in enumerate(places):
        at = joints[names[place]]
        raw[:, k, 0], raw[:, k, 1] = values[:, at["x"]], values[:, at["y"]]
        if "c" in at:
            raw[:, k, 2] = values[:, at["c"]]
    points = clean(raw)
    numbers = list(range(len(values)))
    if frame_column is not None:
        given = values[:, frame_column]
        if np.isfinite(given).all() and (given >= 0).all() and (given == given.round()).all() and given.max() < 1e12:
            numbers = [int(n) for n in given]
    frames: dict[int, list[SeenPerson]] = {}
    for i, number in enumerate(numbers):
        track = None if track_column is None else track_id(_plain(cells[i][track_column]))
        frames.setdefault(number, []).append(SeenPerson(points[i], track))
    if track_column is None and len(frames) < len(numbers):
        raise KeypointError(f"{path}: a frame has two rows and no column track tells who is who")
    return Found(dict(sorted(frames.items())), order, length=len(values) if frame_column is None else None)


def _plain(text: str) -> str | float:
    return float(text) if _is_number(text) and text.strip().isdigit() else text.strip()


def _joint_and_part(text: str) -> tuple[str, str] | None:
    """("nose", "x") of nose_x, x_nose, nose.x; ("0", "c") of c0, score0, kp0_conf."""
    if found := re.fullmatch(r"(x|y|z|[a-z]+?)[_ .]?(\d+)", text):
        part = "c" if found[1] in _SURE else found[1]
        return (found[2], part) if part in "xyc" else None
    words = [w for w in re.split(r"[_ .:\-]+", text) if w]
    for at in (-1, 0):
        if len(words) > 1 and words[at] in ("x", "y", *_SURE):
            rest = words[:-1] if at else words[1:]
            name = re.sub(r"^(?:kp|kpt|keypoint|joint|point|j)_?(\d+)$", r"\1", "_".join(rest))
            return name, words[at] if words[at] in "xy" else "c"
    return None


def _bare(values: np.ndarray, path: Path) -> Found:
    """Columns x, y[, c] of every joint; one more in front is the frame."""
    counts = (17, *sorted(BY_COUNT))
    columns = values.shape[1]
    numbers = values[:, 0]
    numbered = bool(np.isfinite(numbers).all() and (numbers == numbers.round()).all() and (numbers >= 0).all())
    numbered = numbered and bool((np.diff(numbers) > 0).all()) and numbers[-1] < 1e12
    for joints in counts:
        for first in (0, 1) if numbered else (0,):
            for width in (3, 2):
                if columns - first == joints * width:
                    points = clean(values[:, first:].reshape(len(values), joints, width))
                    at = numbers if first else np.arange(len(values))
                    length = None if first else len(values)
                    return Found({int(n): [SeenPerson(p)] for n, p in zip(at, points)}, length=length)
    raise KeypointError(f"{path}: {columns} columns do not make x, y[, c] of {', '.join(map(str, counts))} joints")
