"""Files of one image's result: overlay PNG, GLB or OBJ per person, one npz with documented keys.

In: ImageResult of pipelines/images.py. The drawing is vis/overlay.py, the mesh files vis/export.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..vis import export, overlay
from .images import ImagePipeline, ImageResult

FORMATS = ("png", "glb", "obj", "npz")

NPZ_KEYS = {
    "box": "[P, 4] x0, y0, x1, y1 pixels of the upright image",
    "box_source": "[P] given | auto | full | centre",
    "crop": "[P, 3] centre x, centre y, side of the square crop, pixels",
    "camera": "[P, 3] scale, tx, ty: point of the crop in [-1, 1] = scale * (xy + t)",
    "camera_image": "[P, 3] scale_px, x_px, y_px: pixel = scale_px * xy + (x_px, y_px)",
    "translation": "[P, 3] metres: add to the vertices for a perspective camera at the crop's centre",
    "focal_px": "[P] focal length of that camera",
    "vertices": "[P, V, 3] metres; x right, y down, z away; the pelvis is the origin",
    "vertices_coarse": "[P, V_coarse, 3]",
    "joints_3d": "[P, 14, 3] metres, regressed from the mesh (a hand has 21)",
    "joints_2d": "[P, 14, 2] pixels",
    "joint_names": "[14]",
    "faces": "[F, 3] int32",
    "image_size": "[2] width, height",
}


def unique_names(paths: list[Path]) -> list[str]:
    """File stems; where two images share one, a number is added."""
    used: dict[str, int] = {}
    names = []
    for path in paths:
        stem = path.stem
        used[stem] = used.get(stem, 0) + 1
        names.append(stem if used[stem] == 1 else f"{stem}_{used[stem]}")
    return names


def write_result(
    result: ImageResult, pipeline: ImagePipeline, folder: Path, name: str, formats: tuple[str, ...]
) -> list[Path]:
    """Writes the asked formats; each file appears whole or not at all. Returns the paths."""
    faces = pipeline.topology.hierarchy.faces[0]
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []

    def put(path: Path, write) -> None:
        part = path.with_name(f".{path.stem}.part{path.suffix}")
        write(part)
        os.replace(part, path)
        written.append(path)

    people = result.people
    if "png" in formats:
        image = overlay.draw_people(
            result.pixels, [p.vertices for p in people], faces, [p.camera_image for p in people]
        )
        put(folder / f"{name}_overlay.png", lambda p: overlay.save_png(image, p))
    for i, person in enumerate(people):
        suffix = f"_{i}" if len(people) > 1 else ""
        for kind in ("glb", "obj"):
            if kind in formats:
                put(folder / f"{name}{suffix}.{kind}", lambda p, v=person.vertices: export.save_mesh(v, faces, p))
    if "npz" in formats:
        put(folder / f"{name}.npz", lambda p: np.savez_compressed(p, **npz_arrays(result, faces, pipeline.joint_names)))
    return written


def npz_arrays(result: ImageResult, faces: np.ndarray, joint_names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Arrays under the names of NPZ_KEYS."""
    people = result.people
    arrays: dict[str, np.ndarray] = {
        "box": np.array([p.box for p in people], np.float32).reshape(len(people), 4),
        "box_source": np.array([p.box_source for p in people]),
        "crop": np.array([p.crop.x_y_side for p in people], np.float32),
        "focal_px": np.array([p.focal_px for p in people], np.float32),
        "joint_names": np.array(joint_names),
        "faces": np.asarray(faces, np.int32),
        "image_size": np.array(result.size, np.int32),
    }
    for key in ("camera", "camera_image", "translation", "vertices", "vertices_coarse", "joints_3d", "joints_2d"):
        arrays[key] = (
            np.stack([getattr(p, key) for p in people]).astype(np.float32) if people else np.zeros(0, np.float32)
        )
    return arrays
