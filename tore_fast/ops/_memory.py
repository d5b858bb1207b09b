"""Memory that the CPU kernels keep for their next large result (csrc/cpu/block_cache.h).

A tensor of 1 MB or more that a CPU kernel of ours returns leaves its memory to the next one when it dies: fresh pages
cost as much time as the kernel that fills them. At most TORE_FAST_CACHE_MB megabytes (environment variable, default
512, 0: nothing) are kept.
"""

from __future__ import annotations

from .. import _ext


def kept_memory() -> int:
    """Bytes that are kept and in no tensor now; 0 without the compiled kernels."""
    return 0 if _ext.cpu_module is None else _ext.cpu_module.cached_bytes()


def release_memory() -> int:
    """Gives the kept bytes back to the system; returns how many they were.

    Example:
        >>> release_memory() >= 0 and kept_memory() == 0
        True
    """
    kept = kept_memory()
    if kept:
        _ext.cpu_module.release_blocks()
    return kept
