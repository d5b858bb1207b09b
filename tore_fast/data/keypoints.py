"""2D keypoint files of pose detectors -> one clip in the H36M joint order.

In: JSON (COCO results, AlphaPose / Halpe, OpenPose frames or folders, or {"keypoints": ...}), npz or csv, in the order COCO-17,
Halpe-26, OpenPose-25/18 or H36M-17. Out: `KeypointClip` with [T, 17, 3] pixels and confidence. Next: pipelines/lift.py.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..io.natural import natural_sorted

ORDERS = ("auto", "h36m", "coco", "halpe", "openpose25", "openpose18")
_BY_COUNT = {26: "halpe", 25: "openpose25", 18: "openpose18"}

# H36M joint -> source joints whose mean it is. Head top is not detected by COCO and OpenPose: it is put 0.4 x (head - shoulders)
# above the mean of eyes and ears. Neck/nose (9) is the nose, as detectors of Human3.6M label it.
_TABLES: dict[str, tuple[tuple[int, ...], ...]] = {
    "h36m": tuple((i,) for i in range(17)),
    "coco": (
        (11, 12),
        (12,),
        (14,),
        (16,),
        (11,),
        (13,),
        (15,),
        (5, 6, 11, 12),
        (5, 6),
        (0,),
        (1, 2, 3, 4),
        (5,),
        (7,),
        (9,),
        (6,),
        (8,),
        (10,),
    ),
    "halpe": (
        (19,),
        (12,),
        (14,),
        (16,),
        (11,),
        (13,),
        (15,),
        (18, 19),
        (18,),
        (0,),
        (17,),
        (5,),
        (7,),
        (9,),
        (6,),
        (8,),
        (10,),
    ),
    "openpose25": (
        (8,),
        (9,),
        (10,),
        (11,),
        (12,),
        (13,),
        (14,),
        (1, 8),
        (1,),
        (0,),
        (15, 16, 17, 18),
        (5,),
        (6,),
        (7,),
        (2,),
        (3,),
        (4,),
    ),
    "openpose18": (
        (8, 11),
        (8,),
        (9,),
        (10,),
        (11,),
        (12,),
        (13,),
        (1, 8, 1, 11),
        (1,),
        (0,),
        (14, 15, 16, 17),
        (5,),
        (6,),
        (7,),
        (2,),
        (3,),
        (4,),
    ),
}
_RAISED_HEAD = ("coco", "openpose25", "openpose18")
COUNTS = {"h36m": 17, "coco": 17, "halpe": 26, "openpose25": 25, "openpose18": 18}


class KeypointError(ValueError):
    """A keypoint file that cannot be used; the text names it and says why."""


@dataclass(frozen=True)
class KeypointClip:
    keypoints: np.ndarray  # [T, 17, 3] float32: pixels and confidence, H36M order
    order: str  # of the source
    width: float | None = None  # pixels, where the file says so
    height: float | None = None
    fps: float | None = None
    frames: np.ndarray | None = None  # [T] source frame numbers, where frames without the person were filled in
    filled: int = 0  # joints that were interpolated in time
    note: str = ""


def to_h36m(keypoints: np.ndarray, order: str) -> np.ndarray:
    """[T, J, 3] of a detector's order -> [T, 17, 3]; a joint's confidence is the smallest of its sources.

    Of several sources those seen (confidence > 0) are averaged where it is face points, all are needed elsewhere.
    """
    if order not in _TABLES:
        raise KeypointError(f"order must be one of {ORDERS[1:]}, got {order!r}")
    if keypoints.shape[1] != COUNTS[order]:
        raise KeypointError(f"order {order} has {COUNTS[order]} joints, the keypoints have {keypoints.shape[1]}")
    out = np.zeros((len(keypoints), 17, 3), np.float32)
    for joint, sources in enumerate(_TABLES[order]):
        part = keypoints[:, list(sources)].astype(np.float32)
        weight = np.ones(part.shape[:2], np.float32)
        if joint == 10 and len(sources) > 1:
            weight = (part[..., 2] > 0).astype(np.float32)
            out[:, joint, 2] = np.where(weight.any(1), part[..., 2].max(1), 0)
        else:
            out[:, joint, 2] = part[..., 2].min(1)
        out[:, joint, :2] = (part[..., :2] * weight[..., None]).sum(1) / np.maximum(weight.sum(1), 1)[:, None]
    if order in _RAISED_HEAD:
        out[:, 10, :2] += 0.4 * (out[:, 10, :2] - out[:, 8, :2])
        out[:, 10, 2] = np.minimum(out[:, 10, 2], out[:, 8, 2])
    return out


def fill_missing(keypoints: np.ndarray) -> tuple[np.ndarray, int]:
    """Joints of confidence 0 or without a finite position, interpolated linearly in time (ends: nearest); and their number.

    Their confidence stays 0. A joint that is never seen is an error.
    """
    out = keypoints.copy()
    seen = np.isfinite(out).all(-1) & (out[..., 2] > 0)
    out[~seen, 2] = 0
    time = np.arange(len(out))
    from ..geometry.skeleton import H36M17

    for joint in range(out.shape[1]):
        good = seen[:, joint]
        if not good.any():
            raise KeypointError(f"joint {joint} ({H36M17.names[joint]}) is not seen in any frame")
        for axis in (0, 1):
            out[~good, joint, axis] = np.interp(time[~good], time[good], out[good, joint, axis])
    return out, int((~seen).sum())


def read_keypoints(path: str | Path, order: str = "auto", person: int | None = None) -> KeypointClip:
    """One person's keypoints from a file or an OpenPose folder, missing joints filled in.

    Args:
        order: "auto" tells Halpe and OpenPose by their joint count and COCO results by their fields; 17 joints of unknown
            origin need "coco" or "h36m".
        person: track id (`idx`, `track_id`) to follow; default the one with most frames, or without ids the most
            confident person of each frame.
    """
    path = Path(path)
    if order not in ORDERS:
        raise KeypointError(f"order must be one of {ORDERS}, got {order!r}")
    if not path.exists():
        raise KeypointError(f"{path}: no such file")
    reader = (
        _read_folder
        if path.is_dir()
        else {".json": _read_json, ".npz": _read_npz, ".csv": _read_csv}.get(path.suffix.lower())
    )
    if reader is None:
        raise KeypointError(f"{path}: expected .json, .npz, .csv or a folder of OpenPose .json files")
    try:
        raw, found_order, facts = reader(path, person)
    except KeypointError:
        raise
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, OSError) as e:
        raise KeypointError(f"{path}: not a readable keypoint file ({type(e).__name__}: {e})") from e
    if person and raw.ndim == 3 and facts.pop("alone", False):
        raise KeypointError(f"{path}: holds one person without a track id, there is no person {person}")
    facts.pop("alone", None)
    if raw.ndim != 3 or raw.shape[-1] not in (2, 3) or len(raw) == 0:
        raise KeypointError(f"{path}: expected keypoints [frames, joints, 2 or 3], got {list(raw.shape)}")
    if raw.shape[-1] == 2:
        raw = np.concatenate([raw, np.isfinite(raw).all(-1, keepdims=True)], axis=-1)
    order = _resolve_order(path, order, facts.pop("order", None) or found_order, raw.shape[1])
    try:
        keypoints, filled = fill_missing(to_h36m(np.where(np.isfinite(raw), raw, 0), order))
    except KeypointError as e:
        raise KeypointError(f"{path}: {e}") from None
    return KeypointClip(keypoints, order, filled=filled, **facts)


def _resolve_order(path: Path, given: str, found: str | None, joints: int) -> str:
    order = given if given != "auto" else found or _BY_COUNT.get(joints)
    if order is None:
        hint = "say whether they are in coco or h36m order" if joints == 17 else f"known orders: {COUNTS}"
        raise KeypointError(f"{path}: {joints} joints per person; {hint} (--order)")
    if order not in COUNTS:
        raise KeypointError(f"{path}: unknown order {order!r}; expected one of {ORDERS[1:]}")
    return order


def _facts(data: dict) -> dict:
    """width, height, fps and order, where a file states them."""
    out = {k: float(np.asarray(data[k])) for k in ("width", "height", "fps") if k in data}
    if "order" in data:
        out["order"] = str(np.asarray(data["order"]))
    return out


def _read_npz(path: Path, person: int | None):
    with np.load(path, allow_pickle=False) as data:
        names = [n for n in ("keypoints", "positions_2d", "kpts", "reconstruction") if n in data]
        if not names:
            raise KeypointError(f"{path}: expected an array 'keypoints', found {data.files}")
        raw = data[names[0]]
        facts = _facts({k: data[k] for k in data.files})
    facts["alone"] = raw.ndim == 3
    if raw.ndim == 4:  # [people, frames, joints, 2 or 3]
        if not 0 <= (person or 0) < len(raw):
            raise KeypointError(f"{path}: holds {len(raw)} people, there is no number {person}")
        raw = raw[person or 0]
    return raw, None, facts


def _read_csv(path: Path, person: int | None):
    """Rows of frames; columns x0, y0[, c0], x1 ... by header, or bare numbers in that order (a frame column is allowed)."""
    with path.open(newline="") as f:
        rows = [r for r in csv.reader(f) if r]
    if not rows:
        raise KeypointError(f"{path}: the file is empty")
    header = None if _is_number(rows[0][0]) else [h.strip().lower() for h in rows.pop(0)]
    values = np.array([[float(v) if v.strip() else np.nan for v in row] for row in rows])
    if header is not None:
        confidence = "c" if "c0" in header else "score0" if "score0" in header else None
        joints = sum(f"x{j}" in header for j in range(len(header)))
        letters = ["x", "y"] + (["c" if confidence == "c" else "score"] if confidence else [])
        columns = [header.index(f"{letter}{j}") for j in range(joints) for letter in letters]
        return values[:, columns].reshape(len(values), joints, len(letters)), None, {"alone": True}
    if values.shape[1] % 17 == 1 or values.shape[1] in (
        1 + 26 * 3,
        1 + 25 * 3,
        1 + 18 * 3,
        1 + 26 * 2,
        1 + 25 * 2,
        1 + 18 * 2,
    ):
        values = values[:, 1:]
    for joints in (17, 26, 25, 18):
        for width in (3, 2):
            if values.shape[1] == joints * width:
                return values.reshape(len(values), joints, width), None, {"alone": True}
    raise KeypointError(f"{path}: {values.shape[1]} columns do not make 17, 18, 25 or 26 joints of x, y[, c]")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_json(path: Path, person: int | None):
    data = json.loads(path.read_text())
    if isinstance(data, dict) and "keypoints" in data:
        return np.array(data["keypoints"], np.float64), None, {**_facts(data), "alone": True}
    if isinstance(data, dict) and "people" in data:
        return _openpose([data], path, person)
    if isinstance(data, dict) and "annotations" in data:
        data = data["annotations"]
    if isinstance(data, list) and data and isinstance(data[0], dict) and "people" in data[0]:
        return _openpose(data, path, person)
    if isinstance(data, list) and data and isinstance(data[0], dict) and "keypoints" in data[0]:
        return _detections(data, path, person)
    if not isinstance(data, list):
        raise KeypointError(
            f'{path}: expected COCO results, AlphaPose, OpenPose, {{"keypoints": ...}} or a list [frames, joints, 2 or 3]; '
            f"got {f'an object with {list(data)[:3]}' if isinstance(data, dict) else type(data).__name__}"
        )
    return np.array(data, np.float64), None, {"alone": True}


def _read_folder(path: Path, person: int | None):
    files = natural_sorted(path.glob("*.json"))
    if not files:
        raise KeypointError(f"{path}: no .json files")
    return _openpose([json.loads(f.read_text()) for f in files], path, person)


def _openpose(frames: list[dict], path: Path, person: int | None):
    people = [
        [
            (_openpose_id(p.get("person_id")), np.array(p["pose_keypoints_2d"], np.float64).reshape(-1, 3))
            for p in frame["people"]
        ]
        for frame in frames
    ]
    return _follow(people, list(range(len(frames))), path, person, None)


def _openpose_id(given: object) -> int | None:
    """OpenPose writes [-1] where it did not track."""
    track = given[0] if isinstance(given, list) and given else None
    return None if track == -1 else track


def _detections(rows: list[dict], path: Path, person: int | None):
    """COCO results / AlphaPose: one row per person and image."""
    frames: dict[str, list] = {}
    for row in rows:
        points = np.array(row["keypoints"], np.float64).reshape(-1, 3)
        track = row.get("idx", row.get("track_id"))
        track = track[0] if isinstance(track, list) else track
        frames.setdefault(str(row.get("image_id", row.get("frame", 0))), []).append((track, points))
    order = "coco" if len(next(iter(frames.values()))[0][1]) == 17 else None
    names = sorted(frames, key=lambda n: (int("".join(c for c in Path(n).stem if c.isdigit()) or 0), n))
    numbers = [int("".join(c for c in Path(n).stem if c.isdigit()) or i) for i, n in enumerate(names)]
    return _follow([frames[n] for n in names], numbers, path, person, order)


def _follow(people: list[list], numbers: list[int], path: Path, person: int | None, order: str | None):
    """One person through the frames; frames without them become gaps that are filled in later."""
    tracks = [t for frame in people for t, _ in frame if t is not None]
    if person is not None and person not in tracks:
        raise KeypointError(f"{path}: no person {person}; track ids: {sorted(set(tracks)) or 'none in this file'}")
    chosen = person if person is not None else max(sorted(set(tracks)), key=tracks.count) if tracks else None
    joints = next((len(p) for frame in people for _, p in frame), 0)
    if joints == 0:
        raise KeypointError(f"{path}: nobody was detected")
    span = numbers[-1] - numbers[0] + 1
    if len(set(numbers)) < len(numbers) or span > 10 * len(numbers):  # image ids that do not count frames
        numbers, span = list(range(len(people))), len(people)
    out = np.full((span, joints, 3), np.nan)
    for number, frame in zip(numbers, people):
        mine = [p for t, p in frame if chosen is None or t == chosen]
        if mine:
            out[number - numbers[0]] = max(mine, key=lambda p: p[:, 2].mean())
    several = chosen is None and any(len(frame) > 1 for frame in people)
    note = "several people without track ids: the most confident of each frame was taken" if several else ""
    return out, order, {"note": note, "frames": np.arange(span) + numbers[0]}
