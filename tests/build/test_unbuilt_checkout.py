"""Python started in a checkout that was not built: one warning that names the way out, and no word of a missing compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tore_fast
from tore_fast._ext import unbuilt_checkout

PACKAGE = Path(tore_fast.__file__).parent


@pytest.fixture
def checkout(tmp_path):
    """The package without its binaries, beside setup.py and csrc."""
    root = tmp_path / "checkout"
    skipped = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__", "assets", "benchmarks", "data", "train", "engine")
    shutil.copytree(PACKAGE, root / "tore_fast", ignore=skipped)
    (root / "csrc").mkdir()
    (root / "setup.py").write_text("")
    return root


def test_info_in_an_unbuilt_checkout(checkout, tmp_path):
    copy = tmp_path / "site" / "tore_fast"
    copy.mkdir(parents=True)
    (copy / "_C.so").write_bytes(b"")
    env = {**os.environ, "PYTHONPATH": str(copy.parent)}
    run = subprocess.run(
        [sys.executable, "-m", "tore_fast", "info"], cwd=checkout, env=env, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    said = [line for line in run.stderr.splitlines() if "RuntimeWarning" in line]
    assert len(said) == 1 and str(copy) in said[0] and "build_ext --inplace" in said[0]
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("cpu ")]
    assert "this is the checkout" in line and "compiler" not in run.stdout


def test_only_unbuilt_checkouts_are_told(checkout, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    package = checkout / "tore_fast"
    assert "or pip install . and start Python in another folder" in unbuilt_checkout(package)
    (package / "_C.abi3.so").write_bytes(b"")
    assert unbuilt_checkout(package) is None
    (package / "_C.abi3.so").unlink()
    (checkout / "setup.py").unlink()  # an installed copy without a compiler at hand
    assert unbuilt_checkout(package) is None
