"""ONNX for the torch operators that torch's own exporter has none for. Caller: export.py.

Written with plain operators of the ONNX standard: a file needs no runtime's extensions.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch

CHUNK = 1 << 25  # numbers of the differences of a distance that are in memory at once (128 MiB in float32)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Torch operator -> function that writes it as ONNX nodes."""
    from onnxscript import opset20

    op: Any = opset20  # its hints know no constants

    def sort_stable(self: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> tuple[Any, Any]:
        # TopK puts the lower index first among equals, in both directions: stable
        size = op.Reshape(op.Gather(op.Shape(self), dim, axis=0), op.Constant(value_ints=[1]))
        return op.TopK(self, size, axis=dim, largest=int(descending), sorted=1)

    def cdist(x1: Any, x2: Any, p: float, compute_mode: int | None = None) -> Any:
        # by differences, as ops.reference does: the form with a matrix product chooses other tokens. Rows in chunks.
        rows, others, channels = int(x1.shape[-2]), int(x2.shape[-2]), int(x1.shape[-1])
        assert p == 2
        step = max(1, min(rows, CHUNK // max(others * channels, 1)))
        other = op.Unsqueeze(x2, op.Constant(value_ints=[-3]))
        parts = []
        for first in range(0, rows, step):
            part = op.Slice(
                x1,
                op.Constant(value_ints=[first]),
                op.Constant(value_ints=[min(first + step, rows)]),
                op.Constant(value_ints=[-2]),
            )
            difference = op.Sub(op.Unsqueeze(part, op.Constant(value_ints=[-2])), other)
            parts.append(op.ReduceL2(difference, op.Constant(value_ints=[-1]), keepdims=0))
        return parts[0] if len(parts) == 1 else op.Concat(*parts, axis=-2)

    return {torch.ops.aten.sort.stable: sort_stable, torch.ops.aten._cdist_forward.default: cdist}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the optimiser's notes on what it leaves as it is."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
