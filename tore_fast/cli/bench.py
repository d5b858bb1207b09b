"""`tore-fast bench ops|models`: times the kernels or the models against tuned baselines (benchmarks/run.py)."""

from __future__ import annotations

from ..benchmarks import registry
from ..benchmarks import run as bench
from . import arguments

Args = bench.Options


def run(args: Args) -> int:
    with arguments():
        registry.check(args.kind, args.op)
        if args.threads < 0 or args.seconds <= 0:
            raise ValueError(f"--threads and --seconds: expected positive numbers, got {args.threads} and {args.seconds}")
    return bench.run(args)
