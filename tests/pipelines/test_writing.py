import threading

import pytest

from tore_fast.pipelines.writing import InOrder


def test_order_and_bound():
    running, most, lock, gate = 0, 0, threading.Lock(), threading.Event()

    def job(i):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        if i == 0:
            gate.wait(10)  # the first finishes last
        with lock:
            running -= 1
        return i

    got = []
    with InOrder(3, got.append) as queue:
        for i in range(6):
            queue.put(lambda i=i: job(i))
        assert got == []
        gate.set()
        for i in range(6, 30):
            queue.put(lambda i=i: job(i))
    assert got == list(range(30)) and most <= 3


def test_an_error_rises_and_what_was_done_before_is_told():
    got = []
    with pytest.raises(ZeroDivisionError):
        with InOrder(1, got.append) as queue:
            queue.put(lambda: 1)
            queue.put(lambda: 1 // 0)
    assert got == [1]


def test_an_error_of_the_caller_loses_no_result():
    got = []
    with pytest.raises(ValueError, match="caller"):
        with InOrder(1, got.append) as queue:
            queue.put(lambda: 1)
            raise ValueError("caller")
    assert got == [1]
