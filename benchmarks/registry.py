"""Finds benchmark cases: every module of ops/ and models/ with a function `cases(device, dtype, quick) -> [Case]`.

A module of models/ may also have `sized(device, dtype, quick)`, functions batch -> Case: from each comes one more case,
at the largest batch a memory budget allows.
"""

from __future__ import annotations

import fnmatch
import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from types import ModuleType

import torch

from .harness import Case, runner
from .memory import largest_batch, peak_growth


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


def fits(name: str, patterns: Sequence[str]) -> bool:
    """Whether a case's name fits one of the shell patterns (no patterns: always)."""
    return not patterns or any(fnmatch.fnmatchcase(name, p) for p in patterns)


def cases(
    kind: str, only: list[str], device: str, dtype: torch.dtype, quick: bool, match: Sequence[str] = ()
) -> Iterator[Case]:
    """Cases of the chosen stems (all when `only` is empty) whose names fit `match`; `quick` asks for a handful of small
    ones.

    Raises:
        ValueError: an unknown stem.
    """
    for module in _modules(kind, only):
        yield from (case for case in module.cases(device, dtype, quick) if fits(case.name, match))


def largest_cases(
    kind: str,
    only: list[str],
    device: str,
    dtype: torch.dtype,
    quick: bool,
    budget: int,
    limit: int,
    match: Sequence[str] = (),
) -> Iterator[Case]:
    """For every sized case the largest power of two as batch whose headline contender grows memory by at most `budget`
    bytes.

    `match` sees the name at batch 1 with " (max)" behind it: the batch is found only for the cases that fit.
    """
    for module in _modules(kind, only):
        for make in module.sized(device, dtype, quick) if hasattr(module, "sized") else ():
            if not fits(f"{make(1).name} (max)", match):
                continue

            def peak_at(batch: int, make=make) -> int | None:
                case = make(batch)
                inputs = case.make_inputs(torch.Generator(device=device).manual_seed(0))
                call = runner(case, next(c.fn for c in case.contenders if c.headline))
                if batch == 1:
                    call(*inputs)  # what is allocated once and kept is not part of a call
                return peak_growth(lambda: call(*inputs), device)

            batch = largest_batch(peak_at, budget, limit)
            if batch is None:
                continue
            case = make(batch)
            case.name += " (max)"
            case.params = {**case.params, "memory_budget_bytes": budget, "batch_limit": limit}
            yield case


def _modules(kind: str, only: list[str]) -> Iterator[ModuleType]:
    check(kind, only)
    for stem in only or names(kind):
        yield importlib.import_module(f".{kind}.{stem}", __package__)
