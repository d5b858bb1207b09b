"""The benchmark harness: correctness before time, honest summaries, discovery, the command from JSON to report."""

from __future__ import annotations

import itertools
import json
import time
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tore_fast import cli
from tore_fast.benchmarks import harness, memory, registry, report, run
from tore_fast.benchmarks.harness import Case, Contender, relative_error, run_case
from tore_fast.benchmarks.models import mesh, smpl

ENVIRONMENT = dict.fromkeys(("gpu", "triton", "commit", "dirty")) | dict.fromkeys(
    ("cpu", "threads", "torch", "tore_fast", "date"), "x"
)


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


def test_the_ratio_quotes_the_headline_not_the_best_of_ours():
    mine = [
        Contender("slow of ours", lambda x: (time.sleep(0.004), x @ x)[1], ours=True, headline=True),
        Contender("fast of ours", lambda x: x @ x, ours=True),
    ]
    base = Contender("base", lambda x: (time.sleep(0.002), x @ x)[1])
    result = run_case(Case("square", "64", make, [*mine, base], lambda x: x @ x), seconds=0.05)
    assert result["ours"] == "slow of ours" and result["speedup"] < 1
    assert "(loss)" in report.markdown({"environment": ENVIRONMENT, "ceilings": {}, "results": [result]})
    with pytest.raises(ValueError, match="one of our 2 contenders must be the headline"):
        Case("square", "64", make, [Contender(c.name, c.fn, ours=True) for c in mine])
    with pytest.raises(ValueError, match="different names"):
        Case("square", "64", make, [base, base])


def test_every_round_has_its_own_order(monkeypatch):
    calls = []
    contenders = [Contender(n, lambda x, n=n: (calls.append(n), time.sleep(0.003), x @ x)[2]) for n in "abcdef"]
    run_case(Case("square", "64", make, contenders, lambda x: x @ x), seconds=0.001)
    first = calls[-30:]  # calls of 3 ms are sampled one by one: the last five rounds
    rounds = [tuple(first[i : i + 6]) for i in range(0, 30, 6)]
    assert all(sorted(r) == list("abcdef") for r in rounds) and len(set(rounds)) > 1
    seen = calls[:]
    calls.clear()
    run_case(Case("square", "64", make, contenders, lambda x: x @ x), seconds=0.001)
    assert calls[-30:] == seen[-30:]  # seeded: the next run has the same orders


