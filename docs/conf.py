"""The documentation site: `sphinx-build -W -b html docs OUT`, of the installed package."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import tore_fast

project, author, release = "tore_fast", "the tore_fast authors", tore_fast.__version__
copyright = "the tore_fast authors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "Thumbs.db"]
html_theme, html_title = "furo", f"tore_fast {release}"
html_copy_source, html_show_sourcelink = False, False
myst_heading_anchors = 3
suppress_warnings = ["ref.python"]  # a name of several modules, e.g. a field called weights
autodoc_typehints, autodoc_member_order, autodoc_preserve_defaults = "signature", "bysource", True
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring, napoleon_numpy_docstring = True, False
python_use_unqualified_type_names, add_module_names = True, False

HERE = Path(__file__).resolve().parent
ROOMS = {  # in the order of their arrows, top down
    "pipelines": "images, videos, clips and batches in, results out",
    "train": "one training loop and the tasks that it trains",
    "eval": "metrics and protocols",
    "engine": "any model of this package, prepared for fast inference",
    "accelerate": "token and layer merging in models of others",
    "data": "data sets, readers, synthetic images",
    "vis": "drawings and the viewer",
    "models": "networks by name, and their weights",
    "body": "bodies and hands, and the landmark fit",
    "layers": "building blocks of the publications",
    "ops": "kernels",
    "geometry": "rotations, cameras, crops, skeletons",
    "io": "files, in and out",
}


def public_modules(room: str) -> list[str]:
    """Names of the room's modules without an underscore, the room itself first."""
    found, open_packages = [], [f"tore_fast.{room}"]
    while open_packages:
        name = open_packages.pop(0)
        found.append(name)
        path = getattr(importlib.import_module(name), "__path__", None)
        for info in pkgutil.iter_modules(path) if path else []:
            if not info.name.startswith("_") and info.name != "reference":
                open_packages.append(f"{name}.{info.name}")
    return sorted(found)


def write_api(folder: Path) -> None:
    """One page a room, made anew at every build (ignored by git)."""
    folder.mkdir(exist_ok=True)
    tree = ".. toctree::\n   :maxdepth: 1\n\n" + "\n".join(f"   {room}" for room in ROOMS)
    pages = {"index": f"API\n===\n\nEvery public module, made from its docstrings.\n\n{tree}\n"}
    for room, about in ROOMS.items():
        title = f"tore_fast.{room}: {about}"
        text = f"{title}\n{'=' * len(title)}\n"
        for name in public_modules(room):
            text += f"\n{name}\n{'-' * len(name)}\n\n.. automodule:: {name}\n"
            if hasattr(importlib.import_module(name), "__path__"):  # what it shows again lives in its modules
                text += "   :no-index:\n"
        pages[room] = text
    for name, text in pages.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def read_source(app, docname: str, source: list[str]) -> None:
    """Pages of the repository's root are pages of the site."""
    source[0] = re.sub(
        r"\]\((?:\.\./)+(README|CONTRIBUTING|CHANGELOG)\.md\)", lambda m: f"](/{m[1].lower()}.md)", source[0]
    )


def read_docstring(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text: `x` is code, * and | mean themselves. Before napoleon finds the sections."""
    parts = re.split(r"(``.*?``|`[^`]*`|^ *>>>.*$)", "\n".join(lines), flags=re.S | re.M)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            parts[i] = part.replace("*", r"\*").replace("|", r"\|").replace("`", r"\`")
        elif part.startswith("`") and not part.startswith("``"):
            pieces = [piece.strip() for piece in part.strip("`").split("\n")]
            parts[i] = " ".join(f"``{piece}``" for piece in pieces if piece)
            if parts[i + 1][:1].isalnum() or parts[i + 1][:1] in ("{", "_"):  # a literal ends at the end of a word
                parts[i] += "\\ "
    lines[:] = "".join(parts).split("\n")


def setup(app) -> None:
    write_api(HERE / "api")
    app.connect("source-read", read_source)
    app.connect("autodoc-process-docstring", read_docstring, priority=400)
