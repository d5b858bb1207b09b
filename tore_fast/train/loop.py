"""One training loop for every family: a Task says what a batch, a loss and an evaluation are, the loop does the rest.

Batches and random numbers are functions of (seed, step, process), nothing else, so a run that was killed and resumed
follows the same loss curve as one that was not. Devices, mixed precision and several processes come from accelerate
(`torchrun --nproc-per-node 2 -m tore_fast train ...` works as it stands). Files of a run, all in `out`:
`last.pt` (weights, EMA, optimiser, step; written atomically), `best.pt` (EMA weights), `metrics.jsonl`, TensorBoard events.
Schedules and parameter groups are in optim.py, gradient checkpointing and the memory report in memory.py, batches made
ahead on a GPU in prefetch.py.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from .checkpoint import keep_previous, read_run, save_atomically
from .ema import Ema
from .memory import checkpoint_activations, memory_report
from .optim import OPTIMISERS, SCHEDULES, learning_rate, make_optimiser
from .prefetch import Prefetch

PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class TrainConfig:
    """What every training has; the defaults fit a small model on one device."""

    out: str = "runs/default"
    """Folder of the run; an existing run there is resumed."""
    steps: int = 10_000
    """Optimiser steps in all; the learning-rate schedule ends there."""
    epochs: float = 0.0
    """Passes over the data instead of `steps`, where the data has an end; 0: `steps` counts."""
    batch_size: int = 32
    """Items per process and micro-batch."""
    lr: float = 3e-4
    min_lr: float = 1e-6
    warmup: int = 200
    """Steps of linear warm-up before the schedule."""
    schedule: str = "cosine"
    """cosine | constant | step (see decay_at) | exponential (a constant factor per step, from lr to min_lr)"""
    decay_at: tuple[float, ...] = (0.5,)
    """schedule='step': x0.1 after each of these shares of the training."""
    optimiser: str = "adamw"
    """adamw | adam (weight decay as an L2 term)"""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4
    decay_all: bool = False
    """Weight decay on biases and norms, too, as the official METRO and FastMETRO scripts do."""
    clip_norm: float = 0.3
    """Gradient-norm limit; 0 switches it off."""
    clip_value: float = 0.0
    """Limit of every single gradient number (TORE's code); 0 switches it off."""
    accumulate: int = 1
    """Micro-batches per optimiser step."""
    checkpoint_activations: bool = False
    """Recompute the layers' insides in the backward pass: less memory, about a third more time."""
    memory_report: bool = False
    """Before training, print where the memory of one step goes."""
    ema: float = 0.999
    """Decay of the averaged weights that are evaluated and exported; 0 switches it off."""
    precision: str = "no"
    """no | bf16 | fp16"""
    seed: int = 0
    eval_every: int = 1000
    log_every: int = 20
    checkpoint_minutes: float = 5.0
    max_minutes: float = 0.0
    """Stop (with a checkpoint) after this time; 0: run to the end."""
    workers: int = 0
    """Processes that prepare batches (0: in this one)."""

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "eval_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}: expected at least 1, got {getattr(self, name)}")
        for name, known in (("schedule", SCHEDULES), ("optimiser", tuple(OPTIMISERS)), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"train.{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")


class Task(Protocol):
    """What the loop needs to know about a problem."""

    model: nn.Module
    best_metric: str  # key of `evaluate`'s result; lower is better

    def batch(self, index: int, batch_size: int, step: int) -> dict[str, Tensor]:
        """Batch `index` of the endless stream; the same index gives the same batch."""

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar to minimise and its parts (detached scalars)."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Metrics on the held-out split."""


def local_device() -> str:
    """This process's device, as a Task needs it before the loop starts: its own GPU under torchrun, else cuda or cpu."""
    if not torch.cuda.is_available():
        return "cpu"
    index = int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return f"cuda:{index}"


def with_epochs(task: Task, config: TrainConfig) -> TrainConfig:
    """`config` with its epochs as steps; the task hears how many steps an epoch has.

    Raises:
        ValueError: epochs of data without an end.
    """
    items = getattr(task, "items_per_epoch", None)
    if items is None:
        if config.epochs:
            raise ValueError("train: epochs are for data sets; synthetic data has no end, give steps")
        return config
    per_step = config.batch_size * config.accumulate * int(os.environ.get("WORLD_SIZE", 1))
    task.steps_per_epoch = items / per_step
    return replace(config, steps=max(1, round(config.epochs * task.steps_per_epoch))) if config.epochs else config


