"""One HTML page with bodies that turn and play: opens from disk, needs no network and no other file.

In: ResultScene. Out: the page of assets/page.html (a small WebGL 2 renderer) with the data as base64: points as 16-bit
steps of their bounding box (below 0.1 mm for a body), the photograph as JPEG. Called by cli/view.py and
pipelines/results.py.
"""

from __future__ import annotations

import base64
import html
import io
import json
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from ..io.atomic import write_text
from .scene import Actor, ResultScene

IMAGE_SIDE = 960  # pixels of the photograph's longer side
MESH_BYTES = 6_000_000  # of all meshes of a page; longer clips keep every k-th frame, and the page interpolates


def page(scene: ResultScene) -> str:
    """The page's text.

    Raises:
        ValueError: nobody is in the scene.
    """
    if not scene.people:
        raise ValueError(f"{scene.title}: nobody was found, there is nothing to show")
    size = sum(0 if p.vertices is None else p.vertices.size * 2 for p in scene.people)
    stride = max(1, -(-size // MESH_BYTES))
    view, middle = scene.view(), scene.middle
    data = {
        "title": scene.title,
        "first": scene.first,
        "frames": scene.frames,
        "fps": scene.fps,
        "size": view.size,
        "focal": view.focal,
        "principal": view.principal,
        "pivot": [0.0, 0.0, float(middle[2])] if scene.camera else [float(v) for v in middle],
        "depth": scene.depth,
        "photo": _photo(scene),
        "stride": stride,
        "people": [_person(p, stride) for p in scene.people],
    }
    text = files("tore_fast.vis").joinpath("assets/page.html").read_text(encoding="utf-8")
    packed = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return text.replace("@TITLE@", html.escape(scene.title)).replace("@DATA@", packed)


def write_page(path: str | Path, scene: ResultScene) -> Path:
    """Writes `page(scene)`; the file appears whole or not at all.

    Example:
        >>> write_page("out/photo.html", scene)  # doctest: +SKIP
    """
    path = Path(path)
    write_text(path, page(scene))
    return path


def quantise(points: np.ndarray) -> dict:  # [T, N, 3]
    """16-bit points: value = low + step * integer, per axis."""
    points = np.asarray(points, np.float64)
    if not np.isfinite(points).all():
        raise ValueError("page: points must be finite")
    flat = points.reshape(-1, 3)
    low = flat.min(0) if len(flat) else np.zeros(3)
    step = (flat.max(0) - low) / 65535 if len(flat) else np.zeros(3)
    steps = np.rint((points - low) / np.where(step > 0, step, 1)).astype("<u2")
    return {"low": low.tolist(), "step": step.tolist(), "count": points.shape[1], "data": _text(steps.tobytes())}


def _person(person: Actor, stride: int) -> dict:
    parts: dict = {
        "name": person.name,
        "colour": person.colour,
        "faint": person.faint,
        "frames": [int(f) for f in person.frames],
        "joints": quantise(person.joints),
        "names": person.joint_names,
        "bones": person.bones,
    }
    if person.vertices is not None and person.faces is not None:
        rows = sorted({*range(0, len(person.frames), stride), len(person.frames) - 1})
        wide = "<u2" if person.vertices.shape[1] <= 65536 else "<u4"
        parts["mesh"] = {**quantise(person.vertices[rows]), "rows": rows, "wide": int(wide[-1])}
        parts["mesh"]["faces"] = _text(np.asarray(person.faces).astype(wide).tobytes())
    return parts


def _photo(scene: ResultScene) -> str | None:
    """The (first) image as a data address."""
    pixels = scene.image(scene.first)
    if pixels is None:
        return None
    image = Image.fromarray(pixels)
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    data = io.BytesIO()
    image.convert("RGB").save(data, "JPEG", quality=82)
    return "data:image/jpeg;base64," + _text(data.getvalue())


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
