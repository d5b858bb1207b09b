"""`tore-fast` as a user types it: results on disk, one line per bad input, exit codes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import trimesh
from made_up.command import command
from PIL import Image

from tore_fast.cli import VERBS, main
from tore_fast.models import create_model, save_pretrained
from tore_fast.pipelines.results import NPZ_KEYS, unique_names


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    save_pretrained(create_model("tore_default"), folder, "tore_default", torch.float16)
    return str(folder)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (90, 70, 3), dtype=np.uint8)).save(path)
    return path


def test_predict_writes_every_format(checkpoint, photo, tmp_path, capsys):
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"photo.jpg": [[5, 5, 60, 80], [0, 0, 30, 40]]}))
    out = tmp_path / "out"
    assert (
        command("predict", photo, "--model", checkpoint, "--boxes", boxes, "--out", out, "--format", "png,glb,obj,npz")
        == 0
    )
    assert {p.name for p in out.iterdir()} == {
        "photo_overlay.png",
        "photo_0.glb",
        "photo_1.glb",
        "photo_0.obj",
        "photo_1.obj",
        "photo.npz",
    }
    with Image.open(out / "photo_overlay.png") as image:
        assert image.size == (70, 90)
    with np.load(out / "photo.npz", allow_pickle=False) as data:
        assert set(data.files) == set(NPZ_KEYS)
        assert data["vertices"].shape == (2, 6890, 3) and data["box"].tolist() == [[5, 5, 60, 80], [0, 0, 30, 40]]
        mesh = trimesh.load(out / "photo_1.obj", process=False)
        np.testing.assert_allclose(mesh.vertices * [1, -1, -1], data["vertices"][1], atol=1e-4)
        assert np.array_equal(mesh.faces, data["faces"])
    text = capsys.readouterr().out
    assert "2 people in 1 images" in text and "seconds per stage: read" in text


def test_bad_inputs_are_named_and_the_rest_is_done(checkpoint, photo, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(photo.read_bytes()[:200])
    (tmp_path / "notes.jpg").write_text("no image")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    code = command(
        "predict",
        tmp_path / "broken.png",
        photo,
        tmp_path / "notes.jpg",
        tmp_path / "empty",
        "--model",
        checkpoint,
        "--out",
        out,
        "--format",
        "npz",
        "--boxes",
        "full",
    )
    err = capsys.readouterr().err
    assert code == 1 and [p.name for p in out.iterdir()] == ["photo.npz"]
    for word in (
        "broken.png: damaged or truncated",
        "notes.jpg: not an image",
        "empty: the folder holds no image",
        "3 of 4",
    ):
        assert word in err, err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "extra,words",
    [
        (["--format", "fbx"], "--format: expected some of png"),
        (["--boxes", "nowhere.json"], "no such box file"),
        (["--model", "fastmetro_xl"], "no model 'fastmetro_xl'"),
        (["--device", "cuda:0"], "no CUDA device"),
        (["--batch-size", "0"], "batch_size must be at least 1"),
    ],
)
def test_usage_errors(checkpoint, photo, tmp_path, capsys, extra, words):
    if "cuda:0" in extra and torch.cuda.is_available():
        pytest.skip("a GPU is there")
    model = [] if "--model" in extra else ["--model", checkpoint]
    assert command("predict", photo, *model, "--out", tmp_path / "o", *extra) == 2
    assert words in capsys.readouterr().err


def test_names_do_not_collide(tmp_path):
    assert unique_names([tmp_path / "a" / "x.jpg", tmp_path / "b" / "x.png", tmp_path / "y.jpg"]) == ["x", "x_2", "y"]


def test_info_and_unknown_verbs(capsys):
    assert command("info", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert {"tore_fast", "packages", "backends", "ops", "build"} <= set(report)
    assert command("fly") == 2 and "no verb 'fly'" in capsys.readouterr().err
    main(["--help"])
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)


@pytest.mark.parametrize(
    "argv,words",
    [
        (["--device", "banana"], ["device", "expected auto, cpu", "'banana'"]),
        (["--checkpoint", "garbage.bin"], ["garbage.bin", "not a readable weight file"]),
        (["--checkpoint", "code.bin"], ["code.bin", "not plain tensors", "never executed"]),
        (["--out", "photo.jpg"], ["--out", "expected a folder", "photo.jpg"]),
        (["--boxes", "typo.csv"], ["typo.csv", "line 1", "expected image,x0,y0,x1,y1"]),
        (["--model", "hot_mixste_27"], ["hot_mixste_27", "expected an image-to-mesh model"]),
    ],
)
def test_user_errors_are_one_line(checkpoint, photo, monkeypatch, capsys, argv, words):
    monkeypatch.chdir(photo.parent)
    (photo.parent / "garbage.bin").write_bytes(b"hello" * 100)
    (photo.parent / "typo.csv").write_text("photo.jpg,a,b,c,d\n")
    torch.save({"x": print}, photo.parent / "code.bin")
    model = [] if {"--model", "--checkpoint"} & set(argv) else ["--model", checkpoint]
    assert command("predict", "photo.jpg", *model, *argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("tore-fast predict: ") and all(w in lines[0] for w in words), lines


def test_train_mesh_names_an_unusable_folder(photo, capsys):
    assert command("train", "mesh", "--train.out", photo, "--train.steps", 1) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 and "--train.out" in err[0] and "photo.jpg" in err[0]


def test_no_progress_bar_where_stderr_is_no_terminal(tmp_path, capsys):
    assert command("synth", "--out", tmp_path / "s", "--n", 2, "--size", 0) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