class _Stream(torch.utils.data.Dataset):
    """Batches by global micro-batch index, so that worker processes can prepare them in order."""

    def __init__(self, task: Task, config: TrainConfig, first: int, last: int, rank: int, world: int):
        self.task, self.config, self.first, self.last = task, config, first, last
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return (self.last - self.first) * self.config.accumulate

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        micro = self.first * self.config.accumulate + i
        index = micro * self.world + self.rank
        return self.task.batch(index, self.config.batch_size, micro // self.config.accumulate)


def train(task: Task, config: TrainConfig, log: Callable[[str], None] = print) -> dict[str, float]:
    """Trains `task.model`; resumes from `config.out` if a run is there. Returns the last evaluation."""
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

    config = with_epochs(task, config)
    # weights that a loss does not reach (unused heads, frozen stages) must not stop the gradient exchange
    exchange = DistributedDataParallelKwargs(find_unused_parameters=True)
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=6))  # the others wait while the first process evaluates
    accelerator = Accelerator(
        mixed_precision=config.precision, cpu=not torch.cuda.is_available(), kwargs_handlers=[exchange, patience]
    )
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    if config.checkpoint_activations and not checkpoint_activations(task.model):
        log("checkpoint_activations: the model has no stack of layers to recompute")
    if config.memory_report and accelerator.is_main_process:
        log(memory_report(task, config, accelerator.device))
    torch.manual_seed(config.seed)
    optimiser = make_optimiser(task.model, config)
    model, optimiser = accelerator.prepare(task.model, optimiser)
    plain = accelerator.unwrap_model(model)
    ema = Ema(plain, config.ema) if config.ema else None
    step, best = 0, math.inf
    last = out / "last.pt"
    if last.exists():
        state = read_run(last, ("model", "optimiser", "step", "best", "ema"))
        try:
            plain.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
            if ema is not None:
                ema.load_state_dict(state["ema"])
            if accelerator.scaler is not None and state.get("scaler"):
                accelerator.scaler.load_state_dict(state["scaler"])
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as e:
            raise ValueError(f"{last}: not a checkpoint of this training ({str(e).splitlines()[0][:160]})") from None
        step, best = state["step"], state["best"]
        log(f"resumed {last} at step {step}")
    writer = _Log(out, step) if accelerator.is_main_process else None

    def checkpoint() -> None:
        if accelerator.is_main_process:
            state = {
                "model": plain.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": step,
                "best": best,
                "ema": ema.state_dict() if ema else {},
                "config": asdict(config),
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else {},
            }
            keep_previous(last)
            save_atomically(state, last)

    def evaluate() -> dict[str, float]:
        nonlocal best
        metrics: dict[str, float] = {}
        if accelerator.is_main_process:
            with ema.applied(plain) if ema else _Nothing():
                plain.eval()
                metrics = task.evaluate(plain)
                plain.train()
                if metrics.get(task.best_metric, math.inf) < best:
                    best = metrics[task.best_metric]
                    save_atomically({"model": plain.state_dict(), "step": step, "metrics": metrics}, out / "best.pt")
            if metrics:
                writer.write(step, {f"eval/{k}": v for k, v in metrics.items()})
                log(f"step {step}: " + "  ".join(f"{k} {v:.4g}" for k, v in metrics.items()))
        accelerator.wait_for_everyone()
        return metrics

    stream = _Stream(task, config, step, config.steps, accelerator.process_index, accelerator.num_processes)
    loader = iter(
        torch.utils.data.DataLoader(
            stream,
            batch_size=None,
            num_workers=config.workers,
            prefetch_factor=4 if config.workers else None,
            pin_memory=accelerator.device.type == "cuda" and config.workers > 0,
        )
    )
    batches = Prefetch(loader, accelerator.device)
    model.train()
    metrics: dict[str, float] = {}
    started = saved = time.monotonic()
    seen = 0
    while step < config.steps:
        # dropout and masks depend on the step alone: a resumed run draws the same
        torch.manual_seed(config.seed * 1_000_003 + step * accelerator.num_processes + accelerator.process_index)
        lr = learning_rate(config, step)
        for group in optimiser.param_groups:
            group["lr"] = lr
        parts: dict[str, Tensor] = {}
        for micro in range(config.accumulate):
            batch = batches.take()
            with accelerator.no_sync(model) if micro + 1 < config.accumulate else _Nothing():
                with accelerator.autocast():
                    total, parts = task.loss(model, batch, step)
                accelerator.backward(total / config.accumulate)
            if micro + 1 < config.accumulate:
                batches.prepare()
        if config.clip_value:
            accelerator.clip_grad_value_(model.parameters(), config.clip_value)
        if config.clip_norm:
            parts["grad_norm"] = accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if ema is not None:
            ema.update(plain)
        batches.prepare()
        step += 1
        seen += config.batch_size * config.accumulate * accelerator.num_processes
        if writer is not None and step % config.log_every == 0:
            values = {k: float(v) for k, v in parts.items()}
            values |= {"loss": float(total.detach()), "lr": lr, "images_per_s": seen / (time.monotonic() - started)}
            writer.write(step, values)
            log(f"step {step}/{config.steps}  " + "  ".join(f"{k} {v:.4g}" for k, v in values.items()))
        if step % config.eval_every == 0 or step == config.steps:
            metrics = evaluate()
        if time.monotonic() - saved > 60 * config.checkpoint_minutes or step == config.steps:
            checkpoint()
            saved = time.monotonic()
        if config.max_minutes and time.monotonic() - started > 60 * config.max_minutes:
            checkpoint()
            log(f"stopped after {config.max_minutes} minutes at step {step}; the same command resumes")
            break
    if writer is not None:
        writer.close()
    accelerator.end_training()
    return metrics


class _Nothing:
    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return False


class _Log:
    """metrics.jsonl always, TensorBoard where it is installed. Rows beyond `step` (of a killed run) are taken out."""

    def __init__(self, out: Path, step: int):
        path = out / "metrics.jsonl"
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            part = path.with_suffix(".part")
            part.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            os.replace(part, path)
        self.file = open(path, "a", encoding="utf-8")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:  # the tensorboard package is an extra
            self.board = None
        else:
            self.board = SummaryWriter(str(out), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        if self.board is not None:
            for k, v in values.items():
                self.board.add_scalar(k, v, step)

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


def _step_of(line: str) -> float:
    """Step of a row; infinity for one that a kill cut off."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf
