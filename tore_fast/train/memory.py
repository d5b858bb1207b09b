"""Memory of a training step: recomputing layers instead of keeping their insides, and a report of what takes how much.

Used by loop.py (`--train.checkpoint-activations`, `--train.memory-report`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .config import Task, TrainConfig


def checkpoint_activations(model: nn.Module) -> int:
    """Makes the stacked parts of a model (elements of its outermost lists, a trunk's stages) keep only their
    inputs for the backward pass. Values and gradients stay the same, batch-norm statistics too. Returns how many
    parts."""
    parts = list(_stacked(model))
    for part in parts:
        part.forward = partial(_recomputed, part, part.forward)
    return len(parts)


def _stacked(module: nn.Module) -> Iterator[Any]:
    for child in module.children():
        # timm's feature extractors are dictionaries of stages
        stack = isinstance(child, (nn.ModuleList, nn.ModuleDict)) or (
            isinstance(child, nn.Sequential) and len(child) > 1
        )
        if stack:
            yield from (c for c in child.children() if any(True for _ in c.parameters()))
        else:
            yield from _stacked(child)


def _recomputed(module: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not (torch.is_grad_enabled() and module.training):
        return forward(*args, **kwargs)
    return checkpoint(
        forward, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_kept(module)), **kwargs
    )


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[Any]:
    """The second forward pass must not move batch-norm's running statistics again."""
    norms: list[Any] = [
        m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    counts = [(m, m.momentum, m.num_batches_tracked.clone()) for m in norms]
    for m in norms:
        m.momentum = 0.0
    try:
        yield
    finally:
        for m, momentum, count in counts:
            m.momentum = momentum
            m.num_batches_tracked.copy_(count)


class SavedTensors:
    """Counts what autograd keeps for the backward pass, by the part of the model that is running (bytes, each storage
    once)."""

    def __init__(self, model: nn.Module):
        self.bytes: dict[str, int] = {}
        self._seen: set[int] = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._part = ["loss and rest"]
        self._keep: list[Tensor] = []  # a freed storage's address could be given out again
        self._handles = []
        for name, child in _parts(model):
            self._handles.append(child.register_forward_pre_hook(lambda *_, n=name: self._part.append(n)))
            self._handles.append(child.register_forward_hook(lambda *_: self._part.pop() and None))

    def pack(self, tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in self._seen:
            self._seen.add(address)
            self._keep.append(tensor)
            self.bytes[self._part[-1]] = self.bytes.get(self._part[-1], 0) + tensor.untyped_storage().nbytes()
        return tensor

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._keep.clear()


def _parts(model: nn.Module, prefix: str = "") -> Iterator[Any]:
    """Top-level parts by name; lists (which are never called) by their elements, a wrapper's `model` by what is
    inside."""
    for name, child in model.named_children():
        if name == "model":
            yield from _parts(child, f"{prefix}{name}.")
        elif isinstance(child, nn.ModuleList):
            yield from ((prefix + name, c) for c in child)
        else:
            yield prefix + name, child


def memory_report(task: Task, config: TrainConfig, device: torch.device) -> str:
    """Where the memory of one step goes, as text: fixed parts, what each part of the model keeps for the backward pass,
    and on a GPU the measured peak. Runs one forward and backward pass; weights, statistics and random state are as
    before.
    """
    model = task.model.to(device).train()
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    state = {k: v.clone() for k, v in model.state_dict().items()}
    batch = {k: v.to(device) for k, v in task.batch(0, config.batch_size, 0).items()}
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    saved = SavedTensors(model)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda t: t):
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            total, _ = task.loss(model, batch, 0)
        kept = dict(saved.bytes)
        total.backward()
    saved.close()
    model.load_state_dict(state)
    model.zero_grad(set_to_none=True)
    rows = [
        ("parameters", parameters),
        ("buffers", buffers),
        ("gradients", trained),
        ("optimiser (2 moments)", 2 * trained),
        ("averaged weights", parameters + buffers if config.ema else 0),
        ("batch", sum(v.numel() * v.element_size() for v in batch.values())),
    ]
    rows += [(f"kept by {name}", size) for name, size in sorted(kept.items(), key=lambda kv: -kv[1])]
    rows.append(
        (f"sum, {config.batch_size} items in {config.precision if dtype else 'fp32'}", sum(size for _, size in rows))
    )
    if device.type == "cuda":
        rows.append(("measured peak of forward + backward", torch.cuda.max_memory_allocated(device)))
    width = max(len(name) for name, _ in rows)
    return "\n".join(["memory of one step (MB)", *(f"  {name:{width}}{size / 1e6:10.1f}" for name, size in rows)])
