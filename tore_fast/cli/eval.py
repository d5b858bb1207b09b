"""`tore-fast eval [JOB]`: one module eval_JOB.py per kind of truth; without a JOB the family of --model decides (else `mesh`).

A job has its own `Args` and `run`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import FAILED, arguments, complain

SHARES = ("_f_", "auc", "AP", "AR", "nme", "_fr_", "pck", "entropy")  # words of metrics with four decimals

SUBCOMMANDS = {
    "mesh": "body and hand meshes (HMR families) on TSV sets, tars, 3DPW, FreiHAND, own folders or synthetic images",
    "keypoints": "heat-map models (TCFormer, PPT) on COCO-WholeBody, COCO, WFLW or synthetic people",
    "classify": "image classifiers (TCFormer) on folders of class folders (ImageNet)",
    "lift": "video pose lifting (MixSTE, MotionBERT, MHFormer, HoT, TPC) on Human3.6M, 3DHP or motion capture",
}
JOB_OF_TASK = {"keypoints": "keypoints", "classify": "classify", "lifting": "lift"}
"""Task of a registered model (models/_registry.py) -> job; all others are scored as meshes."""


@dataclass(kw_only=True)
class RunArgs:
    """Flags of every job on evaluate_rows: resumable, sharded under torchrun."""

    json: Path | None = None
    """Write the metrics here."""
    work: Path | None = None
    """Folder of the rows so far (default: beside --json, else .tore_fast_eval/DATA-MODEL)."""
    limit: int | None = None
    """Only the first items."""
    batch_size: int = 32
    device: str = "auto"
    """auto, cpu, cuda ...; under torchrun `auto` takes the process's own GPU."""
    precision: str = "fp32"
    """fp32, bf16 or fp16 (autocast)."""
    workers: int = 2
    """Processes that read and crop."""


def default_job(argv: list[str]) -> str:
    """The job that `tore-fast eval --model NAME --data D ...` means: by the model's family, for the default model by the data."""
    from .eval_lift import is_lifting

    given = {}
    for flag, value in zip(argv, [*argv[1:], ""]):
        name, equals, after = flag.partition("=")
        given[name] = after if equals else value
    model = given.get("--model", "default")
    if is_lifting(model, given.get("--data", "")):
        return "lift"
    names = [model, given.get("--checkpoint", "")]
    tasks = [entry.task for name in names if (entry := registered_entry(name)) is not None]
    return next((JOB_OF_TASK[task] for task in tasks if task in JOB_OF_TASK), "mesh")


def registered_entry(name: str):
    """Registry entry of a registered name or of a checkpoint folder of ours; None where neither."""
    from ..models import model_entry
    from ..models._hub import CONFIG_NAME, read_config

    try:
        if (Path(name) / CONFIG_NAME).is_file():
            name = read_config(name)["model"]
        return model_entry(name)
    except (ValueError, KeyError):
        return None


def guarded(work: Callable[[], int]) -> int:
    """Runs a job: what cannot be evaluated is the user's argument (exit code 2), a process that died is a failure (1)."""
    from ..eval.evaluate import Incomplete

    try:
        with arguments():
            return work()
    except Incomplete as e:
        complain(str(e))
        return FAILED


def work_folder(args) -> Path:
    """Where the rows so far lie: --work, else beside --json, else a folder of .tore_fast_eval named after data and model."""
    if args.work or args.json:
        return args.work or args.json.with_suffix(".rows")
    names = (Path(str(name)).resolve().stem for name in (args.data, args.checkpoint or args.model))
    return Path(".tore_fast_eval") / "-".join(names)


def report(metrics: dict, json_path: Path | None) -> int:
    """Prints the table and what could not be read, writes --json; returns the exit code (FAILED or 0)."""
    print(table(metrics))
    for index, reason in metrics["failed"].items():
        complain(f"item {index}: {reason}")
    write_json(metrics, json_path)
    return FAILED if metrics["failed"] else 0


def write_json(metrics: dict, path: Path | None) -> None:
    """Metrics to --json, where one is given; its folder is made."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_json_numbers(metrics), indent=2, allow_nan=False) + "\n")


def _json_numbers(value):
    """NaN (a mean over nothing, such as an empty WFLW subset) as null: JSON has no such number."""
    if isinstance(value, dict):
        return {k: _json_numbers(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_numbers(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(metrics: dict) -> str:
    """Metrics as text: one line per number with the count behind it, then one line per sequence."""
    counts = metrics["counts"]
    names = [k for k, v in metrics.items() if isinstance(v, float) and k not in ("images_per_s",)]
    lines = [f"{'metric':22}{'value':>10}  items"]
    for name in names:
        decimals = 4 if any(word in f"_{name}" for word in SHARES) else 2
        lines.append(f"{name:22}{metrics[name]:10.{decimals}f}  {counts.get(name, metrics['items'])}")
    per_sequence = metrics.get("per_sequence", {})
    if len(per_sequence) > 1:
        columns = [m for m in names if any(m in row for row in per_sequence.values())]
        width = max(map(len, per_sequence))
        lines += ["", f"{'sequence':{width}}" + "".join(f"{m:>14}" for m in columns)]
        for name, row in per_sequence.items():
            lines.append(f"{name:{width}}" + "".join(f"{row[m]:14.2f}" if m in row else f"{'-':>14}" for m in columns))
    identity = metrics["identity"]
    lines += [
        "",
        f"{metrics['items']} items of {identity.get('data', '?')}, {identity['protocol']} protocol, "
        f"weights {identity['weights']}, {metrics['images_per_s']:.1f} images/s in this run",
    ]
    return "\n".join(lines)


def device_of(name: str) -> str:
    import torch

    from .._device import pick_device

    device = pick_device(name)
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    return device
