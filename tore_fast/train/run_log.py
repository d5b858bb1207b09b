"""What a training says and writes down: start line, progress with the time left, metrics.jsonl, TensorBoard events.

In: numbers of loop.py; out: lines on stdout (or a caller's `log`), a progress bar on a terminal, files in the run's
folder.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..io.atomic import write_text
from .config import TrainConfig

QUIET_SECONDS = 30.0  # without a line for so long, one is printed between two of log_every


def duration(seconds: float) -> str:
    """ "45 s", "12 min", "3.4 h" or "2.1 days"."""
    for unit, size, digits in (("days", 86_400, 1), ("h", 3_600, 1), ("min", 60, 0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


class RunLog:
    """Lines, bar and files of one run.

    Args:
        out: folder of the run.
        log: where lines go; None: printed above the bar.
        quiet: nothing is said or written (all processes but the first).
    """

    def __init__(
        self, out: Path, config: TrainConfig, processes: int, log: Callable[[str], None] | None, quiet: bool
    ) -> None:
        self.out, self.config, self.quiet, self.log = out, config, quiet, log
        self.items_per_step = config.batch_size * config.accumulate * processes
        self.bar: Any = None
        self.file: Any = None
        self.board: Any = None
        self.first = 0

    def say(self, text: str) -> None:
        """A line for the reader."""
        if self.quiet:
            return
        self.said = time.monotonic()
        if self.log is not None:
            self.log(text)
        elif self.bar is not None and not self.bar.disable:
            self.bar.write(text)
        else:
            print(text, flush=True)

    def status(self, text: str) -> None:
        """What is being done now: in the bar, or a line where there is no bar."""
        if self.quiet:
            return
        if self.bar is not None and not self.bar.disable:
            self.bar.set_postfix_str(text)
        else:
            self.say(text)

    def start(self, name: str, model: nn.Module, device: torch.device, step: int) -> None:
        """The start line; opens the files, whose rows beyond `step` (of a killed run) are taken out."""
        from tqdm import tqdm

        if self.quiet:
            return
        self.first, self.started = step, time.monotonic()
        c = self.config
        parameters = sum(p.numel() for p in model.parameters())
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        some = f" ({trained / 1e6:.4g} M of them trained)" if trained != parameters else ""
        self.say(
            f"training {name}: {parameters / 1e6:.4g} M parameters{some} on {device}, {c.precision}; "
            f"{c.steps} steps of {self.items_per_step} items"
            + (f", {c.steps - step} left" if step else "")
            + f"; a line every {c.log_every} steps, an evaluation every {c.eval_every}; folder {self.out}"
        )
        self._open(step)
        # without a terminal the bar is silent
        self.bar = tqdm(total=c.steps, initial=step, unit="step", disable=True if self.log is not None else None)

    def _open(self, step: int) -> None:
        path = self.out / "metrics.jsonl"
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            write_text(path, "".join(f"{line}\n" for line in kept))
        self.file = open(path, "a", encoding="utf-8")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:  # the tensorboard package is an extra
            return
        self.board = SummaryWriter(str(self.out), purge_step=step + 1)

    def step(self, step: int, total: Tensor, parts: dict[str, Tensor], lr: float) -> None:
        """After an optimiser step: a row and a line every log_every steps, a line at the first and after long
        silence."""
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.update()
        c, done = self.config, step - self.first
        row = step % c.log_every == 0
        if not row and done != 1 and time.monotonic() - self.said < QUIET_SECONDS:
            return
        seconds = time.monotonic() - self.started
        values = {k: float(v) for k, v in parts.items()}
        values |= {"loss": float(total.detach()), "lr": lr, "images_per_s": done * self.items_per_step / seconds}
        if row:
            self._write(step, values)
        left = duration(seconds / done * (c.steps - step))
        numbers = "  ".join(f"{k} {v:.4g}" for k, v in values.items())
        self.say(f"step {step}/{c.steps}  {numbers}" + (f"  about {left} left" if step < c.steps else ""))

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Metrics of the held-out data."""
        if metrics:
            self._write(step, {f"eval/{k}": v for k, v in metrics.items()})
            self.say(f"step {step}: " + "  ".join(f"{k} {v:.4g}" for k, v in metrics.items()))

    def _write(self, step: int, values: dict[str, float]) -> None:
        if self.file is not None:
            self.file.write(json.dumps({"step": step, **values}) + "\n")
            self.file.flush()
        if self.board is not None:
            for k, v in values.items():
                self.board.add_scalar(k, v, step)

    def close(self) -> None:
        for thing in (self.bar, self.file, self.board):
            if thing is not None:
                thing.close()


def _step_of(line: str) -> float:
    """Step of a row; infinity for one that a kill cut off."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf
