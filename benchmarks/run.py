"""`tore-fast bench` and `python -m benchmarks.run`: runs cases, prints a table, writes JSON and a report.

The exit code is 1 when one of our own contenders was wrong.
"""

from __future__ import annotations

import datetime
import json
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import tyro

from . import registry, report, roofline
from .harness import run_case

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass
class Options:
    """Times the ops or the models of tore_fast against tuned baselines, correctness first."""

    kind: tyro.conf.Positional[Literal["ops", "models"]] = "ops"
    """What to benchmark."""
    op: list[str] = field(default_factory=list)
    """Stems to run (ops) or model families (models); default all."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA when there is a GPU."""
    dtype: list[Literal["float32", "float16", "bfloat16"]] = field(default_factory=lambda: ["float32"])
    """Input types."""
    baselines: Literal["fast", "all"] = "fast"
    """all: also those that compile for minutes (torch.compile max-autotune, FlexAttention)."""
    json: Path | None = None
    """Write all numbers here."""
    report: Path | None = None
    """Write report.md and PNG charts into this folder."""
    threads: int = 0
    """CPU threads; 0: leave torch's default."""
    seconds: float = 1.0
    """Timing budget per contender and case."""
    quick: bool = False
    """Only a few small cases."""


def environment(device: str) -> dict:
    """Everything that could explain a difference between two runs."""
    from tore_fast import __version__, _ext

    def output(*cmd: str) -> str | None:
        if shutil.which(cmd[0]) is None:
            return None
        done = subprocess.run(cmd, capture_output=True, text=True, cwd=Path(__file__).parent)
        return done.stdout.strip() or None if done.returncode == 0 else None

    def cpu_name() -> str:
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), platform.processor())

    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    env = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": device,
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton_version,
        "tore_fast": __version__,
        "build": _ext.build_info(),
        "commit": output("git", "rev-parse", "HEAD"),
        "dirty": bool(output("git", "status", "--porcelain", "--untracked-files=no")),
        "tf32": {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32},
    }
    if device == "cuda":
        env["gpu"] = torch.cuda.get_device_name()
        env["clocks"] = output("nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,power.limit", "--format=csv,noheader")
    return env


def run(options: Options) -> int:
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda, but no CUDA device is visible")
    if options.threads:
        torch.set_num_threads(options.threads)
    document = {"environment": environment(device), "kind": options.kind, "ceilings": {}, "results": []}
    for name in options.dtype:
        dtype = DTYPES[name]
        ceilings = roofline.measure(device, dtype)
        document["ceilings"][name] = ceilings
        for case in registry.cases(options.kind, options.op, device, dtype, options.quick):
            result = run_case(case, seconds=options.seconds, all_baselines=options.baselines == "all")
            result["floor_ms"] = roofline.floor_ms(case.bytes, case.macs, ceilings)
            document["results"].append(result)
            print(report.text_block(result), flush=True)
    print("\n" + report.markdown(document))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.report:
        report.write(document, options.report)
    return 1 if any(r["wrong"] for r in document["results"]) else 0


def main() -> None:
    sys.exit(run(tyro.cli(Options, prog="benchmarks.run")))


if __name__ == "__main__":
    main()
