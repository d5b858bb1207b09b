"""`tore-fast accelerate`: rows of error and time on models of this package and of others, and the search for layers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from made_up import foreign_vit as foreign
from made_up.command import command
from PIL import Image


@pytest.fixture()
def say(capsys):
    """Runs a command; its exit code, stdout and stderr."""

    def run(*words):
        capsys.readouterr()
        return command("accelerate", *words), *capsys.readouterr()

    return run


@pytest.fixture()
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "im").mkdir()
    rng = np.random.default_rng(0)
    for i in range(2):
        Image.fromarray(rng.integers(0, 255, (60, 50, 3), np.uint8)).save(tmp_path / "im" / f"{i}.png")
    return "im"


def rotary():
    torch.manual_seed(0)
    return foreign.randomise(foreign.RotaryViT())


def estimator():
    torch.manual_seed(0)
    made = foreign.Estimator()
    foreign.randomise(made.model)
    return made


def test_error_and_time_of_fewer_tokens_layers_and_pixels(images, say):
    code, out, _ = say(f"{__name__}:rotary", "--data", images, "--side", "128", "--search-layers",
                           "--tau", "1e9", "--json")  # fmt: skip
    assert code == 0 and json.loads(out)["blocks"] == [6, 1]
    code, out, _ = say(f"{__name__}:rotary", "--data", images, "--side", "128", "--repeats", "1",
                           "--keep", "0.5", "24", "--crops", "0.75", "--layers", "out_accelerate/plan.json", "--plot",
                           "--json")  # fmt: skip
    facts = json.loads(out)
    rows = [(r["kind"], r["blocks"], r.get("keep_tokens"), r.get("part")) for r in facts["rows"]]
    assert code == 0 and facts == json.loads(open("out_accelerate/pareto.json").read()) | {"plot": facts["plot"]}
    assert rows == [
        ("unmodified", 6, None, None),
        ("crop", 6, None, 0.75),
        *(("keep", 6, k, None) for k in (0.5, 24)),
        *(("keep", 1, k, None) for k in (None, 0.5, 24)),
    ]
    error = [r["error"] for r in facts["rows"]]
    assert facts["unit"] == "relative" and error[0] == 0 and 0 < error[2] < error[3] < error[5]
    assert Image.open(facts["plot"]).size[0] > 300


def test_an_estimator_is_measured_in_millimetres(images, say):
    code, out, _ = say(f"{__name__}:estimator", "--data", images, "--repeats", "1", "--keep", "0.5")
    assert code == 0 and "error mm" in out and "an estimator cuts its crops itself" in out


def test_hosts_of_this_package_and_precision(images, say):
    code, out, error = say("hmr2_vitt", "--set", "depth", "4", "--data", images, "--repeats", "1",
                               "--keep", "0.5", "--crops", "0.75", "--precision", "bf16", "--json")  # fmt: skip
    rows = json.loads(out)["rows"]
    assert code == 0 and "random weights" in error and rows[2]["error"] > 0 and "img must be" in rows[1]["refused"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--keep", "-1"), "expected positive numbers"),
        (("--crops", "2"), "parts of the side below 1"),
        ((), "--side: give the side of the crops"),
    ],
)
def test_what_cannot_be_measured(images, say, words, said):
    code, _, error = say(f"{__name__}:rotary", "--data", images, *words)
    assert code == 2 and said in error and error.count("\n") == 1
