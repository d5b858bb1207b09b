"""`tore-fast list`: every model with its parameters and multiply-adds beside the paper's numbers."""

from __future__ import annotations

import json as json_module
import sys
from dataclasses import dataclass, field
from typing import Literal

from tyro.conf import Positional

from . import UsageError

SORTS = {"params": "params_m", "macs": "gmacs"}


@dataclass
class Args:
    """Lists models: parameters (M) and multiply-adds (G, one image; papers call them GFLOPs), ours and the paper's.

    Matrix products and convolutions are counted, masked attention as dense (as the official code spends it). "as
    paper": ours by the paper's counting, to hold against its number (parameters without trunk or with unused weights;
    video pose models without the attention products).
    """

    patterns: Positional[tuple[str, ...]] = ("*",)
    """Shell patterns of names, e.g. '*tore*' 'metro*'."""
    family: tuple[str, ...] = ()
    """Only these families: fastmetro, tore, metro, graphormer, tcformer, mixste, fasthmr ..."""
    tag: tuple[str, ...] = ()
    """Only models with all of these tags: body, hand, keypoints, base, hot, tpc ..."""
    paper: bool = False
    """Only models that a paper prints numbers for."""
    sort: Literal["name", "params", "macs"] = "name"
    """Order of the rows: by name, parameters (M) or multiply-adds (G), smallest first."""
    json: bool = False
    """Machine-readable output."""
    names_only: bool = False
    """Names without numbers."""
    set: dict[str, str] = field(default_factory=dict)
    """Config fields to change before counting, NAME VALUE pairs: --set recover_frames 27. Every model listed must have
    them."""
    fresh: bool = False
    """Build and count every model anew (half a minute for all) instead of reading the counts made for this version."""
    reduction: bool = False
    """Instead: FastHMR's hosts by blocks left (ECLM) and tokens kept (Mask-ToMe), with the factor saved."""


def select(args: Args) -> list[str]:
    """Names that fit the patterns and filters; UsageError if there is none, naming what there is."""
    from ..models import list_models, model_entry

    names = sorted({n for p in args.patterns for n in list_models(p)})
    if not names:
        raise UsageError(f"no model matches {' '.join(args.patterns)!r}")
    entries = [model_entry(n) for n in names]
    for flag, wanted, there in (
        ("--family", args.family, {e.family for e in entries}),
        ("--tag", args.tag, {t for e in entries for t in e.tags}),
    ):
        if unknown := [w for w in wanted if w not in there]:
            raise UsageError(f"{flag}: no model has {unknown[0]!r}; expected some of {', '.join(sorted(there))}")
    found = [
        e.name
        for e in entries
        if (not args.family or e.family in args.family) and set(args.tag) <= set(e.tags) and (e.paper or not args.paper)
    ]
    if not found:
        raise UsageError("no model has all of this")
    return found


def rows(
    names: list[str], fresh: bool = False, progress: bool = False, changed: dict[str, str] | None = None
) -> list[dict]:
    """One dict per model: name, family, tags, counts (ours) and paper (params_m, gmacs, source, note); no paper where
    config fields are `changed`."""
    from dataclasses import asdict

    from tqdm import tqdm

    from ..models import model_entry
    from ..models._count import count_model, params_as_printed, shipped_counts
    from ..models._overrides import config_type, parse_overrides

    known = {} if fresh or changed else shipped_counts()
    out = []
    for name in tqdm(names, unit="model", disable=not (fresh and progress), leave=False):
        entry = model_entry(name)
        fields = parse_overrides(config_type(name), changed) if changed else {}
        c = known.get(name) or count_model(name, **fields)
        as_printed = params_as_printed(entry, c)
        out.append(
            {
                "name": name,
                "family": entry.family,
                "tags": [*entry.tags],
                "input": [*entry.input_shape],
                "params_m": c.params / 1e6,
                "params_without_backbone_m": (c.params - c.backbone_params) / 1e6,
                "unused_official_params_m": c.unused_params / 1e6,
                "params_as_paper_m": None if as_printed is None else as_printed / 1e6,
                "gmacs": None if c.macs is None else c.macs / 1e9,
                "gmacs_without_backbone": None
                if c.macs is None or c.backbone_macs is None
                else (c.macs - c.backbone_macs) / 1e9,
                "gmacs_as_paper": None if c.paper_macs is None else c.paper_macs / 1e9,
                "paper": None if entry.paper is None or changed else asdict(entry.paper),
            }
        )
    return out


