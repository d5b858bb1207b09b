"""The table of result keys: every name once, the page made of it, and the same names in what is written."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tore_fast.pipelines.images import Person
from tore_fast.pipelines.results import KEYS, keys_of, parse_formats

TOOL = Path(__file__).resolve().parents[2] / "tools" / "results_page.py"


def test_the_page_is_what_the_table_says():
    spec = importlib.util.spec_from_file_location("results_page", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.PAGE.read_text() == tool.page(), "run tools/results_page.py"


def test_every_name_once_and_every_field_of_a_person_in_it():
    names = [k.name for k in KEYS]
    assert len(set(names)) == len(names) and all(set(k.where) <= set("pvbl") and k.where for k in KEYS)
    assert set(Person.__dataclass_fields__) <= set(keys_of("p"))


def test_formats():
    assert parse_formats("npz, glb,npz", ("glb", "npz")) == ("npz", "glb")
    for wrong in ("", "fbx", "npz,fbx"):
        with pytest.raises(ValueError, match="--format: expected some of glb, npz, got"):
            parse_formats(wrong, ("glb", "npz"))
