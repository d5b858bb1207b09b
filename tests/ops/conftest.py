"""`--emulated`: the tests of this folder run the CUDA and Triton kernels on CPU tensors (see emulated.py)."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def _kernels(request):
    """Session-wide: every op call of every test goes to the emulated kernels, whatever its fixtures are."""
    if not request.config.getoption("--emulated"):
        yield
        return
    from ops import emulated

    if emulated.missing:
        pytest.skip(emulated.NEEDS)
    with emulated.active():
        yield


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "cpu_kernels: about the CPU kernels or about a machine without a GPU: not --emulated"
    )
    if config.getoption("--emulated"):
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--emulated"):
        return
    for item in items:
        if item.get_closest_marker("cpu_kernels"):
            item.add_marker(pytest.mark.skip(reason="about the CPU kernels"))
