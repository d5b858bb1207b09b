"""Writes docs/papers.md from papers.toml: items of the five papers with commands, tables of sizes, ours beside theirs.

python tools/papers_page.py            # count the models of the tables, write the page (half a minute)
python tools/papers_page.py --check    # say which sizes are more than 1 % from the papers
"""

from __future__ import annotations

import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
STATES = {
    "here": "the command gives it, as printed or as released",
    "option": "printed text and released code differ; the default is the released one, the command is the printed one",
    "data": "the command does it; the paper's number needs files that have a licence",
    "machine": "the command measures it; the paper's number belongs to the paper's machine",
    "outside": "no part of the system: other people's networks, or a future of the method",
}


class Item(NamedTuple):
    number: str
    text: str
    state: str
    command: str
    note: str


class Size(NamedTuple):
    table: str
    row: str
    model: str
    fields: str
    params_m: float | str
    gflops: float | str
    note: str

    @property
    def command(self) -> str:
        return f"tore-fast list {self.model}" + (f" --set {self.fields}" if self.fields else "")


@cache
def read() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "papers.toml").read_text(encoding="utf-8"))


def items() -> list[Item]:
    return [Item(*row) for paper in read()["paper"] for row in paper["items"]]


def count(size: Size, table: dict[str, Any]) -> tuple[float, float]:
    """Parameters (M) and the paper's kind of G of one row, by name and config fields."""
    import torch

    from tore_fast.models import model_entry
    from tore_fast.models._count import UNUSED_OF_TRUNK, count_macs, count_model, params_as_printed
    from tore_fast.models._overrides import config_type, parse_overrides

    words = size.fields.split()
    fields = parse_overrides(config_type(size.model), dict(zip(words[::2], words[1::2]))) if words else {}
    entry = model_entry(size.model)
    if table.get("rule") == "layers":
        with torch.device("meta"):
            model = entry.build(**fields)
        macs = count_macs(model, torch.empty(1, *entry.input_shape, device="meta"), convention="layers").total
        return sum(p.numel() for p in model.parameters()) / 1e6, macs / 1e9
    counts = count_model(size.model, **fields)
    macs = counts.paper_macs or counts.macs
    if macs is None:  # decided by values: counted in a real pass
        macs = count_macs(entry.build(**fields), torch.zeros(1, *entry.input_shape), convention="tcformer").total
    params = params_as_printed(entry, counts) or counts.params
    if table.get("params") == "all":
        of_trunk = UNUSED_OF_TRUNK.get(entry.config.backbone, 0)
        params = counts.backbone_params + of_trunk
        params += params_as_printed(entry, counts) or counts.params - counts.backbone_params
    return params / 1e6, table.get("factor", 1) * macs / 1e9


def off(got: float, printed: float | str) -> bool:
    """Whether a number is more than 1 % and more than half of the last printed digit from the paper's."""
    if printed == "":
        return False
    digits = len(str(printed).partition(".")[2])
    return abs(got - float(printed)) > max(0.01 * float(printed), 0.5 * 10**-digits + 1e-9)


def deviations() -> list[str]:
    """Rows that differ from the paper without a word about it."""
    out = []
    for table in read()["table"]:
        for size in (Size(*row) for row in table["rows"]):
            params, g = count(size, table)
            if (off(params, size.params_m) or off(g, size.gflops)) != size.note.startswith("deviation:"):
                out.append(
                    f"{table['title']}, {size.row}: {params:.3f} M, {g:.3f} G, printed {size.params_m}, {size.gflops}"
                )
    return out


def _row(*cells: Any) -> str:
    return "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"


def _head(*cells: str) -> list[str]:
    return [_row(*cells), "|" + "---|" * len(cells)]


def _number(x: float | str) -> str:
    return "-" if x == "" else f"{x:.2f}"


def page() -> str:
    """The whole page (Markdown)."""
    data, states = read(), Counter(i.state for i in items())
    lines = [
        "# The papers, item by item",
        "",
        "Made by `python tools/papers_page.py` from `tools/papers.toml`. Every table row, figure and",
        "equation of the five papers that this package implements, and the command that gives it. States:",
        "",
        *_head("state", "items", "meaning"),
        *(
            _row(s, states[s], text)
            for s, text in {**STATES, **({"open": "not yet"} if states["open"] else {})}.items()
        ),
        "",
        "In commands: FILE official weights, RUN or FOLDER your checkpoint folder, SET a data set (docs/data.md),",
        "H36M a folder with data_3d_h36m.npz and data_2d_h36m_*.npz.",
        "",
        "## Where code and paper differ",
        "",
        "The default is what the authors released; where they released nothing, what the page of the method says.",
        "",
        *_head("what", "where", "printed", "released, our default", "the printed one"),
        *(_row(*row) for part in data["difference"] for row in part["rows"]),
        "",
        "## Sizes",
        "",
        "Ours counted by the paper's rule, beside the printed number. `tests/test_papers.py` builds every row.",
        "",
    ]
    for table in data["table"]:
        lines += [f"**{table['title']}**. {table['unit']}", ""]
        lines += _head("table", "row", "M ours", "M paper", "G ours", "G paper", "command", "note")
        for size in (Size(*row) for row in table["rows"]):
            params, g = count(size, table)
            numbers = (f"{params:.2f}", _number(size.params_m), f"{g:.2f}", _number(size.gflops))
            lines.append(_row(size.table, size.row, *numbers, f"`{size.command}`", size.note))
        lines.append("")
    lines += [
        "HoT's closed form (MixSTE, multiply-adds x 2): 16 C^2 J (2 n F + 2 (8 - n) f) + 4 C J F + 6 C J F_out",
        "+ 4 C^2 J (f' + f) with TRA + 36 F C of the pooling; F_out is f' with TRA, else f.",
        "",
        "## Accuracy",
        "",
        "These numbers need data with a licence, so none of ours stands beside them. Measured on open data:",
        "[study.md](study.md), [lifting.md](lifting.md) and [smpl.md](smpl.md).",
        "",
        *_head("paper", "table", "row", "printed", "needs", "command"),
    ]
    for part in data["accuracy"]:
        lines += [_row(*row[:5], f"`{row[5]}`") for row in part["rows"]]
    for paper in data["paper"]:
        lines += ["", f"## {paper['title']}", "", *_head("", "item", "state", "command", "note")]
        for i in (Item(*row) for row in paper["items"]):
            lines.append(_row(i.number, i.text, i.state, f"`{i.command}`" if i.command else "", i.note))
    return "\n".join(lines) + "\n"


def main() -> None:
    if "--check" in sys.argv[1:]:
        print("\n".join(deviations()) or "every row within 1 % or its deviation named")
        return
    (ROOT / "docs" / "papers.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
