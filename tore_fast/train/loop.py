"""One training loop for every family: a Task (config.py) says what a batch, a loss and an evaluation are, the loop does
the rest.

Batches and random numbers are functions of (seed, step, process), nothing else, so a run that was killed and resumed
follows the same loss curve as one that was not. Devices, mixed precision and several processes come from accelerate
(`torchrun --nproc-per-node 2 -m tore_fast train ...` works as it stands). Files of a run, all in `out`:
`last.pt` (weights, EMA, optimiser, step; written atomically), `best.pt` (EMA weights), `metrics.jsonl`, TensorBoard
events. run.py starts a run from given weights, chooses the checkpoint and exports it; run_log.py prints and writes the
numbers; schedules and parameter groups are in optim.py, gradient checkpointing and the memory report in memory.py,
batches made ahead on a GPU in prefetch.py.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import keep_previous, read_run, save_atomically
from .config import Task, TrainConfig, with_epochs
from .ema import Ema
from .memory import checkpoint_activations, memory_report
from .optim import learning_rate, make_optimiser
from .prefetch import Prefetch
from .resume import check_same_run, identity_of, load_weights
from .run_log import RunLog

_KEPT = ("model", "optimiser", "step", "best", "ema", "config")  # what a run needs to go on


def train(
    task: Task, config: TrainConfig, log: Callable[[str], None] | None = None, name: str = ""
) -> dict[str, float]:
    """Trains `task.model`; resumes from `config.out` if a run is there. Returns the last evaluation.

    Args:
        log: where lines go; None: printed, above the progress bar.
        name: of the model, for the start line and so that the folder of another model is refused.

    Raises:
        ValueError: the folder holds a run of another model or seed. KeyboardInterrupt: after Ctrl-C, when last.pt is
            saved.
    """
    return _Training(task, config, log, name).run()


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


def _ignore_interrupt(_worker: int) -> None:
    """Ctrl-C reaches worker processes, too; they must live until the training process has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Training:
    """One run: everything that a step, an evaluation and a save share."""

    def __init__(self, task: Task, config: TrainConfig, log: Callable[[str], None] | None, name: str):
        from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

        self.task, self.config = task, with_epochs(task, config)
        # weights that a loss does not reach (unused heads, frozen stages) must not stop the gradient exchange
        exchange = DistributedDataParallelKwargs(find_unused_parameters=True)
        patience = InitProcessGroupKwargs(
            timeout=timedelta(hours=6)
        )  # the others wait while the first process evaluates
        self.accelerator = Accelerator(
            mixed_precision="no" if config.precision == "fp32" else config.precision,
            cpu=not torch.cuda.is_available(),
            kwargs_handlers=[exchange, patience],
        )
        self.out = Path(config.out or "runs/default")
        self.last = self.out / "last.pt"
        self.main = self.accelerator.is_main_process
        self.log = RunLog(self.out, self.config, self.accelerator.num_processes, log, quiet=not self.main)
        self.step, self.best, self.evaluated = 0, math.inf, -1
        self.metrics: dict[str, float] = {}
        self.inside_step = self.stop = False
        self.identity = identity_of(task, name)
        self._prepare()

    def _prepare(self) -> None:
        """Model, optimiser and averaged weights, new or from last.pt."""
        task, config = self.task, self.config
        state = read_run(self.last, _KEPT) if self.last.exists() else None
        if state is not None:
            check_same_run(self.out, state, self.identity, config, self.log.say)
        self.out.mkdir(parents=True, exist_ok=True)
        if config.checkpoint_activations and not checkpoint_activations(task.model):
            self.log.say("checkpoint_activations: the model has no stack of layers to recompute")
        if config.memory_report and self.main:
            self.log.say(memory_report(task, config, self.accelerator.device))
        torch.manual_seed(config.seed)
        optimiser = make_optimiser(task.model, config)
        self.model, self.optimiser = self.accelerator.prepare(task.model, optimiser)
        self.plain = self.accelerator.unwrap_model(self.model)
        self.ema = Ema(self.plain, config.ema) if config.ema else None
        if state is not None:
            load_weights(self.plain, state["model"], self.last)
            try:
                self.optimiser.load_state_dict(state["optimiser"])
                if self.ema is not None:
                    self.ema.load_state_dict(state["ema"])
                if self.accelerator.scaler is not None and state.get("scaler"):
                    self.accelerator.scaler.load_state_dict(state["scaler"])
            except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as e:
                raise ValueError(
                    f"{self.last}: not a checkpoint of this training ({str(e).splitlines()[0][:160]})"
                ) from None
            self.step, self.best, self.evaluated = state["step"], state["best"], state.get("evaluated", -1)
            self.log.say(f"resumed {self.last} at step {self.step}")

    def save(self) -> None:
        """Writes last.pt."""
        if not self.main:
            return
        scaler = self.accelerator.scaler
        state = {
            "model": self.plain.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "best": self.best,
            "evaluated": self.evaluated,
            "ema": self.ema.state_dict() if self.ema else {},
            "config": asdict(self.config),
            "identity": self.identity,
            "scaler": scaler.state_dict() if scaler is not None else {},
        }
        keep_previous(self.last)
        save_atomically(state, self.last)

    def evaluate(self) -> None:
        """Measures the averaged weights on the first process, keeps them in best.pt if they are the best so far."""
        if self.main:
            self.log.status(f"evaluation at step {self.step}")
            with self.ema.applied(self.plain) if self.ema else nullcontext():
                self.plain.eval()
                try:
                    self.metrics = self.task.evaluate(self.plain)
                finally:
                    self.plain.train()
                if self.metrics.get(self.task.best_metric, math.inf) < self.best:
                    self.best = self.metrics[self.task.best_metric]
                    kept = {"model": self.plain.state_dict(), "step": self.step, "metrics": self.metrics}
                    save_atomically(kept, self.out / "best.pt")
            self.log.evaluation(self.step, self.metrics)
        self.evaluated = self.step
        self.accelerator.wait_for_everyone()

    def run(self) -> dict[str, float]:
        """All steps that are left."""
        self.log.start(self.identity["model"], self.plain, self.accelerator.device, self.step)
        batches = self._batches()
        self.model.train()
        started = saved = time.monotonic()
        config = self.config
        try:
            with self._ctrl_c():
                while self.step < config.steps:
                    self._step(batches)
                    if self.step % config.eval_every == 0 or self.step == config.steps:
                        self.evaluate()
                    if time.monotonic() - saved > 60 * config.checkpoint_minutes or self.step == config.steps:
                        self.save()
                        saved = time.monotonic()
                    if config.max_minutes and time.monotonic() - started > 60 * config.max_minutes:
                        self.save()
                        self.log.say(
                            f"stopped after {config.max_minutes} minutes at step {self.step}; the same command resumes"
                        )
                        break
                if self.step == config.steps and self.evaluated != self.step:  # it was stopped while it evaluated
                    self.evaluate()
                    self.save()
        except KeyboardInterrupt:
            self.save()
            self.log.say(
                f"stopped at step {self.step} of {config.steps}, saved {self.last}; the same command goes on from there"
            )
            raise
        finally:
            self.log.close()
            self.accelerator.end_training()
        return self.metrics

    def _batches(self) -> Prefetch:
        accelerator, workers = self.accelerator, self.config.workers
        stream = _Stream(
            self.task, self.config, self.step, self.config.steps, accelerator.process_index, accelerator.num_processes
        )
        loader = torch.utils.data.DataLoader(
            stream,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=accelerator.device.type == "cuda" and workers > 0,
            worker_init_fn=_ignore_interrupt if workers else None,
        )
        return Prefetch(iter(loader), accelerator.device)

    def _step(self, batches: Prefetch) -> None:
        """One optimiser step; Ctrl-C inside waits for its end, so that weights, moments and averages belong
        together."""
        config, accelerator = self.config, self.accelerator
        self.inside_step = True
        # dropout and masks depend on the step alone: a resumed run draws the same
        torch.manual_seed(config.seed * 1_000_003 + self.step * accelerator.num_processes + accelerator.process_index)
        lr = learning_rate(config, self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        for micro in range(config.accumulate):
            batch = batches.take()
            with accelerator.no_sync(self.model) if micro + 1 < config.accumulate else nullcontext():
                with accelerator.autocast():
                    total, parts = self.task.loss(self.model, batch, self.step)
                accelerator.backward(total / config.accumulate)
            if micro + 1 < config.accumulate:
                batches.prepare()
        if config.clip_value:
            accelerator.clip_grad_value_(self.model.parameters(), config.clip_value)
        if config.clip_norm:
            parts = {**parts, "grad_norm": accelerator.clip_grad_norm_(self.model.parameters(), config.clip_norm)}
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.plain)
        batches.prepare()
        self.step += 1
        self.log.step(self.step, total, parts, lr)
        self.inside_step = False
        if self.stop:
            raise KeyboardInterrupt

    @contextmanager
    def _ctrl_c(self) -> Iterator[None]:
        """The first Ctrl-C ends the run after the step that is being made, a second one ends it at once.

        Not with several processes: they would stop at different steps and wait for each other for ever.
        """
        if self.accelerator.num_processes > 1 or threading.current_thread() is not threading.main_thread():
            yield
            return

        def handler(_signal: Any, _frame: Any) -> None:
            if not self.inside_step:
                raise KeyboardInterrupt
            if self.stop:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGINT)
            self.stop = True
            self.log.status("Ctrl-C: this step, then saving (once more: at once, nothing saved)")

        before = signal.signal(signal.SIGINT, handler)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
