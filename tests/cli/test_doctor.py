"""`tore-fast doctor` finds a wrong kernel; `tore-fast` alone shows the verbs."""

from __future__ import annotations

import json

import pytest
from made_up.command import command

import tore_fast.cli as cli
from tore_fast import ops
from tore_fast.ops._self_test import self_test


def test_doctor_reports_and_finds_a_wrong_kernel(capsys, monkeypatch):
    command("doctor", "--json")
    facts = json.loads(capsys.readouterr().out)
    assert facts["info"]["tore_fast"] and facts["disk_free"] and facts["seconds"] < 60
    if not facts["self_test"]:
        pytest.skip("nothing compiled")
    assert all(o["ok"] for o in facts["self_test"]), facts["self_test"]
    assert {"knn_density", "pruned_attention", "mesh_upsample"} <= {o["op"] for o in facts["self_test"]}

    right = ops.knn_density
    monkeypatch.setattr(ops, "knn_density", lambda x, k, impl: right(x, k + (impl != "reference"), impl=impl))
    assert [o.op for o in self_test() if not o.ok] == ["knn_density"]
    assert command("doctor") == 1
    assert "PROBLEM: knn_density (cpu): largest difference" in capsys.readouterr().out


def test_alone_it_shows_the_verbs(capsys):
    cli.main([])
    text = capsys.readouterr().out
    assert all(f"  {verb}" in text for verb in cli.VERBS) and "doctor" in cli.VERBS
