"""Files of a training run: written whole or not at all, read without executing anything, the one before kept.

Used by loop.py (resuming) and by the commands that export a run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ..io.atomic import replacing
from ..io.weights import read_weights


def save_atomically(state: dict, path: Path) -> None:
    """A reader (or a kill) never sees half a file."""
    with replacing(path) as part:
        torch.save(state, part)


def previous(path: Path) -> Path:
    """Where the checkpoint before `path` is kept."""
    return path.with_name(f"previous_{path.name}")


def keep_previous(path: Path) -> None:
    """Keeps what is at `path` under its second name until the next call; at every moment one whole file is there."""
    if not path.exists():
        return
    part = path.with_suffix(".kept")
    part.unlink(missing_ok=True)
    try:
        os.link(path, part)
    except OSError:  # a file system without hard links: no second name
        return
    os.replace(part, previous(path))


def read_run(path: str | Path, expected: tuple[str, ...] = ("model", "step")) -> dict[str, Any]:
    """Contents of a run's last.pt or best.pt, tensors on the CPU.

    Raises:
        FileNotFoundError: no such file. ValueError: damaged, or not of a run; where the checkpoint before it is whole,
            the
        message says how to go on from there.
    """
    path = Path(path)
    try:
        return _read(path, expected)
    except ValueError as e:
        try:
            step = _read(previous(path), expected)["step"]
        except (ValueError, OSError):
            raise e from None
        raise ValueError(
            f"{e}; to go on from the checkpoint before (step {step}): mv {previous(path)} {path}"
        ) from None


def _read(path: Path, expected: tuple[str, ...]) -> dict[str, Any]:
    state = read_weights(path)
    missing = [k for k in expected if k not in state] if isinstance(state, dict) else list(expected)
    if missing or not isinstance(state["step"], int) or not isinstance(state["model"], dict):
        raise ValueError(f"{path}: not a checkpoint of a training run (no {', '.join(missing) or 'weights'})")
    return state
