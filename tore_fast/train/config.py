"""What a training run is told: the settings every training has (`TrainConfig`), and what a problem is (`Task`).

A leaf of the folder: loop.py, memory.py and optim.py read it, it reads none of them, nor torch: `--help` needs it.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

PRECISIONS = ("fp32", "bf16", "fp16")
SCHEDULES = ("cosine", "constant", "step", "exponential")
OPTIMISERS = ("adamw", "adam", "amsgrad")


@dataclass(frozen=True)
class TrainConfig:
    """What every training has; the defaults fit a small model on one device."""

    out: str = ""
    """Folder of the run; an existing run there is resumed. Empty: runs/MODEL."""
    steps: int = 10_000
    """Optimiser steps in all; the learning-rate schedule ends there."""
    epochs: float = 0.0
    """Passes over the data instead of `steps`, where the data has an end; 0: `steps` counts."""
    batch_size: int = 32
    """Items per process and micro-batch."""
    lr: float = 3e-4
    """Largest learning rate."""
    min_lr: float = 1e-6
    """Learning rate at the end of the cosine and exponential schedules."""
    warmup: int = 200
    """Steps of linear warm-up before the schedule."""
    schedule: str = "cosine"
    """cosine | constant | step (see decay_at) | exponential (a constant factor per step, from lr to min_lr)"""
    decay_at: tuple[float, ...] = (0.5,)
    """schedule='step': x0.1 after each of these shares of the training."""
    optimiser: str = "adamw"
    """adamw | adam (weight decay as an L2 term) | amsgrad (adam with the largest second moment so far)"""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of Adam's two moments."""
    weight_decay: float = 1e-4
    """Weight decay of the matrices (see decay_all)."""
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
    precision: str = "fp32"
    """fp32 | bf16 | fp16 (mixed precision; weights stay float32)"""
    seed: int = 0
    """Of the start weights, the order of the data, augmentation and dropout."""
    eval_every: int = 1000
    """Steps between evaluations on the held-out data."""
    log_every: int = 20
    """Steps between rows of metrics.jsonl and printed lines."""
    checkpoint_minutes: float = 5.0
    """Minutes between saves of OUT/last.pt; Ctrl-C saves, too."""
    max_minutes: float = 0.0
    """Stop (with a checkpoint) after so many minutes; 0: run to the end."""
    workers: int = 0
    """Processes that prepare batches (0: in this one)."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "eval_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}: expected at least 1, got {getattr(self, name)}")
        for name, known in (("schedule", SCHEDULES), ("optimiser", OPTIMISERS), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"train.{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")


class Task(ABC):
    """A problem: the model, what a batch, a loss and an evaluation are, and how its checkpoint is chosen.

    Which weights are exported is decided by `validation`, for every task alike (run.py): "" means that `evaluate`
    measures the data whose numbers are reported, so the last averaged weights are exported. A task whose `evaluate`
    measures other data than `report` names that data here, and the best weights on it are exported.
    """

    model: nn.Module
    """What is trained; may wrap the model that is exported."""
    best_metric: str = ""
    """Key of `evaluate`'s result; lower is better."""
    validation: str = ""
    """Name of the data that `evaluate` measures, if it is not the data of `report`."""
    items_per_epoch: int | None = None
    """Items of one pass over the data; None: the data has no end."""
    steps_per_epoch: float = 1.0
    """Optimiser steps of one pass; the loop sets it."""

    @abstractmethod
    def batch(self, index: int, batch_size: int, step: int) -> dict[str, Tensor]:
        """Batch `index` of the endless stream; the same index gives the same batch."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar to minimise and its parts (detached scalars)."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Metrics while training; {} where nothing is held out."""

    def report(self, model: nn.Module) -> dict:
        """Metrics of the exported weights for the card, at the end. Tasks with `validation` measure their test data
        here."""
        return {} if self.validation else self.evaluate(model)

    def model_to_export(self) -> nn.Module:
        """The model without the parts that only training needs; shares its weights with `model`."""
        return self.model


def local_device() -> str:
    """This process's device, as a Task needs it before the loop starts: its own GPU under torchrun, else cuda or
    cpu."""
    import torch

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
    if task.items_per_epoch is None:
        if config.epochs:
            raise ValueError("train: epochs are for data sets; synthetic data has no end, give steps")
        return config
    per_step = config.batch_size * config.accumulate * int(os.environ.get("WORLD_SIZE", 1))
    task.steps_per_epoch = task.items_per_epoch / per_step
    return replace(config, steps=max(1, round(config.epochs * task.steps_per_epoch))) if config.epochs else config
