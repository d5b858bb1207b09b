"""Options and fixtures shared by all tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:  # importlib import mode adds nothing; tests import `conformance.*` from here
    sys.path.insert(0, str(HERE))
if str(HERE.parent) not in sys.path:  # `studies.*`; at the end, so that an installed package goes before this checkout
    sys.path.append(str(HERE.parent))

from conformance.paths import mesh_data_dir  # noqa: E402


def pytest_addoption(parser):
    group = parser.getgroup("tore_fast")
    group.addoption(
        "--golden-dir",
        action="append",
        default=[],
        metavar="DIR",
        help="folder with golden cases (*.json + *.npz, searched recursively); repeatable",
    )
    group.addoption(
        "--mesh-data",
        default=None,
        metavar="DIR",
        help="folder with the SMPL/MANO topology files of the official repositories",
    )
    group.addoption(
        "--emulated",
        action="store_true",
        help="tests/ops only: run the CUDA kernels (emulator) and the Triton kernels (interpreter) on CPU tensors",
    )


DEAD_CONTEXT = ("illegal memory access", "device-side assert", "misaligned address", "unspecified launch failure")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """After a CUDA error that ends the context every later test would fail: stop, and the first one is the one to
    read."""
    outcome = yield
    report = outcome.get_result()
    if report.failed and call.excinfo is not None and any(text in str(call.excinfo.value) for text in DEAD_CONTEXT):
        item.session.shouldstop = f"CUDA context dead after {item.nodeid}"


@pytest.fixture(scope="session")
def mesh_data(request) -> Path:
    path = mesh_data_dir(request.config)
    if path is None:
        pytest.skip("needs the licence-bound SMPL/MANO topology files: pass --mesh-data DIR")
    return path


@pytest.fixture(scope="module")
def body():
    from tore_fast.body import load_body

    return load_body("free")


@pytest.fixture(scope="module")
def hand():
    from tore_fast.body import load_body

    return load_body("free_hand")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _poisoned_memory(request):
    """In the tests of ops and layers fresh memory holds NaN, or the largest integer: an element nobody writes cannot
    pass.

    PyTorch fills it where it allocates, so results of compiled kernels are covered, too.
    """
    if request.path.relative_to(HERE).parts[0] not in ("ops", "layers"):
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all() and torch.empty(3, dtype=torch.int32).eq(2**31 - 1).all()
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")),
]


@pytest.fixture(params=DEVICES)
def device(request) -> str:
    return request.param
