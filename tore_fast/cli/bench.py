"""`tore-fast bench ops|models|pipelines|tables`: times kernels, models, pipelines, the papers' tables
(benchmarks/run.py)."""

from __future__ import annotations

from ..benchmarks import run as bench
from ..benchmarks.run import Options as Args
from . import UsageError, arguments


def run(args: Args) -> int:
    with arguments():
        bench.check(args)
    try:
        return bench.run(args)
    except bench.NoCase as e:
        raise UsageError(str(e)) from e
