"""What results hold and how they are written: one table of keys for predict (images and videos), batch and lift.

In: ImageResult of images.py; out: overlay PNG, GLB / OBJ / PLY, npz, json. The table is `KEYS`; tools/results_page.py
makes docs/results.md of it. The drawing is vis/overlay.py, the mesh files vis/export.py, the files of videos
track_files.py.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..io.atomic import replacing
from ..vis import export, overlay, person_sheet
from ..vis.page import write_page
from .images import ImagePipeline, ImageResult, Person
from .scenes import image_scene

FORMATS = ("png", "glb", "obj", "ply", "npz", "json", "html")


class Key(NamedTuple):
    """One array of a result file."""

    name: str
    shape: str  # N: people (predict, batch) or frames (video, lift); I: images of a unit; empty: a single value
    unit: str
    meaning: str
    where: str  # letters: p predict images, v predict videos, b batch, l lift
    optional: str = ""  # when it is there; empty: always


_SMPL = "models of SMPL parameters"
_FITTED = "bodies fitted to landmarks"
KEYS = (
    Key("source", "", "", "file the result comes from; in batch [I], all images of the unit in order", "pvbl"),
    Key("error", "[I]", "", "why an image gave nothing; empty: it was done", "b"),
    Key("image_size", "[2]", "px", "width, height of the upright image; in batch [I, 2]", "pvb"),
    Key("image_index", "[N]", "", "image of each person, a row of `source`", "b"),
    Key("frame", "[N]", "", "frame of the video or of the key-point file, from 0", "vl"),
    Key("time", "[N]", "s", "of the frame from the first one on, by the file's time stamps", "v"),
    Key("detected", "[N]", "", "false where the box was missing and the result is interpolated", "v"),
    Key("track", "", "", "number of the person; lift: its track in the file of key points, empty without one", "vl"),
    Key("mocap_framerate", "", "1/s", "frames per second", "vl"),
    Key("box", "[N, 4]", "px", "x0, y0, x1, y1 of the person", "pvb"),
    Key("box_source", "[N]", "", "given, found (by a detector), auto (by the model itself), full or centre", "p"),
    Key("crop", "[N, 3]", "px", "centre x, centre y and side of the square that the model saw", "p"),
    Key("camera", "[N, 3]", "", "scale, tx, ty: point of the crop in [-1, 1] = scale * (xy + t)", "pb"),
    Key("camera_image", "[N, 3]", "px", "scale_px, x_px, y_px: pixel = scale_px * xy + (x_px, y_px)", "pb"),
    Key(
        "focal_px", "[N]", "px", "focal length of the whole image's camera; the same for all people of an image", "pvb"
    ),
    Key("principal_px", "[N, 2]", "px", "principal point of that camera", "pvb"),
    Key("trans", "[N, 3]", "m", "add it to vertices and joints_3d to have them in that camera's axes", "pvb"),
    Key("poses", "[N, 72]", "rad", "axis-angle of the 24 SMPL joints, the global orientation first", "pvb", _SMPL),
    Key("rotations", "[N, 24, 3, 3]", "", "the same as rotation matrices", "pvb", _SMPL),
    Key("betas", "[N, 10]", "", "shape coefficients; of a video [10], unless betas-mode is per_frame", "pvb", _SMPL),
    Key("joints_3d", "[N, J, 3]", "m", "joints, in the axes and around the origin of the vertices", "pvbl"),
    Key("joints_2d", "[N, J, 2]", "px", "the same joints in the image", "pb"),
    Key(
        "joint_names",
        "[J]",
        "",
        "24 SMPL joints (models of SMPL parameters), 14 of a mesh, 21 of a hand, 17 of H36M (lift)",
        "pvbl",
    ),
    Key("score", "[N]", "0..1", "that there is a person", "pb", _FITTED),
    Key("believed", "[N]", "", "false where the body does not fit what was seen; drawn faint", "pb", _FITTED),
    Key("reason", "[N]", "", "why a body is not believed; empty where it is", "pb", _FITTED),
    Key("focal_source", "[N]", "", "where focal_px is from: given, exif or assumed", "pb", _FITTED),
    Key(
        "landmarks_2d", "[N, 33, 2]", "px", "landmarks that the body was fitted to (blazepose.LANDMARKS)", "pb", _FITTED
    ),
    Key("landmarks_3d", "[N, 33, 3]", "m", "the same about the middle of the hips, depth not metric", "pb", _FITTED),
    Key("visibility", "[N, 33]", "0..1", "of the landmarks: in the image and not hidden", "pb", _FITTED),
    Key("vertices_coarse", "[N, V_coarse, 3]", "m", "vertices of the coarse mesh: 431, a hand 195", "pb"),
    Key(
        "vertices",
        "[N, V, 3]",
        "m",
        "vertices: 6890, a hand 778",
        "pvb",
        "batch: --save-vertices; videos: models of task mesh",
    ),
    Key("faces", "[F, 3]", "", "triangles as rows of `vertices`", "pv", "videos: models of task mesh"),
    Key("body", "", "", "body of the parameters: free (shipped) or smpl", "v", _SMPL),
    Key("gender", "", "", "neutral", "v", _SMPL),
    Key("keypoints", "[N, 17, 3]", "px", "input in H36M order: x, y, confidence", "l"),
    Key("normalised", "[N, 17, 2 or 3]", "", "what the network saw", "l"),
    Key("kept", "[N]", "", "in how many windows token pruning kept the frame", "l"),
    Key("normalisation", "", "", "image, pixel or crop", "l"),
    Key("order", "", "", "joint order of the source", "l"),
    Key("smoothing", "", "", "none, one-euro or gaussian", "l"),
    Key("seconds", "", "s", "time the unit took", "b"),
)
AXES = (
    "Axes: x right, y down, z away from the camera. The origin of `vertices` and `joints_3d` is the regressed "
    "pelvis (a hand's wrist) for models of task mesh, and the body model's own origin for models of SMPL "
    "parameters, so that the body posed with `poses` and `betas` gives these vertices. GLB, OBJ, PLY and BVH "
    "files have y up: (x, -y, -z)."
)


def keys_of(where: str) -> dict[str, Key]:
    """Rows of KEYS for p (predict images), v (videos), b (batch) or l (lift), by name."""
    return {k.name: k for k in KEYS if where in k.where}


def people_arrays(people: Sequence[Person], names: Sequence[str]) -> dict[str, np.ndarray]:
    """[N, ...] arrays of the people's fields among `names`; SMPL parameters only where the people have them."""
    arrays: dict[str, np.ndarray] = {}
    for name in names:
        if name in ("box_source", "reason", "focal_source"):
            if all(getattr(p, name) is not None for p in people):
                arrays[name] = np.array([getattr(p, name) for p in people], dtype=np.str_)
        elif name == "believed":
            if people and all(p.believed is not None for p in people):
                arrays[name] = np.array([p.believed for p in people])
        elif name == "crop":
            rows = [p.crop.x_y_side for p in people]
            arrays[name] = np.array(rows, np.float32).reshape(len(people), 3)
        elif all(getattr(p, name) is not None for p in people) and people:
            arrays[name] = np.stack([np.asarray(getattr(p, name), np.float32) for p in people])
    return arrays