class Log(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        numbers = [a for a in args if isinstance(a, int)]  # an op's own switches (the level of Strassen's product)
        self.names.append(f"{func} {numbers}" if "tore_fast" in str(func) else str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("stem", registry.names("ops"))
def test_one_contender_per_code_path(stem):
    """No two of our contenders dispatch the same operators and switches: one code timed twice lets the better timing
    win."""
    for c in registry.cases("ops", [stem], "cpu", torch.float32, True):
        inputs = c.make_inputs(torch.Generator().manual_seed(0))
        paths = []
        for ours in (x for x in c.contenders if x.ours):
            with Log() as log, torch.no_grad():
                ours.fn(*inputs)
            paths.append(tuple(log.names))
        assert len(set(paths)) == len(paths) >= 1
        assert sum(x.headline for x in c.contenders) == 1


def test_image_to_mesh_rows_with_and_without_gtr_and_itp():
    plain, itp = {v.name for v in mesh.FEATURE_FED}, {v.label for v in mesh.ITP}
    assert plain >= {"fastmetro_l_r50", "fastmetro_tore_l_r50_gtr", "fastmetro_tore_l_r50"}  # without, GTR, GTR + ITP
    assert plain >= {"metro_r50", "metro_tore_r50", "metro_tore_r50_itp20", "graphormer_h64", "metro_tore_r50_hand"}
    rows = itertools.product(("fastmetro_l_r50", "metro_r50"), ("soft", "cluster", "attention"), (0.8, 0.5))
    assert itp == {f"{name} itp {selector} {keep} features" for name, selector, keep in rows}  # ITP without GTR
    metro = mesh._case(mesh.Variant("metro_r50"), 1, "cpu", torch.float32, few=False)  # none of our ops in it
    assert [c.name for c in metro.contenders] == ["official-style eager", "masked SDPA", "tore_fast fused", "tore_fast"]
    gpu = mesh._case(mesh.Variant("graphormer_h64"), 64, "cuda", torch.bfloat16, few=True)
    assert gpu.name == "graphormer_h64 features b64" and [c.heavy for c in gpu.contenders] == [False, False, True]
    default = run_case(
        mesh._case(mesh.Variant("tore_default", image=True), 2, "cpu", torch.float32, few=False), seconds=0.01
    )
    assert not default["wrong"] and all("median_ms" in c for c in default["contenders"])


def test_match_chooses_cases_by_name(monkeypatch):
    square = lambda batch: Case("square", f"b{batch}", make, [Contender("ours", lambda x: x @ x, ours=True)])
    module = SimpleNamespace(cases=lambda *a: map(square, (1, 8)), sized=lambda *a: [square])
    monkeypatch.setattr(registry, "_modules", lambda kind, only: [module])
    monkeypatch.setattr(registry, "peak_growth", lambda call, device: 1)
    options = lambda *match: run.Options("models", match=[*match], max_gb=1e-6, max_batch=4)
    names = lambda *match: [c.name for c in run.all_cases(options(*match), "cpu", torch.float32)]
    assert names() == ["b1", "b8", "b4 (max)"] and names("*8", "x") == ["b8"]
    assert names("*(max)") == ["b4 (max)"] and names("b1") == ["b1"]
    with pytest.raises(run.NoCase, match="--match: no case of models fits 'x'"):
        run.run(options("x"))


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
    assert len(seen) >= 5  # at least five rounds, each starts with another set


def test_failing_and_skipped_contenders_are_listed():
    def broken(x):
        raise RuntimeError("no such kernel")

    extra = [
        Contender("broken", broken),
        Contender("compiled", broken, heavy=True),
        Contender("absent", broken, why_not="no GPU"),
    ]
    c = case(lambda x: x @ x)
    c.contenders = [*c.contenders, *extra]
    notes = {r["name"]: r["note"] for r in run_case(c, seconds=0.02)["contenders"]}
    assert (
        "no such kernel" in notes["broken"] and "--baselines all" in notes["compiled"] and "no GPU" in notes["absent"]
    )


def test_command_writes_json_and_report(tmp_path, capsys):
    assert {"mesh_attention", "pruned_attention", "mesh_upsample", "bipartite_match"} <= set(registry.names("ops"))
    with pytest.raises(ValueError, match="no ops benchmark 'nothing'"):
        list(registry.cases("ops", ["nothing"], "cpu", torch.float32, True))
    options = run.Options(
        "ops",
        op=["bipartite_match"],
        device="cpu",
        quick=True,
        seconds=0.02,
        json=tmp_path / "r.json",
        report=tmp_path / "report",
    )
    assert run.run(options) == 0
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["environment"]["torch"] == torch.__version__ and document["ceilings"]["float32"]["macs_per_s"] > 0
    assert len(document["results"]) == 2 and all(r["floor_ms"] > 0 for r in document["results"])
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| bipartite_match | ViT-H 192 B1" in text and "Losses:" in text
    assert (tmp_path / "report" / "bipartite_match.png").stat().st_size > 1000 or "no charts" in text
    assert "eager, as the official code" in capsys.readouterr().out


def test_peak_memory_is_that_of_the_call():
    size = 64 << 20
    torch.ones(1 << 20)  # wakes the allocator and the thread pool
    peak = memory.peak_growth(lambda: torch.ones(size // 4), "cpu")
    nothing = memory.peak_growth(lambda: torch.ones(4), "cpu")
    if peak is None:
        pytest.skip("this system does not tell a process its peak memory")
    assert 0.9 * size < peak < 1.5 * size and nothing < 0.2 * size
    result = run_case(
        Case(
            "ones",
            "64 MB",
            make,
            [Contender("ones", lambda x: torch.ones(size // 4) * x[0, 0], ours=True)],
            lambda x: torch.ones(size // 4) * x[0, 0],
        ),
        seconds=0.01,
    )
    assert result["contenders"][0]["peak_bytes"] > 1.9 * size and "MB" in report.text_block(result)


def test_largest_batch_is_a_power_of_two_inside_the_budget():
    tried = []

    def peak(batch):
        tried.append(batch)
        return 100 + 10 * batch

    assert memory.largest_batch(peak, 1000, 1 << 20) == 64  # 128 would be 1380
    assert memory.largest_batch(peak, 1000, 16) == 16 and memory.largest_batch(peak, 115, 9) == 1
    assert memory.largest_batch(peak, 50, 8) is None and memory.largest_batch(lambda b: None, 50, 8) is None
    assert memory.largest_batch(lambda b: b * b, 1000, 1 << 20) == 16  # the line says 256; measured 32 is too large
    assert max(tried) == 64  # never runs a batch that the line already excludes


def test_the_largest_batch_becomes_a_case(monkeypatch):
    class Module:
        @staticmethod
        def sized(device, dtype, quick):
            yield lambda batch: Case(
                "square",
                f"b{batch}",
                lambda g: [torch.randn(batch, 64, 64)],
                [Contender("ours", lambda x: x @ x, ours=True)],
                items=batch,
            )

    monkeypatch.setattr(registry, "_modules", lambda kind, only: [Module])
    monkeypatch.setattr(registry, "peak_growth", lambda call, device: (call(), 10 * call().shape[0])[1])
    (found,) = registry.largest_cases("models", [], "cpu", torch.float32, True, 100, 64)
    assert found.name == "b8 (max)" and found.items == 8 and found.params["memory_budget_bytes"] == 100


def test_a_run_that_is_cut_keeps_its_rows_and_goes_on(tmp_path, monkeypatch, capsys):
    file, timed = tmp_path / "r.json", []
    options = run.Options("ops", op=["bipartite_match"], device="cpu", quick=True, seconds=0.02, json=file, append=True)
    real = harness.run_case

    def cut(case, **more):
        if timed:
            raise KeyboardInterrupt
        timed.append(case.name)
        return real(case, **more)

    monkeypatch.setattr(run, "run_case", cut)
    with pytest.raises(KeyboardInterrupt):
        run.run(options)
    assert [r["case"] for r in json.loads(file.read_text())["results"]] == timed
    monkeypatch.setattr(run, "run_case", lambda case, **more: (timed.append(case.name), real(case, **more))[1])
    assert run.run(options) == 0
    rows = json.loads(file.read_text())["results"]
    assert [r["case"] for r in rows] == timed and len(set(timed)) == 2  # the second run did not repeat the first row
    report.main(file)
    assert (tmp_path / "r.md").read_text().count("| bipartite_match | ViT-H 192") >= 2
    document = json.loads(file.read_text())
    document["environment"]["threads"] = 77
    file.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="threads = 77"):
        run.run(options)


def test_bench_without_a_kind_says_what_there_is(capsys):
    with pytest.raises(SystemExit) as e:
        cli.main(["bench"])
    text = "".join(capsys.readouterr())
    assert e.value.code == 2 and "ops, models" in text and "--help" in text


def test_hosts_have_rows_on_every_device(monkeypatch):
    """ViT-S at batch 1, 16, 64 everywhere, ViT-H on a GPU, and at batch 1 on a CPU with memory; nothing is built before
    a case runs."""
    for device, room, hosts in (
        ("cpu", False, {"vits": (1, 16, 64)}),
        ("cpu", True, {"vits": (1, 16, 64), "vith": (1,)}),
        ("cuda", False, {h: (1, 16, 64) for h in ("vits", "vith")}),
    ):
        monkeypatch.setattr(smpl, "_room_for_vith", lambda room=room: room)
        names = {
            c.name
            for c in smpl.cases(device, torch.float32, False)
            if c.op == "fasthmr_host" and "merged" not in c.name
        }
        assert names == {f"{h} batch {b}" for h, batches in hosts.items() for b in batches}
    assert smpl._model.cache_info().currsize == 0
    small = {"img_size": (64, 48), "embed_dim": 32, "num_heads": 2, "decoder_depth": 1, "decoder_dim": 32}
    sizes = {"s": ("hmr2_vitt", {**small, "depth": 3}), "m": ("hmr2_vitt", {**small, "depth": 2, "keep_tokens": 6})}
    monkeypatch.setattr(smpl, "SIZES", sizes)
    monkeypatch.setattr(smpl, "FULL", {"m": "s"})
    monkeypatch.setattr(smpl, "model_entry", lambda name: SimpleNamespace(input_shape=(3, 64, 64)))
    rows = {c.op + c.name: run_case(c, seconds=0.01) for c in smpl.cases("cpu", torch.float32, True)}
    smpl._model.cache_clear()
    assert set(rows) == {"fasthmr_hosts batch 1", "fasthmr_hostm batch 1", "fasthmr_reductionm batch 1"}
    assert all(r["speedup"] is not None and not r["wrong"] for r in rows.values())
    assert not [c["note"] for r in rows.values() for c in r["contenders"] if c["note"].startswith("failed")]


def test_a_case_without_anything_to_compare_with_is_timed_and_says_so():
    alone = Contender("ours", lambda x: x, ours=True)
    case = Case(op="op", name="huge", make_inputs=lambda g: (torch.ones(4),), contenders=[alone])
    result = run_case(case, seconds=0.01)
    row = result["contenders"][0]
    assert row["ok"] and row["error"] is None and row["note"].startswith("not compared") and row["median_ms"] > 0
    assert result["wrong"] == []


def test_options_without_tyro(monkeypatch):
    monkeypatch.setattr(run, "tyro", None)
    options = run.parse(
        ["ops", "--op", "token_map", "--dtype", "bfloat16", "--seconds", "0.5", "--quick", "--json", "a.json"]
    )
    assert (options.kind, options.op, options.dtype, options.seconds, options.quick) == (
        "ops",
        ["token_map"],
        ["bfloat16"],
        0.5,
        True,
    )
    assert options.json.name == "a.json" and options.device == "auto" and options.report is None


def test_a_dead_device_stops_the_run(monkeypatch):
    from tore_fast.benchmarks.harness import DeadDevice, _ask_device

    def dead():
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(torch.cuda, "synchronize", dead)
    _ask_device("cpu", "ours")
    with pytest.raises(DeadDevice, match="ours: CUDA error: an illegal memory access was encountered$"):
        _ask_device("cuda", "ours")
