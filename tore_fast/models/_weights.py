"""Loads a state dict into a model, strictly: one line that names the file, what was expected and what came.

Used by _hub.py (our folders) and convert/ (official files); the files themselves are read by io/weights.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def load_strict(
    model: nn.Module,
    state: dict[str, Tensor],
    source: str,
    what: str | None = None,
    assign: bool = False,
    allow_nonfinite: bool = False,
) -> None:
    """Loads every key or raises one ValueError that counts and names what does not fit.

    Args:
        what: the model, for the message; default its class.
        assign: take the tensors over instead of copying them.
        allow_nonfinite: NaN and infinite weights, which make every result NaN, are loaded instead of refused.
    """
    want = model.state_dict()
    missing, extra = [k for k in want if k not in state], [k for k in state if k not in want]
    wrong = [
        f"{k} {list(state[k].shape)} (expected {list(v.shape)})"
        for k, v in want.items()
        if k in state and state[k].shape != v.shape
    ]
    if missing or extra or wrong:
        parts = ((missing, "missing"), (extra, "unexpected"), (wrong, "of another shape"))
        text = "; ".join(f"{len(k)} keys {part}, first: {', '.join(k[:3])}" for k, part in parts if k)
        raise ValueError(f"{source}: does not fit {what or type(model).__name__}: {text}")
    check_kinds(want, state, source, allow_nonfinite)
    model.load_state_dict(state, assign=assign)


def check_kinds(want: dict[str, Tensor], state: dict[str, Tensor], source: str, allow_nonfinite: bool = False) -> None:
    """ValueError for weights of another kind than the model's (integers, complex numbers) and for NaN and infinite ones."""
    kinds = [
        f"{k} {str(state[k].dtype).removeprefix('torch.')} (expected {str(v.dtype).removeprefix('torch.')})"
        for k, v in want.items()
        if state[k].is_complex() or state[k].is_floating_point() != v.is_floating_point()
    ]
    if kinds:
        raise ValueError(f"{source}: {len(kinds)} weights of another kind, first: {', '.join(kinds[:3])}")
    bad = [] if allow_nonfinite else [k for k in want if not _finite(state[k])]
    if bad:
        raise ValueError(
            f"{source}: {len(bad)} weights hold NaN or infinity, first: {', '.join(bad[:3])}; a model with them computes "
            "NaN (allow_nonfinite loads them all the same)"
        )


def _finite(x: Tensor) -> bool:
    if not x.is_floating_point() or not x.numel() or x.is_meta:
        return True
    if x.dtype.itemsize == 1:  # float8 has no minimum and maximum
        x = x.float()
    return all(bool(torch.isfinite(v)) for v in torch.aminmax(x))  # one pass over the weights; NaN comes through
