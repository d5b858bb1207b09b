"""Small meshes for the body tests."""

from __future__ import annotations

import numpy as np


def grid(rows: int, cols: int, wrap_rows: bool = False, wrap_cols: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A bumpy sheet [rows * cols, 3]; wrapped both ways it is a torus, one way a tube."""
    i, j = np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij")
    if wrap_rows and wrap_cols:
        u, v = 2 * np.pi * i / rows, 2 * np.pi * j / cols
        p = np.stack([(2 + np.cos(v)) * np.cos(u), (2 + np.cos(v)) * np.sin(u), np.sin(v)], -1)
    elif wrap_rows:
        u = 2 * np.pi * i / rows
        p = np.stack([np.cos(u), np.sin(u), 0.3 * j], -1)
    else:
        p = np.stack([i, j, 0.5 * np.sin(0.7 * i) * np.cos(0.9 * j)], -1)
    a = np.arange(rows if wrap_rows else rows - 1)
    b = np.arange(cols if wrap_cols else cols - 1)
    a, b = (x.ravel() for x in np.meshgrid(a, b, indexing="ij"))
    at = lambda r, c: (r % rows) * cols + c % cols  # noqa: E731
    quad = np.stack([at(a, b), at(a + 1, b), at(a + 1, b + 1), at(a, b + 1)], -1)
    faces = np.concatenate([quad[:, [0, 1, 2]], quad[:, [0, 2, 3]]]).astype(np.int32)
    return p.reshape(-1, 3).astype(np.float64), faces


def directed_edges(faces: np.ndarray) -> list[tuple[int, int]]:
    return [(int(f[k]), int(f[(k + 1) % 3])) for f in faces for k in range(3)]


def facts(faces: np.ndarray) -> dict:
    """Vertices, Euler characteristic and border edges, after asserting an oriented manifold with one fan a vertex."""
    half = directed_edges(faces)
    assert len(set(half)) == len(half), "an edge is used twice in one direction"
    ring: dict[int, list] = {}
    for f in faces:
        for v in f:
            ring.setdefault(int(v), []).append({int(x) for x in f} - {int(v)})
    for v, links in ring.items():  # the opposite edges of a fan make one chain
        seen, grown = set(links[0]), True
        left = links[1:]
        while grown:
            grown = [e for e in left if e & seen]
            left = [e for e in left if not e & seen]
            for e in grown:
                seen |= e
        assert not left, f"vertex {v} joins two fans"
    edges = {tuple(sorted(e)) for e in half}
    border = (
        sum((b, a) not in set(half) for a, b in half) if len(half) < 500 else len(half) - 2 * (len(half) - len(edges))
    )
    return {"vertices": len(ring), "euler": len(ring) - len(edges) + len(faces), "border": border}


def surface_distance(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Distance of points to a surface, from the triangles around the nearest vertices (independent of
    body/fit_upsampling.py)."""
    from trimesh.triangles import closest_point

    triangles = vertices[faces]
    out = np.empty(len(points))
    for i in range(0, len(points), 64):
        p = points[i : i + 64]
        near = np.argsort(((p[:, None] - triangles.mean(1)[None]) ** 2).sum(2), 1)[:, :48]
        foot = closest_point(triangles[near.ravel()], np.repeat(p, near.shape[1], 0)).reshape(*near.shape, 3)
        out[i : i + 64] = np.linalg.norm(foot - p[:, None], axis=2).min(1)
    return out
