"""The training loop: resuming equals not stopping, the schedule, the averaged weights."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

from tore_fast.train.ema import Ema
from tore_fast.train.loop import TrainConfig, learning_rate, train

pytest.importorskip("accelerate")


class LineFit:
    """y = 3x - 1 with noise; dropout makes the curve depend on the random state."""

    best_metric = "error"

    def __init__(self):
        torch.manual_seed(7)
        self.model = nn.Sequential(nn.Linear(1, 16), nn.Dropout(0.1), nn.ReLU(), nn.Linear(16, 1))

    def batch(self, index, batch_size, step):
        g = torch.Generator().manual_seed(index)
        x = torch.rand(batch_size, 1, generator=g)
        return {"x": x, "y": 3 * x - 1 + 0.01 * torch.randn(batch_size, 1, generator=g)}

    def loss(self, model, batch, step):
        value = (model(batch["x"]) - batch["y"]).square().mean()
        return value, {"mse": value.detach()}

    def evaluate(self, model):
        batch = self.batch(10**6, 256, 0)
        with torch.no_grad():
            return {"error": float((model(batch["x"]) - batch["y"]).abs().mean())}


def config(out, **changes):
    base = TrainConfig(out=str(out), steps=60, batch_size=16, lr=1e-2, warmup=5, log_every=1, eval_every=30,
                       clip_norm=1.0, ema=0.9)
    return dataclasses.replace(base, **changes)


def curve(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: r["loss"] for r in rows if "loss" in r}


def test_resume_follows_the_same_curve(tmp_path):
    train(LineFit(), config(tmp_path / "whole"), log=lambda _: None)
    stopped = config(tmp_path / "parts", max_minutes=1e-9)  # stops after every single step
    for _ in range(60):
        train(LineFit(), stopped, log=lambda _: None)
    whole, parts = curve(tmp_path / "whole"), curve(tmp_path / "parts")
    assert len(whole) == 60 and whole == parts
    a, b = (torch.load(tmp_path / d / "last.pt", weights_only=True) for d in ("whole", "parts"))
    for k, v in a["ema"]["average"].items():
        assert torch.equal(v, b["ema"]["average"][k]), k


def test_it_learns_and_keeps_the_best(tmp_path):
    metrics = train(LineFit(), config(tmp_path, steps=300, eval_every=100), log=lambda _: None)
    assert metrics["error"] < 0.3
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert best["metrics"]["error"] <= metrics["error"]


def test_accumulation_equals_one_large_batch(tmp_path):
    class Plain(LineFit):
        def __init__(self):
            super().__init__()
            self.model = nn.Linear(1, 1)

    class Halves(Plain):
        def batch(self, index, batch_size, step):
            whole = super().batch(index // 2, batch_size * 2, step)
            half = index % 2
            return {k: v[half * batch_size : (half + 1) * batch_size] for k, v in whole.items()}

    train(Plain(), config(tmp_path / "one", steps=10), log=lambda _: None)
    train(Halves(), config(tmp_path / "two", steps=10, batch_size=8, accumulate=2), log=lambda _: None)
    a, b = (torch.load(tmp_path / d / "last.pt", weights_only=True)["model"] for d in ("one", "two"))
    for k in a:
        torch.testing.assert_close(a[k], b[k], rtol=1e-5, atol=1e-6)


def test_learning_rate():
    c = TrainConfig(steps=100, warmup=10, lr=1.0, min_lr=0.0)
    assert learning_rate(c, 0) == pytest.approx(0.1)
    assert learning_rate(c, 9) == pytest.approx(1.0)
    assert learning_rate(c, 100) == pytest.approx(0.0, abs=1e-12)
    assert learning_rate(dataclasses.replace(c, schedule="step"), 80) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="schedule must be"):
        learning_rate(dataclasses.replace(c, schedule="triangle"), 50)


def test_ema_is_restored_after_use():
    model = nn.Linear(2, 2)
    ema = Ema(model, 0.5)
    own = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        model.weight.add_(1.0)
    ema.update(model)
    with ema.applied(model):
        assert not torch.equal(model.weight, own["weight"] + 1)
    assert torch.equal(model.weight, own["weight"] + 1)
