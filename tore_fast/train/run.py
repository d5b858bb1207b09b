"""One training run from start weights to the exported folder, the same for every task of `tore-fast train`.

In: a Task (config.py), a TrainConfig, where the weights come from and where they go. Out: the run's folder, and with
`export` a checkpoint folder whose config.json (the card) says how the checkpoint was chosen and what was measured on
what.

One rule chooses the checkpoint: the last averaged weights, or, where a task validates on data that is not the reported
test data (`Task.validation`), the best weights on that data. Numbers of data that chose the checkpoint are never
reported as test.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..io.atomic import write_text
from .checkpoint import read_run
from .config import Task, TrainConfig
from .loop import train
from .start import take_weights


@dataclass(frozen=True)
class Chosen:
    """The weights of a run that are exported."""

    weights: dict[str, Tensor]
    step: int
    selection: str
    """How they were chosen, in words."""
    validation: dict[str, float]
    """What `Task.evaluate` gave for them, where that chose them."""


def choose(task: Task, out: Path) -> Chosen:
    """The checkpoint of the run in `out`, by the rule of this file.

    Raises:
        FileNotFoundError: no run there.
    """
    if task.validation and (out / "best.pt").is_file():
        state = read_run(out / "best.pt", ("model", "step", "metrics"))
        how = f"lowest {task.best_metric} on {task.validation}"
        return Chosen(state["model"], state["step"], how, state["metrics"])
    if not (out / "last.pt").is_file():
        raise FileNotFoundError(f"{out}: no last.pt; expected the folder of a run")
    state = read_run(out / "last.pt", ("model", "step", "ema"))
    averages = (state["ema"] or {}).get("average", {})
    how = "last averaged weights" if averages else "last weights"
    return Chosen({**state["model"], **averages}, state["step"], how, {})


def start_from(task: Task, config: TrainConfig, name: str, checkpoint: Path, mesh_data: str | None = None) -> None:
    """Gives a new run the weights of `checkpoint` (start.py) and says what was taken; a run that goes on has its own.

    Raises:
        FileNotFoundError, ValueError: see take_weights.
    """
    if not (folder_of(config, name) / "last.pt").exists():
        print(take_weights(task.model, checkpoint, mesh_data), flush=True)


def folder_of(config: TrainConfig, name: str) -> Path:
    """Folder of the run: the one of the config, else runs/MODEL."""
    return Path(config.out or f"runs/{name}")


def run(
    task: Task,
    config: TrainConfig,
    name: str,
    *,
    test: bool = False,
    export: Path | None = None,
    dtype: torch.dtype | None = None,
    facts: dict[str, Any] | None = None,
    card: dict[str, Any] | None = None,
    beside: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Trains (or goes on), chooses the checkpoint, measures and exports it.

    Args:
        name: registered name of the model.
        test: measure the chosen weights on the task's test data and write OUT/test.json.
        export: checkpoint folder to write; dtype: of its floating weights (None: as trained).
        facts: about the data, for the card's `trained_on`; card: further entries of config.json.
        beside: writes further files into the exported folder.

    Returns:
        The metrics of the chosen weights; {} where nothing was measured, or on other processes than the first.

    Raises:
        ValueError: see train. KeyboardInterrupt: after Ctrl-C.
    """
    from ..models import save

    out = folder_of(config, name)
    config = dataclasses.replace(config, out=str(out))
    train(task, config, name=name)
    if int(os.environ.get("RANK", 0)) or not (test or export):
        return {}
    chosen = choose(task, out)
    task.model.load_state_dict(chosen.weights)
    print(f"measuring the {chosen.selection} (step {chosen.step})", flush=True)
    metrics = task.report(task.model.eval()) if test or not task.validation else {}
    trained_on = {**(facts or {}), "step": chosen.step, "training": dataclasses.asdict(config)}
    text = {"selection": f"{chosen.selection} (step {chosen.step})", "metrics": metrics}
    if chosen.validation:
        text["validation"] = chosen.validation
    print_metrics("test" if task.validation else "held-out data", metrics)
    if test:
        write_text(out / "test.json", json.dumps({**text, "trained_on": trained_on}, indent=2) + "\n")
    if export is not None:
        model: nn.Module = task.model_to_export().cpu().eval()
        save(model, export, name, dtype, **text, trained_on=trained_on, **(card or {}))
        if beside is not None:
            beside(export)
        numbers = "  ".join(f"{k} {v:.4g}" for k, v in chosen.validation.items())
        print(f"{export}: {text['selection']}" + (f", validation: {numbers}" if numbers else ""))
    return metrics


def print_metrics(title: str, metrics: dict[str, Any]) -> None:
    """One line of the numbers; sets of their own (easy, hard ...) get a line each."""
    flat = {k: v for k, v in metrics.items() if not isinstance(v, dict)}
    if flat:
        print(f"{title}: " + "  ".join(f"{k} {v:.4g}" for k, v in flat.items()))
    for key, value in metrics.items():
        if isinstance(value, dict) and all(isinstance(v, (int, float)) for v in value.values()):
            print(f"{title}, {key}: " + "  ".join(f"{k} {v:.4g}" for k, v in value.items()))
