"""The next batch is made while the GPU still works on the one before: rendered (or copied) on a stream of its own.

In: an iterator of batches (a DataLoader over a Task's batches); out: the same batches in the same order, on the device.
Used by loop.py. On a CPU there is nothing to overlap and nothing is made early.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

Batch = dict[str, Tensor]


class Prefetch:
    """`take` hands out batches; `prepare`, called once a step's kernels are queued, makes the next one meanwhile.

    Rendering asks the GPU how many pixels are covered, so the host waits for it. On the training's own stream it would
    wait for the whole step before, and the GPU would then idle while a hundred small kernels are launched.

    Args:
        batches: made by `next`; must not use the global random state, which belongs to the step that runs.
        device: where batches go.
        early: make batches ahead of time; None: on a GPU only.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device, early: bool | None = None):
        self.batches, self.device = batches, device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self.stream is not None:  # tables that batches are made from may still be on their way
            self.stream.wait_stream(torch.cuda.current_stream(device))
        self.early = self.stream is not None if early is None else early
        self._ready: Batch | None = None

    def prepare(self) -> None:
        """Makes the next batch if it is not there; does nothing after the last one."""
        if self.early and self._ready is None:
            self._ready = self._make()

    def take(self) -> Batch:
        """The next batch; StopIteration after the last."""
        batch, self._ready = self._ready or self._make(), None
        if batch is None:
            raise StopIteration
        if self.stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            for value in batch.values():
                value.record_stream(current)  # the side stream must not get this memory back too early
        return batch

    def _make(self) -> Batch | None:
        with torch.cuda.stream(self.stream):  # no effect without a stream
            batch = next(self.batches, None)
            return batch and {k: v.to(self.device, non_blocking=True) for k, v in batch.items()}
