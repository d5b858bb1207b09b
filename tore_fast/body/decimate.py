"""Nested coarse meshes made of original vertices, by the quadric edge collapse of csrc/cpu/decimate.cpp.

In: any oriented manifold triangle mesh; out: vertex subsets and faces for body/hierarchy.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .. import _ext


def decimate(
    vertices: np.ndarray,  # [V, 3]
    faces: np.ndarray,  # [F, 3] int
    counts: Sequence[int],
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Nested vertex subsets with the given falling counts, one (kept, faces) pair a count.

    Half-edge collapses in order of their quadric error, so coarse vertices are original vertices; the
    topology (genus, borders) never changes. Deterministic: equal costs go to the lower vertex index.

    Returns:
        kept [n] int32: ascending indices into `vertices`, each a subset of the one before;
        faces [f, 3] int32: indices into `kept`, oriented like the input. f = 2 (n - 2) on a closed sphere.

    Raises:
        RuntimeError: the C++ extension is not built (there is no Python version of this).
        ValueError: wrong shapes, a mesh that is no oriented manifold, counts not falling or out of reach.

    Example:
        >>> import trimesh
        >>> ball = trimesh.creation.icosphere(subdivisions=3)  # 642 vertices
        >>> kept, coarse_faces = decimate(ball.vertices, ball.faces, [300, 100])[-1]
        >>> kept.shape
        (100,)

    Source: Garland & Heckbert, "Surface Simplification Using Quadric Error Metrics" (1997).
    """
    if _ext.cpu_module is None:
        raise RuntimeError(f"decimate needs the compiled extension: {_ext.cpu_reason}")
    vertices, faces = np.asarray(vertices), np.asarray(faces)
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise ValueError(f"decimate: vertices must be [V, 3], got {list(vertices.shape)}")
    if faces.ndim != 2 or faces.shape[1] != 3 or not np.issubdtype(faces.dtype, np.integer):
        raise ValueError(f"decimate: faces must be [F, 3] integers, got {list(faces.shape)} {faces.dtype}")
    return _ext.cpu_module.decimate(vertices.astype(np.float64), faces.astype(np.int32), [int(c) for c in counts])
