"""decimate: counts, nesting, topology, geometry against pymeshlab's figures, determinism, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from tore_fast import _ext
from tore_fast.body import build_hierarchy, decimate, load_body

from .meshes import facts, grid, surface_distance

pytestmark = pytest.mark.skipif(_ext.cpu_module is None, reason="needs the compiled extension")


@pytest.mark.parametrize("counts", [[200, 60, 20], [299], [61, 60]])
def test_torus_keeps_its_hole(counts):
    vertices, faces = grid(20, 15, True, True)
    above = np.arange(len(vertices))
    for count, (kept, coarse) in zip(counts, decimate(vertices, faces, counts)):
        assert kept.shape == (count,) and (np.diff(kept) > 0).all()
        assert set(kept) <= set(above)
        above = kept
        found = facts(coarse)
        assert found == {"vertices": count, "euler": 0, "border": 0}
        assert len(coarse) == 2 * count


@pytest.mark.parametrize("wrap,loops", [(False, 1), (True, 2)])
def test_borders_stay_borders(wrap, loops):
    vertices, faces = grid(16, 12, wrap)
    euler = facts(faces)["euler"]
    on_border = np.zeros(len(vertices), bool)
    half = {(a, b) for f in faces for a, b in ((f[0], f[1]), (f[1], f[2]), (f[2], f[0]))}
    for a, b in half:
        if (b, a) not in half:
            on_border[[a, b]] = True
    for kept, coarse in decimate(vertices, faces, [100, 30]):
        found = facts(coarse)
        assert found["vertices"] == len(kept) and found["euler"] == euler and found["border"] >= 3 * loops
        assert len(coarse) == 2 * len(kept) - 2 * euler - found["border"]
        local = {(a, b) for f in coarse for a, b in ((f[0], f[1]), (f[1], f[2]), (f[2], f[0]))}
        for a, b in local:  # border vertices of the coarse mesh were border vertices before
            if (b, a) not in local:
                assert on_border[kept[a]] and on_border[kept[b]]


def test_flat_sheet_keeps_its_outline():
    """Without curvature only the border costs anything: a coarse square must keep corners and area."""
    vertices, faces = grid(12, 12)
    vertices[:, 2] = 0
    kept, coarse = decimate(vertices, faces, [40])[0]
    corner = {0, 11, 132, 143}
    assert corner <= set(kept)
    a, b, c = vertices[kept][coarse].transpose(1, 0, 2)
    areas = np.cross(b - a, c - a)[:, 2]
    assert (areas > 0).all() and areas.sum() / 2 == pytest.approx(121.0)


def test_down_to_a_tetrahedron():
    body = load_body("free_hand")
    kept, coarse = decimate(*_sphere(), [4])[0]
    assert len(kept) == 4 and len(coarse) == 4 and facts(coarse)["euler"] == 2
    assert body.hierarchy.counts == (778, 195)


def _sphere():
    import trimesh

    ball = trimesh.creation.icosphere(3)
    return np.asarray(ball.vertices), np.asarray(ball.faces, np.int32)


# mean / max distance (mm) of the fine vertices from the coarse surface, pymeshlab 2025.7, optimalplacement=False,
# preservetopology, preserveboundary, preservenormal, run in a chain on the same meshes (tools/bake/body.py --compare)
PYMESHLAB = {("free", 1723): (0.915, 8.00), ("free", 431): (3.996, 56.6), ("free_hand", 195): (0.632, 4.11)}


@pytest.mark.parametrize("name", ["free", "free_hand"])
def test_no_worse_than_pymeshlab(name):
    body = load_body(name)
    fine, faces = body.template.double().numpy(), body.faces()
    counts = [n for who, n in PYMESHLAB if who == name]
    first = decimate(fine, faces, counts)
    for (kept, coarse), (kept2, coarse2), count in zip(first, decimate(fine, faces, counts), counts):
        assert np.array_equal(kept, kept2) and np.array_equal(coarse, coarse2)
        distance = 1e3 * surface_distance(fine[::4], fine[kept], coarse)
        mean, largest = PYMESHLAB[name, count]
        assert distance.mean() < 1.02 * mean
        assert distance.max() < 1.02 * largest
        assert distance.mean() > 0.3 * mean  # the measurement itself sees something


def test_face_order_and_dtype_do_not_matter():
    vertices, faces = grid(14, 14)
    (kept, coarse), (again, _) = (decimate(vertices, faces, [60])[0], decimate(vertices.astype("f4"), faces, [60])[0])
    assert kept.dtype == coarse.dtype == np.int32
    shuffled, _ = decimate(vertices, np.random.default_rng(0).permutation(faces).astype(np.int64), [60])[0]
    assert len(set(kept) ^ set(shuffled)) <= 4  # summation order may swap a near-tie, no more
    assert len(set(kept) ^ set(again)) <= 10


def _broken(what):
    vertices, faces = grid(5, 5)
    if what == "flipped face":
        faces[3] = faces[3][::-1]
    elif what == "third face on an edge":
        faces = np.concatenate([faces, [[faces[0][0], faces[0][1], 24]]])
    elif what == "loose vertex":
        vertices = np.concatenate([vertices, [[9, 9, 9]]])
    elif what == "double vertex in a face":
        faces[0][1] = faces[0][0]
    elif what == "index out of range":
        faces[0][0] = 25
    elif what == "nan":
        vertices[7] = np.nan
    elif what == "two fans":
        vertices = np.concatenate([vertices, [[9, 9, 9], [9, 8, 9]]])
        faces = np.concatenate([faces, [[24, 25, 26]]])
    return vertices, faces


@pytest.mark.parametrize(
    "what,words",
    [
        ("flipped face", "belongs to two faces"),
        ("third face on an edge", "belongs to two faces"),
        ("loose vertex", "vertex 25 belongs to no face"),
        ("double vertex in a face", "names one vertex twice"),
        ("index out of range", "names vertex 25 of 25"),
        ("nan", "vertex 7 is not finite"),
        ("two fans", "around vertex 24 are no single fan"),
    ],
)
def test_refuses_broken_meshes(what, words):
    with pytest.raises(ValueError, match=words):
        decimate(*_broken(what), [10])


@pytest.mark.parametrize("counts", [[26], [10, 10], [10, 12], [2]])
def test_refuses_bad_counts(counts):
    with pytest.raises(ValueError, match="targets must fall"):
        decimate(*grid(5, 5), counts)


def test_refuses_to_break_the_topology():
    with pytest.raises(ValueError, match="without changing the topology"):
        decimate(*grid(8, 8, True, True), [4])  # a torus needs seven vertices


def test_refuses_bad_shapes():
    vertices, faces = grid(5, 5)
    with pytest.raises(ValueError, match=r"vertices must be \[V, 3\]"):
        decimate(vertices[:, :2], faces, [10])
    with pytest.raises(ValueError, match=r"faces must be \[F, 3\] integers"):
        decimate(vertices, faces.astype(float), [10])


def test_clear_error_without_extension(monkeypatch):
    monkeypatch.setattr(_ext, "cpu_module", None)
    monkeypatch.setattr(_ext, "cpu_reason", "no compiler")
    with pytest.raises(RuntimeError, match="needs the compiled extension: no compiler"):
        decimate(*grid(5, 5), [10])


def test_build_hierarchy_of_any_template():
    vertices, faces = grid(20, 16, True, True)
    h = build_hierarchy(vertices, faces, (120, 40))
    assert h.counts == (320, 120, 40)
    for level in (0, 1):
        up = h.ups[level]
        np.testing.assert_allclose(np.asarray(up.sum(1)).ravel(), 1, atol=1e-12)
        assert (up.data >= 0).all()  # barycentric
        np.testing.assert_array_equal(up[h.picks[level]].toarray(), np.eye(h.num_vertices(level + 1)))
    spread = np.linalg.norm(h.up_matrix(2) @ vertices[h.vertex_index(2)] - vertices, axis=1)
    assert spread.mean() < 0.15  # of a torus with radii 2 and 1, by 40 vertices
