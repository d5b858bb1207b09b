"""`tore-fast demo` on the embedded photograph."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tore_fast.cli import main
from tore_fast.pipelines.demo_image import ASSETS, portrait


def test_demo_fits_a_body_to_the_photograph(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["demo", "--device", "cpu", "--out", str(tmp_path / "out"), "--json"])
    assert end.value.code == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["people"] == 1 and facts["vertices"] == 6890 and facts["score"] > 0.9
    assert 5 <= facts["rendered_pa_mpvpe_mm"] < 120 and facts["landmarks_seen"] >= 10
    with Image.open(tmp_path / "out" / "demo_sheet.png") as sheet:
        assert sheet.size == (4 * 512, 512)
    with np.load(tmp_path / "out" / "demo.npz") as stored:
        nose = stored["landmarks_2d"][0, 0]
    assert np.linalg.norm(nose - [216, 123]) < 15  # of the 512 px portrait


def test_the_photograph_is_small():
    assert portrait().shape == (512, 512, 3) and (ASSETS / "portrait.jpg").stat().st_size < 80_000
