"""Frames are read by another thread while the ones before are worked on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T], most: int = 4) -> Generator[T, None, None]:
    """The items in order, at most `most` of them read ahead; what their source raises rises here, in its turn.

    Closing the generator (or leaving its loop and dropping it) ends the thread at its next item.

    Example:
        >>> list(ahead(range(5), 2))
        [0, 1, 2, 3, 4]
    """
    waiting: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(max(1, most))
    stopped = threading.Event()

    def put(kind: str, value: T | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                waiting.put((kind, value), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def read() -> None:
        source = iter(items)
        try:
            for item in source:
                if not put("item", item):
                    break
            else:
                put("end", None)
        except BaseException as e:  # noqa: BLE001 (rises in the other thread)
            put("error", e)
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=read, name="read", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = waiting.get()
            if kind == "end":
                return
            if kind == "error":
                assert isinstance(value, BaseException)
                raise value
            yield value  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
