"""People of a file of key points as clips: followed through the frames, in pixels, in H36M order, gaps filled.

In: Found of json_forms.py, arrays.py or table.py. Out: `KeypointClip` with [T, 17, 3] pixels and confidence. What had
to be done to a clip (scaled, filled, assumed, told by guess) is in its notes.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...geometry.skeleton import H36M17
from .arrays import read_npy_file, read_npz_file
from .found import Found, SeenPerson, box_of
from .json_forms import read_folder, read_json_file
from .orders import BY_COUNT, COUNTS, ORDERS, KeypointError, order_by_place, to_h36m
from .table import read_csv_file

READERS: dict[str, Callable[[Path], Found]] = {
    ".json": read_json_file,
    ".npz": read_npz_file,
    ".npy": read_npy_file,
    ".csv": read_csv_file,
    ".tsv": read_csv_file,
}
MAX_GAPS = 10  # a clip spans at most so many times its frames; other numbers are ids of images, not frames of a video


@dataclass(frozen=True)
class KeypointClip:
    """One person."""

    keypoints: np.ndarray  # [T, 17, 3] float32: pixels and confidence (0: filled in), H36M order
    order: str  # of the source
    frames: np.ndarray  # [T] int64 frame numbers of the source
    person: str | None = None  # track, of files with several people
    width: float | None = None  # pixels, where the file says so
    height: float | None = None
    fps: float | None = None
    filled: int = 0  # joints of the 17 x T that were not seen, and were interpolated in time
    assumed: tuple[str, ...] = ()  # joints that are never seen: their place follows from the others
    notes: tuple[str, ...] = ()


def read_keypoints(
    path: str | Path,
    order: str = "auto",
    person: str | int | None = None,
    width: float | None = None,
    height: float | None = None,
) -> KeypointClip:
    """One person's key points from a file or a folder of frames, missing joints filled in.

    Args:
        order: one of ORDERS; "auto" tells it by the form of the file, the names or number of joints, or where they lie.
        person: track to follow; default the one with most frames. Files without tracks get them by overlap.
        width, height: of the image in pixels, where the file does not say; points in 0..1 are scaled by them.

    Raises:
        KeypointError: one line that names the file.
    """
    found = _read(Path(path), order)
    tracks = _tracks(found, Path(path))
    if person is not None and str(person) not in tracks:
        if list(tracks) == [""] and str(person) != "0":
            raise KeypointError(f"{path}: holds one person without a track id, there is no person {person}")
        if list(tracks) != [""]:
            raise KeypointError(f"{path}: no person {person}; track ids: {_shown(tracks)}")
        person = ""
    chosen = max(tracks, key=lambda t: len(tracks[t])) if person is None else str(person)
    clip = _clip(Path(path), found, chosen, tracks[chosen], order, width, height)
    if len(tracks) > 1 and person is None:
        note = f"{len(tracks)} people ({_shown(tracks)}): {chosen}, in most frames, was taken; --person chooses"
        clip = replace(clip, notes=(*clip.notes, note))
    return clip


def read_people(
    path: str | Path, order: str = "auto", width: float | None = None, height: float | None = None
) -> list[KeypointClip]:
    """Everybody in a file, longest first; arguments and errors as `read_keypoints`."""
    found = _read(Path(path), order)
    tracks = _tracks(found, Path(path))
    ranked = sorted(tracks, key=lambda t: -len(tracks[t]))
    return [_clip(Path(path), found, t, tracks[t], order, width, height) for t in ranked]


def _shown(tracks: dict) -> str:
    names = [t[:40] for t in list(tracks)[:20]]
    return ", ".join(names) + (" ..." if len(tracks) > 20 else "")


def _read(path: Path, order: str) -> Found:
    if order not in ORDERS:
        raise KeypointError(f"order must be one of {ORDERS}, got {order!r}")
    if not os.path.lexists(path):
        raise KeypointError(f"{str(path)[:200]}: no such file")
    reader = read_folder if os.path.isdir(path) else READERS.get(path.suffix.lower())
    if reader is None:
        raise KeypointError(f"{path}: expected {', '.join(READERS)} or a folder of .json files, one a frame")
    try:
        return reader(path)
    except KeypointError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OSError, zipfile.BadZipFile, MemoryError) as e:
        text = (str(e).splitlines() or [""])[0].removeprefix(f"{path}: ").removeprefix(f"{path.name}: ")[:200]
        raise KeypointError(f"{path}: not a readable key-point file ({text or type(e).__name__})") from None


def _tracks(found: Found, path: Path) -> dict[str, dict[int, SeenPerson]]:
    """Track -> {frame: person}; "" for the only person of a file without tracks."""
    frames = {n: [p for p in people if np.isfinite(p.points).any()] for n, people in found.frames.items()}
    everybody = [p for people in frames.values() for p in people]
    if not everybody:
        raise KeypointError(f"{path}: nobody was detected")
    out: dict[str, dict[int, SeenPerson]] = {}
    if any(p.track is not None for p in everybody):
        for number, people in frames.items():
            for p in people:
                if p.track is not None:
                    known = out.setdefault(p.track, {}).get(number)
                    if known is None or p.score > known.score:
                        out[p.track][number] = p
        return out
    if max(map(len, frames.values())) == 1:
        return {"": {n: people[0] for n, people in frames.items() if people}}
    from ..detect import BoxTracker

    tracker = BoxTracker(lambda _: None, min_side=0.0)
    for step, (number, people) in enumerate(frames.items()):
        boxed = [(p, box) for p in people if (box := box_of(p.points)) is not None]
        boxes = np.array([b for _, b in boxed], np.float32).reshape(-1, 4)
        scores = np.array([p.score * np.nan_to_num(p.points[:, 2]).mean() for p, _ in boxed], np.float32)
        for track, row in tracker.assign(step, boxes, scores).items():
            out.setdefault(str(track), {})[number] = boxed[row][0]
    if not out:
        raise KeypointError(f"{path}: nobody was detected with two joints or more")
    return out


def _clip(
    path: Path,
    found: Found,
    track: str,
    people: dict[int, SeenPerson],
    order: str,
    width: float | None,
    height: float | None,
) -> KeypointClip:
    notes = list(found.notes)
    numbers = sorted(people)
    counts = {len(p.points) for p in people.values()}
    if len(counts) > 1:
        raise KeypointError(f"{path}: a person of {' and '.join(map(str, sorted(counts)))} joints")
    if found.length is not None and (not track or found.length == len(found.frames)):
        first, last = 0, found.length - 1  # an array: its frames are the results' frames
    else:
        first, last = numbers[0], numbers[-1]
    if last - first + 1 > MAX_GAPS * max(len(numbers), 1) and found.length is None:
        notes.append("the frame numbers have long gaps: only the frames with the person are lifted, in order")
        frames = np.array(numbers, np.int64)
    else:
        frames = np.arange(first, last + 1, dtype=np.int64)
    raw = np.full((len(frames), counts.pop(), 3), np.nan)
    raw[..., 2] = 0
    place = {int(n): i for i, n in enumerate(frames)}
    for number, person in people.items():
        raw[place[number]] = person.points
    try:
        resolved, note = _resolve_order(order, found.order, raw)
        notes += note
        size = width or found.facts.get("width"), height or found.facts.get("height")
        notes += _to_pixels(raw, size, resolved)
        raw[..., :2] = np.nan_to_num(raw[..., :2])
        keypoints, filled, assumed = fill_missing(to_h36m(raw, resolved))
    except KeypointError as e:
        raise KeypointError(f"{path}: {e}") from None
    if filled:
        notes.append(f"{filled} joint positions were not seen and were interpolated in time")
    if assumed:
        notes.append(
            f"{', '.join(assumed)}: never seen, lifted all the same; their place is assumed from the other joints"
        )
    facts = {k: found.facts.get(k) for k in ("width", "height", "fps")}
    return KeypointClip(
        keypoints, resolved, frames, track or None, filled=filled, assumed=assumed, notes=tuple(notes), **facts
    )


def _resolve_order(given: str, found: str | None, raw: np.ndarray) -> tuple[str, list[str]]:
    joints = raw.shape[1]
    if given != "auto":
        return given, []
    order = found or BY_COUNT.get(joints)
    if order is None and joints == 17:
        order = order_by_place(raw)
        if order is not None:
            return order, [f"joint order {order}, told by where the points lie; --order says otherwise"]
        raise KeypointError("17 joints per person; say whether they are in coco or h36m order (--order)")
    if order is None:
        raise KeypointError(f"{joints} joints per person; known orders: {COUNTS} (--order)")
    if order not in COUNTS:
        raise KeypointError(f"unknown order {order[:40]!r}; expected one of {ORDERS[1:]}")
    return order, []


def _to_pixels(raw: np.ndarray, size: tuple[float | None, float | None], order: str) -> list[str]:
    """Scales points in 0..1 in place, by the image's size; refuses numbers that are neither pixels nor shares."""
    xy = raw[..., :2][np.isfinite(raw[..., 0])]
    if not len(xy) or np.abs(xy).max() > 2.5:
        return []
    if order != "mediapipe" and (xy < 0).mean() > 0.2:
        raise KeypointError(
            f"points between {xy.min():.2f} and {xy.max():.2f} are no pixels; expected pixels, or shares 0..1 "
            "of the image"
        )
    if size[0] is None or size[1] is None:
        raise KeypointError(
            f"points between {xy.min():.2f} and {xy.max():.2f} are shares of the image; its size is needed "
            "(--width, --height)"
        )
    raw[..., 0] *= size[0]
    raw[..., 1] *= size[1]
    return [f"points in 0..1 were scaled to {size[0]:g} x {size[1]:g} pixels"]


