"""Runs every golden case found under --golden-dir (default tests/golden): one test per case.

A case is driven by its own `model` and `config`, never by its file name, so further cases in the same format just run.
The family is chosen by the runner modules of tests/conformance: each offers `runner(case) -> callable | None`.
"""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path

import pytest
from conformance.case import Case, SkipCase
from conformance.paths import mesh_data_dir

HERE = Path(__file__).resolve().parent
NOT_COMPARED = {
    "token_argmax_position",  # says which cell a soft token looks at most; follows from the heat map
    "tpc_idx_cluster",  # computed upstream and never used: frames are dropped, not merged
    "gt_rot_mats",  # what the noisy joints of the IK cases were made from; no result of it
    "unm_idx",  # its order is the implementation's own; rows are compared by the token that heads them
    "index_down",
    "idx_cluster",  # raw order, comparable where the case says so; else the canonical numbering is
}
FAMILIES = ("kernels", "mesh", "keypoints", "lifting", "smpl", "blazepose")


def find_cases(config) -> list[Path]:
    dirs = [Path(d) for d in config.getoption("--golden-dir")] or [HERE / "golden"]
    for d in dirs:
        if not d.is_dir():
            raise pytest.UsageError(f"--golden-dir: {d} is not a folder")
    return sorted(p for d in dirs for p in d.rglob("*.json"))


def pytest_generate_tests(metafunc):
    paths = find_cases(metafunc.config)
    metafunc.parametrize("path", paths, ids=[f"{p.parent.name}/{p.stem}" for p in paths])


def find_runner(case: Case):
    for family in FAMILIES:
        if (HERE / "conformance" / f"{family}.py").exists():
            run = importlib.import_module(f"conformance.{family}").runner(case)
            if run is not None:
                return run
    raise SkipCase(f"no runner yet for model {case.model!r} (family folder {case.path.parent.name!r})")


def test_golden(path, request):
    case = Case(path, mesh_data_dir(request.config))
    try:
        find_runner(case)(case)
    except SkipCase as why:
        pytest.skip(str(why))
    assert case.arrays.read or not case.arrays, (
        f"{case.path.name}: nothing was compared, it stores {sorted(case.arrays)}"
    )
    if left := sorted(set(case.arrays) - case.arrays.read - NOT_COMPARED):
        warnings.warn(f"{case.path.name}: stored arrays nobody looked at: {left}")
