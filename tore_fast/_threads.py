"""How many threads there are, and how they wait: set before torch loads its OpenMP, which reads both once.

Threads that spin while they wait take the time slices of whoever else is on the machine; with another busy process two
images took 6 to 10 s instead of 0.1. Standard library only: it runs before everything else.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

PASSIVE = {"OMP_WAIT_POLICY": "passive"}
OWN_WAY = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # a user who set one of these decided

state = "not asked"


def settle() -> str:
    """Sets the passive policy, and the number of threads under a CPU quota, where nobody set them and it is not too
    late.

    Returns:
        What `tore-fast info` prints.
    """
    global state
    chosen = [f"{k}={os.environ[k]}" for k in OWN_WAY if k in os.environ]
    if chosen:
        state = f"as set: {', '.join(chosen)}"
    elif "torch" in sys.modules:
        state = "too late, torch was imported first: import tore_fast before it, or set OMP_WAIT_POLICY=passive"
    else:
        os.environ.update(PASSIVE)
        state = "passive, set by tore_fast"
    if "torch" not in sys.modules and "OMP_NUM_THREADS" not in os.environ and available_cpus() < affinity():
        os.environ["OMP_NUM_THREADS"] = str(available_cpus())
    return state


def affinity() -> int:
    """CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def available_cpus() -> int:
    """CPUs by affinity and, in a container, by its quota (rounded up)."""
    quota = cgroup_quota()
    return affinity() if quota is None else max(1, min(affinity(), math.ceil(quota)))


def cgroup_quota(root: str | Path = "/sys/fs/cgroup", own: str | Path = "/proc/self/cgroup") -> float | None:
    """CPUs that the control groups of this process allow (the tightest of its own and those above), None without a
    limit."""
    root = Path(root)
    limits = []
    for line in _lines(own):
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if number == "0":  # version 2
            base, read = root, _quota_v2
        elif "cpu" in controllers.split(","):
            base, read = next((root / n for n in (controllers, "cpu") if (root / n).is_dir()), root), _quota_v1
        else:
            continue
        folder = base / path.lstrip("/")
        for place in (folder, *folder.parents):
            limits.append(read(place))
            if place == base:
                break
    found = [v for v in limits if v is not None and v > 0]
    return min(found) if found else None


def _quota_v2(folder: Path) -> float | None:
    words = " ".join(_lines(folder / "cpu.max")).split()
    return _ratio(*words) if len(words) == 2 else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = (" ".join(_lines(folder / f"cpu.cfs_{n}_us")) for n in ("quota", "period"))
    return _ratio(quota, period)


def _ratio(quota: str, period: str) -> float | None:
    try:
        return int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max", or no such file
        return None


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
