"""Every import from this package resolves, those inside functions too, which no other test may reach."""

import ast
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(p for d in ("tore_fast", "tests", "tools", "studies", "benchmarks") for p in (ROOT / d).glob("**/*.py"))


def imports(path: pathlib.Path):
    """(line, module, name) of every `from ... import name` that means this repository."""
    parts = path.relative_to(ROOT).parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = parts[: len(parts) - node.level] if node.level else ()
            module = ".".join((*base, *(node.module.split(".") if node.module else ())))
            if module.split(".")[0] in ("tore_fast", "tools", "studies"):
                yield from ((node.lineno, module, alias.name) for alias in node.names)


def resolves(module: str, name: str) -> bool:
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as e:  # an optional library that is not installed is no fault of the import
        return not str(e.name).startswith(("tore_fast", "tools", "studies"))
    if hasattr(found, name):
        return True
    try:
        importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return False
    return True


@pytest.mark.parametrize("folder", ["tore_fast", "tests", "tools", "studies"])
def test_every_import_resolves(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    files = [p for p in FILES if p.relative_to(ROOT).parts[0] == folder and "triton_kernels" not in p.parts]
    files = [p for p in files if p.relative_to(ROOT).parts[:2] != ("tore_fast", "benchmarks")]
    found = {(m, n): f"{p.relative_to(ROOT)}:{line}" for p in files for line, m, n in imports(p)}
    assert found or folder == "studies"
    assert not {f"{where}: {m}.{n}" for (m, n), where in found.items() if not resolves(m, n)}


def test_a_class_name_is_used_once():
    """Two classes of one name are two concepts under one word, or one concept twice. `Args` is a command's options."""
    where: dict[str, set[str]] = {}
    for path in (ROOT / "tore_fast").glob("**/*.py"):
        part = path.relative_to(ROOT / "tore_fast")
        if part.parts[0] not in ("benchmarks", "triton_kernels"):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and node.name != "Args":
                    where.setdefault(node.name, set()).add(str(part))
    assert len(where) > 300
    assert {name: sorted(files) for name, files in where.items() if len(files) > 1} == {}