# ---- filling

# joint -> (joint it hangs on, along the body in lengths of the torso: > 0 is down); where neither it nor its mirror
# image is seen
_HANGS = {
    "R_Hip": ("Pelvis", 0.0),
    "L_Hip": ("Pelvis", 0.0),
    "R_Knee": ("R_Hip", 0.9),
    "L_Knee": ("L_Hip", 0.9),
    "R_Ankle": ("R_Knee", 0.9),
    "L_Ankle": ("L_Knee", 0.9),
    "Nose": ("Neck", -0.35),
    "Head": ("Neck", -0.55),
    "L_Shoulder": ("Neck", 0.0),
    "R_Shoulder": ("Neck", 0.0),
    "L_Elbow": ("L_Shoulder", 0.55),
    "R_Elbow": ("R_Shoulder", 0.55),
    "L_Wrist": ("L_Elbow", 0.5),
    "R_Wrist": ("R_Elbow", 0.5),
}


def fill_missing(keypoints: np.ndarray) -> tuple[np.ndarray, int, tuple[str, ...]]:
    """[T, 17, 3] in H36M order -> joints of confidence 0 or without a finite position filled in.

    A joint that is seen at times is interpolated linearly in time (ends: nearest). One that is never seen hangs on its
    neighbour along the body, a standing person's arms and legs down. Filled joints have confidence 0.

    Returns:
        The points, the number of joints interpolated, and the names of those never seen.

    Raises:
        KeypointError: fewer than three joints are ever seen.
    """
    out = keypoints.copy()
    seen = np.isfinite(out).all(-1) & (out[..., 2] > 0)
    out[~seen, 2] = 0
    ever = seen.any(0)
    if ever.sum() < 3:
        raise KeypointError(f"only {int(ever.sum())} of the 17 joints are ever seen")
    time = np.arange(len(out))
    for joint in np.flatnonzero(ever):
        good = seen[:, joint]
        for axis in (0, 1):
            out[~good, joint, axis] = np.interp(time[~good], time[good], out[good, joint, axis])
    names = H36M17.names
    missing = tuple(n for i, n in enumerate(names) if not ever[i])
    if missing:
        _assume(out, dict(zip(names, ever.tolist())))
    return out, int((~seen[:, ever]).sum()), missing


