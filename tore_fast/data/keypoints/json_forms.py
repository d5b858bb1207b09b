"""Key points in JSON: COCO, AlphaPose, OpenPose, MMPose, Ultralytics, MediaPipe, or plain lists; one file or one a
frame.

Out: Found (found.py). Called by clip.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ...io.natural import natural_sorted
from ...io.open_file import as_json, read_json
from .found import MAX_JOINTS, Found, SeenPerson, box_of, clean, facts_of, given_order, numbers_of, planar, track_id
from .orders import KeypointError, order_of_names


def read_json_file(path: Path) -> Found:
    """Any JSON form; the text of an error says what was expected."""
    return _of_value(read_json(path, "key-point file"), path)


def read_folder(path: Path) -> Found:
    """A folder with one .json per frame (OpenPose, MMPose, Ultralytics), in natural order."""
    files = natural_sorted(p for p in path.iterdir() if p.suffix.lower() == ".json" and not p.name.startswith("."))
    if not files:
        raise KeypointError(f"{path}: no .json files")
    numbers = numbers_of([f.stem for f in files])
    out: Found | None = None
    for number, file in zip(numbers, files):
        try:
            one = _of_value(read_json(file, "key-point file"), file, single=True)
        except KeypointError:
            raise
        except (ValueError, TypeError, KeyError, IndexError) as e:
            raise KeypointError(f"{file}: not a readable key-point file ({_first_line(e)})") from None
        people = [person for frame in one.frames.values() for person in frame]
        if out is None:
            out = Found({}, one.order, one.facts, notes=one.notes)
        out.frames[number] = people
        out.order = out.order or one.order
    assert out is not None
    return out


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:160] or type(error).__name__


_EXPECTED = (
    "expected COCO results, COCO annotations, AlphaPose, OpenPose, MMPose, Ultralytics, MediaPipe, "
    '{"keypoints": ...} or a list '
    "[frames, joints, 2 or 3]"
)


def _of_value(data: Any, path: Path, single: bool = False) -> Found:
    """`single`: of one frame, so a list is its people."""
    if isinstance(data, dict):
        if "instance_info" in data:  # MMPose's demos
            found = _of_value(data["instance_info"], path)
            found.order = _mmpose_order(data.get("meta_info")) or found.order
            return found
        if "annotations" in data:
            return _coco(data, path)
        for key in ("people", "instances"):
            if key in data:
                return _frames([data], path)
        for key in ("pose_landmarks", "landmarks", "poseLandmarks", "predictions", "frames"):
            if isinstance(data.get(key), list):
                found = _of_value(data[key], path, single)
                found.facts.update(facts_of(data, path))
                found.order = given_order(data, path) or found.order
                return found
        if isinstance(data.get("keypoints"), dict):  # one detection of Ultralytics
            return _detections([data], path)
        if "keypoints" in data:
            found = _array(data["keypoints"], path)
            found.facts = facts_of(data, path)
            found.order = given_order(data, path) or found.order
            return found
        raise KeypointError(f"{path}: {_EXPECTED}; got an object with {[str(k)[:40] for k in list(data)[:3]]}")
    if not isinstance(data, list):
        raise KeypointError(f"{path}: {_EXPECTED}; got {type(data).__name__}")
    if not data:
        if single:
            return Found({0: []})
        raise KeypointError(f"{path}: nobody was detected (an empty list); {_EXPECTED}")
    if all(isinstance(v, str) for v in data):  # a list of what Ultralytics' to_json() gave for each frame
        data = [as_json(v, str(path)) if v.strip() else [] for v in data]
    first = next((v for v in data if v), None)
    if isinstance(first, dict):
        if "preds" in first:
            return _batches(data)
        if {"people", "instances"} & first.keys() or _landmark_key(first):
            return _frames(data, path)
        if "keypoints" in first:
            return _instances(data) if single and "frame" not in first else _detections(data, path)
    if isinstance(first, list) and isinstance(next((v for v in first if v is not None), None), dict):
        inner = next(v for v in first if v is not None)
        if "keypoints" in inner:  # a list of people for each frame
            return Found({i: [_instance(p) for p in frame or [] if p] for i, frame in enumerate(data)}, _order17(first))
    return _array(data, path)


def _landmark_key(frame: dict) -> str | None:
    return next((k for k in ("pose_landmarks", "landmarks", "poseLandmarks") if k in frame), None)


def _frames(data: list, path: Path) -> Found:
    """One object per frame: OpenPose, MMPose, MediaPipe."""
    frames: dict[int, list[SeenPerson]] = {}
    facts: dict[str, float] = {}
    order = None
    numbers = [f.get("frame_id", f.get("frame", f.get("frame_number"))) if isinstance(f, dict) else None for f in data]
    whole = all(type(n) is int and n >= 0 for n in numbers) and len(set(numbers)) == len(numbers)
    for i, frame in enumerate(data):
        number: Any = numbers[i] if whole else i
        frames[number] = people = []
        if not isinstance(frame, dict):  # null: nobody, or nothing known
            continue
        if i == 0:
            facts = facts_of(frame, path)
        for person in frame.get("people") or []:
            flat = person.get("pose_keypoints_2d", person.get("pose_keypoints"))
            if flat:
                people.append(SeenPerson(_points(flat), _openpose_id(person.get("person_id"))))
        for person in frame.get("instances") or []:
            people.append(_instance(person))
            order = order or ("coco" if len(people[-1].points) == 17 else None)
        if (key := _landmark_key(frame)) and frame[key]:
            several = isinstance(frame[key][0], list)
            people += [SeenPerson(_points(p)) for p in (frame[key] if several else [frame[key]]) if p]
    return Found(frames, order, facts)


def _batches(data: list) -> Found:
    """MMPose before 1.0: one object per batch, with the image of each person. Its bbox_ids number boxes, not people."""
    people: list[SeenPerson] = []
    images: list[str] = []
    steps: list[int] = []
    for i, batch in enumerate(data):
        points = (batch.get("preds") or []) if isinstance(batch, dict) else []
        paths = (batch.get("image_paths") or []) if isinstance(batch, dict) else []
        for k, person in enumerate(points):
            people.append(SeenPerson(_points(person)))
            images.append(str(paths[k] if len(paths) == len(points) else paths[0] if len(paths) == 1 else i))
            steps.append(i)
    if not people:
        raise ValueError("nobody was detected")
    if len(set(images)) == 1:  # of a video, say: then a batch is a frame
        images = [str(i) for i in steps]
    return Found(_by_image(images, people), "coco" if len(people[0].points) == 17 else None)


def _mmpose_order(meta: Any) -> str | None:
    """Order that MMPose's meta_info names."""
    if not isinstance(meta, dict):
        return None
    names = {"coco": "coco", "coco_wholebody": "wholebody", "h36m": "h36m", "halpe": "halpe", "body_17_h36m": "h36m"}
    known = names.get(str(meta.get("dataset_name", "")).lower())
    table = meta.get("keypoint_id2name")
    if known is None and isinstance(table, dict):
        found = order_of_names([str(v) for v in table.values()])
        known = found[0] if found and found[1] == sorted(found[1]) else None
    return known


