"""The HTML page and the viewer: everything is inside, nothing is loaded from outside, and a real browser shows it
moving."""

from __future__ import annotations

import base64
import io
import json
import re
import urllib.request
from html.parser import HTMLParser

import numpy as np
import pytest
from made_up.browser import CHROMIUM, Browser
from made_up.command import command
from PIL import Image

from tore_fast.body import load_body
from tore_fast.geometry.skeleton import H36M17, SMPL24
from tore_fast.pipelines.scenes import read_scenes
from tore_fast.vis.page import page, quantise


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two people on a photograph, a track of a video as parameters, a lifted clip."""
    folder = tmp_path_factory.mktemp("results")
    body = load_body("free")
    rest = body(np_zeros(1, 72), np_zeros(1, body.num_betas))
    vertices, joints = rest.vertices[0].numpy() * [1, -1, -1], rest.joints[0, :24].numpy() * [1, -1, -1]
    photo = folder / "photo.png"
    Image.fromarray(np.full((300, 400, 3), (40, 90, 160), np.uint8)).save(photo)
    trans = np.array([[-0.6, 0, 4], [0.7, 0, 5]], np.float32)
    camera = dict(image_size=np.array([400, 300]), joint_names=np.array(SMPL24.names), source=str(photo))
    lens = dict(focal_px=np.full(2, 500.0), principal_px=np.full((2, 2), (200.0, 150.0)))
    np.savez(
        folder / "photo.npz",
        **camera,
        **lens,
        joints_3d=np.stack([joints] * 2),
        vertices=np.stack([vertices] * 2),
        trans=trans,
        faces=body.faces(0),
        believed=np.array([True, False]),
    )
    rng = np.random.default_rng(0)
    poses = (np.arange(6)[:, None] * rng.normal(0, 0.05, (1, 72))).astype(np.float32)
    np.savez(
        folder / "track_1.npz",
        **{**camera, "source": "gone.mp4"},
        joints_3d=np.stack([joints] * 6),
        poses=poses,
        betas=np.zeros(10, np.float32),
        trans=np.stack([trans[0] + [0.1 * k, 0, 0] for k in range(6)]),
        focal_px=np.full(6, 500.0),
        principal_px=np.full((6, 2), (200.0, 150.0)),
        frame=np.arange(3, 9),
        mocap_framerate=30.0,
        track=1,
        body="free",
    )
    walk = rng.normal(0, 0.3, (40, 17, 3)).astype(np.float32)
    np.savez(
        folder / "walk.npz",
        source="walk.json",
        joints_3d=walk,
        joint_names=np.array(H36M17.names),
        frame=np.arange(40),
        mocap_framerate=25.0,
        track="",
    )
    items = [
        dict(name="photo", source=str(photo), files=["photo.npz"]),
        dict(name="clip", source=str(folder / "gone.mp4"), files=["track_1.npz"]),
        dict(name="walk", source="walk.json", files=["walk.npz"]),
    ]
    (folder / "results.json").write_text(json.dumps({"items": items}))
    return folder


def np_zeros(*shape):
    import torch

    return torch.zeros(*shape)


def test_scenes_put_people_where_their_camera_saw_them(results):
    photo, clip, walk = read_scenes(results)
    assert [p.name for p in photo.people] == ["person 0", "person 1"] and [p.faint for p in photo.people] == [
        False,
        True,
    ]
    with np.load(results / "photo.npz") as data:
        np.testing.assert_allclose(photo.people[1].vertices[0], data["vertices"][1] + data["trans"][1], atol=1e-6)
    assert photo.image(0).shape == (300, 400, 3) and photo.camera.size == (400, 300)
    np.testing.assert_allclose(photo.camera.corners(2.0)[0], [-0.8, -0.6, 2.0])
    assert (clip.first, clip.frames, clip.fps, clip.image(3)) == (3, 6, 30.0, None)
    assert (
        clip.people[0].vertices.shape == (6, 6890, 3) and clip.people[0].row(2) is None and clip.people[0].row(4) == 1
    )
    assert walk.camera is None and len(walk.people[0].bones) == 16 and walk.people[0].vertices is None


@pytest.mark.parametrize(
    "name, said",
    [
        ("text.npz", "not a readable npz"),
        ("other.npz", "it has no 'joints_3d'"),
        ("x.txt", "expected an npz or a glb"),
        ("gone", "no such file"),
        (".", "no results that can be shown"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, capsys, name, said):
    (tmp_path / "x.txt").write_text("x")
    if name == "text.npz":
        (tmp_path / name).write_text("x")
    if name == "other.npz":
        np.savez(tmp_path / name, a=np.zeros(3))
    assert command("view", tmp_path / name, "--html", tmp_path / "p.html") == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not (tmp_path / "p.html").exists()


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href")]
        if tag not in ("meta", "link", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_whole_small_and_alone(results):
    scene = read_scenes(results)[0]
    text = page(scene)
    tags = Tags(text)
    assert not tags.open and tags.links == ["data:,"]
    assert not re.search(r"https?://|//[a-z]+\.|import\s*\(|fetch\(|XMLHttpRequest|WebSocket", text)
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)[1])
    assert len(text) / len(scene.people) < 1_500_000
    photo = Image.open(io.BytesIO(base64.b64decode(data["photo"].partition(",")[2])))
    assert photo.size == (400, 300) and data["size"] == [400, 300] and data["focal"] == 500
    for person, actor in zip(data["people"], scene.people):
        mesh = person["mesh"]
        steps = np.frombuffer(base64.b64decode(mesh["data"]), "<u2").reshape(-1, 3)
        np.testing.assert_allclose(steps * mesh["step"] + mesh["low"], actor.vertices[0], atol=1e-4)
        faces = np.frombuffer(base64.b64decode(mesh["faces"]), "<u2").reshape(-1, 3)
        np.testing.assert_array_equal(faces, actor.faces)


def test_title_and_names_cannot_leave_their_place(results):
    from dataclasses import replace

    scene = replace(read_scenes(results)[2], title="</script><b>x & y")
    text = page(scene)
    assert "</script><b>" not in text and "<title>&lt;/script&gt;&lt;b&gt;x &amp; y</title>" in text
    assert not Tags(text).open


def test_long_clips_keep_fewer_meshes(results, monkeypatch):
    monkeypatch.setattr("tore_fast.vis.page.MESH_BYTES", 6890 * 3 * 2 * 3)
    text = page(read_scenes(results)[1])
    data = json.loads(re.search(r'application/json">(.*?)</script>', text, re.S)[1])
    assert data["stride"] == 2 and data["people"][0]["mesh"]["rows"] == [0, 2, 4, 5]


def test_points_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        quantise(np.full((1, 2, 3), np.nan))


def test_viewer_serves_every_result(results):
    pytest.importorskip("viser")
    from tore_fast.vis.viewer import Viewer

    scenes = read_scenes(results)
    viewer = Viewer(scenes, port=8219)
    try:
        with urllib.request.urlopen(viewer.address, timeout=30) as page:
            assert page.status == 200
        for scene, shown in zip(scenes, (6, 3, 2)):  # meshes, bones and joints of everybody
            viewer.open(scene)
            assert len(viewer._shown) == shown
        viewer.open(scenes[1])
        before = viewer._shown[0].vertices.copy()
        viewer.frame.value = 7
        viewer.draw()
        assert np.abs(viewer._shown[0].vertices - before).max() > 0.05
        viewer.names.value = True
        viewer.draw()
        assert len(viewer._shown) == 3 + 24
    finally:
        viewer.server.stop()


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian: apt-get install chromium)")
def test_pages_in_chromium(results, tmp_path):
    assert command("view", results, "--html", tmp_path / "p.html") == 0
    with Browser() as browser:
        for name in ("photo", "clip", "walk"):
            browser.requests.clear()
            browser.open((tmp_path / f"p_{name}.html").as_uri())
            if name == "photo":
                browser.wait("document.getElementById('photobox').style.display === ''")
            first = picture(browser)
            assert len(np.unique(first.reshape(-1, 3), axis=0)) > 50, name  # the canvas is not empty
            if name != "walk":
                assert browser.js("document.getElementById('note').textContent").count("WebGL") == 0
            if name != "photo":
                last = browser.js(
                    "(() => {const t = document.getElementById('time'); t.value = t.max; t.oninput(); return +t.max})()"
                )
                assert last == {"clip": 5, "walk": 39}[name]
                moved = picture(browser)
                assert (np.abs(moved.astype(int) - first).max(-1) > 30).mean() > 0.01, name
            browser.js("document.getElementById('side').click()")
            assert (np.abs(picture(browser).astype(int) - first).max(-1) > 30).mean() > 0.01, name
            assert all(r.startswith(("file:", "data:")) for r in browser.requests)
        assert not browser.errors, browser.errors


def picture(browser) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(browser.screenshot())).convert("RGB"))[40:380]
