"""Attention images: layouts name the right tokens, the right cell and the right vertex light up, the command writes
files."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
import torch
from made_up.command import command
from PIL import Image

from tore_fast.body import load_body
from tore_fast.cli.viz_attention import _layers
from tore_fast.models.mesh.tore import FastMETRO_TORE, FastMETROToreConfig
from tore_fast.vis.attention_maps import colours, map_layout, on_mesh, over_image, save_table, sheet, to_cells


def test_layouts():
    sizes = dict(joints=14, vertices=431, image_tokens=39)
    assert map_layout("cross_1", (14, 39), **sizes) == ({"joint": slice(0, 14)}, {"image": slice(0, 39)})
    assert map_layout("cross_3", (431, 14), **sizes) == ({"vertex": slice(0, 431)}, {"joint": slice(0, 14)})
    assert map_layout("encoder_3", (15, 15), **sizes).rows == {"camera": slice(0, 1), "joint": slice(1, 15)}
    assert map_layout("cross_2", (445, 39), **sizes).rows == {"joint": slice(0, 14), "vertex": slice(14, 445)}
    assert map_layout("bert_1", (484, 484), **sizes).cols["image"] == slice(445, 484)
    for name, shape in (("cross_1", (14, 49)), ("bert_1", (15, 15)), ("encoder_1", (39, 39))):
        with pytest.raises(ValueError, match=name):
            map_layout(name, shape, **sizes)


@pytest.mark.parametrize("selector", ["soft", "cluster", "attention", "none"])
def test_maps_of_a_model_sum_to_one_over_the_cells(selector):
    torch.manual_seed(0)
    small = dict(dim_1=32, dim_2=16, dim_3=16, feedforward_1=32, feedforward_2=16, feedforward_3=16, heads=4)
    config = FastMETROToreConfig(
        backbone=None, feature_dim=8, selector=selector, keep_ratio=0.5, selector_dim=16, dropout=0.0, **small
    )
    model = FastMETRO_TORE(config).eval()
    with torch.no_grad():
        out = model(torch.randn(1, 8, 7, 7), return_attention=True, fine=False)
    heatmap = None if out.heatmap is None else out.heatmap[0].numpy()
    tokens = 49 if heatmap is None else heatmap.shape[0]
    for name, maps in out.attention.items():
        weights = maps[0, 0].numpy()
        rows, cols = map_layout(name, weights.shape, 14, 431, tokens)
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-4)
        if name in ("cross_1", "cross_2"):
            cells = to_cells(weights[rows["joint"], cols["image"]], heatmap)
            assert cells.shape == (14, 49)
            np.testing.assert_allclose(cells.sum(-1), 1, atol=1e-4)


def test_pruned_tokens_go_back_to_their_cells():
    heatmap = np.array([[0, 0.5, 0.5, 0], [0, 0, 0, 1.0]])
    np.testing.assert_allclose(to_cells(np.array([[0.25, 0.75]]), heatmap), [[0, 0.125, 0.125, 0.75]])
    with pytest.raises(ValueError, match="3 weights"):
        to_cells(np.ones((1, 3)), heatmap)


def test_the_attended_cell_lights_up():
    image = np.full((30, 40, 3), 100, np.uint8)
    cells = np.zeros(12)
    cells[1 * 4 + 2] = 0.7  # row 1, column 2 of 3 x 4
    drawn = over_image(image, cells, (3, 4), alpha=1.0)
    bright = (drawn == colours(np.ones(1))[0].round().astype(np.uint8)).all(-1)
    expected = np.zeros((30, 40), bool)
    expected[10:20, 20:30] = True
    np.testing.assert_array_equal(bright, expected)
    ring = over_image(image, cells, (3, 4), point=(8, 22), alpha=1.0)
    changed = np.argwhere((ring != drawn).any(-1))
    np.testing.assert_allclose(changed.mean(0), (22, 8), atol=1)
    with pytest.raises(ValueError, match="12"):
        over_image(image, cells[:-1], (3, 4))


def test_the_attended_end_of_the_mesh_lights_up():
    body = load_body("free")
    hierarchy = body.topology.hierarchy
    vertices = body.template.numpy()[hierarchy.vertex_index(2)] * np.array([1.0, -1.0, -1.0])  # y down
    head = vertices[:, 1] < np.quantile(vertices[:, 1], 0.05)
    drawn = on_mesh(vertices, hierarchy.faces[-1], head.astype(float), size=120).astype(int)
    assert drawn.shape == (120, 240, 3)
    for view in (drawn[:, :120], drawn[:, 120:]):
        body_px = (view != 255).any(-1)
        lit = body_px & (view[..., 1] > view[..., 2] + 20)  # yellow and green, not violet
        rows = np.flatnonzero(body_px.any(1))
        assert lit.any() and np.flatnonzero(lit.any(1)).max() < rows[0] + 0.4 * np.ptp(rows)
    with pytest.raises(ValueError, match="one value per vertex"):
        on_mesh(vertices, hierarchy.faces[-1], head[:-1])
    with pytest.raises(ValueError, match="finite"):
        on_mesh(vertices * np.nan, hierarchy.faces[-1], head)


def test_sheet():
    tile = np.zeros((10, 20, 3), np.uint8)
    assert sheet([(tile, "a")] * 5, columns=3).shape == (2 * (10 + 16 + 6) - 6, 3 * 26 - 6, 3)


def test_table_and_missing_matplotlib(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="the viz extra")
    save_table(np.eye(3), ("a", "b", "c"), tmp_path / "t.png")
    assert Image.open(tmp_path / "t.png").size[0] > 100
    with pytest.raises(ValueError, match=r"\[2, 2\]"):
        save_table(np.eye(3), ("a", "b"), tmp_path / "t.png")
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="viz"):
        save_table(np.eye(3), ("a", "b", "c"), tmp_path / "t.png")


def test_command(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the viz extra")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 60, 3), dtype=np.uint8)).save(tmp_path / "p.jpg")
    photo, out = str(tmp_path / "p.jpg"), tmp_path / "out"

    def call(*extra):
        return command("viz", "attention", photo, "--model", "tore_default", "--out", out, *extra), capsys.readouterr()

    code, said = call("--joints", "Head", "L_Wrist")
    assert code == 0 and "random weights" not in said.err  # tore_default is trained
    files = {p.name for p in out.iterdir()}
    assert files == {
        "decoder_1.1_joints.png",
        "decoder_2.1_joints.png",
        "encoder_3.1_joints.png",
        "cross_1.1_image.png",
        "cross_2.1_image.png",
        "decoder_3.1_vertices.png",
        "cross_3.1_joints_on_mesh.png",
    }
    assert len(said.out.splitlines()) == len(files)
    assert Image.open(out / "cross_1.1_image.png").size == (3 * 230 - 6, 224 + 16)  # crop, Head, L_Wrist
    for extra, text in (
        (["--layer", "cross_9"], "'cross_9'; this model has encoder_1.1, decoder_1.1"),
        (["--joints", "Tail"], "'Tail'; expected all or some of R_Ankle"),
        (["--model", "ppt_s"], "returns no attention maps; expected fastmetro"),
    ):
        code, said = call(*extra)
        last = said.err.splitlines()[-1]
        assert code == 2 and last.startswith("tore-fast viz attention: ") and text in last


def test_layer_names():
    maps = {"cross_1": np.zeros((3, 2, 2)), "cross_2": np.zeros((1, 2, 2))}
    assert _layers((), maps) == [("cross_1", 2), ("cross_2", 0)]
    assert _layers(("cross_1.1", "cross_1"), maps) == [("cross_1", 0), ("cross_1", 2)]
    for wrong in ("cross_1.4", "cross_1.0", "cross_1.x", "cross"):
        with pytest.raises(ValueError, match=r"cross_1\.1-3, cross_2\.1"):
            _layers((wrong,), maps)
