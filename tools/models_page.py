"""Counts every registered model, writes models/assets/counts.json and the table of docs/models.md.

python tools/models_page.py            # count, write both (half a minute)
python tools/models_page.py --table    # only print the table from the counts in the tree
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from tore_fast.cli.list import rows
from tore_fast.models import list_models
from tore_fast.models._count import count_model

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- models: tools/models_page.py -->\n", "<!-- end of models -->\n"
NAMES = [
    "fastmetro_s_r50",
    "fastmetro_l_r50",
    "fastmetro_l_h64",
    "fastmetro_l_eb0",
    "fastmetro_s_r50_paper",
    "fastmetro_m_r50_paper",
    "fastmetro_l_r50_paper",
    "fastmetro_tore_l_r50",
    "fastmetro_tore_l_h64",
    "fastmetro_tore_l_eb0",
    "fastmetro_tore_l_eb0_itp50",
    "fastmetro_tore_l_eb0_itp75",
    "metro_r50",
    "metro_h64",
    "metro_tore_r50",
    "metro_tore_h64",
    "graphormer_h64",
    "tcformer_light",
    "tcformer_base",
    "tcformer_large",
    "mixste_243",
    "hot_mixste_243",
    "motionbert_lite_243",
    "hot_motionbert_243",
    "mhformer_351",
    "tpc_mhformer_351",
    "hmr2_vith",
    "fasthmr_hmr2",
    "camerahmr_vith",
    "fasthmr_camerahmr",
    "tore_default",
]


def table() -> str:
    """The page's table (Markdown)."""
    lines = [
        "| model | parameters M | counted as the paper does | paper | GMACs | as the paper does | paper | "
        "paper's table |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows(NAMES):
        paper = row["paper"] or {}
        cells = [
            row["params_m"],
            row["params_as_paper_m"],
            paper.get("params_m"),
            row["gmacs"],
            row["gmacs_as_paper"],
            paper.get("gmacs"),
        ]
        text = " | ".join("-" if v is None else f"{v:.2f}" for v in cells)
        source = (paper.get("source") or "").split(";")[0] or ("ours" if row["name"] == "tore_default" else "")
        lines.append(f"| `{row['name']}` | {text} | {source} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    if "--table" not in sys.argv[1:]:
        counts = {name: count_model(name) for name in list_models()}
        text = ",\n".join(f"{json.dumps(name)}: {json.dumps(c)}" for name, c in counts.items())
        (ROOT / "tore_fast" / "models" / "assets" / "counts.json").write_text("{\n" + text + "\n}\n")
        page = ROOT / "docs" / "models.md"
        before, rest = page.read_text().split(START)
        text = before + START + table() + END + rest.split(END)[1]
        page.write_text(re.sub(r"\(\d+ names\)", f"({len(counts)} names)", text))
    print(table(), end="")


if __name__ == "__main__":
    main()
