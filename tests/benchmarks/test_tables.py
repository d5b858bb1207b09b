"""The papers' efficiency tables: the largest batch by bisection, rows that can be built, ratios the right way round."""

from __future__ import annotations

import json

import pytest
import torch

from tore_fast import cli
from tore_fast.benchmarks import memory, tables
from tore_fast.benchmarks.tables import ROWS, Row, Setting
from tore_fast.models import list_models


@pytest.mark.parametrize(("budget", "limit", "want"), [(1000, 4096, 98), (1000, 50, 50), (39, 64, 1), (20, 64, None)])
def test_largest_batch_that_fits(budget, limit, want):
    asked = []

    def peak(batch):
        asked.append(batch)
        return 30 + 10 * (batch - 1)

    got = memory.largest_fitting(peak, budget, limit)
    assert got == want if want is None else want * 0.98 <= got <= want
    assert len(asked) <= 16
    assert memory.largest_fitting(lambda batch: None, budget, limit) is None


def test_rows_are_of_registered_models():
    names = {side.split(":")[0] for row in ROWS for side in (row.base, row.reduced)}
    assert names <= {*list_models()}
    assert {row.metric for row in ROWS} == tables.MEASURES.keys() == tables.UNITS.keys()
    assert {row.table for row in tables.rows("cpu", ["hot", "c4"])} == {"HoT 1", "TORE C4"}
    assert not any(row.cuda_only for row in tables.rows("cpu", []))
    with pytest.raises(ValueError, match="no table 'b9'; expected part of TORE B1"):
        tables.check(["b9"])


def test_ratios_say_how_much_better(monkeypatch):
    values = {"slow": 2.0, "fast": 5.0}
    for metric in ("fps", "train memory"):
        monkeypatch.setitem(tables.MEASURES, metric, lambda name, setting: {"value": values[name], "batch": 1})
    setting = Setting("cpu")
    faster = tables.measure(Row("T", "fps", "slow", "fast", 1.5), setting)
    smaller = tables.measure(Row("T", "train memory", "fast", "slow"), setting)
    assert faster["ratio"] == smaller["ratio"] == 2.5
    text = tables.markdown({"results": [faster, smaller]})
    assert "| 2.50x | 1.50x |" in text and "| 2.50x | - |" in text


def test_measures_of_small_models():
    torch.manual_seed(0)
    setting = Setting("cpu", seconds=0.01, budget=50_000_000, max_batch=3, train_batch=1, clip=3)
    found = tables.MEASURES["throughput"]("mixste_9", setting)
    assert 1 <= found["batch"] <= 3 and found["value"] > 0
    frames = tables.MEASURES["frames"]("mixste_9", setting)
    assert frames["value"] == pytest.approx(9 / frames["median_s"])
    assert tables.MEASURES["train memory"]("mixste_9", setting)["value"] > 1
    clip = tables.MEASURES["end to end"]("hmr2_vitt:2:90", setting)
    assert clip["frames"] == 3 and clip["value"] > 0


def test_the_command(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", "tables", "--op", "b9"])
    assert stopped.value.code == 2 and "no table" in capsys.readouterr().err
    fast = ["bench", "tables", "--device", "cpu", "--op", "hot", "--match", "*mixste*", "--seconds", "0.01", "--json"]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*fast, str(tmp_path / "t.json"), "--report", str(tmp_path)])
    assert stopped.value.code == 0
    document = json.loads((tmp_path / "t.json").read_text())
    (row,) = document["results"]
    assert row["paper_ratio"] == 1.51 and row["ratio"] > 0 and "1.51x" in (tmp_path / "cpu_tables.md").read_text()
