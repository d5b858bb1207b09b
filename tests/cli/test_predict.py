"""`tore-fast` as a user types it: results on disk, one line per bad input, exit codes."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
import trimesh
from made_up.command import command
from PIL import Image

from tore_fast.cli import VERBS, main
from tore_fast.io.image import read_image
from tore_fast.models import create_model, save
from tore_fast.pipelines.results import keys_of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    save(create_model("tore_default"), folder, "tore_default", torch.float16)
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
        command(
            "predict", photo, "--model", checkpoint, "--boxes", boxes, "--out", out, "--format", "png,glb,obj,npz,json"
        )
        == 0
    )
    assert {p.name for p in out.iterdir()} == {
        "photo_overlay.png",
        "photo_0.glb",
        "photo_1.glb",
        "photo_0.obj",
        "photo_1.obj",
        "photo_scene.glb",
        "photo.npz",
        "photo.json",
        "results.json",
    }
    with Image.open(out / "photo_overlay.png") as image:
        assert image.size == (70, 90)
    with np.load(out / "photo.npz", allow_pickle=False) as data:
        assert set(data.files) == {
            k for k, key in keys_of("p").items() if not key.optional or k in ("vertices", "faces")
        } and str(data["source"]) == str(photo)
        assert data["vertices"].shape == (2, 6890, 3) and data["box"].tolist() == [[5, 5, 60, 80], [0, 0, 30, 40]]
        mesh = trimesh.load(out / "photo_1.obj", process=False)
        np.testing.assert_allclose(mesh.vertices * [1, -1, -1], data["vertices"][1], atol=1e-4)
        assert np.array_equal(mesh.faces, data["faces"])
    numbers = json.loads((out / "photo.json").read_text())
    assert numbers["box"] == [[5, 5, 60, 80], [0, 0, 30, 40]] and "vertices" not in numbers
    scene = gltf(out / "photo_1.glb")["scenes"][0]["extras"]
    assert scene["source"] == str(photo) and scene["box"] == [[0, 0, 30, 40]]
    assert len(gltf(out / "photo_scene.glb")["meshes"]) == 2
    (entry,) = json.loads((out / "results.json").read_text())["items"]
    assert entry["source"] == str(photo) and entry["people"] == 2 and "photo_1.glb" in entry["files"]
    text = capsys.readouterr().out
    assert "2 people in 1 inputs" in text and "seconds per stage: read" in text and "results.json" in text


def gltf(path) -> dict:
    data = path.read_bytes()
    (size,) = struct.unpack("<I", data[12:16])
    return json.loads(data[20 : 20 + size])


@pytest.mark.parametrize(
    "inputs",
    [("a.jpg", "a_2.jpg", "a.png"), ("a/x.jpg", "b/x.jpg", "x_2.jpg"), ("img.jpg", "img_1.jpg"), ("caf\udce9.jpg",)],
)
def test_results_never_overwrite_each_other(checkpoint, tmp_path, capsys, inputs):
    rng = np.random.default_rng(0)
    for name in inputs:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (60, 50, 3), dtype=np.uint8)).save(path)
    boxes, out = tmp_path / "boxes.json", tmp_path / "out"
    boxes.write_text(json.dumps({str(tmp_path / n): [[1, 1, 40, 50], [5, 5, 30, 40]] for n in inputs}))
    run = [
        "predict",
        *(tmp_path / n for n in inputs),
        "--model",
        checkpoint,
        "--out",
        out,
        "--format",
        "npz,glb",
        "--json",
    ]
    assert command(*run, "--boxes", boxes) == 0
    report = json.loads(capsys.readouterr().out)
    items = json.loads((out / "results.json").read_text())["items"]
    assert {e["source"] for e in items} == {str(tmp_path / n) for n in inputs} and report["people"] == 2 * len(inputs)
    files = [f for e in items for f in e["files"]]
    assert len(set(files)) == len(files) == 4 * len(inputs) and all((out / f).is_file() for f in files)
    for entry in items:
        (npz,) = (f for f in entry["files"] if f.endswith(".npz"))
        assert str(np.load(out / npz)["source"]) == entry["source"]


def test_one_odd_image_does_not_end_the_run(checkpoint, photo, tmp_path, monkeypatch, capsys):
    import tore_fast.pipelines.images as images

    def odd(source):
        if str(source).endswith("odd.jpg"):
            raise MemoryError
        return read_image(source)

    monkeypatch.setattr(images, "read_image", odd)
    (tmp_path / "odd.jpg").write_bytes(photo.read_bytes())
    out = tmp_path / "out"
    assert (
        command(
            "predict",
            tmp_path / "odd.jpg",
            photo,
            "--model",
            checkpoint,
            "--boxes",
            "full",
            "--out",
            out,
            "--format",
            "npz",
        )
        == 1
    )
    assert "odd.jpg: cannot be decoded (MemoryError" in capsys.readouterr().err and (out / "photo.npz").is_file()
    assert [e.get("error") is None for e in json.loads((out / "results.json").read_text())["items"]] == [False, True]


def test_models_of_smpl_parameters_take_a_photograph(photo, tmp_path, capsys):
    small = "embed_dim 32 depth 2 num_heads 2 decoder_depth 1 decoder_heads 2 decoder_dim 24".split()
    for name in ("hmr2_vitt", "camerahmr_vits"):
        out = tmp_path / name
        assert command("predict", photo, "--model", name, "--set", *small, "--boxes", "model", "--out", out) == 0
        with np.load(out / "photo.npz") as data:
            fitted = {k for k, key in keys_of("p").items() if "landmarks" in key.optional}
            assert set(data.files) == set(keys_of("p")) - fitted and data["poses"].shape == (1, 72)
        assert "random weights" in capsys.readouterr().err and (out / "photo_overlay.png").is_file()
    assert command("predict", photo, "--model", "hmr2_vitt", "--set", "prop_attn", "no") == 2
    assert "--set prop_attn: expected true or false, got 'no'" in capsys.readouterr().err


def test_a_folder_of_frames_through_a_mesh_model(checkpoint, photo, tmp_path):
    frames, out = tmp_path / "frames", tmp_path / "out"
    frames.mkdir()
    for i in range(3):
        (frames / f"{i}.jpg").write_bytes(photo.read_bytes())
    (tmp_path / "boxes.csv").write_text("frame,track,x0,y0,x1,y1\n0,4,5,5,60,80\n2,4,6,5,60,80\n2,7,0,0,30,40\n")
    run = ["predict", frames, "--video.folders", "--model", checkpoint, "--boxes", tmp_path / "boxes.csv", "--out", out]
    assert command(*run, "--format", "npz") == 0
    with np.load(out / "frames" / "track_004.npz") as data:
        assert data["frame"].tolist() == [0, 2] and data["vertices"].shape == (2, 6890, 3) and data["track"] == 4
        assert set(data.files) <= set(keys_of("v")) and {"joints_3d", "trans", "faces", "source"} <= set(data.files)
    assert (out / "frames" / "track_007.npz").is_file() and not list((out / "frames").glob(".*"))


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
    assert code == 1 and {p.name for p in out.iterdir()} == {"photo.npz", "results.json"}
    for word in (
        "broken.png: damaged or truncated",
        "notes.jpg: not an image",
        "empty: the folder holds no image or video",
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
        (["--device", "xpu"], "no XPU device"),
        (["--model", "nowhere/model"], "nowhere/model: no such file or folder"),
        (["--batch-size", "0"], "batch_size must be at least 1"),
    ],
)
def test_usage_errors(checkpoint, photo, tmp_path, capsys, extra, words):
    if "cuda:0" in extra and torch.cuda.is_available():
        pytest.skip("a GPU is there")
    model = [] if "--model" in extra else ["--model", checkpoint]
    assert command("predict", photo, *model, "--out", tmp_path / "o", *extra) == 2
    assert words in capsys.readouterr().err


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
        (["--model", "hot_mixste_27"], ["hot_mixste_27", "expected a model of task mesh or smpl"]),
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


def test_the_default_finds_and_fits_people(tmp_path, capsys):
    """The NASA portrait that scikit-image carries (public domain), an image without people, and a focal length in
    EXIF."""
    portrait = Image.fromarray(pytest.importorskip("skimage.data").astronaut())
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 50  # 35 mm equivalent
    portrait.save(tmp_path / "portrait.jpg", exif=exif)
    portrait.save(tmp_path / "plain.png")
    Image.new("RGB", (300, 200), (90, 120, 160)).save(tmp_path / "sky.png")
    out = tmp_path / "out"
    inputs = [tmp_path / n for n in ("portrait.jpg", "plain.png", "sky.png")]
    assert command("predict", *inputs, "--out", out, "--format", "png,glb,npz,json") == 0
    said = capsys.readouterr()
    assert "2 people in 3 inputs" in said.out and "sky.png: nobody found" in said.err
    assert "plain.png: focal length assumed: 614 px" in said.err and "portrait.jpg: focal" not in said.err
    with np.load(out / "portrait.npz", allow_pickle=False) as data:
        assert set(data.files) == set(keys_of("p"))
        assert data["score"][0] > 0.9 and bool(data["believed"][0]) and str(data["reason"][0]) == ""
        assert str(data["focal_source"][0]) == "exif"
        np.testing.assert_allclose(data["focal_px"], 50 / np.hypot(36, 24) * 512 * 2**0.5, rtol=1e-5)
        placed = data["joints_3d"][0] + data["trans"][0]
        pixels = data["focal_px"][0] * placed[:, :2] / placed[:, 2:] + data["principal_px"][0]
        np.testing.assert_allclose(pixels, data["joints_2d"][0], atol=0.1)
        shoulders = [list(data["joint_names"]).index(n) for n in ("L_Shoulder", "R_Shoulder")]
        assert np.abs(pixels[shoulders] - data["landmarks_2d"][0, 11:13]).max() < 40
    with np.load(out / "sky.npz", allow_pickle=False) as data:
        assert "vertices" not in data.files
    assert (out / "portrait.glb").is_file() and not (out / "sky.glb").exists()
    assert json.loads((out / "portrait.json").read_text())["believed"] == [True]


def test_a_video_through_the_default(tmp_path):
    portrait = pytest.importorskip("skimage.data").astronaut()[::2, ::2]
    frames, out = tmp_path / "frames", tmp_path / "out"
    frames.mkdir()
    for i in range(3):
        Image.fromarray(np.roll(portrait, 4 * i, 1)).save(frames / f"{i}.png")
    assert command("predict", frames, "--video.folders", "--out", out, "--format", "npz") == 0
    with np.load(out / "frames" / "track_000.npz", allow_pickle=False) as data:
        assert data["frame"].tolist() == [0, 1, 2] and data["poses"].shape == (3, 72)
        assert data["box"][2, 0] > data["box"][0, 0] and data["focal_px"][0] == pytest.approx(1.2 * 256)


def test_file_names_cannot_speak_to_the_terminal(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["predict", str(tmp_path / "a\n\x1b[31mb.jpg"), "--out", str(tmp_path / "out")])
    err = capsys.readouterr().err
    assert "a\\n\\x1b[31mb.jpg" in err and "\x1b" not in err
