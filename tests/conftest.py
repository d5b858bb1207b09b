"""Options and fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser):
    group = parser.getgroup("tore_fast")
    group.addoption("--golden-dir", action="append", default=[], metavar="DIR",
                    help="folder with golden cases (*.json + *.npz, searched recursively); repeatable")
    group.addoption("--mesh-data", default=None, metavar="DIR",
                    help="folder with the SMPL/MANO topology files of the official repositories")


def mesh_data_dir(config) -> Path | None:
    """--mesh-data, else $TORE_FAST_MESH_DATA, else ../shared/data/hmr beside the checkout, else None."""
    given = config.getoption("--mesh-data") or os.environ.get("TORE_FAST_MESH_DATA")
    path = Path(given) if given else ROOT.parent / "shared" / "data" / "hmr"
    if given and not path.is_dir():
        raise pytest.UsageError(f"--mesh-data: {path} is not a folder")
    return path if path.is_dir() else None


@pytest.fixture(scope="session")
def mesh_data(request) -> Path:
    path = mesh_data_dir(request.config)
    if path is None:
        pytest.skip("needs the licence-bound SMPL/MANO topology files: pass --mesh-data DIR")
    return path


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")),
]


@pytest.fixture(params=DEVICES)
def device(request) -> str:
    return request.param
