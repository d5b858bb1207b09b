"""docs/papers.md: every row of the papers' tables builds with the printed size, every command has flags that exist."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex

import pytest

from tools import papers_page
from tore_fast.cli import VERBS

ITEMS = papers_page.items()
COMMANDS = [(i.number, i.command) for i in ITEMS if i.command and i.state != "open"]
COMMANDS += [(row[2], row[5]) for part in papers_page.read()["accuracy"] for row in part["rows"]]
TABLES = papers_page.read()["table"]


def test_there_are_125_items_and_none_is_missing():
    assert len(ITEMS) == len({i.number for i in ITEMS}) == 125
    assert {i.state for i in ITEMS} <= set(papers_page.STATES) | {"open"}
    assert all(i.command for i in ITEMS if i.state != "outside")
    assert all(i.note for i in ITEMS if i.state in ("data", "option")), "name the file, or what was released"


@pytest.mark.parametrize("table", TABLES, ids=lambda t: t["title"])
def test_every_row_builds_with_the_printed_size(table):
    """Within 1 % or half of the last printed digit; a row that is further off says why."""
    for size in (papers_page.Size(*row) for row in table["rows"]):
        params, g = papers_page.count(size, table)
        assert params > 0 and g > 0, size
        wrong = papers_page.off(params, size.params_m) or papers_page.off(g, size.gflops)
        assert wrong == size.note.startswith("deviation:"), (size, params, g)


@pytest.mark.parametrize("recovered", [9, 27, 81, 243])
def test_recovered_tokens_by_the_closed_form_of_hot(recovered):
    """Table 11's rows, whose FLOPs the formula of the printed page gives."""
    f, n, kept, c, j = 243, 3, 81, 512, 17
    flops = 16 * c * c * j * (2 * n * f + 2 * (8 - n) * kept) + 4 * c * j * f + 6 * c * j * recovered
    flops += 4 * c * c * j * (recovered + kept) + 36 * f * c
    size = papers_page.Size("11", "", "hot_mixste_243", f"recover_frames {recovered}", "", "", "")
    assert papers_page.count(size, {"factor": 2})[1] == pytest.approx(flops / 1e9, rel=1e-3)


@pytest.mark.parametrize(("number", "command"), COMMANDS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(COMMANDS)])
def test_commands_have_verbs_jobs_flags_models_and_recipes_that_exist(number, command):
    from tore_fast.models import list_models, model_entry
    from tore_fast.recipes import load_recipe

    for part in re.split(r"; (?=tore-fast)|&&", command):
        words = shlex.split(part)
        if words[0] != "tore-fast":
            assert words[0] in ("python", "pip")
            continue
        verb, rest = words[1], words[2:]
        assert verb in VERBS
        module = importlib.import_module(f"tore_fast.cli.{verb}")
        if hasattr(module, "SUBCOMMANDS"):
            job = rest[0] if not rest[0].startswith("--") else load_recipe(rest[1]).task
            assert job in module.SUBCOMMANDS
            module = importlib.import_module(f"tore_fast.cli.{verb}_{job}")
        known = {f.name.replace("_", "-") for f in dataclasses.fields(module.Args)}
        for flag in (w[2:] for w in rest if w.startswith("--")):
            assert flag.split(".")[0] in known | {"recipe"}, (number, flag)
        for flag, value in zip(rest, rest[1:]):
            if flag == "--model" and value not in ("RUN", "FOLDER"):
                assert model_entry(value)
            if flag == "--recipe":
                load_recipe(value)
        if verb == "list":
            names = [w for w in rest[: rest.index("--set") if "--set" in rest else None] if not w.startswith("--")]
            assert all(list_models(n) for n in names)


def test_the_page_is_that_of_the_file():
    """Text and commands of every item and row; the counts are held by the rows above."""
    page = (papers_page.ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    for i in ITEMS:
        assert f"| {i.number} | {i.text} | {i.state} |" in page, f"{i.number}: run tools/papers_page.py"
        assert i.command.replace("|", "\\|") in page and i.note.replace("|", "\\|") in page, (
            f"{i.number}: run tools/papers_page.py"
        )
    for table in TABLES:
        for size in (papers_page.Size(*row) for row in table["rows"]):
            assert f"`{size.command}` | {size.note} |" in page, f"{size.row}: run tools/papers_page.py"
