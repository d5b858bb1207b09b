"""The training loop: resuming equals not stopping, the schedule, the averaged weights."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("accelerate")

from made_up.line_task import LineFit  # noqa: E402

from tore_fast.train.config import TrainConfig
from tore_fast.train.ema import Ema  # noqa: E402
from tore_fast.train.loop import train  # noqa: E402
from tore_fast.train.memory import checkpoint_activations, memory_report  # noqa: E402
from tore_fast.train.optim import learning_rate, make_optimiser, parameter_groups  # noqa: E402
from tore_fast.train.prefetch import Prefetch  # noqa: E402
from tore_fast.train.run_log import duration  # noqa: E402

TESTS = Path(__file__).resolve().parents[1]


def config(out, **changes):
    base = TrainConfig(
        out=str(out), steps=60, batch_size=16, lr=1e-2, warmup=5, log_every=1, eval_every=30, clip_norm=1.0, ema=0.9
    )
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


def start(task, config, **environment):
    text = json.dumps([task, dataclasses.asdict(config)])
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen([sys.executable, "-m", "made_up.line_task", text], env=env, cwd=TESTS)


def same_weights(a, b, **tolerance):
    a, b = (torch.load(d / "last.pt", weights_only=True)["model"] for d in (a, b))
    for k in a:
        torch.testing.assert_close(a[k], b[k], **tolerance)


def test_kill_9_and_resume_follow_the_same_curve(tmp_path):
    """A process that kills itself inside step 41, two steps after its last checkpoint, and once more a half-written log
    row."""
    train(LineFit(), config(tmp_path / "whole"), log=lambda _: None)
    train(LineFit(), config(tmp_path / "killed", max_minutes=1e-9), log=lambda _: None)  # one step, then last.pt
    killed = config(tmp_path / "killed", checkpoint_minutes=60)
    assert start({"kill_at": 41}, killed).wait(120) == -signal.SIGKILL
    log = tmp_path / "killed" / "metrics.jsonl"
    assert (
        max(curve(tmp_path / "killed")) == 41 and torch.load(log.with_name("last.pt"), weights_only=True)["step"] == 1
    )
    with open(log, "a") as f:
        f.write('{"step": 42, "lo')
    train(LineFit(), killed, log=lambda _: None)
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    rows = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert rows == sorted(rows)  # nothing twice
    same_weights(tmp_path / "whole", tmp_path / "killed", rtol=0, atol=0)


@pytest.mark.parametrize("where", ["step", "evaluation"])
def test_ctrl_c_saves_and_the_next_run_goes_on(tmp_path, where, monkeypatch):
    said = []
    train(LineFit(), config(tmp_path / "whole"), log=lambda _: None)
    task = LineFit(interrupt_at=40 if where == "step" else -1)
    if where == "evaluation":
        monkeypatch.setattr(task, "evaluate", lambda model: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train(task, config(tmp_path / "parts"), log=said.append)
    step = 41 if where == "step" else 30
    assert (
        said[-1]
        == f"stopped at step {step} of 60, saved {tmp_path / 'parts' / 'last.pt'}; the same command goes on from there"
    )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(LineFit(), config(tmp_path / "parts"), log=said.append)
    assert f"resumed {tmp_path / 'parts' / 'last.pt'} at step {step}" in said
    assert curve(tmp_path / "whole") == curve(tmp_path / "parts")


def test_the_last_evaluation_is_made_up_for(tmp_path):
    """A run that was stopped while it evaluated its last step."""

    class Stopped(LineFit):
        def evaluate(self, model):
            raise KeyboardInterrupt

    short = config(tmp_path, steps=10)
    with pytest.raises(KeyboardInterrupt):
        train(Stopped(), short, log=lambda _: None)
    assert train(LineFit(), short, log=lambda _: None)["error"] > 0 and (tmp_path / "best.pt").is_file()


def test_a_folder_of_another_run_is_refused_in_one_line(tmp_path):
    short = config(tmp_path, steps=10)
    train(LineFit(), short, log=lambda _: None, name="line")
    wider = LineFit()
    wider.model = nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 1))
    for task, changes, name, words in (
        (LineFit(), {}, "curve", "model 'line', this one has 'curve'"),
        (LineFit(), {"seed": 5}, "line", "seed 0, this one has 5"),
        (LineFit(), {"optimiser": "adam"}, "line", "optimiser 'adamw', this one has 'adam'"),
        (wider, {}, "line", "holds another model"),
    ):
        with pytest.raises(ValueError, match=words) as e:
            train(task, dataclasses.replace(short, **changes), log=lambda _: None, name=name)
        assert str(tmp_path) in str(e.value) and "\n" not in str(e.value)
    said = []
    train(LineFit(), dataclasses.replace(short, lr=1e-4, steps=12), log=said.append, name="line")
    assert said[0] == f"note: {tmp_path} was trained with steps 10, lr 0.01; it goes on with steps 12, lr 0.0001"


def test_start_line_and_time_left(tmp_path):
    said = []
    train(LineFit(), config(tmp_path, log_every=50), log=said.append, name="line")
    assert said[0].startswith("training line: 4.9e-05 M parameters on ") and "60 steps of 16 items" in said[0]
    assert said[1].startswith("step 1/60") and said[1].endswith(" left")  # the first step tells how long it will take
    assert list(curve(tmp_path)) == [50]  # the file keeps its interval


@pytest.mark.parametrize(
    "seconds, text", [(4, "4 s"), (89, "89 s"), (600, "10 min"), (2.5 * 3600, "2.5 h"), (3e5, "3.5 days")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_two_processes_equal_one(tmp_path):
    one = config(tmp_path / "one", steps=12, batch_size=16, eval_every=12)
    train(LineFit(dropout=0.0), one, log=lambda _: None)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    two = config(tmp_path / "two", steps=12, batch_size=8, eval_every=12)
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    both = [start({"dropout": 0.0}, two, RANK=str(r), LOCAL_RANK=str(r), **shared) for r in (0, 1)]
    assert [p.wait(120) for p in both] == [0, 0]
    same_weights(tmp_path / "one", tmp_path / "two", rtol=1e-5, atol=1e-6)


def test_accumulation_equals_one_large_batch(tmp_path):
    train(LineFit(dropout=0.0), config(tmp_path / "one", steps=10), log=lambda _: None)
    train(LineFit(dropout=0.0), config(tmp_path / "two", steps=10, batch_size=8, accumulate=2), log=lambda _: None)
    same_weights(tmp_path / "one", tmp_path / "two", rtol=1e-5, atol=1e-6)


class Deep(nn.Module):
    """A trunk with batch norm, a stack of layers with dropout, a head."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), nn.Flatten(), nn.Linear(144, 8)
        )
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Dropout(0.2), nn.Linear(32, 8)) for _ in range(3)
        )
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.trunk(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


def test_recomputed_layers_change_nothing():
    torch.manual_seed(0)
    x, made = torch.randn(6, 3, 8, 8), []
    for recompute in (False, True):
        torch.manual_seed(1)
        model = Deep()
        assert (checkpoint_activations(model) if recompute else 6) == 6  # conv, batch norm, linear, three layers
        torch.manual_seed(2)
        model(x).square().sum().backward()
        made.append(({n: p.grad for n, p in model.named_parameters()}, dict(model.named_buffers())))
    for part in (0, 1):
        for name, value in made[0][part].items():
            torch.testing.assert_close(made[1][part][name], value, msg=name)


def test_memory_report():
    class Task:
        def __init__(self):
            self.model = Deep()

        def batch(self, index, batch_size, step):
            return {"x": torch.randn(batch_size, 3, 8, 8)}

        def loss(self, model, batch, step):
            return model(batch["x"]).square().sum(), {}

    def kept(text, part):
        return next((float(line.split()[-1]) for line in text.splitlines() if f"kept by {part}" in line), 0.0)

    plain, saving = Task(), Task()
    before = {k: v.clone() for k, v in plain.model.state_dict().items()}
    text = memory_report(plain, TrainConfig(batch_size=4096), torch.device("cpu"))
    for k, v in plain.model.state_dict().items():
        assert torch.equal(v, before[k]), k
    # by hand: layers keep [4096, 32] after the first linear, after GELU, the dropout mask and its product, 4 bytes each
    # (mask 1 or 4), and [4096, 8] per residual
    low = 3 * 4096 * (32 * (4 + 4) + 8 * 4) / 1e6
    assert low < kept(text, "layers") < 2.5 * low and "sum, 4096 items in fp32" in text
    checkpoint_activations(saving.model)
    assert kept(memory_report(saving, TrainConfig(batch_size=4096), torch.device("cpu")), "layers") < 0.5 * kept(
        text, "layers"
    )


@pytest.mark.parametrize("early", [False, True])
def test_prefetch_keeps_the_order(early):
    made = []

    def batches():
        for i in range(4):
            made.append(i)
            yield {"i": torch.tensor(i)}

    ahead = Prefetch(batches(), torch.device("cpu"), early)
    taken = []
    for _ in range(4):
        taken.append(int(ahead.take()["i"]))
        ahead.prepare()
        ahead.prepare()  # one batch ahead, not two
        assert len(made) == min(4, len(taken) + early)
    assert taken == [0, 1, 2, 3]
    with pytest.raises(StopIteration):
        ahead.take()


def test_batches_made_ahead_do_not_change_the_curve(tmp_path, monkeypatch):
    train(LineFit(), config(tmp_path / "plain", steps=10, accumulate=2), log=lambda _: None)
    monkeypatch.setattr("tore_fast.train.loop.Prefetch", lambda batches, device: Prefetch(batches, device, early=True))
    train(LineFit(), config(tmp_path / "ahead", steps=10, accumulate=2), log=lambda _: None)
    assert curve(tmp_path / "plain") == curve(tmp_path / "ahead")


def test_bf16_follows_the_float32_curve(tmp_path):
    from accelerate.state import AcceleratorState

    for precision in ("fp32", "bf16"):
        AcceleratorState._reset_state(True)  # a process keeps its first precision otherwise
        train(
            LineFit(dropout=0.0),
            config(tmp_path / precision, steps=20, precision=precision, eval_every=20),
            log=lambda _: None,
        )
    AcceleratorState._reset_state(True)
    whole, half = curve(tmp_path / "fp32"), curve(tmp_path / "bf16")
    assert whole != half and half == pytest.approx(whole, rel=0.1, abs=0.02)


def test_optimisers():
    model = Deep()
    plain = parameter_groups(model, 0.1)
    assert [g["weight_decay"] for g in plain] == [0.1, 0.0] and all(p.dim() <= 1 for p in plain[1]["params"])
    assert len(parameter_groups(model, 0.1, decay_all=True)[0]["params"]) == len(list(model.parameters()))
    assert isinstance(make_optimiser(model, TrainConfig(optimiser="adam")), torch.optim.Adam)
    with pytest.raises(ValueError, match="optimiser: expected one of"):
        TrainConfig(optimiser="sgdm")
    with pytest.raises(ValueError, match="no parameter"):
        make_optimiser(nn.ReLU(), TrainConfig())


def test_clip_by_value_limits_every_number(tmp_path):
    class Steep(LineFit):
        def loss(self, model, batch, step):
            return 1e4 * super().loss(model, batch, step)[0], {}

    task, seen = Steep(), []
    step = torch.optim.AdamW.step
    torch.optim.AdamW.step = lambda self, *a, **k: (
        seen.extend(float(p.grad.abs().max()) for g in self.param_groups for p in g["params"]),
        step(self, *a, **k),
    )[1]
    try:
        train(task, config(tmp_path, steps=2, clip_norm=0.0, clip_value=0.3, eval_every=9), log=lambda _: None)
    finally:
        torch.optim.AdamW.step = step
    assert seen and max(seen) == pytest.approx(0.3)


def test_epochs_become_steps(tmp_path):
    task = LineFit()
    with pytest.raises(ValueError, match="no end"):
        train(task, config(tmp_path, epochs=2), log=lambda _: None)
    task.items_per_epoch = 80
    train(task, config(tmp_path, epochs=2, batch_size=8, accumulate=2), log=lambda _: None)
    assert max(curve(tmp_path)) == 10 and task.steps_per_epoch == 5


def test_learning_rate():
    c = TrainConfig(steps=100, warmup=10, lr=1.0, min_lr=0.0)
    assert learning_rate(c, 0) == pytest.approx(0.1)
    assert learning_rate(c, 9) == pytest.approx(1.0)
    assert learning_rate(c, 100) == pytest.approx(0.0, abs=1e-12)
    assert learning_rate(dataclasses.replace(c, schedule="step"), 80) == pytest.approx(0.1)
    twice = dataclasses.replace(c, schedule="step", decay_at=(0.5, 0.8))
    assert [round(learning_rate(twice, s), 6) for s in (50, 60, 90)] == [1.0, 0.1, 0.01]
    with pytest.raises(ValueError, match="schedule: expected one of"):
        dataclasses.replace(c, schedule="triangle")


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