def table(found: list[dict]) -> str:
    """Text table of `rows`."""

    def number(x: float | None) -> str:
        return "-" if x is None else f"{x:.2f}"

    head = [
        "model",
        "params M",
        "w/o backbone",
        "as paper",
        "paper M",
        "GMACs",
        "w/o backbone",
        "as paper",
        "paper G",
        "source",
    ]
    body = []
    for r in found:
        paper = r["paper"] or {}
        body.append(
            [
                r["name"],
                number(r["params_m"]),
                number(r["params_without_backbone_m"]),
                number(r["params_as_paper_m"]),
                number(paper.get("params_m")),
                number(r["gmacs"]),
                number(r["gmacs_without_backbone"]),
                number(r["gmacs_as_paper"]),
                number(paper.get("gmacs")),
                "; ".join(filter(None, (paper.get("source"), paper.get("note")))),
            ]
        )
    width = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    numeric = range(1, len(head) - 1)
    return "\n".join(
        "  ".join(
            cell.rjust(w) if i in numeric else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, width))
        ).rstrip()
        for line in [head, *body]
    )


# blocks left, tokens kept: the full host, both published hosts and their neighbourhood
REDUCTIONS = (
    (32, 192),
    (32, 128),
    (32, 90),
    (32, 64),
    (28, 192),
    (28, 150),
    (28, 128),
    (28, 110),
    (28, 102),
    (28, 90),
    (28, 80),
    (28, 64),
    (28, 48),
    (26, 192),
    (26, 128),
    (26, 90),
    (26, 64),
    (24, 90),
)
PAPER_GMACS = {(32, 192): 122.6, (28, 192): 107.5, (28, 90): 52.8}  # FastHMR Table 12: linear, convolution, norm layers


def reductions() -> list[dict]:
    """Multiply-adds (G, one crop) of HMR2.0's ViT-H host per row of REDUCTIONS."""
    from ..models._count import count_host
    from ..models.smpl.hmr2 import HMR2Config

    full = sum(count_host(HMR2Config()))
    out = []
    for blocks, tokens in REDUCTIONS:
        linear, attention = count_host(HMR2Config(depth=blocks, keep_tokens=None if tokens == 192 else tokens))
        out.append(
            {
                "blocks": blocks,
                "tokens": tokens,
                "linear_gmacs": linear / 1e9,
                "gmacs": (linear + attention) / 1e9,
                "factor": full / (linear + attention),
                "paper_gmacs": PAPER_GMACS.get((blocks, tokens)),
            }
        )
    return out


def reduction_table(found: list[dict]) -> str:
    lines = [
        "HMR2.0 (ViT-H/16, 256 x 192) with ECLM and Mask-ToMe, one crop; the paper counts no attention products",
        f"{'blocks':>6} {'tokens':>6} {'linear G':>9} {'+ attention':>11} {'factor':>7} {'paper G':>8}",
    ]
    for r in found:
        paper = "-" if r["paper_gmacs"] is None else f"{r['paper_gmacs']:.1f}"
        lines.append(
            f"{r['blocks']:6} {r['tokens']:6} {r['linear_gmacs']:9.1f} {r['gmacs']:11.1f} {r['factor']:6.2f}x "
            f"{paper:>8}"
        )
    return "\n".join(lines)


def run(args: Args) -> int:
    if args.reduction:
        found = reductions()
        print(json_module.dumps(found, indent=2) if args.json else reduction_table(found))
        return 0
    names = select(args)
    if args.names_only:
        print(json_module.dumps(names) if args.json else "\n".join(names))
        return 0
    try:
        found = rows(names, args.fresh, sys.stderr.isatty(), args.set)
    except (TypeError, ValueError) as e:
        if not args.set:
            raise
        raise UsageError(f"--set: {e}") from None
    if args.sort != "name":
        found.sort(key=lambda r: r[SORTS[args.sort]] or 0.0)
    print(json_module.dumps(found, indent=2) if args.json else table(found))
    return 0
