"""`tore-fast bench` and `python -m benchmarks.run`: runs cases, prints a table, writes JSON and a report.

The JSON is written again after every case, so a run that is cut off keeps its rows; --append goes on with such a file,
or adds the rows of a second command to it. The exit code is 1 when one of our own contenders was wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

try:
    import tyro
except ImportError:  # a bare GPU machine: parse() takes argparse instead
    tyro = None

from tore_fast.io.atomic import write_text
from tore_fast.ops._choices import measured

from . import pipelines, registry, report, roofline, tables
from .harness import Case, DeadDevice, run_case

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass
class Options:
    """Times the ops or the models of tore_fast against tuned baselines, correctness first."""

    kind: tyro.conf.Positional[Literal["ops", "models", "pipelines", "tables"]]
    """What to benchmark: ops, models, whole pipelines, or the papers' efficiency tables."""
    op: list[str] = field(default_factory=list)
    """Stems to run (ops), model families (models), kinds of rows (pipelines: waterfall batch predict video busy
    cold) or tables (tables: b1 b2 c4 hot fasthmr); default all."""
    model: list[str] = field(default_factory=list)
    """pipelines: models by name, instead of those with a target."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """pipelines: of the networks' matrix products."""
    match: list[str] = field(default_factory=list)
    """Only cases whose names fit one of these shell patterns, e.g. 'metro_r50*b1'; '*(max)' are the rows of
    --max-gb."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA when there is a GPU."""
    dtype: list[Literal["float32", "float16", "bfloat16"]] = field(default_factory=lambda: ["float32"])
    """Input types."""
    baselines: Literal["fast", "all"] = "fast"
    """all: also those that compile for minutes (torch.compile max-autotune, FlexAttention)."""
    json: Path | None = None
    """Write all numbers here, after every case."""
    append: bool = False
    """Keep the rows that --json holds already (same machine, torch, threads and commit) and run only the missing
    ones."""
    max_gb: float = 0.0
    """models: also the largest power of two as batch whose memory growth stays below this; 0: no such rows. tables: the
    memory of TORE B1, found to 2 %; 0: 24 on a GPU, 0.5 on a CPU."""
    max_batch: int = 1024
    """models and tables: but no batch larger than this."""
    report: Path | None = None
    """Write report.md and PNG charts into this folder."""
    threads: int = 0
    """CPU threads; 0: leave torch's default."""
    seconds: float = 1.0
    """Timing budget per contender and case."""
    quick: bool = False
    """Only a few small cases."""
    write_choices: Path | None = None
    """ops on CUDA: write what impl="auto" is to take, by these times ($TORE_FAST_CHOICES names the file to use)."""


class NoCase(ValueError):
    """--match leaves nothing to run."""


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


FACTS = ("device", "gpu", "cpu", "threads", "torch", "tore_fast", "build", "commit")  # equal in all rows of a document


def previous(path: Path, environment: dict) -> list[dict]:
    """Rows of an earlier run at `path`.

    Raises:
        ValueError: they were taken on another machine, torch, build or commit.
    """
    if not path.exists():
        return []
    old = json.loads(path.read_text())
    for fact in FACTS:
        if old["environment"].get(fact) != environment.get(fact):
            raise ValueError(
                f"--append: {path} was taken with {fact} = {old['environment'].get(fact)!r}, this is "
                f"{environment.get(fact)!r}"
            )
    return old["results"]


