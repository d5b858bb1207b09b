"""The state dict of a weight file, wrappers and prefixes taken off, and loading it strictly.

In: a path, read by io/weights.py, which executes nothing of it. Every refusal is one line that names the file, what was
expected and what came. Used by _checkpoint.py (our folders) and _checkpoint.py (official files).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..io.weights import Unknown, read_weights

WRAPPERS = ("state_dict", "model_state_dict", "model_pos", "model", "net", "network", "module")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
_PROFILER = ("total_ops", "total_params")  # buffers that thop leaves in every module


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name, without the prefixes that wrappers of a model leave and without profiler counters.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a weight file, or one without a state dict.
    """
    return clean_state_dict(read_weights(path), str(path))


def clean_state_dict(data: object, source: str = "checkpoint") -> dict[str, Tensor]:
    """The state dict inside what a training script saved; settings and counters beside the tensors are left out."""
    for wrapper in WRAPPERS:
        if isinstance(data, dict) and isinstance(data.get(wrapper), dict):
            data = data[wrapper]
            break
    state = {str(k): v for k, v in data.items() if isinstance(v, Tensor)} if isinstance(data, dict) else {}
    if not state:
        within = list(data.values()) if isinstance(data, dict) else [data]
        if unknown := next((v for v in within if isinstance(v, Unknown)), None):
            raise ValueError(
                f"{source}: not plain tensors but a Python object ({unknown.name}), which is never executed; "
                "use the file with the state dict (upstream trainings write it as state_dict.bin)"
            )
        kinds = sorted({type(v).__name__ for v in within}) or "nothing"
        raise ValueError(f"{source}: expected a state dict (name -> tensor) or one under {WRAPPERS}, got {kinds}")
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in state)), None):
        state = {k.removeprefix(prefix): v for k, v in state.items()}
    return {k: v for k, v in state.items() if k.rsplit(".", 1)[-1] not in _PROFILER}


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


class NoInit(TorchFunctionMode):
    """Context in which a model is built without random numbers: for weights that a strict load replaces.

    A fill writes the middle of its distribution: torch.nn.init.trunc_normal_ draws again until all values lie in its
    bounds, so memory left as it was could keep it there for ever.
    """

    _KEPT = frozenset({torch.Tensor.erfinv_, torch.nn.init.orthogonal_, torch.nn.init.kaiming_uniform_})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.normal_:
            return args[0].fill_(args[1] if len(args) > 1 else kwargs.get("mean", 0.0))
        if func is torch.Tensor.uniform_:
            low = args[1] if len(args) > 1 else kwargs.get("from", kwargs.get("a", 0.0))
            high = args[2] if len(args) > 2 else kwargs.get("to", kwargs.get("b", 1.0))
            return args[0].fill_((low + high) / 2)
        if func in self._KEPT:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def check_kinds(want: dict[str, Tensor], state: dict[str, Tensor], source: str, allow_nonfinite: bool = False) -> None:
    """ValueError for weights of another kind than the model's (integers, complex numbers) and for NaN and infinite
    ones."""
    kinds = [
        f"{k} {str(state[k].dtype).removeprefix('torch.')} (expected {str(v.dtype).removeprefix('torch.')})"
        for k, v in want.items()
        if state[k].is_complex() or state[k].is_floating_point() != v.is_floating_point()
    ]
    if kinds:
        raise ValueError(f"{source}: {len(kinds)} weights of another kind, first: {', '.join(kinds[:3])}")
    bad = [] if allow_nonfinite else [k for k, v in want.items() if not _finite(state[k], v.dtype)]
    if bad:
        raise ValueError(
            f"{source}: {len(bad)} weights hold NaN or infinity, first: {', '.join(bad[:3])}; a model with "
            "them computes NaN (--allow-nonfinite, allow_nonfinite=True loads them all the same)"
        )


def _finite(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether all values are finite, as they are and as the model's type holds them."""
    if not x.is_floating_point() or not x.numel() or x.is_meta:
        return True
    if x.dtype.itemsize == 1:  # float8 has no minimum and maximum
        x = x.float()
    ends = torch.stack(torch.aminmax(x))  # one pass over the weights; NaN comes through
    return bool(torch.isfinite(ends.to(dtype)).all())
