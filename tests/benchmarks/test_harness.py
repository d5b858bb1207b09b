"""The benchmark harness: correctness before time, honest summaries, discovery, the command from JSON to report."""

from __future__ import annotations

import json
import time

import pytest
import torch
from tore_fast.benchmarks import registry, report, run
from tore_fast.benchmarks.harness import Case, Contender, relative_error, run_case


def make(generator):
    return [torch.randn(64, 64, generator=generator)]


def case(ours, **more):
    slow = Contender("slow", lambda x: (time.sleep(0.002), x @ x)[1])
    return Case("square", "64", make, [Contender("ours", ours, ours=True), slow], lambda x: x @ x, **more)


def test_right_answers_are_timed_and_compared():
    result = run_case(case(lambda x: x.mm(x)), seconds=0.05)
    rows = {r["name"]: r for r in result["contenders"]}
    assert rows["ours"]["ok"] and rows["slow"]["median_ms"] >= 2
    assert rows["ours"]["p20_ms"] <= rows["ours"]["median_ms"] <= rows["ours"]["p80_ms"]
    assert result["speedup"] == rows["slow"]["median_ms"] / rows["ours"]["median_ms"] > 1
    assert "faster than slow" in report.text_block(result)


def test_a_wrong_answer_gets_no_time_and_no_ratio():
    result = run_case(case(lambda x: x @ x + 0.01), seconds=0.05)
    rows = {r["name"]: r for r in result["contenders"]}
    assert "median_ms" not in rows["ours"] and "WRONG" in rows["ours"]["note"]
    assert result["speedup"] is None and result["wrong"] == ["ours"]
    assert "no ratio" in report.text_block(result)
    assert relative_error(torch.tensor([float("nan")]), torch.zeros(1)) == float("inf")


def test_a_loss_is_called_a_loss():
    result = run_case(case(lambda x: (time.sleep(0.02), x @ x)[1]), seconds=0.1)
    assert result["speedup"] < 1 and "SLOWER than slow" in report.text_block(result)


def test_gradients_are_checked_too():
    def detached(x):
        return x @ x.detach()

    result = run_case(case(detached, backward=True), seconds=0.05)
    assert result["wrong"] == ["ours"] and result["direction"] == "fwd+bwd"


def test_inputs_are_fresh():
    seen = set()

    def ours(x):
        seen.add(x.data_ptr())
        return x @ x

    run_case(case(ours), seconds=0.02)
    assert len(seen) >= 10


def test_failing_and_skipped_contenders_are_listed():
    def broken(x):
        raise RuntimeError("no such kernel")

    extra = [Contender("broken", broken), Contender("compiled", broken, heavy=True), Contender("absent", broken, why_not="no GPU")]
    c = case(lambda x: x @ x)
    c.contenders = [*c.contenders, *extra]
    notes = {r["name"]: r["note"] for r in run_case(c, seconds=0.02)["contenders"]}
    assert "no such kernel" in notes["broken"] and "--baselines all" in notes["compiled"] and "no GPU" in notes["absent"]


def test_command_writes_json_and_report(tmp_path, capsys):
    assert {"mesh_attention", "pruned_attention", "mesh_upsample", "bipartite_match"} <= set(registry.names("ops"))
    with pytest.raises(ValueError, match="no ops benchmark 'nothing'"):
        list(registry.cases("ops", ["nothing"], "cpu", torch.float32, True))
    options = run.Options(op=["bipartite_match"], device="cpu", quick=True, seconds=0.02, json=tmp_path / "r.json", report=tmp_path / "report")
    assert run.run(options) == 0
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["environment"]["torch"] == torch.__version__ and document["ceilings"]["float32"]["macs_per_s"] > 0
    assert len(document["results"]) == 2 and all(r["floor_ms"] > 0 for r in document["results"])
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| bipartite_match | ViT-H 192 B1" in text and "Losses:" in text
    assert (tmp_path / "report" / "bipartite_match.png").stat().st_size > 1000 or "no charts" in text
    assert "eager, as the official code" in capsys.readouterr().out