_PERSON = [k for k in keys_of("p") if k in Person.__dataclass_fields__]


def npz_arrays(result: ImageResult, faces: np.ndarray, joint_names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of one image's npz, under the names of KEYS."""
    return {
        "source": np.array(result.name),
        "image_size": np.array(result.size, np.int32),
        **people_arrays(result.people, _PERSON),
        "joint_names": np.array(joint_names),
        "faces": np.asarray(faces, np.int32),
    }


def unit_arrays(found: list[ImageResult], pipeline: ImagePipeline, save_vertices: bool) -> dict[str, np.ndarray]:
    """Results as the arrays of one unit of a batch. A unit without people has them too, so that units can be joined."""
    joints, mesh = len(pipeline.joint_names), pipeline.topology.hierarchy
    shapes = {"box": (4,), "camera": (3,), "camera_image": (3,), "focal_px": (), "principal_px": (2,), "trans": (3,)}
    shapes |= {"joints_3d": (joints, 3), "joints_2d": (joints, 2), "vertices_coarse": (mesh.counts[-1], 3)}
    if pipeline.body_model.task == "smpl":
        shapes |= {"poses": (72,), "rotations": (24, 3, 3), "betas": (10,)}
    if pipeline.body_model.fitted:
        shapes |= {"score": (), "landmarks_2d": (33, 2), "landmarks_3d": (33, 3), "visibility": (33,)}
    if save_vertices:
        shapes["vertices"] = (mesh.counts[0], 3)
    people = [(i, person) for i, result in enumerate(found) for person in result.people]
    arrays = {
        "source": np.array([r.name for r in found], dtype=np.str_),
        "error": np.array([r.error or "" for r in found], dtype=np.str_),
        "image_size": np.array([r.size for r in found], np.int32).reshape(len(found), 2),
        "image_index": np.array([i for i, _ in people], np.int32),
        "joint_names": np.array(pipeline.joint_names),
    }
    for name, shape in shapes.items():
        arrays[name] = np.array([getattr(p, name) for _, p in people], np.float32).reshape(len(people), *shape)
    if pipeline.body_model.fitted:
        arrays["believed"] = np.array([p.believed for _, p in people], bool)
        arrays |= {k: np.array([getattr(p, k) for _, p in people], dtype=np.str_) for k in ("reason", "focal_source")}
    return arrays


def json_values(
    arrays: dict[str, np.ndarray], without: Sequence[str] = ("vertices", "vertices_coarse", "faces")
) -> dict:
    """`arrays` as JSON values, all but the meshes."""
    return {k: v.tolist() for k, v in arrays.items() if k not in without}


def draw(result: ImageResult, pipeline: ImagePipeline) -> np.ndarray:
    """The image with its people drawn over it."""
    people, faces = result.people, pipeline.topology.hierarchy.faces[0]
    cameras: list[Any] = [p.camera_image for p in people]
    if pipeline.body_model.task == "smpl":  # a perspective camera; meshes from tokens are trained with a weak one
        cameras = [overlay.PerspectiveCamera(p.focal_px, p.trans, p.principal_px) for p in people]
    drawn = result.pixels
    assert drawn is not None, "an image that was not read has no people"
    for sure, alpha in ((False, 0.3), (True, 0.88)):  # bodies that are not believed: faint, behind the others
        rows = [i for i, p in enumerate(people) if (p.believed is not False) == sure]
        shown, colours = [people[i].vertices for i in rows], [overlay.PALETTE[i % len(overlay.PALETTE)] for i in rows]
        if rows:
            drawn = overlay.draw_people(drawn, shown, faces, [cameras[i] for i in rows], colours=colours, alpha=alpha)
    return drawn


def sheet(result: ImageResult, pipeline: ImagePipeline) -> np.ndarray:
    """[H, 4 W, 3]: the image, the landmarks, the bodies over it, the first body from the side. For people with
    landmarks."""
    people, faces = result.people, pipeline.topology.hierarchy.faces[0]
    assert result.pixels is not None  # as of every image with people
    seen = [p for p in people if p.landmarks_2d is not None and p.visibility is not None]
    points = person_sheet.draw_landmarks(
        result.pixels, [np.asarray(p.landmarks_2d) for p in seen], [np.asarray(p.visibility) for p in seen]
    )
    side = person_sheet.side_view(people[0].vertices, faces, result.size)
    return np.concatenate([result.pixels, points, draw(result, pipeline), side], 1)


def _save_mesh(vertices: np.ndarray, faces: np.ndarray, facts: dict[str, Any], path: Path) -> None:
    export.save_mesh(vertices, faces, path, facts)


def write_result(
    result: ImageResult, pipeline: ImagePipeline, folder: Path, name: str, formats: Sequence[str]
) -> list[Path]:
    """Writes the asked formats; each file appears whole or not at all. Returns the paths.

    Files: NAME_overlay.png; NAME.npz, NAME.json; one mesh file a person (NAME.glb, or NAME_0.glb, NAME_1.glb ...), and
    for several people in GLB also NAME_scene.glb, where they stand in front of the image's camera; NAME.html, which
    turns in any browser.
    """
    faces = pipeline.topology.hierarchy.faces[0]
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []

    def put(file: str, write: Callable[[Path], object]) -> None:
        with replacing(folder / file) as part:
            write(part)
        written.append(folder / file)

    people = result.people
    if "png" in formats:
        put(f"{name}_overlay.png", lambda p: overlay.save_png(draw(result, pipeline), p))
    for i, person in enumerate(people):
        file = f"{name}_{i}" if len(people) > 1 else name
        facts = {"source": result.name, **json_values(people_arrays([person], ["box", "focal_px", "trans"]))}
        for kind in (k for k in ("glb", "obj", "ply") if k in formats):
            put(f"{file}.{kind}", functools.partial(_save_mesh, person.vertices, faces, facts))
    if "glb" in formats and len(people) > 1:
        placed = [p.vertices + p.trans for p in people]
        put(f"{name}_scene.glb", lambda p: export.save_mesh(placed, faces, p, {"source": result.name}))
    if "html" in formats and people and result.pixels is not None:
        scene = image_scene(npz_arrays(result, faces, pipeline.joint_names), result.pixels, name)
        put(f"{name}.html", lambda p: write_page(p, scene) and None)
    if "npz" in formats or "json" in formats:
        arrays = npz_arrays(result, faces, pipeline.joint_names)
        if "npz" in formats:
            data: dict[str, Any] = dict(arrays)
            put(f"{name}.npz", lambda p: np.savez_compressed(p, **data))
        if "json" in formats:
            put(f"{name}.json", lambda p: p.write_text(json.dumps(json_values(arrays)) + "\n"))
    return written


def parse_formats(text: str, known: Sequence[str]) -> tuple[str, ...]:
    """The formats of `--format a,b`.

    Raises:
        ValueError: none, or one that is not among `known`.
    """
    formats = tuple(dict.fromkeys(f.strip() for f in text.split(",") if f.strip()))
    if not formats or any(f not in known for f in formats):
        raise ValueError(f"--format: expected some of {', '.join(known)}, got {text!r}")
    return formats
