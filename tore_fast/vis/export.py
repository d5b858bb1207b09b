"""Mesh files for other programs: GLB of our own (io/glb.py), OBJ, PLY, STL through trimesh.

In: vertices in camera axes (x right, y down, z away) as pipelines/ gives them; out: files with y UP and the person
facing +z when it faced the camera, metres, as viewers expect (a half turn about x; the faces keep their orientation).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..io.atomic import write_bytes
from ..io.glb import mesh_glb

FORMATS = ("glb", "obj", "ply", "stl")
_COLOUR = (166, 189, 219, 255)


def y_up(vertices: np.ndarray) -> np.ndarray:  # [..., 3]
    """Camera axes to y up: (x, -y, -z)."""
    return np.asarray(vertices, dtype=np.float64) * np.array([1.0, -1.0, -1.0])


def save_mesh(
    vertices: np.ndarray | Sequence[np.ndarray],  # [V, 3], or several people
    faces: np.ndarray,  # [F, 3]
    path: str | Path,
    facts: dict | None = None,
) -> None:
    """Writes one mesh (several people: one scene in GLB, one joined mesh otherwise); the suffix gives the format.

    Args:
        facts: JSON-able, kept in a GLB's scene as `extras` (source file, box ...).

    Raises:
        ValueError: unknown suffix, wrong shapes, or vertices that are not finite.

    Example:
        >>> save_mesh(person.vertices, faces, "person.glb")  # doctest: +SKIP
    """
    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    if kind not in FORMATS:
        raise ValueError(f"save_mesh: suffix must be one of {', '.join(FORMATS)}, got {path.name!r}")
    people = [vertices] if isinstance(vertices, np.ndarray) and vertices.ndim == 2 else list(vertices)
    faces = np.asarray(faces)
    if faces.ndim != 2 or faces.shape[1] != 3:
        raise ValueError(f"save_mesh: faces must be [F, 3], got {list(faces.shape)}")
    checked = []
    for points in people:
        points = np.asarray(points)
        if points.ndim != 2 or points.shape[1] != 3 or len(points) <= faces.max(initial=-1):
            raise ValueError(
                f"save_mesh: vertices must be [V, 3] with V > {faces.max(initial=-1)}, got {list(points.shape)}"
            )
        if not np.isfinite(points).all():
            raise ValueError("save_mesh: vertices have non-finite entries")
        checked.append(y_up(points))
    if not checked:
        raise ValueError("save_mesh: no people")
    if kind == "glb":
        write_bytes(path, mesh_glb(checked, faces, _COLOUR, facts))
        return
    import trimesh  # slow to import

    meshes = []
    for points in checked:
        mesh = trimesh.Trimesh(points, faces, process=False)
        if kind != "stl":
            mesh.visual = trimesh.visual.ColorVisuals(
                mesh, vertex_colors=np.tile(np.asarray(_COLOUR, np.uint8), (len(points), 1))
            )
            mesh.vertex_normals  # noqa: B018  (computed here so that the exporter writes them)
        meshes.append(mesh)
    whole: Any = meshes[0] if len(meshes) == 1 else trimesh.util.concatenate(meshes)
    data = whole.export(file_type=kind)
    write_bytes(path, data.encode() if isinstance(data, str) else data)
