"""Where licence-bound topology files lie: --mesh-data, else $TORE_FAST_MESH_DATA, else ../shared/data/hmr, else
None."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def mesh_data_dir(config) -> Path | None:
    given = config.getoption("--mesh-data") or os.environ.get("TORE_FAST_MESH_DATA")
    path = Path(given) if given else ROOT.parent / "shared" / "data" / "hmr"
    if given and not path.is_dir():
        raise pytest.UsageError(f"--mesh-data: {path} is not a folder")
    return path if path.is_dir() else None
