"""Batches of any size through steps of a few fixed sizes, with static buffers: what a CUDA graph needs.

A batch is cut into buckets (powers of two and the largest) and filled up by repeating its last item. On CUDA every
bucket has two slots of pinned memory, so that the copy of one batch runs beside the work on the other; results come
back on a stream of their own. `HostStaging` does the same with plain calls: the order of events is tested with it where
there is no GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

SLOTS = 2
WARM_UP = 3  # steps before a capture: lazy initialisation, plans of cuBLAS and cuDNN, the allocator
Inputs = tuple[Tensor | None, ...]


def bucket_sizes(largest: int) -> tuple[int, ...]:
    """Powers of two below `largest`, and `largest`.

    Example:
        >>> bucket_sizes(12)
        (1, 2, 4, 8, 12)
    """
    if largest < 1:
        raise ValueError(f"batch must be at least 1, got {largest}")
    return (*(1 << i for i in range((largest - 1).bit_length())), largest)


def split(count: int, buckets: Sequence[int]) -> list[tuple[int, int, int]]:
    """(first, items, bucket) of each step for a batch of `count`: the largest bucket as often as it fits, then the
    smallest
    that holds the rest."""
    steps, first, largest = [], 0, buckets[-1]
    while first < count:
        items = min(largest, count - first)
        steps.append((first, items, next(b for b in buckets if b >= items)))
        first += items
    return steps


def pad(x: Tensor | None, bucket: int) -> Tensor | None:
    """The last item repeated up to `bucket` items."""
    if x is None or len(x) == bucket:
        return x
    return torch.cat([x, x[-1:].expand(bucket - len(x), *x.shape[1:])])


def take(outputs: Any, items: int, bucket: int) -> Any:
    """The first items of every result of a step."""
    return tree_map(lambda t: t[:items] if isinstance(t, Tensor) and t.dim() and len(t) == bucket else t, outputs)


def join(parts: list[Any], counts: list[int]) -> Any:
    """The results of several steps as those of one batch; what has no batch axis is the first step's."""
    if len(parts) == 1:
        return parts[0]
    flat, specs = zip(*(tree_flatten(p) for p in parts))
    leaves = []
    for column in zip(*flat):
        batched = all(isinstance(t, Tensor) and t.dim() and len(t) == n for t, n in zip(column, counts))
        leaves.append(torch.cat(column) if batched else column[0])
    return tree_unflatten(leaves, specs[0])


class Event(Protocol):
    def wait(self) -> None: ...


class Platform(Protocol):
    """What `Bucket` needs of a device. Streams are "copy_in", "work" and "copy_out"."""

    device: torch.device

    def pinned(self, like: Tensor) -> Tensor: ...

    def on(self, stream: str) -> Any: ...

    def record(self, stream: str) -> Any: ...

    def follow(self, stream: str, event: Any) -> None: ...

    def wait(self, event: Any) -> None: ...

    def capture(self, step: Callable[[], Any]) -> tuple[Callable[[], None], Any]: ...


class Cuda:
    """Streams, events and graphs of one CUDA device; all graphs share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with torch.cuda.device(device):
            self.streams = {name: torch.cuda.Stream(device) for name in ("copy_in", "work", "copy_out")}
            self.pool = torch.cuda.graph_pool_handle()

    def pinned(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)

    def on(self, stream: str) -> Any:
        return torch.cuda.stream(self.streams[stream])

    def record(self, stream: str) -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record(self.streams[stream])
        return event

    def follow(self, stream: str, event: torch.cuda.Event) -> None:
        self.streams[stream].wait_event(event)

    def wait(self, event: torch.cuda.Event) -> None:
        event.synchronize()

    def capture(self, step: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        work = self.streams["work"]
        work.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(work):
            for _ in range(WARM_UP):
                step()
        work.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=work, capture_error_mode="thread_local"):
            outputs = step()
        return graph.replay, outputs


class HostStaging:
    """The same on the CPU, in order: one stream, a "graph" that calls the step and copies its results."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.log: list[str] = []

    def pinned(self, like: Tensor) -> Tensor:
        return torch.empty_like(like, device="cpu")

    def on(self, stream: str) -> Any:
        self.log.append(stream)
        return torch.no_grad()

    def record(self, stream: str) -> str:
        return stream

    def follow(self, stream: str, event: str) -> None:
        self.log.append(f"{stream} after {event}")

    def wait(self, event: str) -> None:
        self.log.append(f"wait {event}")

    def capture(self, step: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        outputs = tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, step())

        def replay() -> None:
            for static, fresh in zip(tree_flatten(outputs)[0], tree_flatten(step())[0]):
                if isinstance(static, Tensor):
                    static.copy_(fresh)

        return replay, outputs


