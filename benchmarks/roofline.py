"""The machine's own ceilings, measured in the same run: copy bandwidth and matrix multiply rate per dtype."""

from __future__ import annotations

import time

import torch


def _best_seconds(call, device: str, repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        if device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            best = min(best, start.elapsed_time(end) / 1e3)
        else:
            t = time.perf_counter()
            call()
            best = min(best, time.perf_counter() - t)
    return best


def measure(device: str, dtype: torch.dtype) -> dict:
    """{"bytes_per_s", "macs_per_s"}: a large copy (read + write), a large square product in `dtype`."""
    size = (1 << 30) if device == "cuda" else (1 << 27)
    a = torch.empty(size // 4, device=device)
    b = torch.ones_like(a)
    copy = _best_seconds(lambda: a.copy_(b), device, 8)
    n = 8192 if device == "cuda" else 1024
    x, y = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    x @ y
    product = _best_seconds(lambda: x @ y, device, 8)
    return {"bytes_per_s": 2.0 * size / copy, "macs_per_s": float(n) ** 3 / product}


def floor_ms(bytes_: float, macs: float, ceilings: dict) -> float | None:
    """Time below which no implementation can go on this machine, by memory or by arithmetic; None without numbers."""
    floor = max(bytes_ / ceilings["bytes_per_s"], macs / ceilings["macs_per_s"]) * 1e3
    return floor or None