def save(path: Path, document: dict) -> None:
    """Replaces the file in one step: whoever reads it, or cuts this run, finds a whole document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(document, indent=1) + "\n")


def all_cases(options: Options, device: str, dtype: torch.dtype) -> Iterator[Case]:
    yield from registry.cases(options.kind, options.op, device, dtype, options.quick, options.match)
    if options.kind == "models" and options.max_gb > 0:
        budget = int(options.max_gb * 1e9)
        yield from registry.largest_cases(
            options.kind, options.op, device, dtype, options.quick, budget, options.max_batch, options.match
        )


def check(options: Options) -> None:
    """ValueError for options that cannot be done, before anything is measured."""
    if options.kind == "pipelines":
        pipelines.check(options.op, options.model)
    elif options.kind == "tables":
        tables.check(options.op)
    else:
        registry.check(options.kind, options.op)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda, but no CUDA device is visible")
    if options.append and not options.json:
        raise ValueError("--append goes on with the file of --json, which was not given")
    if options.write_choices and (options.kind != "ops" or options.device == "cpu" or not torch.cuda.is_available()):
        raise ValueError("--write-choices: the table is about ops on CUDA; it needs `ops` and a GPU")
    if options.threads < 0 or options.seconds <= 0:
        raise ValueError(
            f"--threads and --seconds: expected positive numbers, got {options.threads} and {options.seconds}"
        )


def run(options: Options) -> int:
    check(options)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.threads:
        torch.set_num_threads(options.threads)
    document = {"environment": environment(device), "kind": options.kind, "ceilings": {}, "results": []}
    if options.append:
        document["results"] = previous(options.json, document["environment"])
    if options.kind == "pipelines":
        return run_pipelines(options, device, document)
    if options.kind == "tables":
        return run_tables(options, device, document)
    done = {report.key(r) for r in document["results"]}
    seen = 0
    for name in options.dtype:
        dtype = DTYPES[name]
        ceilings = document["ceilings"][name] = roofline.measure(device, dtype)
        for case in all_cases(options, device, dtype):
            seen += 1
            if report.key(vars(case) | {"case": case.name, "direction": case.direction, "dtype": name}) in done:
                continue
            result = run_case(case, seconds=options.seconds, all_baselines=options.baselines == "all")
            result["floor_ms"] = roofline.floor_ms(case.bytes, case.macs, ceilings)
            document["results"].append(result)
            print(report.text_block(result), flush=True)
            if options.json:
                save(options.json, document)
    if options.match and not seen:
        where, patterns = " ".join([options.kind, *options.op]), " ".join(map(repr, options.match))
        raise NoCase(f"--match: no case of {where} fits {patterns}")
    print("\n" + report.markdown(document))
    if options.json:
        save(options.json, document)
    if options.write_choices:
        arch = "sm_{}{}".format(*torch.cuda.get_device_capability())
        rules = measured(document["results"], arch)
        about = f"measured on {document['environment'].get('gpu')}, {document['environment']['date']}"
        save(options.write_choices, {"about": about, "rules": rules})
    if options.report:
        report.write(document, options.report)
    return 1 if any(r["wrong"] for r in document["results"]) else 0


def run_tables(options: Options, device: str, document: dict) -> int:
    """Rows of the papers' tables; the JSON is written after every row."""
    done = {(r["case"], r["metric"], r["dtype"]) for r in document["results"]}
    seen = 0
    for name in options.dtype:
        setting = tables.Setting(device, DTYPES[name], options.seconds, int(options.max_gb * 1e9), options.max_batch)
        for row in tables.rows(device, options.op, options.quick):
            if not registry.fits(row.name, options.match):
                continue
            seen += 1
            if (row.name, row.metric, name) in done:
                continue
            result = tables.measure(row, setting)
            document["results"].append(result)
            print(tables.text(result), flush=True)
            if options.json:
                save(options.json, document)
    if not seen:
        raise NoCase(f"bench tables: no row of this device fits {' '.join([*options.op, *options.match]) or '(all)'}")
    print("\n" + tables.markdown(document))
    if options.report:
        options.report.mkdir(parents=True, exist_ok=True)
        write_text(options.report / f"{device}_tables.md", tables.markdown(document) + "\n")
    return 0


def run_pipelines(options: Options, device: str, document: dict) -> int:
    """Rows of benchmarks/pipelines.py; the JSON is written after every row."""
    setting = pipelines.Setting(device, options.precision, tuple(options.model), options.quick)
    for row in pipelines.rows(setting, options.op):
        result = pipelines.result_of(row)
        print(pipelines.text(result), flush=True)
        document["results"] = [r for r in document["results"] if r["case"] != result["case"]] + [result]
        if options.json:
            save(options.json, document)
    if options.report:
        options.report.mkdir(parents=True, exist_ok=True)
        write_text(options.report / "pipelines.md", pipelines.markdown(document) + "\n")
        pipelines.chart(document, options.report / "pipelines.png")
    return 0


def parse(arguments: list[str] | None = None) -> Options:
    """Options from the command line; without tyro by argparse, with the same names."""
    if tyro is not None:
        return tyro.cli(Options, prog="benchmarks.run", args=arguments)
    parser = argparse.ArgumentParser(prog="benchmarks.run", description=Options.__doc__)
    parser.add_argument("kind", choices=("ops", "models", "pipelines", "tables"))
    for f in dataclasses.fields(Options)[1:]:
        name = "--" + f.name.replace("_", "-")
        default = f.default_factory() if f.default is dataclasses.MISSING else f.default
        if isinstance(default, bool):
            parser.add_argument(name, action=argparse.BooleanOptionalAction, default=default)
        elif isinstance(default, list):
            parser.add_argument(name, nargs="*", default=default)
        else:
            kind = Path if f.name in ("json", "report", "write_choices") else type(default)
            parser.add_argument(name, type=kind, default=default)
    return Options(**vars(parser.parse_args(arguments)))


def main() -> None:
    try:
        sys.exit(run(parse()))
    except DeadDevice as e:
        print(f"stopped: {e}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
