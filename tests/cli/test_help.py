"""Every option of every verb says what it means, and `tore-fast` alone shows the verbs."""

from __future__ import annotations

import contextlib
import importlib
import io
import re

import pytest
import tyro

from tore_fast.cli import VERBS, main


def jobs() -> list[str]:
    """Modules of tore_fast.cli that hold an `Args`."""
    found = []
    for verb in VERBS:
        module = importlib.import_module(f"tore_fast.cli.{verb}")
        found += [f"{verb}_{job}" for job in module.SUBCOMMANDS] if hasattr(module, "SUBCOMMANDS") else [verb]
    return found


@pytest.mark.parametrize("name", jobs())
def test_every_option_has_a_help_text(name, monkeypatch):
    module = importlib.import_module(f"tore_fast.cli.{name}")
    if not hasattr(module, "Args"):
        pytest.skip("its options are another program's")
    monkeypatch.setenv("COLUMNS", "100000")
    said = io.StringIO()
    words = (tyro.conf.PositionalMetavarFromFieldName, tyro.conf.DisallowNone)
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
        tyro.cli(module.Args, prog=name, args=["--help"], config=words)
    silent = []
    lines = said.getvalue().splitlines()
    for line, below in zip(lines, [*lines[1:], ""]):
        if not re.match(r"│ (-\w, )?--[a-z]", line):
            continue
        option, *text = re.split(r"\s{2,}", line.strip("│ "), maxsplit=1)
        words_of = text[0] if text else "" if re.match(r"│ (-\w, )?--[a-z]", below) else below.strip("│ ")
        if not re.sub(r"\((default|required|optional|repeatable)[^)]*\)*", "", words_of).strip(" ."):
            silent.append(option.split()[0])
    assert not silent


def test_the_bare_command_shows_the_verbs(capsys):
    main([])
    said = capsys.readouterr().out
    assert all(f"  {verb}" in said for verb in VERBS)
