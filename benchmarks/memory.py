"""Peak memory of one call, and the largest batch that stays inside a memory budget.

In: a callable (a contender on its inputs) from harness.py; out: bytes for the memory column and the "max" rows.
CUDA: the caching allocator's peak above what was held before the call. CPU: growth of the process's peak resident set
during the call (Linux only: /proc/self/clear_refs sets the peak back); pages that malloc or our kernels kept from
earlier calls are given back first, so that they are counted again when the call takes them.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from tore_fast.ops import release_memory

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
GROWTH_LIMIT = 1 << 16  # no batch above this, whatever the budget


def peak_growth(call: Callable[[], object], device: str) -> int | None:
    """Bytes by which memory in use grows at most during `call()`, its result included; None where it cannot be told."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        del result
        return torch.cuda.max_memory_allocated() - before
    if not sys.platform.startswith("linux"):
        return None
    release_memory()
    ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR.write_text("5")
    except OSError:  # some containers mount /proc read-only
        return None
    before = _resident("VmRSS")
    result = call()
    peak = _resident("VmHWM")
    del result
    return max(0, peak - before)


def _resident(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"bench: {_STATUS} has no field {field}")


def largest_batch(peak_at: Callable[[int], int | None], budget: int, limit: int) -> int | None:
    """Largest power of two whose measured peak is at most `budget` bytes, and at most `limit`.

    `peak_at(batch)` runs one call and returns its peak growth. Batches 1 and 2 give a straight line; the batch it
    predicts is then measured, and halved until it fits.

    Returns:
        The batch; None when not even batch 1 fits or memory cannot be measured.
    """
    one = peak_at(1)
    if one is None or one > budget:
        return None
    two = peak_at(2) if limit >= 2 else None
    if two is None or two > budget:
        return 1
    slope, batch = max(two - one, 1), 2
    while batch * 2 <= min(limit, GROWTH_LIMIT) and one + (2 * batch - 1) * slope <= budget:
        batch *= 2
    while batch > 2 and peak_at(batch) > budget:
        batch //= 2
    return batch


def largest_fitting(
    peak_at: Callable[[int], int | None], budget: int, limit: int, tolerance: float = 0.02
) -> int | None:
    """Largest batch, not only a power of two, whose measured peak is at most `budget` bytes, and at most `limit`.

    The batch doubles until it does not fit; what lies between is halved until both ends are `tolerance` apart.

    Returns:
        A batch that was measured and fits; None when not even batch 1 fits or memory cannot be measured.
    """

    def fits(batch: int) -> bool:
        peak = peak_at(batch)
        return peak is not None and peak <= budget

    limit = min(limit, GROWTH_LIMIT)
    if not fits(1):
        return None
    good, bad = 1, 2
    while bad <= limit and fits(bad):
        good, bad = bad, 2 * bad
    if bad > limit:
        if good == limit or fits(limit):
            return limit
        bad = limit
    while bad - good > max(1, int(tolerance * good)):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good
