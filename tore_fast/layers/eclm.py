"""Layer merging (ECLM of FastHMR): which residual blocks of a stack can be folded into one another.
from ..io.atomic import write_json


In: a number of blocks and an error callback over groupings (pipelines/merge.py builds those from a model and
images); out: an `ECLMPlan`, which rewrites any state dict of the same shape without data. `linear_cka` is the paper's
figure 2, for motivation or as an optional filter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..io.atomic import write_json

Groups = tuple[tuple[int, ...], ...]


class Evaluation(NamedTuple):
    """One call of the error: the window low..high was tried, gave `error`, and was accepted or not."""

    low: int
    high: int
    error: float
    accept: bool


def merge_tensors(tensors: Sequence[Tensor]) -> Tensor:
    """theta_i + sum_k (theta_{i+k} - theta_i), computed in at least float32 and returned in the input dtype.

    A pair gives theta_{i+1} (the lower layer is dropped); three give theta_{i+1} + theta_{i+2} - theta_i.

    Source: FastHMR eq. 4, after Sliding Layer Merging.
    """
    first = tensors[0]
    if len(tensors) == 1 or not first.is_floating_point():
        return tensors[-1].clone()
    wide = torch.float64 if first.dtype == torch.float64 else torch.float32
    if len(tensors) == 2:
        return tensors[1].clone()
    total = sum(t.to(wide) for t in tensors[1:]) - (len(tensors) - 2) * first.to(wide)
    return total.to(first.dtype)


@dataclass(frozen=True)
class ECLMPlan:
    """Grouping of a stack's blocks: ((0,), (1,), (2, 3), ...), every block once and in order."""

    groups: Groups

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(tuple(int(i) for i in g) for g in self.groups))
        flat = [i for g in self.groups for i in g]
        if flat != list(range(len(flat))) or any(not g for g in self.groups):
            raise ValueError(f"ECLMPlan: groups must hold 0..L-1 once and in order, got {self.groups}")

    @classmethod
    def identity(cls, num_layers: int) -> ECLMPlan:
        return cls(tuple((i,) for i in range(num_layers)))

    @property
    def num_original(self) -> int:
        return sum(map(len, self.groups))

    @property
    def num_layers(self) -> int:
        return len(self.groups)

    def apply(self, state: dict[str, Tensor], prefix: str = "backbone.blocks.") -> dict[str, Tensor]:
        """State dict with `prefix`{0..L-1}.* merged to `prefix`{0..L'-1}.*; other keys unchanged.

        Raises:
            ValueError: the state dict does not have exactly this plan's number of blocks under `prefix`.
        """
        pattern = re.compile(re.escape(prefix) + r"(\d+)\.(.+)")
        blocks: dict[int, dict[str, Tensor]] = {}
        out: dict[str, Tensor] = {}
        for key, value in state.items():
            m = pattern.fullmatch(key)
            if m is None:
                out[key] = value
            else:
                blocks.setdefault(int(m[1]), {})[m[2]] = value
        if sorted(blocks) != list(range(self.num_original)):
            raise ValueError(
                f"ECLMPlan.apply: the plan is for {self.num_original} blocks, the state dict has {len(blocks)} "
                f"under {prefix!r}"
            )
        for new, group in enumerate(self.groups):
            for name in blocks[group[0]]:
                out[f"{prefix}{new}.{name}"] = merge_tensors([blocks[i][name] for i in group])
        return out

    def to_json(self) -> dict:
        return {
            "num_original": self.num_original,
            "num_layers": self.num_layers,
            "groups": [list(g) for g in self.groups],
        }

    def save(self, path: str | Path) -> None:
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> ECLMPlan:
        data = json.loads(Path(path).read_text())
        if not isinstance(data, dict) or "groups" not in data:
            raise ValueError(f"{path}: not an ECLM plan (no 'groups')")
        return cls(tuple(map(tuple, data["groups"])))


@dataclass(frozen=True)
class ECLMResult:
    plan: ECLMPlan
    base: float
    trace: tuple[Evaluation, ...] = field(default=())
    plan_as_printed: ECLMPlan | None = None  # without the final commit

    def to_json(self) -> dict:
        return {**self.plan.to_json(), "base": self.base, "trace": [e._asdict() for e in self.trace]}


def _window(committed: Groups, low: int, high: int, num_layers: int) -> Groups:
    """Grouping in which original layers low..high are one group; layers above follow `committed`."""
    tail = tuple(g for g in committed if g[0] > high)
    singles = tuple((i,) for i in range(low))
    merged = (tuple(range(low, high + 1)),) if low <= high else ()
    return (*singles, *merged, *tail)


