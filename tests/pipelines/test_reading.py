import threading
import time

import pytest

from tore_fast.pipelines.reading import ahead


def test_order_and_errors_in_their_turn():
    def source():
        yield from range(3)
        raise OSError("cut off")

    got = []
    with pytest.raises(OSError, match="cut off"):
        for item in ahead(source(), 2):
            got.append(item)
    assert got == [0, 1, 2]


def test_no_more_than_asked_for_is_read_and_closing_ends_the_thread():
    read, closed = [], threading.Event()

    def source():
        try:
            for i in range(1000):
                read.append(i)
                yield i
        finally:
            closed.set()

    frames = ahead(source(), 3)
    assert next(frames) == 0
    time.sleep(0.2)
    assert len(read) <= 1 + 3 + 1  # handed out, waiting, in hand
    frames.close()
    assert closed.wait(2) and not any(t.name == "read" for t in threading.enumerate())