def _openpose_id(given: object) -> str | None:
    """OpenPose writes [-1] where it did not track."""
    track = given[0] if isinstance(given, list) and given else None
    return None if track in (None, -1) else track_id(track)


def _points(value: Any) -> np.ndarray:
    """[J, 3] of one person, however the points are written; cleaned."""
    if isinstance(value, dict):  # Ultralytics: {"x": [...], "y": [...], "visible": [...]}
        x, y = _numbers(value["x"]), _numbers(value["y"])
        c = value.get("visible", value.get("confidence", value.get("conf")))
        c = np.ones(len(x)) if c is None else _numbers(c)
        if not len(x) == len(y) == len(c):
            raise ValueError(f"{len(x)} x, {len(y)} y and {len(c)} confidences of one person")
        return clean(np.stack([x, y, c], -1))
    if not isinstance(value, list):
        raise ValueError(f"expected a person's points as a list, got {type(value).__name__}")
    if len(value) > 4 * MAX_JOINTS:
        raise ValueError(f"a person of {len(value):,} numbers")
    first = next((v for v in value if v is not None), None)
    if isinstance(first, dict):  # MediaPipe: {"x": .., "y": .., "z": .., "visibility": ..}
        return clean(np.array([_landmark(v) for v in value]).reshape(-1, 3))
    if isinstance(first, list):
        width = max((len(v) for v in value if isinstance(v, list)), default=0)
        if not 2 <= width <= 5:
            raise ValueError(f"points of {width} numbers, expected x, y or x, y, confidence")
        rows = [_numbers(v if isinstance(v, list) else [], width) for v in value]
        return clean(planar(np.array(rows)))
    flat = _numbers(value)
    if len(flat) % 3:
        raise ValueError(f"{len(flat)} numbers are no x, y, confidence of each joint")
    return clean(flat.reshape(-1, 3))


