"""The `tore-fast` command: one verb per module of this folder, loaded only when used.

A verb module has a dataclass `Args` (its fields become flags, its docstring the help) and `run(args) -> int | None`
(the exit code).
"""

from __future__ import annotations

import importlib
import sys

VERBS = {
    "info": "versions, device, what is built, what is not and why",
    "bench": "times ops or models against tuned baselines, correctness first",
}


def main(argv: list[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv:
        argv = ["info"]
    if argv[0] in ("-h", "--help"):
        print(usage())
        return
    if argv[0] == "--version":
        from ..version import __version__

        print(f"tore_fast {__version__}")
        return
    verb = argv[0]
    if verb not in VERBS:
        sys.exit(f"tore-fast: no verb {verb!r}; expected one of {', '.join(VERBS)}")
    import tyro

    module = importlib.import_module(f".{verb}", __package__)
    args = tyro.cli(module.Args, prog=f"tore-fast {verb}", args=argv[1:])
    sys.exit(module.run(args) or 0)


def usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name:{width}}  {text}" for name, text in VERBS.items()]
    return "usage: tore-fast VERB [options]    (tore-fast VERB --help for the options)\n\n" + "\n".join(lines)
