"""Checks and times one benchmark case: several contenders on the same fresh inputs, interleaved.

A `Case` says how inputs are made, what the answer is (float64 reference) and who competes. `run_case` first compares
every contender with the reference; one that is wrong gets no time. Times are per call: median, 20th and 80th
percentile over samples; every round times every contender once, in a new (seeded) random order, because the place in
a fixed order alone was worth up to 30 %. Inputs rotate through a pool larger than the caches. The ratio quotes one
contender of ours, chosen before the run (the headline: what a user gets without choosing), never the best of several.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .memory import peak_growth

POOL_BYTES = {"cpu": 64 << 20, "cuda": 256 << 20}  # inputs rotate through at least this much (beyond L3 / L2)
POOL_SETS = 16  # but never through more sets than this
LONG_MS = 1000.0  # calls beyond this need no warm-up and are sampled three times only
ERROR_LIMIT = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float64: 1e-10}


@dataclass
class Contender:
    """One way to compute the case: `fn(*inputs)` -> Tensor or tuple of Tensors."""

    name: str
    fn: Callable
    ours: bool = False
    note: str = ""
    heavy: bool = False  # needs minutes of compilation: only with --baselines all
    why_not: str | None = None  # set when it cannot run here; listed without a time
    headline: bool = False  # of several of ours: the one whose ratio is quoted
    way: str = ""  # of an op with several ways on CUDA: the one that this is, for --write-choices


@dataclass
class Case:
    """One op (or model) at one shape, dtype, device and direction."""

    op: str
    name: str  # short shape text, unique inside the op
    make_inputs: Callable[[torch.Generator], Sequence]  # fresh inputs on the right device and dtype
    contenders: Sequence[Contender]
    reference: Callable | None = None  # float64 answer from float64 inputs; None: the first contender not ours is right
    backward: bool = False  # time forward + backward with respect to all floating inputs
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    bytes: float = 0.0  # compulsory memory traffic of one call
    macs: float = 0.0  # multiply-adds the answer needs (not those a dense method spends)
    items: int = 1  # images (or sequences) per call
    error_limit: float | None = None  # relative l2; default by dtype
    check: Callable[[object, object], float] | None = None  # (got, want) -> error, instead of relative l2
    params: dict = field(default_factory=dict)

    def __post_init__(self):
        names = [c.name for c in self.contenders]
        ours = [c for c in self.contenders if c.ours]
        if len(set(names)) < len(names):
            raise ValueError(f"benchmark {self.op} {self.name}: contenders must have different names, got {names}")
        if len(ours) > 1 and sum(c.headline for c in ours) != 1:
            raise ValueError(f"benchmark {self.op} {self.name}: one of our {len(ours)} contenders must be the headline")
        for c in ours if len(ours) == 1 else []:
            c.headline = True

    @property
    def direction(self) -> str:
        return "fwd+bwd" if self.backward else "fwd"


def _flat(result) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [t for t in result if isinstance(t, Tensor) and t.is_floating_point()]


def relative_error(got, want) -> float:
    """Largest relative l2 distance over the tensors of a result; inf for NaN or a wrong shape."""
    worst = 0.0
    for a, b in zip(_flat(got), _flat(want), strict=True):
        if a.shape != b.shape or not bool(torch.isfinite(a).all()):
            return float("inf")
        a, b = a.detach(), b.detach().to(a.device)
        scale = float(b.double().norm()) or 1.0
        worst = max(worst, float((a.double() - b.double()).norm()) / scale)
    return worst


def _grads(fn: Callable, inputs: Sequence, cotangents: dict):
    leaves = [t.detach().requires_grad_() if _is_float(t) else t for t in inputs]
    out = _flat(fn(*leaves))[0]
    # A fixed cotangent, made once and dense as a training step's are. Not constant: the sum of a softmax-weighted mean
    # has no gradient worth timing.
    key = (out.shape, out.dtype)
    if key not in cotangents:
        ramp = torch.linspace(-1, 1, out.shape[-1], device=out.device, dtype=out.dtype)
        cotangents[key] = ramp.expand_as(out).contiguous()
    wanted = [t for t in leaves if _is_float(t)]
    return (out, *torch.autograd.grad(out, wanted, cotangents[key]))


def _is_float(t) -> bool:
    return isinstance(t, Tensor) and t.is_floating_point()


def runner(case: Case, fn: Callable) -> Callable:
    """What is timed: the forward call without autograd, or forward and backward."""
    if case.backward:
        cotangents: dict = {}
        return lambda *inputs: _grads(fn, inputs, cotangents)

    def forward(*inputs):
        with torch.no_grad():
            return fn(*inputs)

    return forward


def run_case(case: Case, *, seconds: float = 1.0, all_baselines: bool = False) -> dict:
    """Checks, times and describes `case`; the result is JSON-ready."""
    generator = torch.Generator(device=case.device).manual_seed(0)
    inputs = case.make_inputs(generator)
    limit = case.error_limit or ERROR_LIMIT[case.dtype] * (5 if case.backward else 1)
    rows, runnable = [], []
    want = None
    if case.reference is not None:
        want = runner(case, case.reference)(*(t.double() if _is_float(t) else t for t in inputs))
    for c in case.contenders:
        row = {"name": c.name, "ours": c.ours, "headline": c.headline, "note": c.note, "error": None, "ok": False}
        row |= {"params": {"way": c.way}} if c.way else {}
        rows.append(row)
        if c.heavy and not all_baselines:
            row["note"] = "skipped: needs --baselines all"
            continue
        if c.why_not:
            row["note"] = f"not run: {c.why_not}"
            continue
        call = runner(case, c.fn)
        try:
            got = call(*inputs)
        except Exception as e:  # a baseline that this torch or device cannot run is a fact to report, not a crash
            row["note"] = f"failed: {type(e).__name__}: {str(e).splitlines()[0][:160]}" if str(e) else type(e).__name__
            _ask_device(case.device, c.name)
            continue
        _ask_device(case.device, c.name)
        if want is None and not c.ours:
            want = tuple(t.double() for t in _flat(got))
        if want is None:  # too large for a reference, and no baseline runs here
            row["ok"], row["note"] = True, f"not compared: nothing to compare with. {c.note}".strip()
        else:
            row["error"] = (case.check or relative_error)(got, want)
            row["ok"] = row["error"] <= limit
        del got
        if row["ok"]:
            row["peak_bytes"] = peak_growth(lambda call=call: call(*inputs), case.device)
            runnable.append((row, call))
        else:
            row["note"] = f"WRONG: error {row['error']:.1e} above {limit:.1e}, not timed. {c.note}".strip()
    _time(case, runnable, inputs, generator, seconds)
    return {
        "op": case.op,
        "case": case.name,
        "direction": case.direction,
        "device": case.device,
        "dtype": str(case.dtype).removeprefix("torch."),
        "params": case.params,
        "bytes": case.bytes,
        "macs": case.macs,
        "items": case.items,
        "contenders": rows,
        **summary(rows),
    }


class DeadDevice(RuntimeError):
    """A CUDA error after which nothing on the device works: later rows would fail or be wrong."""


def _ask_device(device: str, name: str) -> None:
    """Raises DeadDevice where a kernel has left the CUDA context dead (illegal address, assertion)."""
    if device != "cuda":
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as e:
        raise DeadDevice(f"{name}: {str(e).splitlines()[0]}") from None


def summary(rows: list[dict]) -> dict:
    """Our headline contender against the best baseline; no ratio unless everything of ours is right."""
    ours = next((r for r in rows if r["headline"] and "median_ms" in r), None)
    timed = [r for r in rows if not r["ours"] and "median_ms" in r]
    base = min(timed, key=lambda r: r["median_ms"], default=None)
    wrong = [r["name"] for r in rows if r["ours"] and r["error"] is not None and not r["ok"]]
    compared = ours is not None and base is not None and not wrong
    # the same from minima: on a machine shared with other jobs the medians mostly measure those
    return {
        "ours": ours and ours["name"],
        "ours_ms": ours and ours["median_ms"],
        "best_baseline": base and base["name"],
        "best_baseline_ms": base and base["median_ms"],
        "speedup": base["median_ms"] / ours["median_ms"] if compared else None,
        "speedup_of_minima": min(r["min_ms"] for r in timed) / ours["min_ms"] if compared else None,
        "wrong": wrong,
    }


def _pool(case: Case, first: Sequence, generator: torch.Generator) -> list[Sequence]:
    size = sum(t.numel() * t.element_size() for t in first if isinstance(t, Tensor)) or 1
    sets = max(2, min(POOL_SETS, -(-POOL_BYTES[case.device] // size)))
    return [first, *(case.make_inputs(generator) for _ in range(sets - 1))]


def _time(case: Case, runnable: list, inputs: Sequence, generator: torch.Generator, seconds: float) -> None:
    if not runnable:
        return
    pool = _pool(case, inputs, generator)
    clock = _cuda_sample if case.device == "cuda" else _cpu_sample
    plans, slowest = [], 0.0
    for row, call in runnable:
        once = clock(call, pool, 1, 0)
        if once < LONG_MS:  # two more to warm up, the last one tells how long a call takes
            clock(call, pool, 1, 1)
            once = clock(call, pool, 1, 0)
        slowest = max(slowest, once)
        inner = max(1, min(200, int(2.0 / max(once, 1e-4))))  # a sample lasts about 2 ms
        plans.append((row, call, inner, []))
    end = time.perf_counter() + seconds * len(plans)
    turn, order = 0, random.Random(0)
    least = 3 if slowest >= LONG_MS else 5
    while turn < least or (time.perf_counter() < end and turn < 200):
        for _, call, inner, samples in order.sample(plans, len(plans)):
            samples.append(clock(call, pool, inner, turn))
        turn += 1
    for row, call, inner, samples in plans:
        q = statistics.quantiles(samples, n=5, method="inclusive")
        row.update(
            median_ms=statistics.median(samples),
            p20_ms=q[0],
            p80_ms=q[3],
            min_ms=min(samples),
            samples=len(samples),
            inner=inner,
        )
        if case.device == "cuda" and not case.backward:
            row["graph_ms"] = _graph_ms(call, pool)


def _cpu_sample(call: Callable, pool: list, inner: int, turn: int) -> float:
    start = time.perf_counter_ns()
    for i in range(inner):
        call(*pool[(turn + i) % len(pool)])
    return (time.perf_counter_ns() - start) / inner / 1e6


def _cuda_sample(call: Callable, pool: list, inner: int, turn: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for i in range(inner):
        call(*pool[(turn + i) % len(pool)])
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / inner


def _graph_ms(call: Callable, pool: list) -> float | None:
    """Milliseconds per call inside a CUDA graph (no launch overhead); None when the call cannot be captured."""
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for one in pool:
                call(*one)
    except Exception:  # host reads or allocations outside the pool: the column stays empty
        torch.cuda.synchronize()
        return None
    samples = [_cuda_sample(lambda: graph.replay(), [()], 1, 0) / len(pool) for _ in range(20)]
    return statistics.median(samples)
