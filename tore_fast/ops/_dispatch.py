"""Which implementation of an op runs: `impl="auto"` asks each backend why not, an explicit `impl` never falls back.

A backend is "cuda" or "triton" (CUDA tensors), "sdpa" (torch's attention on CUDA), "cpu" (the compiled C++ kernels;
linear has two ways there, "strassen", ours, and "onednn", torch's) or "reference" (plain torch, any device and dtype).
Every ops/<stem>.py has `BACKENDS` in order of preference and a pure function `why_not(backend, *args) -> str | None`;
`tore-fast info` prints the same sentences. Where several are right on CUDA, _choices.py knows which is the faster.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _ext

# whose tensors a backend takes
DEVICE_TYPES = {"cpu": "cpu", "strassen": "cpu", "onednn": "cpu", "cuda": "cuda", "sdpa": "cuda", "triton": "cuda"}


_forced: contextvars.ContextVar[str | None] = contextvars.ContextVar("tore_fast_ops", default=None)


@contextlib.contextmanager
def use(impl: str) -> Iterator[None]:
    """Context in which `impl="auto"` of every op means `impl`, in this thread (and tasks it starts) alone.

    Args:
        impl: "reference", plain torch: what an export can take along; or "auto", to undo it inside.

    Example:
        >>> with use("reference"):
        ...     choose("knn_density", "auto", ("cpu",), lambda backend: None)
        'reference'
    """
    if impl not in ("auto", "reference"):
        raise ValueError(f"ops.use: impl must be 'reference' or 'auto', got {impl!r}")
    token = _forced.set(None if impl == "auto" else impl)
    try:
        yield
    finally:
        _forced.reset(token)


def is_plain() -> bool:
    """Whether `use("reference")` is on. Programs that dynamo traces do not ask: what they hold is decided when they
    run."""
    return not torch.compiler.is_dynamo_compiling() and _forced.get() is not None


class BackendUnavailable(RuntimeError):
    """An explicitly requested implementation cannot run these arguments here; the text says why."""


def backend_reason(backend: str) -> str | None:
    """Why `backend` cannot run on this machine at all, or None."""
    if backend in ("cpu", "strassen"):
        return _ext.cpu_reason
    if backend == "onednn":
        has = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        return None if has and torch.backends.mkldnn.enabled else "torch without oneDNN, or it is switched off"
    if backend == "sdpa":
        return None if torch.cuda.is_available() else "no GPU"
    return _ext.gpu_reason() if backend == "cuda" else _ext.triton_reason()


def tensor_reason(backend: str, x: Tensor, dtypes: Sequence[torch.dtype]) -> str | None:
    """Why `backend` cannot take the tensor `x`, or None."""
    want = DEVICE_TYPES[backend]
    if x.device.type != want:
        return f"it takes {want} tensors, got {x.device.type}"
    if x.dtype not in dtypes:
        names = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        return f"it takes {names}, got {str(x.dtype).removeprefix('torch.')}"
    return None


def check_device(op: str, name: str, like: Tensor, **others: Tensor | None) -> None:
    """ValueError unless all tensors of a call are on the device of `like`, whose argument is called `name`.

    A compiled kernel reads addresses: one on another device ends the process, or the CUDA context with all that is in
    it.
    """
    for other, t in others.items():
        if t is not None and t.device != like.device:
            raise ValueError(
                f"{op}: {other} is on {t.device}, {name} on {like.device}; all tensors must be on one device"
            )


def choose(op: str, impl: str, backends: Sequence[str], why_not: Callable[..., str | None], *args: Any) -> str:
    """Name of the backend to run.

    Raises:
        ValueError: `impl` is not a backend of this op.
        BackendUnavailable: an explicit `impl` cannot run these arguments.
    """
    if impl == "auto":
        if is_plain():
            return "reference"
        for backend in backends:
            if why_not(backend, *args) is None:
                return backend
        return "reference"
    if impl == "reference":
        return impl
    if impl not in backends:
        raise ValueError(f"{op}: impl must be one of {('auto', 'reference', *backends)}, got {impl!r}")
    reason = why_not(impl, *args)
    if reason is not None:
        raise BackendUnavailable(f"{op}: impl={impl!r} cannot run here: {reason}")
    return impl
