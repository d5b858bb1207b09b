"""The one rule of all verbs: 0 done, 1 work failed, 2 not doable as typed; errors are one line
`tore-fast VERB: ...`."""

from __future__ import annotations

import importlib

import pytest
import torch
from made_up.command import command

import tore_fast.cli as cli
from tore_fast.cli import VERBS, UsageError, arguments, format_error
from tore_fast.models import create_model, save
from tore_fast.train.config import TrainConfig

JOBS = {verb: tuple(getattr(importlib.import_module(f"tore_fast.cli.{verb}"), "SUBCOMMANDS", ())) for verb in VERBS}
SAID = {  # one mistake per verb and what the line must say
    ("convert", "nowhere.bin", "out"): "nowhere.bin: no such file",
    ("convert", "text.bin", "text.bin"): "text.bin: expected a folder to write, got a file",
    ("convert", "text.bin", "out", "--upstream", "mtro"): "--upstream: expected one of fastmetro",
    ("convert", "text.bin", "out", "--upstream", "hott"): "--upstream: expected one of fastmetro, tore",
    ("export", "default", "tore.tflite"): "OUT: expected a file name that ends in .onnx, .pt2",
    ("export", "fasthmr_motion_d5", "m.onnx"): "is of task motion; exported are mesh",
    ("export", "camerahmr_vits", "m.onnx"): "has no field-of-view net",
    ("list", "nothing*"): "no model matches 'nothing*'",
    ("list", "--family", "metros"): "no model has 'metros'; expected some of blazepose, fasthmr",
    ("list", "--tag", "foot"): "no model has 'foot'; expected some of ",
    ("predict", "nowhere.jpg"): "no image or video to work on",
    ("batch", "nowhere.tar"): "nowhere.tar: not there",
    ("batch", "text.bin", "--workers", "0"): "workers and unit_images must be at least 1",
    ("accelerate", "hmr2_vits"): "--data: give images or folders of images",
    ("accelerate", "hmr2_vits", "--search-layers"): "give --data (to search) or --layers (to apply a plan)",
    ("accelerate", "mixste_27", "--data", "."): "no HMR2.0 or CameraHMR model",
    ("accelerate", "timm:nothing", "--data", "."): "timm:nothing: Unknown model",
    ("accelerate", "nowhere:model", "--data", "."): "MODEL nowhere:model: No module named",
    ("lift", "nowhere.json", "--model", "mixste_27"): "nowhere.json: no such file",
    ("lift",): "no key-point file to work on",
    ("eval", "mesh", "--data", "nowhere"): "nowhere: no such file or folder",
    ("eval", "lifting", "--model", "mixste_27", "--data", "nowhere"): "mixste_27: not a folder with trained weights",
    ("eval", "smpl", "--data", "nowhere"): "--model or --checkpoint",
    ("eval", "smpl", "--data", "nowhere", "--model", "tore_default"): "regresses no body parameters",
    ("eval", "motion", "--data", "nowhere", "--model", "gone"): "--model gone: no such folder",
    ("eval", "keypoints", "--data", "nowhere"): "--model or --checkpoint",
    ("eval", "classify", "--data", "nowhere"): "--model or --checkpoint",
    ("train", "--recipe", "nothing"): "nothing",
    ("view", "nowhere"): "nowhere: no such file or folder",
    ("demo", "--device", "banana"): "expected auto, cpu, cuda",
    ("viz", "tokens", "nowhere.jpg"): "nowhere.jpg",
    ("viz", "attention", "nowhere.jpg", "--model", "ppt_s"): "--model ppt_s returns no attention maps",
    ("viz", "frames", "--data", "nowhere"): "nowhere: no such file or folder",
    ("viz", "keypoints", "nowhere.jpg"): "nowhere.jpg: no such file",
    ("viz", "stages"): "RESULTS: give result files",
    ("viz", "stages", "nowhere.npz"): "nowhere.npz: no such file",
    ("viz", "noise", "nowhere.jpg"): "nowhere.jpg: no such file",
    ("train", "mesh", "--model", "ppt_s"): "--model ppt_s: expected an image-to-mesh model",
    ("train", "mesh", "--train.steps", "0"): "train.steps: expected at least 1, got 0",
    ("train", "mesh", "--train.schedule", "linear"): "train.schedule: expected one of cosine",
    (
        "train",
        "mesh",
        "--checkpoint",
        "nowhere.pt",
        "--train.out",
        "run",
    ): "--checkpoint nowhere.pt: no such file or folder",
    ("train", "mesh", "--checkpoint", "text.bin", "--train.out", "run"): "text.bin: not",
    ("train", "mesh", "--checkpoint", "other.pt", "--train.out", "run"): "other.pt: no known layout",
    ("train", "mesh", "--set", "num_layer", "3"): "--set num_layer: ",
    ("train", "mesh", "--recipe", "metro_freihand"): "--data: give the data sets of the recipe",
    ("train", "lifting", "--data", "nowhere"): "nowhere",
    ("train", "lifting", "--data", ".", "--model", "ppt_s"): "not made for seq2seq or seq2frame",
    ("train", "motion", "--data", "nowhere"): "expected a folder with AMASS-like .npz",
    ("train", "motion", "--data", "nowhere", "--regressor", "x"): "--regressor: is for stage 2",
    ("train", "classify", "--data", "nowhere"): "nowhere",
    ("train", "keypoints", "--data", "nowhere.txt"): "needs --val",
    ("train", "keypoints", "--data", "nowhere.txt", "--val", "x"): "nowhere.txt: no such file",
    ("train", "smpl", "--model", "nothing"): "no model 'nothing'",
    ("train", "smpl", "--model", "hmr2_vitt", "--data", "x.yaml"): "train on synthetic crops of the free body",
    ("synth", "clips", "--data", "nowhere", "--out", "clips"): "nowhere",
    ("synth", "images", "--out", "text.bin", "--n", "2", "--size", "48", "--backgrounds", "noise"): "text.bin",
    ("batch", "x", "--out", "y", "--set", "colour", "red"): "--set colour: FastMETROToreConfig has no such field",
    ("bench", "tables", "--op", "nothing"): "no table 'nothing'; expected part of TORE B1",
    ("bench", "ops", "--op", "nothing"): "no ops benchmark 'nothing'",
    (
        "bench",
        "ops",
        "--op",
        "bipartite_match",
        "--quick",
        "--match",
        "nothing",
    ): "no case of ops bipartite_match fits 'nothing'",
    ("predict", "x", "--nope", "3"): "Unrecognized options: --nope, 3 (tore-fast predict --help",
    ("predict", "x", "--batch-size", "abc"): "--batch-size: invalid literal",
    ("synth", "images"): "Missing from tore-fast synth images: --out PATH",
    ("synth", "images", "--out", "x", "--split", "foo"): "invalid choice 'foo' for argument '--split'",
    ("viz", "nothing"): "no job 'nothing'; expected one of tokens",
    ("nothing",): "no verb 'nothing'; expected one of info",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.bin").write_text("no weights")
    torch.save({"model": {"strange": torch.zeros(2)}}, tmp_path / "other.pt")
    return tmp_path


@pytest.mark.parametrize("argv", list(SAID), ids=" ".join)
def test_a_command_that_cannot_be_done_is_one_line_and_2(argv, folder, capsys):
    assert command(*argv) == 2
    lines = capsys.readouterr().err.splitlines()
    prog = ["tore-fast", *argv[: 1 + bool(JOBS.get(argv[0]) and argv[1] in JOBS[argv[0]])]]
    prog = ["tore-fast"] if argv[0] not in VERBS else prog
    assert lines and lines[-1].startswith(" ".join(prog) + ": ") and SAID[argv] in lines[-1], lines
    assert all(line.startswith((" ".join(prog) + ": ", "note: ")) for line in lines), lines
    assert {p.name for p in folder.iterdir()} <= {"text.bin", "other.pt", "run"}


def test_every_verb_and_job_has_a_case():
    verbs = {argv[0] for argv in SAID} | {"info", "doctor"}  # they take nothing that could be wrong
    assert verbs >= set(VERBS)
    jobs = {argv[:2] for argv in SAID}
    assert jobs >= {(verb, job) for verb, names in JOBS.items() for job in names}


def test_failed_work_is_1(folder, capsys):
    assert command("convert", "text.bin", "out") == 1
    assert command("predict", "text.bin", "--out", "a/b") == 1
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith("tore-fast convert: text.bin: not") and err[-1].startswith(
        "tore-fast predict: 1 of 1 inputs"
    )
    assert not (folder / "a").exists() and not (folder / "out").exists()  # nothing to put there


def test_errors_of_the_work_and_of_arguments(monkeypatch, capsys, folder):
    import tore_fast.cli.info as info

    def fail(error):
        def run(args):
            raise error

        monkeypatch.setattr(info, "run", run)
        return command("info"), capsys.readouterr().err

    assert fail(ValueError("seven is odd")) == (1, "tore-fast info: seven is odd\n")
    assert fail(OSError(28, "No space left on device", "x.npz")) == (
        1,
        "tore-fast info: x.npz: No space left on device\n",
    )
    assert fail(UsageError("--x: no")) == (2, "tore-fast info: --x: no\n")
    assert fail(KeyboardInterrupt()) == (130, "tore-fast info: interrupted\n")
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        monkeypatch.setattr(info, "run", lambda args: 1 / 0)
        cli.main(["info"])
    monkeypatch.setenv("TORE_FAST_TRACEBACK", "1")
    monkeypatch.setattr(info, "run", lambda args: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        cli.main(["info"])
    with pytest.raises(UsageError, match="--out: .*text.bin: File exists"):
        with arguments("--out"):
            (folder / "text.bin").mkdir()
    with pytest.raises(OSError, match="No space"):
        with arguments():
            raise OSError(28, "No space left on device")
    assert format_error(KeyError()) == "KeyError"


def test_list(capsys):
    import json

    from tore_fast.models import list_models

    assert command("list", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [r["name"] for r in found] == list_models()
    assert (
        command("list", "metro*", "fastmetro_tore_s_eb0*", "--family", "metro", "tore", "--tag", "hand", "--names-only")
        == 0
    )
    assert capsys.readouterr().out.split() == [
        "fastmetro_tore_s_eb0_hand",
        "metro_h64_hand",
        "metro_r50_hand",
        "metro_tore_h64_hand",
        "metro_tore_r50_hand",
    ]
    assert command("list", "*tore*", "--paper", "--sort", "macs", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert all(r["paper"] for r in found) and [r["gmacs"] for r in found] == sorted(r["gmacs"] for r in found)
    assert command("list", "fastmetro_tore_s_eb0", "--fresh") == 0
    assert "fastmetro_tore_s_eb0" in capsys.readouterr().out


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"accumulate": 0}, {"precision": "fp8"}])
def test_training_options_check_themselves(bad):
    with pytest.raises(ValueError, match=f"train.{next(iter(bad))}: expected"):
        TrainConfig(**bad)


def test_a_folder_of_ours_saved_onto_a_file(folder):
    with pytest.raises(ValueError, match="text.bin: expected a folder to write, got a file"):
        save(create_model("tore_default"), "text.bin", "tore_default")
