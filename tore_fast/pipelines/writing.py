"""Results are written by other threads while the next ones are computed; they are reported in their order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class InOrder(Generic[T]):
    """Runs jobs in threads and hands what they return to `done`, in the order of `put`, in the caller's thread.

    Args:
        workers: threads; at most two jobs for each wait, then `put` waits, so that memory stays bounded.
        done: called for each finished job. What a job raises rises from `put` or at the end.

    Example:
        >>> got = []
        >>> with InOrder(2, got.append) as queue:
        ...     for i in range(5):
        ...         queue.put(lambda i=i: i * i)
        >>> got
        [0, 1, 4, 9, 16]
    """

    def __init__(self, workers: int, done: Callable[[T], Any]) -> None:
        self._pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="write")
        self._most, self._done = 2 * max(1, workers), done
        self._waiting: deque[Future[T]] = deque()
        self.waited_s = 0.0  # in which the caller could not go on

    def put(self, job: Callable[[], T]) -> None:
        while self._waiting and (self._waiting[0].done() or len(self._waiting) >= self._most):
            self._take()
        self._waiting.append(self._pool.submit(job))

    def wait(self) -> None:
        """Until every job so far is done and reported."""
        while self._waiting:
            self._take()

    def _take(self) -> None:
        start = time.perf_counter()
        value = self._waiting.popleft().result()
        self.waited_s += time.perf_counter() - start
        self._done(value)

    def __enter__(self) -> InOrder[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finishes what was put in, also after an error of the caller; after Ctrl-C only what has begun."""
        try:
            if kind is not None and not issubclass(kind, Exception):
                self._pool.shutdown(wait=True, cancel_futures=True)
                self._waiting = deque(f for f in self._waiting if not f.cancelled())
            self.wait()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
