"""What users copy first: every docstring's example and the README's Python, run as they stand."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest
from PIL import Image

import tore_fast

PACKAGE = Path(tore_fast.__file__).parent
ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(
    ".".join(("tore_fast", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_docstring(name):
    finder, runner = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner(verbose=False)
    said: list[str] = []
    module = importlib.import_module(name)
    for test in finder.find(module, name):
        runner.run(test, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)


def test_readme(tmp_path, monkeypatch):
    code, engine = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    pixels = pytest.importorskip("skimage.data", reason="a photograph of a person comes with scikit-image").astronaut()
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["person"].vertices.shape == (6890, 3) and names["out"].vertices.shape == (1, 6890, 3)
    exec(compile(engine, "README.md", "exec"), names)
    assert names["out"].vertices.shape == (3, 6890, 3)