def eclm_search(
    num_layers: int,
    error: Callable[[Groups], float],
    tau: float = 0.1,
    base: float | None = None,
    tail_commit: bool = True,
    known: Sequence[Evaluation] = (),
    on_step: Callable[[Evaluation, int], None] | None = None,
    reject: Callable[[int, int], bool] | None = None,
) -> ECLMResult:
    """Algorithm 1: grows a window of blocks downwards while merging it costs less than tau.

    Args:
        num_layers: blocks L of the stack.
        error: error of the model whose blocks are merged by this grouping; smaller is better. Called L - 1 times.
        tau: allowed rise over `base`, the ORIGINAL model's error (the merged model stays within it).
        base: that error; computed as error(identity) when None.
        tail_commit: also commit the window still open when the bottom is reached (the printed loop forgets it).
        known: evaluations of an interrupted run, in order; they are replayed instead of computed (resume).
        on_step: called with each evaluation and the number of evaluations so far.
        reject: optional filter (low, high) -> True to reject without evaluating (for example low CKA).

    Returns:
        Plan, base error and the trace of evaluations.

    Source: FastHMR Algorithm 1.
    """
    if num_layers < 1:
        raise ValueError(f"eclm_search: num_layers must be positive, got {num_layers}")
    identity: Groups = tuple((i,) for i in range(num_layers))
    base = error(identity) if base is None else base
    replay = list(known)
    trace: list[Evaluation] = []
    committed, high = identity, num_layers - 1
    low = high - 1

    def commit(lo: int, hi: int) -> Groups:
        return _window(committed, lo, hi, num_layers)

    while low >= 0:
        if len(trace) < len(replay):
            step = replay[len(trace)]
            if (step.low, step.high) != (low, high):
                raise ValueError(
                    f"eclm_search: the interrupted run tried layers {step.low}..{step.high} where this one "
                    f"tries {low}..{high}; it belongs to another model, tau or data"
                )
        elif reject is not None and reject(low, high):
            step = Evaluation(low, high, float("inf"), False)
        else:
            value = float(error(_window(committed, low, high, num_layers)))
            step = Evaluation(low, high, value, value - base < tau)
        trace.append(step)
        if on_step is not None:
            on_step(step, len(trace))
        if step.accept:
            low -= 1
        elif low + 1 != high:
            committed = commit(low + 1, high)
            high, low = low, low - 1
        else:
            high, low = high - 1, low - 1
    printed = ECLMPlan(committed)
    if tail_commit and low + 1 != high:
        committed = commit(low + 1, high)
    return ECLMResult(ECLMPlan(committed), float(base), tuple(trace), printed)


def linear_cka(x: Tensor, y: Tensor) -> float:  # [n, d1], [n, d2]
    """Linear centred kernel alignment |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F) in float64; 1 for equal up to rotation and
    scale."""
    if x.dim() != 2 or y.dim() != 2 or x.shape[0] != y.shape[0]:
        raise ValueError(f"linear_cka: x and y must be [n, d] with the same n, got {list(x.shape)} and {list(y.shape)}")
    x, y = (t.double() - t.double().mean(0) for t in (x, y))
    if x.shape[0] < min(x.shape[1], y.shape[1]):  # n x n Gram matrices are smaller
        kx, ky = x @ x.T, y @ y.T
        return float((kx * ky).sum() / (kx.norm() * ky.norm()))
    return float((y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


def cka_matrix(features: Sequence[Tensor], max_rows: int = 8192, seed: int = 0) -> Tensor:
    """[L, L] linear CKA between the outputs of L layers, each [n, d]; rows subsampled alike in all layers."""
    n = features[0].shape[0]
    rows = torch.arange(n)
    if n > max_rows:
        rows = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:max_rows]
    picked = [f[rows.to(f.device)] for f in features]
    size = len(picked)
    out = torch.eye(size, dtype=torch.float64)
    for i in range(size):
        for j in range(i):
            out[i, j] = out[j, i] = linear_cka(picked[i], picked[j])
    return out


def describe(plan: ECLMPlan) -> Iterator[str]:
    """Lines like `blocks 4-6 -> 4` for the groups that merged."""
    for new, group in enumerate(plan.groups):
        if len(group) > 1:
            yield f"blocks {group[0]}-{group[-1]} -> {new}"
