"""docs/tutorials as a reader follows them: every ```python and ```bash block runs, in order, in an empty folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from made_up.command import command

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "tutorials"
PAGES = sorted(p.stem for p in FOLDER.glob("*.md") if p.stem != "index")
NEEDS = {"video": ("imageio", "imageio_ffmpeg")}
MADE = {  # what the reader must have at the end
    "photograph": ("out/photo.npz", "body.html"),
    "video": ("out/results.json", "clip.html"),
    "checkpoint": ("hot/model.safetensors",),
    "training": ("run/metrics.jsonl", "model/model.safetensors"),
    "batch": ("meshes/results",),
}


@pytest.mark.parametrize("page", PAGES)
def test_tutorial(page, tmp_path, monkeypatch):
    for module in NEEDS.get(page, ()):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": f"tutorial_{page}"}
    blocks = re.findall(
        r"^```(python|bash)\n(.*?)^```", (FOLDER / f"{page}.md").read_text(encoding="utf-8"), re.S | re.M
    )
    assert blocks
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, f"{page}.md", "exec"), names)
            continue
        for line in text.splitlines():
            program, *argv = shlex.split(line, comments=True)
            assert program == "tore-fast", line
            assert command(*argv) == 0, line
    for path in MADE.get(page, ()):
        assert (tmp_path / path).exists(), path
