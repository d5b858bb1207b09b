"""One run: which weights are exported and what the card says, for every task; start weights; the test file."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil

import pytest
import torch
from torch import nn

pytest.importorskip("accelerate")

from made_up.line_task import LineFit  # noqa: E402

import tore_fast.train  # noqa: E402
from tore_fast.train import run as runs  # noqa: E402
from tore_fast.train.config import Task, TrainConfig  # noqa: E402
from tore_fast.train.loop import train  # noqa: E402
from tore_fast.train.start import take_weights  # noqa: E402

TASKS = {
    "BodyRecovery",
    "Classification",
    "HMRTask",
    "Keypoints",
    "LabelledMeshes",
    "MeshRecovery",
    "MotionDenoiserTask",
    "MotionVAETask",
    "PoseLifting",
    "SynthKeypoints",
}


class Worse(LineFit):
    """Its held-out error rises from evaluation to evaluation, so the best weights are the first ones."""

    calls = 0

    def evaluate(self, model):
        self.calls += 1
        return {"error": float(self.calls)}


class Validated(Worse):
    validation = "other lines"

    def report(self, model):
        return {"error": 0.25}


def config(out, **changes):
    return TrainConfig(**{"out": str(out), "steps": 6, "batch_size": 4, "eval_every": 2, "ema": 0.5, **changes})


def test_without_validation_data_the_last_averaged_weights_are_taken(tmp_path):
    task = Worse()
    train(task, config(tmp_path), log=lambda _: None)
    chosen = runs.choose(task, tmp_path)
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert (chosen.step, chosen.selection, chosen.validation) == (6, "last averaged weights", {})
    assert all(torch.equal(v, last["ema"]["average"][k]) for k, v in chosen.weights.items())
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert best["step"] == 2 and any(not torch.equal(v, best["model"][k]) for k, v in chosen.weights.items())
    plain = Worse()
    train(plain, config(tmp_path / "plain", ema=0.0), log=lambda _: None)
    assert runs.choose(plain, tmp_path / "plain").selection == "last weights"
    with pytest.raises(FileNotFoundError, match="no last.pt"):
        runs.choose(plain, tmp_path / "nowhere")


def test_with_validation_data_the_best_weights_on_it_are_taken(tmp_path):
    task = Validated()
    train(task, config(tmp_path), log=lambda _: None)
    chosen = runs.choose(task, tmp_path)
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert (chosen.step, chosen.selection) == (2, "lowest error on other lines") and chosen.validation == {"error": 1.0}
    assert all(torch.equal(v, best["model"][k]) for k, v in chosen.weights.items())


@pytest.mark.parametrize("kind", [Worse, Validated])
def test_the_card_says_how_the_checkpoint_was_chosen(tmp_path, kind, capsys, monkeypatch):
    saved = []
    monkeypatch.setattr("tore_fast.models.save", lambda *args, **facts: saved.append((args, facts)))
    metrics = runs.run(kind(), config(tmp_path), "line", test=True, export=tmp_path / "model", facts={"data": "lines"})
    (model, folder, name, dtype), card = saved[0]
    assert (folder, name, dtype, model.training) == (tmp_path / "model", "line", None, False)
    assert card["trained_on"]["data"] == "lines" and card["trained_on"]["training"]["steps"] == 6
    if kind is Validated:
        assert metrics == card["metrics"] == {"error": 0.25} and card["validation"] == {"error": 1.0}
        assert card["selection"] == "lowest error on other lines (step 2)"
    else:  # measured again at the end: the fourth time
        assert metrics == card["metrics"] == {"error": 4.0} and "validation" not in card
        assert card["selection"] == "last averaged weights (step 6)"
    told = json.loads((tmp_path / "test.json").read_text())
    assert told["selection"] == card["selection"] and told["metrics"] == metrics
    assert card["selection"] in capsys.readouterr().out


def test_without_test_the_test_data_of_a_validated_task_is_not_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr("tore_fast.models.save", lambda *args, **facts: None)
    monkeypatch.setattr(Validated, "report", lambda self, model: pytest.fail("looked at the test data"))
    assert runs.run(Validated(), config(tmp_path), "line", export=tmp_path / "model") == {}
    assert not (tmp_path / "test.json").exists()


def test_every_task_follows_the_rule():
    """A task whose checkpoint is chosen by `evaluate` reports other data than that; all others report what they
    evaluate."""
    found = {}
    for module in pkgutil.iter_modules(tore_fast.train.__path__, "tore_fast.train."):
        for name, kind in vars(importlib.import_module(module.name)).items():
            if inspect.isclass(kind) and issubclass(kind, Task) and not inspect.isabstract(kind):
                found[name] = kind
    assert set(found) == TASKS
    for name, kind in found.items():
        assert kind.best_metric or name == "Keypoints", name  # that one's comes with the data's metric
        assert not kind.validation or kind.report is not Task.report, name
    assert [name for name, kind in found.items() if kind.validation] == ["PoseLifting"]


def nested():
    model = nn.Module()
    model.backbone = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    model.head = nn.Linear(4, 2)
    return model


def test_start_weights_say_what_was_taken(tmp_path):
    classifier = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    torch.save({"model": classifier.state_dict(), "step": 3}, tmp_path / "backbone.pt")
    model = nested()
    assert take_weights(model, tmp_path / "backbone.pt").endswith(
        "4 of 6 tensors taken: the backbone; the rest starts anew"
    )
    assert torch.equal(model.backbone[1].weight, classifier[1].weight)
    averages = {k: v + 1 for k, v in model.state_dict().items()}
    state = {"model": model.state_dict(), "step": 3, "ema": {"average": averages, "updates": 1}}
    torch.save(state, tmp_path / "last.pt")
    other = nested()
    assert take_weights(other, tmp_path / "last.pt").endswith("6 of 6 tensors taken: the whole model")
    assert torch.equal(other.head.bias, model.head.bias + 1)  # the averaged ones
    wrapped = nn.ModuleDict({"model": nested()})  # train-only heads lie around it
    assert "6 of 6" in take_weights(wrapped, tmp_path / "last.pt")
    with pytest.raises(ValueError, match="--checkpoint .*backbone.pt: 0 of its 4 tensors fit"):
        take_weights(nn.Linear(9, 9), tmp_path / "backbone.pt")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        take_weights(model, tmp_path / "gone.pt")