def _landmark(value: Any) -> tuple[float, float, float]:
    if not isinstance(value, dict):
        return np.nan, np.nan, 0.0
    names = ("visibility", "confidence", "score", "conf", "c", "likelihood")
    sure = next((value[n] for n in names if value.get(n) is not None), 1.0)
    x, y, c = _numbers([value.get("x"), value.get("y"), sure])
    return float(x), float(y), float(c)


def _numbers(values: Any, width: int | None = None) -> np.ndarray:
    """float64 of a list of numbers, texts of numbers and nulls (NaN), padded with NaN to `width`."""
    if not isinstance(values, list):
        raise ValueError(f"expected a list of numbers, got {type(values).__name__}")
    out = np.full(len(values) if width is None else max(width, len(values)), np.nan)
    for i, v in enumerate(values):
        if v is None or v == "":
            continue
        if isinstance(v, (dict, list)) or isinstance(v, bool):
            raise ValueError(f"expected a number, got {str(v)[:40]}")
        try:
            out[i] = float(v)
        except OverflowError:  # an integer beyond floats
            out[i] = np.nan
    return out[: width or len(out)]


def _instance(person: dict) -> SeenPerson:
    """One person of MMPose's inferencer, Ultralytics or COCO: points and scores beside each other or together."""
    if not isinstance(person, dict):
        raise ValueError(f"expected a person as an object, got {type(person).__name__}")
    value = person["keypoints"]
    points = _points(value) if value is not None else np.full((0, 3), np.nan)
    scores = person.get("keypoint_scores")
    if scores is not None and len(points):
        sure = _numbers(scores)
        if len(sure) != len(points):
            raise ValueError(f"{len(points)} points and {len(sure)} keypoint_scores of one person")
        points = clean(np.concatenate([points[:, :2], sure[:, None]], -1))
    track = track_id(person.get("idx", person.get("track_id", person.get("instance_id"))))
    score = person.get("score", person.get("confidence", person.get("bbox_score", 1.0)))
    return SeenPerson(points, track, float(score) if isinstance(score, (int, float)) else 1.0)


def _order17(people: Iterable[Any]) -> str | None:
    """COCO for detections of 17 joints: Human3.6M's are not written in these forms."""
    return "coco" if any(p and len(_instance(p).points) == 17 for p in people) else None


def _instances(people: list) -> Found:
    """All of one image."""
    return Found({0: [_instance(p) for p in people if p]}, _order17(people[:1]))


