"""Kept memory: it comes back, it is bounded, it can be given back, and no tensor ever shares it with another."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from tore_fast.ops import kept_memory, linear, mesh_upsample, release_memory
from tore_fast.ops._dispatch import backend_reason
from tore_fast.ops._sparse import csr_matrix

pytestmark = [
    pytest.mark.cpu_kernels,
    pytest.mark.skipif(backend_reason("cpu") is not None, reason=f"no kernels: {backend_reason('cpu')}"),
]
MB = 1 << 20
HERE = Path(__file__).parent  # where no checkout of the package, perhaps not built, shadows the installed one


def product(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(rows, 64)
    return x, linear(x, torch.eye(64), impl="strassen")


def test_large_results_leave_their_memory_to_the_next():
    release_memory()
    _, y = product(4 * MB // 256)
    address, copy = y.data_ptr(), y.clone()
    assert kept_memory() == 0
    view = y[5:]
    del y
    assert kept_memory() == 0 and torch.equal(view, copy[5:])  # a view keeps it
    del view
    assert kept_memory() == 4 * MB
    x, again = product(3 * MB // 256 + 7)  # fits with less than half to spare
    assert again.data_ptr() == address and kept_memory() == 0
    torch.testing.assert_close(again, x, rtol=0, atol=1e-5)
    small = product(100)[1]
    del again, small
    assert release_memory() == 4 * MB and kept_memory() == 0


def test_results_that_live_share_nothing():
    release_memory()
    results = [product(2 * MB // 256) for _ in range(8)]
    for x, y in results:
        torch.testing.assert_close(y, x, rtol=0, atol=1e-5)
    assert len({y.data_ptr() for _, y in results}) == 8
    identity = csr_matrix(torch.eye(3000))
    x = torch.randn(40, 3000, 3)
    assert torch.equal(mesh_upsample(x, identity, impl="cpu"), x)
    release_memory()


def test_many_threads():
    wrong = []

    def work(seed: int) -> None:
        for i in range(20):
            x, y = product((1 + (seed + i) % 3) * MB // 256)
            if not torch.allclose(x, y, atol=1e-5):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    release_memory()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_worker_can_go_on():
    """Forks while another thread takes and gives blocks without pause; a child that waited for a lost lock would not
    end."""
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            product(MB // 256)

    thread = threading.Thread(target=busy)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # OpenMP's own threads do not survive a fork
    thread.start()
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:
                ok = torch.equal(
                    mesh_upsample(torch.ones(40, 3000, 3), csr_matrix(torch.eye(3000))), torch.ones(40, 3000, 3)
                )
                os._exit(0 if ok else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        thread.join()
        torch.set_num_threads(threads)
        release_memory()


def test_the_limit_is_kept_to():
    """TORE_FAST_CACHE_MB bounds what lies idle, the oldest goes first; a process that ends with living tensors ends
    well."""
    program = """
import torch
from tore_fast.ops import PackedWeight, kept_memory, linear
w, packed = torch.eye(64), PackedWeight()
make = lambda mb: linear(torch.zeros(mb << 12, 64), w, impl="strassen", packed=packed)
held = [make(2), make(4), make(6)]
while held:
    held.pop(0)
    print(kept_memory() >> 20, end=" ")
alive = make(8)
"""
    env = {**os.environ, "TORE_FAST_CACHE_MB": "9"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, cwd=HERE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "6", "6"]
