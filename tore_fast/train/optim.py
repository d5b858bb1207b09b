"""Optimisers and learning-rate schedules of the papers, from a TrainConfig (config.py).

In: a model and its config; out: a torch optimiser, and the rate of each step. Nothing here has state: a resumed run
needs only the step number.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from .config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of optimiser step `step` (0-based)."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    if config.schedule == "step":
        return config.lr * 0.1 ** sum(done >= share for share in config.decay_at)
    if config.schedule == "exponential":
        return config.lr * (config.min_lr / config.lr) ** min(1.0, done)
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1 + math.cos(math.pi * min(1.0, done)))


def parameter_groups(model: nn.Module, weight_decay: float, decay_all: bool = False) -> list[dict]:
    """Weight decay on matrices only (biases and norms go without), or on everything."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if decay_all:
        return [{"params": trained, "weight_decay": weight_decay}]
    decay, plain = [p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1]
    return [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def make_optimiser(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser a config names.

    Raises:
        ValueError: a model without anything to train.
    """
    groups = [g for g in parameter_groups(model, config.weight_decay, config.decay_all) if g["params"]]
    if not groups:
        raise ValueError("train: the model has no parameter that requires a gradient")
    if config.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)
    return torch.optim.Adam(groups, lr=config.lr, betas=config.betas, amsgrad=config.optimiser == "amsgrad")