def _detections(rows: list, path: Path) -> Found:
    """COCO results, AlphaPose, Ultralytics: one row per person and image."""
    rows = [r for r in rows if r]
    if not all(isinstance(r, dict) for r in rows):
        raise ValueError("some entries are objects, others are not")
    keys = ("image_id", "frame", "frame_id", "image", "file_name")
    images = [next((r[k] for k in keys if r.get(k) is not None), None) for r in rows]
    people = [_instance(r) for r in rows if "keypoints" in r]
    if len(people) < len(rows):
        raise KeyError("keypoints")
    order = _order17(rows[:1])
    if all(image is None for image in images):  # Ultralytics' to_json() says no frame
        if _one_person(people):
            note = "the entries name no frame: each was taken as the next frame of one person"
            return Found({i: [p._replace(track=None)] for i, p in enumerate(people)}, order, notes=[note])
        return Found({0: people}, order)
    return Found(_by_image(images, people), order)


def _by_image(images: list, people: list[SeenPerson]) -> dict[int, list[SeenPerson]]:
    """People by frame number, the images in natural order of their names."""
    groups: dict[str, list[SeenPerson]] = {}
    for image, person in zip(images, people):
        groups.setdefault(str(image), []).append(person)
    names = natural_sorted(groups)
    return dict(zip(numbers_of([Path(n).stem for n in names]), (groups[n] for n in names)))


def _one_person(people: list[SeenPerson]) -> bool:
    """Whether successive entries lie on each other: detectors give no two such boxes of one image."""
    from ..detect import box_overlap

    boxes = [box_of(p.points) for p in people]
    pairs = [(a, b) for a, b in zip(boxes, boxes[1:]) if a is not None and b is not None]
    return len(people) == 1 or (
        bool(pairs) and float(np.mean([box_overlap(a[None], b[None])[0, 0] for a, b in pairs])) > 0.5
    )


def _coco(data: dict, path: Path) -> Found:
    """COCO annotations: images give names and sizes."""
    images = {str(i.get("id")): i for i in data.get("images") or [] if isinstance(i, dict)}
    rows = [r for r in data["annotations"] or [] if isinstance(r, dict) and r.get("keypoints")]
    if not rows:
        raise KeypointError(f"{path}: nobody was detected")
    people = [_instance(r) for r in rows]
    names = [images.get(str(r.get("image_id")), {}).get("file_name", r.get("image_id", 0)) for r in rows]
    first = images.get(str(rows[0].get("image_id")), {})
    return Found(_by_image(names, people), _order17(rows[:1]), facts_of(first, path))


def _array(value: Any, path: Path) -> Found:
    """[frames, joints, 2 or 3] or [people, frames, joints, 2 or 3] as lists; frames, points and numbers may be null."""
    if not isinstance(value, list):
        raise ValueError(f"expected key points as a list, got {type(value).__name__}")
    inner: Any = value
    depth = 0
    while isinstance(inner, list):
        depth, inner = depth + 1, next((v for v in inner if v is not None), None)
    depth += isinstance(inner, dict)  # a point as an object
    if depth == 4:
        people = [_array(v, path) for v in value if v is not None]
        frames: dict[int, list[SeenPerson]] = {}
        for k, one in enumerate(people):
            for number, seen in one.frames.items():
                frames.setdefault(number, []).extend(s._replace(track=str(k)) for s in seen)
        return Found(frames, length=max((p.length or 0 for p in people), default=0))
    if depth not in (2, 3):
        raise KeypointError(f"{path}: expected key points [frames, joints, 2 or 3], got lists {depth} deep")
    points = [None if v is None else _points(v) for v in value]
    counts = {len(p) for p in points if p is not None and len(p)}
    if len(counts) > 1:
        raise ValueError(f"frames of {' and '.join(map(str, sorted(counts)))} joints")
    frames = {i: [] if p is None or not len(p) else [SeenPerson(p)] for i, p in enumerate(points)}
    return Found(frames, length=len(points))
