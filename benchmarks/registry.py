"""Finds benchmark cases: every module of ops/ and models/ with a function `cases(device, dtype, quick) -> [Case]`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import torch

from .harness import Case


def names(kind: str) -> list[str]:
    """Stems of benchmarks/<kind>/ ("ops" or "models")."""
    package = importlib.import_module(f".{kind}", __package__)
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def check(kind: str, only: list[str]) -> None:
    """ValueError for a stem that is not there."""
    known = names(kind)
    for stem in only:
        if stem not in known:
            raise ValueError(f"no {kind} benchmark {stem!r}; expected one of {', '.join(known) or 'none yet'}")


def cases(kind: str, only: list[str], device: str, dtype: torch.dtype, quick: bool) -> Iterator[Case]:
    """Cases of the chosen stems (all when `only` is empty); `quick` asks for a handful of small ones.

    Raises:
        ValueError: an unknown stem.
    """
    check(kind, only)
    for stem in only or names(kind):
        module = importlib.import_module(f".{kind}.{stem}", __package__)
        yield from module.cases(device, dtype, quick)
