"""What does each token reduction cost in accuracy and what does it buy? One resumable command for the whole comparison.

    python -m studies.token_reduction.run run                     all rows and seeds that have no result yet (kill it
    whenever, run it again) python -m studies.token_reduction.run run --rows 'tore_s_*' --seeds 0
    python -m studies.token_reduction.run time                    images/s of every row, on a quiet machine
    python -m studies.token_reduction.run table                   results as a Markdown table
    python -m studies.token_reduction.run plot                    docs/images/study_*.png

Rows: .rows.py; data: .features.py; training: .train.py; docs/study.md says what came out.
"""

from __future__ import annotations

import fnmatch
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from .rows import PROTOCOLS, ROWS

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "study"
# Most informative first, so that a study that is cut short is still a comparison: base rows, then seeds, then variants.
PRIORITY = (
    "fastmetro_s",
    "tore_s_gtr",
    "mlp",
    "tore_s_soft80",
    "metro_gtr",
    "tcformer",
    "tore_s_cluster80",
    "tore_s_attention80",
    "tore_s_soft50",
    "tore_s_soft25",
    "tore_s_soft100",
    "tore_s_cluster50",
    "fastmetro_l",
    "tore_l_gtr",
    "tore_l_soft80",
    "metro",
    "graphormer",
    "*_x4",
    "metro_lr*",
    "tore_s_gtr_lr*",
    "fastmetro_s_lr*",
    "tore_s_gtr_noise*",
)


@dataclass
class Run:
    """Trains and evaluates rows; finished ones are skipped, an unfinished one goes on from its checkpoint."""

    rows: tuple[str, ...] = ()
    """Names or shell patterns (default: all rows but the tore_l ITP variants other than soft80)."""
    seeds: tuple[int, ...] = ()
    """Default: as many as the row asks for, first seeds of all rows first."""
    protocol: str = "cpu"
    runs: Path = Path("runs/study")
    """Checkpoints and cached features (about 0.5 GB)."""
    results: Path = RESULTS
    max_minutes: float = 0.0
    """Start no further row after this time; 0: go on to the end."""
    threads: int = 1


@dataclass
class Time:
    """Measures inference; writes results/timings.json. The machine should do nothing else."""

    results: Path = RESULTS
    protocol: str = "cpu"
    batch: int = 16
    seconds: float = 2.0
    threads: int = 1


@dataclass
class Table:
    """Prints the Markdown tables."""

    results: Path = RESULTS
    full: bool = False
    """Also multiply-adds of the rows at the papers' size (counted, half a minute)."""


@dataclass
class Plot:
    """Draws error against multiply-adds and against images/s, and the two TORE studies."""

    results: Path = RESULTS
    out: Path = ROOT / "docs" / "images"


def jobs(patterns: tuple[str, ...], seeds: tuple[int, ...]) -> list[tuple[str, int]]:
    """(row, seed) in the order they are run."""
    names: list[str] = []
    for pattern in patterns or PRIORITY:
        found = fnmatch.filter(ROWS, pattern)
        if not found:
            raise ValueError(f"--rows {pattern!r}: no such row; there are {', '.join(ROWS)}")
        names += [n for n in found if n not in names]
    if seeds:
        return [(n, s) for s in seeds for n in names]
    return sorted(((n, s) for n in names for s in range(ROWS[n].seeds)), key=lambda job: job[1] + ROWS[job[0]].later)


def run(args: Run) -> int:
    from .train import Study, run_row

    if args.protocol not in PROTOCOLS:
        raise ValueError(f"--protocol must be one of {', '.join(PROTOCOLS)}, got {args.protocol!r}")
    todo = jobs(args.rows, args.seeds)
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    started = time.monotonic()
    study = Study(PROTOCOLS[args.protocol], args.runs / "cache", device)
    for name, seed in todo:
        if args.max_minutes and time.monotonic() - started > 60 * args.max_minutes:
            print(f"stopped after {args.max_minutes} minutes; the same command goes on")
            break
        got = run_row(study, name, ROWS[name], seed, args.runs / args.protocol, args.results)
        print(
            f"{name} seed {seed}: PA-MPJPE {got['easy_pa_mpjpe_mm']:.1f}  MPJPE {got['easy_mpjpe_mm']:.1f}  "
            f"MPVPE {got['easy_mpvpe_mm']:.1f} mm",
            flush=True,
        )
    return 0


def main(argv: list[str] | None = None) -> int:
    command = tyro.cli(Run | Time | Table | Plot, args=argv)
    if isinstance(command, Run):
        return run(command)
    from . import report

    if isinstance(command, Time):
        report.measure(command.results, PROTOCOLS[command.protocol], command.batch, command.seconds, command.threads)
    elif isinstance(command, Table):
        print(report.table(command.results, command.full))
    else:
        for path in report.plot(command.results, command.out):
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