class Ticket:
    """Results that are on their way to the host; `result()` waits for them once and keeps a copy of its own."""

    def __init__(self, bucket: Bucket, slot: _Slot, items: int) -> None:
        self._bucket, self._slot, self._items = bucket, slot, items
        self._out: Any = None

    def result(self) -> Any:
        slot = self._slot
        if slot is not None:
            self._bucket.platform.wait(slot.done)
            mine = take(slot.host_out, self._items, self._bucket.size)
            self._out = tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, mine)
            slot.ticket = self._slot = None  # type: ignore[assignment]
        return self._out


class _Slot:
    def __init__(self, platform: Platform, inputs: Inputs, outputs: Any) -> None:
        self.host_in = tuple(None if t is None else platform.pinned(t) for t in inputs)
        self.device_in = tuple(None if t is None else torch.empty_like(t) for t in inputs)
        self.host_out = tree_map(lambda t: platform.pinned(t) if isinstance(t, Tensor) else t, outputs)
        self.device_out = tree_map(lambda t: torch.empty_like(t) if isinstance(t, Tensor) else t, outputs)
        self.ticket: Ticket | None = None
        self.done: Any = None  # results are on the host
        self.read: Any = None  # the work has taken the input over


class Bucket:
    """One captured step of a fixed batch size.

    Args:
        step: inputs on the device -> results on the device, any nest of tensors.
        example: inputs of this size on the device; shapes and types are those of every later call.
    """

    def __init__(self, step: Callable[..., Any], example: Inputs, size: int, platform: Platform) -> None:
        self.size, self.platform = size, platform
        self.static_in = tuple(None if t is None else t.clone() for t in example)
        self._replay, self.static_out = platform.capture(lambda: step(*self.static_in))
        self._slots = [_Slot(platform, self.static_in, self.static_out) for _ in range(SLOTS)]
        self._next = 0

    @property
    def device_bytes(self) -> int:
        """Of its buffers on the device, without the graph's own memory."""
        held = [self.static_in, *((s.device_in, s.device_out) for s in self._slots)]
        return sum(t.nbytes for t in tree_flatten(held)[0] if isinstance(t, Tensor))

    def submit(self, inputs: Inputs, items: int) -> Ticket:
        """Starts a step on inputs of the host; nothing here waits for the device but for a slot that is still in
        use."""
        platform = self.platform
        slot = self._slots[self._next]
        self._next = (self._next + 1) % SLOTS
        if slot.ticket is not None:
            slot.ticket.result()  # its results are taken out before the slot is used again
        if slot.done is not None:
            platform.wait(slot.done)
        for buffer, t in zip(slot.host_in, inputs):
            if buffer is not None and t is not None:
                buffer[:items].copy_(t[:items])
                buffer[items:] = buffer[items - 1]
        with platform.on("copy_in"):
            _copy(slot.device_in, slot.host_in)
        platform.follow("work", platform.record("copy_in"))
        self._work(slot)
        platform.follow("copy_out", platform.record("work"))
        with platform.on("copy_out"):
            _copy(slot.host_out, slot.device_out)
        slot.done = platform.record("copy_out")
        slot.ticket = Ticket(self, slot, items)
        return slot.ticket

    def _work(self, slot: _Slot) -> None:
        with self.platform.on("work"):
            _copy(self.static_in, slot.device_in)
            self._replay()
            _copy(slot.device_out, self.static_out)

    def run_on_device(self, inputs: Inputs) -> Any:
        """A step on inputs of the device, in the order of the caller's stream; results are the caller's own."""
        current = torch.cuda.current_stream(self.platform.device)
        work = self.platform.streams["work"]  # type: ignore[attr-defined]
        work.wait_stream(current)
        with self.platform.on("work"):
            _copy(self.static_in, inputs)
            self._replay()
            out = tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, self.static_out)
        current.wait_stream(work)
        for t in tree_flatten(out)[0]:
            if isinstance(t, Tensor):
                t.record_stream(current)
        for t in inputs:
            if t is not None:
                t.record_stream(work)
        return out


def _copy(to: Any, source: Any) -> None:
    for a, b in zip(tree_flatten(to)[0], tree_flatten(source)[0]):
        if isinstance(a, Tensor):
            a.copy_(b, non_blocking=True)
