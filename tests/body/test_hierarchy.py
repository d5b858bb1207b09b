"""MeshHierarchy and fitted up-sampling: shapes, exactness, agreement of the two fits with brute force."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from tore_fast.body import MeshHierarchy, decimate, load_body
from tore_fast.body.fit_upsampling import _closest_in_triangles, barycentric_upsampling, fit_upsampling, nearest_coarse
from tore_fast.ops import mesh_upsample

from .meshes import grid


@pytest.fixture(scope="module")
def small():
    vertices, faces = grid(9, 8)
    kept, coarse = decimate(vertices, faces, [24])[0]
    return vertices, faces, kept, coarse


def test_nearest_follows_the_surface():
    """A sheet folded onto itself: the straight-line neighbour lies on the other leaf."""
    vertices, faces = grid(11, 3)
    row = vertices[:, 0].copy()
    vertices[:, 0] = np.minimum(row, 10 - row)
    vertices[:, 2] = np.where(row > 5, 0.01, 0)
    picks = np.array([0, 6, 24, 30])  # grid rows 0, 2, 8, 10
    near = nearest_coarse(vertices, faces, picks, 2)
    assert near[3].tolist() == [0, 1]  # grid row 1, though row 10's vertex is nearer than row 2's
    assert near[27].tolist() == [2, 3] or near[27].tolist() == [3, 2]


def test_fit_matches_constrained_least_squares(small):
    vertices, faces, kept, _ = small
    rng = np.random.default_rng(0)
    samples = vertices + 0.1 * rng.normal(size=(40, len(vertices), 3))
    up = fit_upsampling(vertices, faces, kept, samples, neighbors=5, ridge=1e-4)
    near = nearest_coarse(vertices, faces, kept, 5)
    for v in np.setdiff1d(np.arange(len(vertices)), kept)[::7]:
        cols = near[v]
        a = samples[:, kept[cols]].transpose(0, 2, 1).reshape(-1, 5)
        b = samples[:, v].reshape(-1)
        # minimise |a w - b|^2 / S + ridge |w|^2 with sum w = 1: Lagrange system, solved as it stands
        kkt = np.zeros((6, 6))
        kkt[:5, :5] = a.T @ a / 40 + 1e-4 * np.eye(5)
        kkt[5, :5] = kkt[:5, 5] = 1
        w = np.linalg.solve(kkt, np.append(a.T @ b / 40, 1))[:5]
        np.testing.assert_allclose(up[v].toarray()[0][cols], w, atol=1e-8)


def test_closest_on_surface_against_trimesh():
    """Random soup of triangles (slivers and points included), points all around."""
    from trimesh.triangles import closest_point

    rng = np.random.default_rng(2)
    triangles = rng.normal(size=(300, 3, 3))
    triangles[:40, 2] = triangles[:40, 1] + 1e-7 * rng.normal(size=(40, 3))
    points = 1.5 * rng.normal(size=(300, 3))
    weights, distance = _closest_in_triangles(points, triangles)
    feet = closest_point(triangles, points)
    np.testing.assert_allclose(distance, np.linalg.norm(feet - points, axis=1), atol=1e-6)
    np.testing.assert_allclose(np.einsum("ni,nic->nc", weights, triangles)[40:], feet[40:], atol=1e-9)
    assert (weights >= 0).all() and np.allclose(weights.sum(1), 1)
    flat = np.zeros((1, 3, 3))  # a triangle shrunk to a point
    np.testing.assert_allclose(_closest_in_triangles(np.array([[3.0, 4.0, 0.0]]), flat)[1], [5.0])


def test_fit_rows(small):
    vertices, faces, kept, _ = small
    samples = np.random.default_rng(1).normal(size=(6, len(vertices), 3))
    up = fit_upsampling(vertices, faces, kept, samples, neighbors=4)
    np.testing.assert_allclose(np.asarray(up.sum(1)).ravel(), 1, atol=1e-9)
    np.testing.assert_array_equal(up[kept].toarray(), np.eye(len(kept)))
    assert np.diff(up.indptr).max() == 4


def test_fit_beats_barycentric_on_held_out_bodies():
    body = load_body("free_hand")
    g = torch.Generator().manual_seed(5)
    pose = 0.4 * torch.randn(60, 16, 3, generator=g)
    with torch.no_grad():
        bodies = body(pose).vertices.numpy()
    h, fine = body.hierarchy, body.template.numpy().astype(np.float64)
    pick = h.picks[0]
    fitted = fit_upsampling(fine, h.faces[0], pick, bodies[:40], 8, 1e-6)
    plain = barycentric_upsampling(fine, fine[pick], h.faces[1], pick)
    error = [np.linalg.norm(u @ b[pick] - b, axis=1).mean() for u in (fitted, plain, h.ups[0]) for b in bodies[40:]]
    fitted, plain, shipped = np.reshape(error, (3, -1)).mean(1)
    assert fitted < 0.6 * plain and shipped < 0.5 * plain


@pytest.mark.parametrize(
    "change,words",
    [
        ({"samples": np.zeros((4, 5, 3))}, r"samples must be \[S, 72, 3\]"),
        ({"neighbors": 25}, r"neighbors must be 1..24"),
        ({"ridge": 0.0}, "ridge must be positive"),
    ],
)
def test_fit_refuses(small, change, words):
    vertices, faces, kept, _ = small
    args = {"samples": np.zeros((4, len(vertices), 3)), "neighbors": 4, "ridge": 1e-4} | change
    with pytest.raises(ValueError, match=words):
        fit_upsampling(vertices, faces, kept, **args)


def test_adjacency_against_a_loop(small):
    vertices, faces, kept, coarse = small
    h = MeshHierarchy((faces, coarse), (kept,), (sp.csr_matrix(np.ones((len(vertices), len(kept)))),))
    want = np.eye(len(kept))
    for f in coarse:
        for a in f:
            for b in f:
                want[a, b] = 1
    got = h.adjacency(1)
    np.testing.assert_allclose(got.toarray(), want / want.sum(1, keepdims=True), atol=1e-7)
    mask = h.topology(1, joints=3).dense_mask().numpy()
    assert mask[:3].all() and mask[:, :3].all()
    np.testing.assert_array_equal(mask[3:, 3:], want > 0)
    assert {tuple(e) for e in h.edges(1)} == {(a, b) for a, b in zip(*np.nonzero(np.triu(want, 1)))}


def test_picks_and_matrices_compose():
    h = load_body("free").hierarchy
    x = np.random.default_rng(0).normal(size=(h.counts[2], 3)).astype(np.float32)
    fine = mesh_upsample(mesh_upsample(torch.from_numpy(x)[None], h.up(1)), h.up(0))[0].numpy()
    np.testing.assert_allclose(h.up_matrix(2) @ x, fine, atol=1e-5)
    np.testing.assert_array_equal(fine[h.vertex_index(2)], x)  # kept vertices come back exactly
    np.testing.assert_array_equal(h.vertex_index(2), h.picks[0][h.picks[1]])
    down = mesh_upsample(mesh_upsample(torch.from_numpy(fine)[None], h.down(0)), h.down(1))[0].numpy()
    np.testing.assert_array_equal(down, x)


def test_refuses_parts_that_do_not_fit(small):
    vertices, faces, kept, coarse = small
    up = sp.csr_matrix(np.ones((len(vertices), len(kept))))
    with pytest.raises(ValueError, match="need one pick list and one up matrix less"):
        MeshHierarchy((faces, coarse), (), ())
    with pytest.raises(ValueError, match="picks do not fit the up matrix"):
        MeshHierarchy((faces, coarse), (kept[:-1],), (up,))
    with pytest.raises(ValueError, match="its faces name vertex"):
        MeshHierarchy((faces, faces), (kept,), (up,))
    with pytest.raises(ValueError, match="need 0 <= fine <= level"):
        MeshHierarchy((faces, coarse), (kept,), (up,)).vertex_index(2)
