"""Key points in .npz and .npy files: plain arrays, VideoPose3D's, detectron2's, Ultralytics'. Nothing of them is
executed.

Out: Found (found.py). Called by clip.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...io.safe_pickle import read_npy, read_npz
from .found import MAX_JOINTS, Found, SeenPerson, clean, facts_of, given_order, planar
from .orders import KeypointError


def read_npy_file(path: Path) -> Found:
    """An .npy: [frames, joints, 2 or 3], or [frames, people, joints, 2 or 3] as Ultralytics stacks them."""
    raw = read_npy(path)
    if raw.dtype == object and raw.ndim == 1:
        return _ragged(raw, path)
    return of_array(raw, path, people_first=False)


def _ragged(raw: np.ndarray, path: Path) -> Found:
    """A list of frames, each [joints, 2 or 3], [people, joints, 2 or 3] or None: the number of people may differ."""
    frames: dict[int, list[SeenPerson]] = {}
    for i, frame in enumerate(raw):
        frames[i] = []
        people = np.asarray([] if frame is None else frame)
        if people.size:
            one = of_array(people[None], path, people_first=False)
            frames[i] = [p._replace(track=None) for p in one.frames[0]]
    return Found(frames, length=len(raw))


def of_array(raw: np.ndarray, path: Path, people_first: bool = True, order: str | None = None) -> Found:
    """Found of an array of numbers."""
    if raw.dtype == object or raw.dtype.kind not in "iuf":
        raise KeypointError(f"{path}: expected an array of numbers, got {raw.dtype}")
    if raw.ndim == 2:
        raw = raw[None]
    if raw.ndim not in (3, 4) or not 2 <= raw.shape[-1] <= 5 or 0 in raw.shape or raw.shape[-2] > MAX_JOINTS:
        raise KeypointError(f"{path}: expected key points [frames, joints, 2 or 3], got {list(raw.shape)}")
    points = clean(planar(raw))
    if points.ndim == 3:
        return Found({i: [SeenPerson(p)] for i, p in enumerate(points)}, order, length=len(points))
    if people_first:
        points = points.swapaxes(0, 1)
    tracks = [str(k) if people_first else None for k in range(points.shape[1])]
    frames = {i: [SeenPerson(p, t) for p, t in zip(frame, tracks)] for i, frame in enumerate(points)}
    return Found(frames, order, length=len(points))


def read_npz_file(path: Path) -> Found:
    """An .npz: plain arrays, VideoPose3D's positions_2d, or what its detectron2 script writes. Nothing of it is
    executed."""
    data = read_npz(path)
    names = [n for n in ("keypoints", "positions_2d", "kpts", "reconstruction") if n in data]
    if not names and len(data) == 1:  # np.savez(file, points) calls it arr_0
        names = list(data)
    if not names:
        raise KeypointError(f"{path}: expected an array 'keypoints', found {[k[:40] for k in list(data)[:8]]}")
    raw = data[names[0]]
    metadata = data["metadata"].item() if "metadata" in data and data["metadata"].shape == () else {}
    metadata = metadata if isinstance(metadata, dict) else {}
    if raw.dtype == object:
        if raw.shape == ():
            return _videopose3d(raw.item(), metadata, path)
        return _detectron2(raw, data.get("boxes"), metadata, path)
    found = of_array(raw, path, order=given_order(data, path))
    found.facts = facts_of(data, path)
    return found


def _videopose3d(table: Any, metadata: dict, path: Path) -> Found:
    """{subject: {action: [camera's [frames, joints, 2]]}}: each is a person of its own."""
    frames: dict[int, list[SeenPerson]] = {}
    if not isinstance(table, dict):
        raise KeypointError(f"{path}: positions_2d: expected {{subject: {{action: [arrays]}}}}")
    length = 0
    for subject, actions in table.items():
        for action, views in actions.items() if isinstance(actions, dict) else ():
            for view, raw in enumerate(views if isinstance(views, (list, tuple)) else [views]):
                points = np.asarray(raw)
                one = of_array(points, path)
                name = f"{subject}/{action}" + (f"/{view}" if len(views) > 1 else "")
                length = max(length, len(points))
                for number, seen in one.frames.items():
                    frames.setdefault(number, []).extend(s._replace(track=name) for s in seen)
    facts: dict[str, float] = {}
    sizes = metadata.get("video_metadata")
    if isinstance(sizes, dict) and sizes and all(isinstance(v, dict) for v in sizes.values()):
        all_facts = [facts_of(v, path) for v in sizes.values()]
        facts = all_facts[0] if all(f == all_facts[0] for f in all_facts) else {}
    layout = str(metadata.get("layout_name", "")).lower()
    return Found(frames, layout if layout in ("coco", "h36m") else None, facts, length=length)


def _detectron2(raw: np.ndarray, boxes: Any, metadata: dict, path: Path) -> Found:
    """keypoints[frame] = per class [N, 4, 17] (x, y, logit, probability), people are class 1; boxes[frame][1] = [N,
    5]."""
    frames: dict[int, list[SeenPerson]] = {}
    for i, classes in enumerate(raw):
        frames[i] = []
        people = classes[1] if len(classes) > 1 else []
        rated = boxes[i][1] if boxes is not None and len(boxes) > i and len(boxes[i]) > 1 else []
        for k, person in enumerate(people):
            person = np.asarray(person, np.float64)
            if person.ndim != 2 or person.shape[0] not in (3, 4):
                raise KeypointError(f"{path}: frame {i}: expected people [N, 4, 17], got {list(np.shape(people))}")
            score = float(rated[k][4]) if k < len(rated) and len(rated[k]) > 4 else 1.0
            frames[i].append(SeenPerson(clean(person[[0, 1, -1]].T), None, score))
    return Found(frames, "coco", facts_of(metadata, path), length=len(raw))
