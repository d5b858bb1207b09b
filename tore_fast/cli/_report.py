"""What the tasks of `tore-fast eval` share: flags of a run, the folder of its rows, the table with units, --json."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import FAILED, arguments, print_error

# ending (or word) of a metric's name -> unit in the table
UNITS = (
    ("_mm_per_frame2", "mm/frame^2"),
    ("mpjve", "mm/frame"),
    ("_mm", "mm"),
    ("mpjpe", "mm"),
    ("_px", "px"),
    ("_percent", "%"),
    ("_error", "%"),
    ("pck150", "%"),
    ("auc_pose", "%"),
    ("entropy", "nats"),
)


@dataclass(kw_only=True)
class EvalArgs:
    """Flags of every task on evaluate_rows: resumable, sharded under torchrun."""

    json: Path | None = None
    """Write the metrics here."""
    work: Path | None = None
    """Folder of the rows so far (default: beside --json, else .tore_fast_eval/DATA-MODEL)."""
    limit: int | None = None
    """Only the first items."""
    batch_size: int = 32
    """Items run at once."""
    device: str = "auto"
    """auto, cpu, cuda ...; under torchrun `auto` takes the process's own GPU."""
    precision: str = "fp32"
    """fp32, bf16 or fp16 (autocast)."""
    workers: int = 2
    """Processes that read and crop."""


def guarded(work: Callable[[], int]) -> int:
    """Runs a task: what cannot be evaluated is the user's argument (exit code 2), a process that died is a failure
    (1)."""
    from ..eval.evaluate import Incomplete

    try:
        with arguments():
            return work()
    except Incomplete as e:
        print_error(str(e))
        return FAILED


def work_folder(args: Any) -> Path:
    """Where the rows so far lie: --work, else beside --json, else a folder of .tore_fast_eval named after data and
    model."""
    if args.work or args.json:
        return args.work or args.json.with_suffix(".rows")
    names = (Path(str(name)).resolve().stem for name in (args.data, args.checkpoint or args.model))
    return Path(".tore_fast_eval") / "-".join(names)


def report(metrics: dict[str, Any], json_path: Path | None, unlabelled: bool = False) -> int:
    """Prints the table and what could not be read, writes --json; returns the exit code (FAILED or 0).

    Args:
        unlabelled: predictions are all that is wanted, data without labels are fine.

    Raises:
        ValueError: nothing was measured, because the data has no labels.
    """
    if not unlabelled and not measured(metrics):
        raise ValueError(
            f"--data {metrics['identity'].get('data', '')}: none of its {metrics['items']} items has a label that the "
            f"{metrics['identity']['protocol']} protocol measures (docs/data.md shows how to give labels)"
        )
    print(table(metrics))
    for index, reason in metrics["failed"].items():
        print_error(f"item {index}: {reason}")
    write_json(metrics, json_path)
    return FAILED if metrics["failed"] else 0


def measured(metrics: dict[str, Any]) -> list[str]:
    """Names of the numbers in `metrics`."""
    return [k for k, v in metrics.items() if isinstance(v, float) and k != "images_per_s"]


def write_json(metrics: dict[str, Any], path: Path | None) -> None:
    """Metrics to --json, where one is given; its folder is made."""
    if path is not None:
        from ..io import atomic

        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(path, _json_numbers(metrics), indent=2)


def _json_numbers(value: Any) -> Any:
    """NaN (a mean over nothing, such as an empty WFLW subset) as null: JSON has no such number."""
    if isinstance(value, dict):
        return {k: _json_numbers(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_numbers(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def unit_of(name: str) -> str:
    """Unit of a metric: mm, %, ...; "0..1" for shares and scores."""
    if name == "auc":  # of lifted poses
        return "%"
    return next((unit for ending, unit in UNITS if name.endswith(ending)), "0..1")


def number(name: str, value: float) -> str:
    """A value with four decimals where it is a share, else two."""
    return f"{value:.{4 if unit_of(name) in ('0..1', 'nats') else 2}f}"


def table(metrics: dict[str, Any]) -> str:
    """Metrics as text: one line per number with its unit and the count behind it, then one line per sequence."""
    counts = metrics["counts"]
    names = measured(metrics)
    width = max(map(len, ["metric", *names]))
    lines = [f"{'metric':{width}}{'value':>11}  {'unit':10}  items"]
    for name in names:
        count = counts.get(name, metrics["items"])
        lines.append(f"{name:{width}}{number(name, metrics[name]):>11}  {unit_of(name):10}  {count}")
    per_sequence = metrics.get("per_sequence", {})
    if len(per_sequence) > 1:
        columns = [m for m in names if any(m in row for row in per_sequence.values())]
        lines += ["", rows_table("sequence", per_sequence, columns)]
    identity = metrics["identity"]
    lines += [
        "",
        f"{metrics['items']} items of {identity.get('data', '?')}, {identity['protocol']} protocol, "
        f"weights {identity['weights']}, {metrics['images_per_s']:.1f} images/s in this run",
    ]
    return "\n".join(lines)


def rows_table(title: str, rows: dict[str, dict[str, float]], columns: list[str]) -> str:
    """One line per row, columns headed by metric and unit; "-" where a row lacks a number."""
    heads = [f"{c} [{unit_of(c)}]" for c in columns]
    width = max(map(len, [title, *rows]))
    lines = [f"{title:{width}}" + "".join(f"  {h:>9}" for h in heads)]
    for name, row in rows.items():
        cells = (number(c, row[c]) if c in row else "-" for c in columns)
        lines.append(f"{name:{width}}" + "".join(f"  {cell:>{max(9, len(h))}}" for cell, h in zip(cells, heads)))
    return "\n".join(lines)


def device_of(name: str) -> str:
    """--device as torch wants it."""
    import torch

    from .._device import pick_device

    device = pick_device(name)
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    return device
