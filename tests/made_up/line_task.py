"""A training task small enough for every test of the loop, and a command that runs it: python -m made_up.line_task
JSON."""

from __future__ import annotations

import json
import os
import signal
import sys

import torch
from torch import nn

from tore_fast.train.config import Task, TrainConfig
from tore_fast.train.loop import train


class LineFit(Task):
    """y = 3x - 1 with noise; dropout makes the curve depend on the random state. Item n is the same in any batch
    size."""

    best_metric = "error"

    def __init__(self, dropout: float = 0.1, kill_at: int = -1, interrupt_at: int = -1):
        torch.manual_seed(7)
        self.model = nn.Sequential(nn.Linear(1, 16), nn.Dropout(dropout), nn.ReLU(), nn.Linear(16, 1))
        self.kill_at, self.interrupt_at = kill_at, interrupt_at

    def batch(self, index, batch_size, step):
        rows = []
        for n in range(index * batch_size, (index + 1) * batch_size):
            g = torch.Generator().manual_seed(n)
            x = torch.rand(1, generator=g)
            rows.append((x, 3 * x - 1 + 0.01 * torch.randn(1, generator=g)))
        return {"x": torch.stack([x for x, _ in rows]), "y": torch.stack([y for _, y in rows])}

    def loss(self, model, batch, step):
        if step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == self.interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C
        value = (model(batch["x"]) - batch["y"]).square().mean()
        return value, {"mse": value.detach()}

    def evaluate(self, model):
        batch = self.batch(10**4, 64, 0)
        with torch.no_grad():
            return {"error": float((model(batch["x"]) - batch["y"]).abs().mean())}


if __name__ == "__main__":
    task, config = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    train(LineFit(**task), TrainConfig(**config), log=lambda _: None)