def _assume(out: np.ndarray, known: dict[str, bool]) -> None:
    """Places of joints that are never seen, in place."""
    at = {n: i for i, n in enumerate(H36M17.names)}
    xy = out[..., :2]

    def mean(*joints: str) -> np.ndarray | None:
        there = [xy[:, at[j]] for j in joints if known[j]]
        return np.mean(there, axis=0) if there else None

    everything = mean(*H36M17.names)
    assert everything is not None
    high = mean("Neck") if known["Neck"] else mean("L_Shoulder", "R_Shoulder")
    low = mean("Pelvis") if known["Pelvis"] else mean("L_Hip", "R_Hip")
    if high is not None and low is not None:
        torso = low - high
    else:
        there = xy[:, [at[n] for n in H36M17.names if known[n]]]
        size = np.ptp(there, axis=1).max(-1)
        torso = np.stack([np.zeros_like(size), 0.5 * size], -1)
    high = (low - torso if low is not None else everything) if high is None else high
    low = high + torso if low is None else low
    for name, place in (("Pelvis", low), ("Neck", high), ("Torso", (low + high) / 2)):
        if not known[name]:
            xy[:, at[name]] = place
    for name, (parent, along) in _HANGS.items():
        if not known[name]:
            xy[:, at[name]] = xy[:, at[parent]] + along * torso
