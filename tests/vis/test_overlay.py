"""Overlays land where the camera says, mesh files hold the mesh."""

from __future__ import annotations

import numpy as np
import pytest

from tore_fast.geometry.camera import image_camera
from tore_fast.vis import overlay
from tore_fast.vis.export import save_mesh
from tore_fast.vis.overlay import PerspectiveCamera, draw_people, panel, rotated, save_png

# a box of 1 x 2 x 1 m round the origin, outward faces
CORNERS = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-1.0, 1.0) for z in (-0.5, 0.5)])
FACES = np.array(
    [
        [0, 1, 3],
        [0, 3, 2],
        [4, 6, 7],
        [4, 7, 5],
        [0, 4, 5],
        [0, 5, 1],
        [2, 3, 7],
        [2, 7, 6],
        [0, 2, 6],
        [0, 6, 4],
        [1, 5, 7],
        [1, 7, 3],
    ]
)


def changed(before, after):
    rows, columns = np.nonzero((before != after).any(2))
    return columns.min(), columns.max() + 1, rows.min(), rows.max() + 1


def test_weak_perspective_place():
    image = np.zeros((90, 120, 3), np.uint8)
    out = draw_people(image, [CORNERS], FACES, [(20.0, 70.0, 40.0)])
    assert changed(image, out) == (60, 80, 20, 60) and not image.any()
    half = draw_people(image, [CORNERS], FACES, [(20.0, 70.0, 40.0)], alpha=0.5)
    assert 0 < half[40, 70].max() < out[40, 70].max()
    assert not draw_people(image, [CORNERS], FACES, [(20.0, 70.0, 40.0)], alpha=0.0).any()


def test_edges_are_smoothed():
    image = np.zeros((60, 60, 3), np.uint8)
    out = draw_people(image, [CORNERS], FACES, [(20.0, 30.5, 30.0)], alpha=1.0)  # the left side at column 20.5
    assert not out[30, 19].any()
    assert out[30, 20].astype(float) == pytest.approx(out[30, 21] / 2.0, abs=4)


def test_perspective_place():
    image = np.zeros((100, 100, 3), np.uint8)
    out = draw_people(image, [CORNERS], FACES, [PerspectiveCamera(100.0, (0, 0, 5.5), (50, 50))])
    x0, x1, y0, y1 = changed(image, out)  # the near side is 5 m away: 20 x 40 pixels
    assert (x0, x1, y0, y1) == (40, 60, 30, 70)
    assert not draw_people(image, [CORNERS], FACES, [PerspectiveCamera(100.0, (0, 0, -3), (50, 50))]).any()


def test_nearer_people_cover_farther_ones():
    image = np.zeros((80, 80, 3), np.uint8)
    both = [CORNERS, CORNERS]
    one = draw_people(image, both, FACES, [(10.0, 40, 40), (20.0, 40, 40)], alpha=1.0)
    alone = draw_people(image, [CORNERS], FACES, [(20.0, 40, 40)], alpha=1.0, colours=[(253, 190, 133)])
    assert np.array_equal(one, alone)


def test_crop_camera():
    camera = image_camera((0.9, 0.1, -0.2), (300.0, 200.0), 224.0)
    assert camera == pytest.approx([0.9 * 112, 300 + 0.09 * 112, 200 - 0.18 * 112])


def test_bands_leave_no_seam(monkeypatch):
    image = np.zeros((300, 200, 3), np.uint8)
    whole = draw_people(image, [CORNERS], FACES, [(120.0, 100.3, 150.0)])
    assert changed(image, whole) == (40, 161, 30, 270)
    monkeypatch.setattr(overlay, "_BAND_SAMPLES", 7 * 4 * 121)
    assert np.array_equal(draw_people(image, [CORNERS], FACES, [(120.0, 100.3, 150.0)]), whole)


def test_outside_and_not_finite():
    image = np.full((20, 20, 3), 7, np.uint8)
    bad = CORNERS.copy()
    bad[0, 0] = np.nan
    assert (draw_people(image, [CORNERS, bad], FACES, [(1.0, 500, 500), (5.0, 10, 10)]) == 7).all()


def test_panel(tmp_path):
    image = np.zeros((50, 40, 3), np.uint8)
    out = panel(image, [CORNERS * [1, 1, 0.2]], FACES, [(15.0, 20, 25)])
    assert out.shape == (50, 120, 3) and not out[:, :40].any()
    x0, x1, _, _ = changed(np.full_like(image, 236), out[:, 80:])
    assert x1 - x0 == 4 or x1 - x0 == 3  # the thin side
    assert rotated(np.array([[0, 0, -1.0]]), 90)[0] == pytest.approx([-1, 0, 0])
    save_png(out, tmp_path / "a.part")
    assert (tmp_path / "a.part").read_bytes()[:4] == b"\x89PNG"


def test_errors():
    with pytest.raises(ValueError, match=r"image must be uint8 \[H, W, 3\]"):
        draw_people(np.zeros((4, 4)), [], FACES, [])
    with pytest.raises(ValueError, match="one camera per person: 1 people, 0 cameras"):
        draw_people(np.zeros((4, 4, 3), np.uint8), [CORNERS], FACES, [])
    with pytest.raises(ValueError, match=r"must be \[V, 3\]"):
        draw_people(np.zeros((4, 4, 3), np.uint8), [CORNERS[:, :2]], FACES, [(1, 1, 1)])


@pytest.mark.parametrize("kind", ["glb", "obj", "ply", "stl"])
def test_mesh_files(tmp_path, kind):
    import trimesh

    path = tmp_path / f"box.{kind}"
    save_mesh(CORNERS + [0, 0.5, 2], FACES, path)
    mesh = trimesh.load(path, force="mesh")
    assert mesh.is_watertight and mesh.volume == pytest.approx(2.0, rel=1e-4)  # positive: faces look outwards
    assert mesh.bounds == pytest.approx(np.array([[-0.5, -1.5, -2.5], [0.5, 0.5, -1.5]]), abs=1e-5)  # y up


def test_two_people_in_one_glb(tmp_path):
    import trimesh

    save_mesh([CORNERS, CORNERS + 3], FACES, tmp_path / "two.glb")
    assert len(trimesh.load(tmp_path / "two.glb").geometry) == 2
    with pytest.raises(ValueError, match="suffix must be one of"):
        save_mesh(CORNERS, FACES, tmp_path / "a.xyz")
    with pytest.raises(ValueError, match="non-finite"):
        save_mesh(CORNERS * np.inf, FACES, tmp_path / "a.obj")
