"""Where networks run and in which precision: `--device` and `--precision` of every verb."""

from __future__ import annotations

import contextlib

import torch

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Word of `--precision` -> dtype of autocast (None: none)."""


def pick_device(device: str) -> str:
    """ "auto" -> "cuda" where a GPU is visible, else "cpu"; anything else is checked and kept.

    Raises:
        ValueError: an unknown word, or a device that torch does not see here.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind, index = torch.device(device).type, torch.device(device).index
    except RuntimeError:
        raise ValueError(f"device: expected auto, cpu, cuda, cuda:N, mps or xpu, got {device!r}") from None
    if kind == "cpu":
        return device
    backend = getattr(torch, kind, None) if kind in ("cuda", "mps", "xpu") else None
    if backend is None or not backend.is_available():
        raise ValueError(f"device {device!r}: no {kind.upper()} device is visible to torch {torch.__version__}")
    if index is not None and index >= backend.device_count():
        raise ValueError(
            f"device {device!r}: torch sees {backend.device_count()} {kind.upper()} devices, numbered from 0"
        )
    return device


def check_precision(precision: str) -> str:
    """`precision` itself; ValueError where it is none of PRECISIONS."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    return precision


def autocast(device: str | torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Autocast of the matrix products on `device`; nothing for fp32."""
    low = PRECISIONS[check_precision(precision)]
    return torch.autocast(torch.device(device).type, dtype=low, enabled=low is not None)
