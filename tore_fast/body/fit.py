"""Up-sampling matrices: every fine vertex as a combination of a few coarse vertices, rows summing to one.

In: a decimated template (and posed samples); out: scipy CSR matrices for body/hierarchy.py. Runs once per
    template.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import trimesh
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree

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
    graph = sp.csr_matrix((np.maximum(length, 1e-9), e.T), shape=(len(vertices),) * 2).maximum(0)
    graph = graph.maximum(graph.T)
    reach = np.full((len(vertices), len(picks)), np.inf)
    for start in range(0, len(picks), 256):
        reach[:, start : start + 256] = dijkstra(graph, directed=False, indices=picks[start : start + 256]).T
    straight = (
        np.linalg.norm(vertices[:, None] - vertices[picks][None], axis=2) if np.isinf(reach).any() else 0.0
    )
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
        raise ValueError(
            f"fit_upsampling: samples must be [S, {len(vertices)}, 3], got {list(samples.shape)}"
        )
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
    feet, face = closest_on_surface(vertices[free], coarse_vertices, coarse_faces)
    triangles = np.asarray(coarse_vertices)[coarse_faces]
    weights = np.clip(trimesh.triangles.points_to_barycentric(triangles[face], feet), 0, 1)
    return _assemble(len(vertices), picks, free, coarse_faces[face], weights / weights.sum(1, keepdims=True))


def closest_on_surface(
    points: np.ndarray,  # [N, 3]
    vertices: np.ndarray,  # [V, 3]
    faces: np.ndarray,  # [F, 3]
) -> tuple[np.ndarray, np.ndarray]:  # [N, 3] places, [N] faces
    """Closest point of a triangle mesh, searched among the triangles with the nearest centres."""
    triangles = np.asarray(vertices)[faces]
    k = min(_CANDIDATES, len(triangles))
    near = cKDTree(triangles.mean(1)).query(points, k=k)[1].reshape(len(points), k)
    again = np.repeat(points, k, axis=0)
    feet = trimesh.triangles.closest_point(triangles[near.reshape(-1)], again)
    best = np.linalg.norm(feet - again, axis=1).reshape(near.shape).argmin(1)
    row = np.arange(len(points))
    return feet.reshape(*near.shape, 3)[row, best], near[row, best]


def _assemble(
    count: int, picks: np.ndarray, free: np.ndarray, near: np.ndarray, weights: np.ndarray
) -> sp.csr_matrix:
    rows = np.concatenate([picks, np.repeat(free, near.shape[1])])
    cols = np.concatenate([np.arange(len(picks)), near.reshape(-1)])
    data = np.concatenate([np.ones(len(picks)), weights.reshape(-1)])
    m = sp.csr_matrix((data, (rows, cols)), shape=(count, len(picks)))
    m.sort_indices()
    return m
