"""Named recipes: every file loads, fits its job's flags, makes an optimiser and the paper's learning rates."""

from __future__ import annotations

import dataclasses
import importlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tore_fast.cli import main
from tore_fast.cli.train import SUBCOMMANDS
from tore_fast.models import model_entry
from tore_fast.recipes import RecipeError, arguments, batch_note, load_recipe, recipe_names
from tore_fast.train.mesh_loss import PRESETS
from tore_fast.train.optim import learning_rate, make_optimiser


def args_of(name):
    recipe = load_recipe(name)
    return recipe, arguments(recipe, importlib.import_module(f"tore_fast.cli.train_{recipe.task}").Args)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe(name):
    recipe, args = args_of(name)
    assert recipe.task in SUBCOMMANDS and recipe.about and recipe.source
    if "model" in recipe.args:
        assert model_entry(args.model).name == args.model
    if recipe.task == "mesh" and args.labels.loss != "auto":
        assert args.labels.loss in PRESETS and args.labels.loss.endswith("_hand") == args.model.endswith("_hand")
    assert args.train.epochs or args.train.steps
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    optimiser = make_optimiser(model, args.train)
    assert optimiser.param_groups[0]["weight_decay"] == args.train.weight_decay
    rates = [learning_rate(args.train, s) for s in range(0, args.train.steps, 100)]
    assert all(0 < r <= args.train.lr * 1.0001 for r in rates)
    assert not recipe.items_per_step or recipe.items_per_step % args.train.batch_size == 0


def rate(train, epoch, per_epoch=100):
    steps = train.epochs * per_epoch
    return learning_rate(dataclasses.replace(train, steps=round(steps)), round(epoch * per_epoch))


def test_schedules_of_the_papers():
    """The numbers as the papers and released scripts have them, at epochs before and after each change."""
    wanted = {
        "fastmetro_h36m_mixed": {0: 1e-4, 59: 1e-4},
        "fastmetro_3dpw_finetune": {0: 2e-5, 7: 2e-5},
        "metro_h36m_mixed": {99: 1e-4, 101: 1e-5},
        "tore_fastmetro_h36m_mixed": {29: 1e-4, 31: 1e-5},
        "lifting_mixste": {0: 4e-5, 1: 4e-5 * 0.99, 100: 4e-5 * 0.99**100},
        "lifting_motionbert": {60: 5e-4 * 0.99**60},
        "tcformer_wflw": {29: 1e-4, 31: 1e-5, 51: 1e-6},
    }
    for name, points in wanted.items():
        _, args = args_of(name)
        for epoch, value in points.items():
            assert rate(args.train, epoch) == pytest.approx(value, rel=1e-3), (name, epoch)
    _, whole = args_of("tcformer_wholebody")
    assert [round(rate(whole.train, e, 1000) / 5e-4, 4) for e in (168, 172, 198, 202)] == [1, 0.1, 0.1, 0.01]
    _, tore = args_of("tore_fastmetro_h36m_mixed")
    assert (tore.train.clip_value, tore.train.clip_norm, tore.train.decay_all) == (0.3, 0.0, True)
    assert isinstance(make_optimiser(nn.Linear(1, 1), args_of("metro_freihand")[1].train), torch.optim.Adam)


def test_list_recipes(capsys):
    with pytest.raises(SystemExit) as e:
        main(["train", "--list-recipes"])
    text = capsys.readouterr().out
    assert e.value.code == 0 and all(name in text for name in recipe_names())


def test_note_on_another_batch(monkeypatch):
    recipe, args = args_of("fastmetro_h36m_mixed")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "--train.accumulate 2 makes it so" in batch_note(recipe, args.train)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert batch_note(recipe, args.train) == ""


def test_a_recipe_runs_and_its_values_can_be_changed(tmp_path, capsys, monkeypatch):
    """One step of TORE's recipe, the model and the number of steps taken from the command line."""
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform(10, 90, (24, 2)), np.ones((24, 1))], 1).tolist()
    rows = [
        {"image": f"{i}.png", "box": [10, 20, 50, 100], "keypoints_2d": points, "keypoints_2d_set": "j24"}
        for i in range(2)
    ]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    for i in range(2):
        Image.fromarray(rng.integers(0, 255, (128, 96, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    command = [
        "train",
        "--recipe",
        "tore_fastmetro_h36m_mixed",
        "--model",
        "tore_default",
        "--no-imagenet-backbone",
        "--data",
        tmp_path / "t.json",
        "--train.out",
        tmp_path / "run",
        "--train.epochs",
        "1",
        "--train.batch-size",
        "2",
    ]
    with pytest.raises(SystemExit) as e:
        main([str(c) for c in command])
    text = capsys.readouterr().out
    assert e.value.code == 0 and "recipe tore_fastmetro_h36m_mixed" in text and "--train.accumulate 32" in text
    config = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["config"]
    assert (config["clip_value"], config["schedule"], config["steps"], config["batch_size"]) == (0.3, "step", 1, 2)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["train", "--recipe", "fastmeter"], ["no such recipe", "fastmetro_h36m_mixed"]),
        (["train", "lifting", "--recipe", "metro_freihand"], ["train mesh", "not lifting"]),
        (["train", "--recipe"], ["expected a name"]),
        (["train", "--train.steps", "3"], ["expected a task"]),
    ],
)
def test_mistakes(argv, words, capsys):
    with pytest.raises(SystemExit) as e:
        main(argv)
    error = capsys.readouterr().err
    assert e.value.code == 2 and all(w in error for w in words), error


@pytest.mark.parametrize(
    "text, words",
    [
        ("task =", "not TOML"),
        ('task = "mesh"', "no 'about'"),
        ('task = "mesh"\nabout = ""\nsource = ""\nspeed = 3', "'speed'"),
        ('task = "mesh"\nabout = ""\nsource = ""\n[args.train]\nlearning_rate = 1e-3', "no field 'learning_rate'"),
        (
            'task = "mesh"\nabout = ""\nsource = ""\n[args.train]\nlr = "fast"',
            "args.train.lr: expected float, got 'fast'",
        ),
        ('task = "mesh"\nabout = ""\nsource = ""\n[args]\ntrain = 3', "expected a table"),
    ],
)
def test_own_recipe_files(text, words, tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=words.replace("(", r"\(")):
        args_of(path)
    path.write_text(
        'task = "mesh"\nabout = "mine"\nsource = "me"\n[args]\nmodel = "x"\n[args.train]\nlr = 1\nout = "runs/x"\n'
    )
    recipe, args = args_of(path)
    assert (recipe.name, args.train.lr, args.train.batch_size, json.dumps(args.model)) == ("own", 1.0, 32, '"x"')
