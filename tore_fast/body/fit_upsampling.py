"""Up-sampling matrices: every fine vertex as a combination of a few coarse vertices, rows summing to one.

In: a decimated template (and posed samples); out: scipy CSR matrices for body/hierarchy.py. Runs once per
    template.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

_BLOCK = 128  # fine vertices solved together
_CANDIDATES = 32  # triangles (nearest centres) tried for the closest point


def nearest_coarse(
    vertices: np.ndarray,  # [V, 3]
    faces: np.ndarray,  # [F, 3]
    picks: np.ndarray,  # [C]
    neighbors: int,
) -> np.ndarray:  # [V, neighbors] columns into picks
    """The coarse vertices nearest to every vertex along the mesh edges, so lips, fingers and armpits do not
    mix."""
    e = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    length = np.linalg.norm(vertices[e[:, 0]] - vertices[e[:, 1]], axis=1)
    from scipy.sparse.csgraph import dijkstra  # slow to import, and only fitting needs it

    graph = sp.csr_matrix((np.maximum(length, 1e-9), e.T), shape=(len(vertices),) * 2).maximum(0)
    graph = graph.maximum(graph.T)
    reach = np.full((len(vertices), len(picks)), np.inf)
    for start in range(0, len(picks), 256):
        reach[:, start : start + 256] = dijkstra(graph, directed=False, indices=picks[start : start + 256]).T
    straight = np.linalg.norm(vertices[:, None] - vertices[picks][None], axis=2) if np.isinf(reach).any() else 0.0
    reach = np.where(np.isinf(reach), 1e6 + straight, reach)  # other components last
    return np.argsort(reach, axis=1, kind="stable")[:, :neighbors]


def fit_upsampling(
    vertices: np.ndarray,  # [V, 3] template, metres
    faces: np.ndarray,  # [F, 3]
    picks: np.ndarray,  # [C]
    samples: np.ndarray,  # [S, V, 3] posed bodies, metres
    neighbors: int = 12,
    ridge: float = 1e-5,
) -> sp.csr_matrix:  # [V, C]
    """Least-squares up-sampling from the geodesically nearest coarse vertices.

    For every vertex that was not kept: minimise mean_s |x_s - sum_i w_i c_si|^2 + ridge * |w|^2 with sum_i
    w_i = 1. Kept vertices get a single one. Rows that sum to one commute with translation.

    Args:
        ridge: in square metres; bounds the weights and with them the noise that up-sampling adds to
            predictions.

    Raises:
        ValueError: fewer coarse vertices than `neighbors`, samples of another topology, ridge not positive.
    """
    if samples.ndim != 3 or samples.shape[1:] != vertices.shape:
        raise ValueError(f"fit_upsampling: samples must be [S, {len(vertices)}, 3], got {list(samples.shape)}")
    if not 1 <= neighbors <= len(picks):
        raise ValueError(f"fit_upsampling: neighbors must be 1..{len(picks)}, got {neighbors}")
    if ridge <= 0:
        raise ValueError(f"fit_upsampling: ridge must be positive, got {ridge}")
    near = nearest_coarse(vertices, faces, picks, neighbors)
    free = np.setdiff1d(np.arange(len(vertices)), picks)
    weights = np.empty((len(free), neighbors))
    for start in range(0, len(free), _BLOCK):
        rows = free[start : start + _BLOCK]
        target = samples[:, rows].transpose(1, 0, 2).reshape(len(rows), 1, -1)  # [n, 1, 3 S]
        coarse = samples[:, picks[near[rows]]].transpose(1, 2, 0, 3).reshape(len(rows), neighbors, -1)
        offset = (coarse - target).astype(np.float64)  # sum_i w_i offset_i = 0 is a perfect fit
        gram = offset @ offset.transpose(0, 2, 1) / len(samples) + ridge * np.eye(neighbors)
        w = np.linalg.solve(gram, np.ones((len(rows), neighbors, 1)))[..., 0]
        weights[start : start + _BLOCK] = w / w.sum(1, keepdims=True)
    return _assemble(len(vertices), picks, free, near[free], weights)


def barycentric_upsampling(
    vertices: np.ndarray,  # [V, 3]
    coarse_vertices: np.ndarray,  # [C, 3]
    coarse_faces: np.ndarray,  # [G, 3]
    picks: np.ndarray,  # [C]
) -> sp.csr_matrix:  # [V, C]
    """Every fine vertex as barycentric point of the nearest coarse triangle, on the template."""
    free = np.setdiff1d(np.arange(len(vertices)), picks)
    face, weights, _ = closest_on_surface(vertices[free], coarse_vertices, coarse_faces)
    return _assemble(len(vertices), picks, free, coarse_faces[face], weights)


def closest_on_surface(
    points: np.ndarray,  # [N, 3]
    vertices: np.ndarray,  # [V, 3]
    faces: np.ndarray,  # [F, 3]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # [N] faces, [N, 3] barycentric weights, [N] distances
    """Closest point of a triangle mesh, searched among the triangles with the nearest centres."""
    triangles = np.asarray(vertices)[faces]
    k = min(_CANDIDATES, len(triangles))
    from scipy.spatial import cKDTree  # slow to import, and only fitting needs it

    near = cKDTree(triangles.mean(1)).query(points, k=k)[1].reshape(len(points), k)
    weights, distance = _closest_in_triangles(points[:, None], triangles[near])
    best = distance.argmin(1)
    row = np.arange(len(points))
    return near[row, best], weights[row, best], distance[row, best]


def _closest_in_triangles(p: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Barycentric weights [..., 3] of the points of triangles [..., 3, 3] closest to p [..., 3], and distances."""
    a, b, c = (triangles[..., i, :] for i in range(3))
    p = np.broadcast_to(p, a.shape)

    def dot(x: Any, y: Any) -> Any:
        return (x * y).sum(-1)

    # foot on the plane: inside when all three weights are positive
    u, v, w = b - a, c - a, p - a
    uu, uv, vv, wu, wv = dot(u, u), dot(u, v), dot(v, v), dot(w, u), dot(w, v)
    det = uu * vv - uv * uv
    safe = np.where(det > 0, det, 1)
    s, t = (vv * wu - uv * wv) / safe, (uu * wv - uv * wu) / safe
    best = np.stack([1 - s - t, s, t], -1)
    inside = (best >= 0).all(-1) & (det > 0)
    distance = np.where(inside, np.linalg.norm(p - (best[..., None] * triangles).sum(-2), axis=-1), np.inf)
    for i, j in ((0, 1), (1, 2), (2, 0)):  # otherwise the closest point lies on an edge
        start, edge = triangles[..., i, :], triangles[..., j, :] - triangles[..., i, :]
        length = dot(edge, edge)
        along = np.clip(dot(p - start, edge) / np.where(length > 0, length, 1), 0, 1)
        off = np.linalg.norm(p - start - along[..., None] * edge, axis=-1)
        on_edge = np.zeros_like(best)
        on_edge[..., i], on_edge[..., j] = 1 - along, along
        best = np.where((off < distance)[..., None], on_edge, best)
        distance = np.minimum(distance, off)
    return best, distance


def _assemble(count: int, picks: np.ndarray, free: np.ndarray, near: np.ndarray, weights: np.ndarray) -> sp.csr_matrix:
    rows = np.concatenate([picks, np.repeat(free, near.shape[1])])
    cols = np.concatenate([np.arange(len(picks)), near.reshape(-1)])
    data = np.concatenate([np.ones(len(picks)), weights.reshape(-1)])
    m = sp.csr_matrix((data, (rows, cols)), shape=(count, len(picks)))
    m.sort_indices()
    return m
