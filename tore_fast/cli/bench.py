"""`tore-fast bench ops|models`: times the kernels or the models against tuned baselines (benchmarks/run.py)."""

from __future__ import annotations

from ..benchmarks.run import Options as Args
from ..benchmarks.run import run

__all__ = ["Args", "run"]
