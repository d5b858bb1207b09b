"""`bench pipelines`: rows, their words and their table; no timing is asserted."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tore_fast.benchmarks import pipelines, run


def test_rows_of_a_small_model(tmp_path):
    path = tmp_path / "p.json"
    options = run.Options("pipelines", op=["waterfall", "batch"], model=["tore_default"], quick=True, json=path)
    assert run.run(options) == 0
    waterfall, batch = json.loads(path.read_text())["results"]
    names = list(waterfall["values"])
    assert names[0] == "eager fp32, plain ops" and names[-3:] == ["our ops", "engine (eager)", "overlapped"]
    assert all(v > 0 for v in [*waterfall["values"].values(), *batch["values"].values()])
    assert batch["target"] == ">= 0.7" and batch["met"] == (batch["ratio"] >= 0.7)


def test_a_miss_is_printed_and_in_the_table(tmp_path):
    row = pipelines.Row(
        "batch x", "batch", {"batch": 3.0, "alone": 4.0}, "images/s", 0.75, ">= 0.9", False, samples={"batch": [1.0]}
    )
    result = pipelines.result_of(row)
    assert "MISSED" in pipelines.text(result)
    assert "| 3 images/s | 4 | 0.75x | >= 0.9 | missed |" in pipelines.markdown({"results": [result]})
    pytest.importorskip("matplotlib")
    pipelines.chart({"results": [result]}, tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_what_is_not_there_is_refused():
    for kinds, models, text in ((["speed"], [], "no pipelines benchmark"), ([], ["yolo"], "no model 'yolo'")):
        with pytest.raises(ValueError, match=text):
            pipelines.check(kinds, models)


def test_photographs_differ_and_have_the_size_asked_for():
    a, b = pipelines.photograph(64, 48), pipelines.photograph(64, 48, 1)
    assert a.shape == (48, 64, 3) and not np.array_equal(a, b)
