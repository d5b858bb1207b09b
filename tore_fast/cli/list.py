"""`tore-fast list`: every model with its parameters and multiply-adds beside the paper's numbers."""

from __future__ import annotations

import json as json_module
import sys
from dataclasses import dataclass

from tyro.conf import Positional


@dataclass
class Args:
    """Lists models: parameters (M) and multiply-adds (G, one image; papers call them GFLOPs), ours and the paper's."""

    pattern: Positional[str] = "*"
    """Shell pattern of names, e.g. '*tore*'."""
    json: bool = False
    """Machine-readable output."""
    names_only: bool = False
    """Names without counting."""


def rows(pattern: str = "*", progress: bool = False) -> list[dict]:
    """One dict per model: name, family, tags, counts (ours) and paper (params_m, gmacs, source, note)."""
    from dataclasses import asdict

    from tqdm import tqdm

    from ..models import list_models, model_entry
    from ..models._count import count_model

    out = []
    for name in tqdm(list_models(pattern), unit="model", disable=not progress, leave=False):
        entry, c = model_entry(name), count_model(name)
        out.append(
            {
                "name": name,
                "family": entry.family,
                "tags": list(entry.tags),
                "input": list(entry.input_shape),
                "params_m": c.params / 1e6,
                "params_without_backbone_m": (c.params - c.backbone_params) / 1e6,
                "unused_official_params_m": c.unused_params / 1e6,
                "gmacs": None if c.macs is None else c.macs / 1e9,
                "gmacs_without_backbone": None if c.backbone_macs is None else (c.macs - c.backbone_macs) / 1e9,
                "paper": None if entry.paper is None else asdict(entry.paper),
            }
        )
    return out


def table(found: list[dict], markdown: bool = False) -> str:
    """Text or Markdown table of `rows`."""

    def number(x: float | None) -> str:
        return "-" if x is None else f"{x:.2f}"

    head = ["model", "params M", "w/o backbone", "GMACs", "w/o backbone", "paper M", "paper G", "source"]
    body = []
    for r in found:
        paper = r["paper"] or {}
        body.append(
            [r["name"], number(r["params_m"]), number(r["params_without_backbone_m"]), number(r["gmacs"]),
             number(r["gmacs_without_backbone"]), number(paper.get("params_m")), number(paper.get("gmacs")),
             "; ".join(filter(None, (paper.get("source"), paper.get("note"))))]
        )  # fmt: skip
    if markdown:
        lines = [head, ["---"] * len(head), *body]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    width = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    numeric = range(1, len(head) - 1)
    return "\n".join(
        "  ".join(cell.rjust(w) if i in numeric else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, width))).rstrip()
        for line in [head, *body]
    )


def run(args: Args) -> int:
    from ..models import list_models

    names = list_models(args.pattern)
    if not names:
        print(f"tore-fast list: no model matches {args.pattern!r}", file=sys.stderr)
        return 1
    if args.names_only:
        print(json_module.dumps(names) if args.json else "\n".join(names))
        return 0
    found = rows(args.pattern, progress=sys.stderr.isatty())
    print(json_module.dumps(found, indent=2) if args.json else table(found))
    return 0
