"""Which registered models can be exported: tries each, keeps what it found, writes the table of docs/export.md.

    python tools/export_table.py try --seconds 400      goes on where the last run stopped
    python tools/export_table.py page                   the table, between the marks of docs/export.md

Every name goes through torch.export with a dynamic batch (random weights, sizes as registered). Names of --onnx are
also written as ONNX with a dynamic batch and compared with eager by onnxruntime. Results: export.json in
benchmarks/results.
"""

from __future__ import annotations

import argparse
import collections
import json
import tempfile
import time
import warnings
from pathlib import Path

import torch

from tore_fast import ops
from tore_fast.engine import export as exporting
from tore_fast.models import list_models, load, model_entry
from tore_fast.models._inputs import input_shape

ROOT = Path(__file__).resolve().parents[1]
FOUND, PAGE = ROOT / "benchmarks" / "results" / "export.json", ROOT / "docs" / "export.md"
MARKS = "<!-- table: tools/export_table.py page -->", "<!-- end of the table -->"


def names() -> list[str]:
    """Registered names of the tasks that are exported: one of every class and backbone first, large ones last."""
    everything = [n for n in list_models() if model_entry(n).task in exporting.TASKS]
    seen: collections.Counter[str] = collections.Counter()
    order = []
    for name in everything:
        entry = model_entry(name)
        kind = f"{entry.model.__name__}{getattr(entry.config, 'backbone', '')}{getattr(entry.config, 'selector', '')}"
        order.append((seen[kind] > 0, "h64" in name or "vith" in name or name.startswith("fasthmr"), seen[kind], name))
        seen[kind] += 1
    return [name for *_, name in sorted(order)]


def traced(name: str) -> str:
    """ "" where torch.export takes the model with any batch, else why not."""
    model = load(name).requires_grad_(False)
    if model.facts.takes_camera and getattr(model, "cam_model", None) is None:
        return "no field-of-view net, so an image alone is no input of it"
    example = torch.rand(exporting.EXAMPLE, *input_shape(model))
    with torch.no_grad(), ops.use("reference"):
        try:
            exporting._program(exporting._Named(model, False).eval(), example, True)
        except Exception as e:  # noqa: BLE001 (the table says what there is)
            return exporting.reason(e)
    return ""


def written(name: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = exporting.export(name, Path(folder) / "m.onnx", dynamic_batch=True, check=True)
        except ValueError as e:
            return {"onnx": str(e)}
        return {"onnx": "", "differences": done.differences, "bytes": done.path.stat().st_size}


def attempt(seconds: float, onnx: list[str], only: list[str]) -> None:
    end = time.monotonic() + seconds
    found = json.loads(FOUND.read_text()) if FOUND.exists() else {"torch": torch.__version__, "models": {}}
    for name in [*onnx, *(only or names())]:
        row = found["models"].setdefault(name, {})
        if time.monotonic() > end:
            break
        if name in onnx and "onnx" not in row:
            row |= written(name)
        elif name not in onnx and "export" not in row:
            row["export"] = traced(name)
        else:
            continue
        print(name, {k: v for k, v in row.items() if k != "differences"}, flush=True)
        FOUND.write_text(json.dumps({**found, "models": dict(sorted(found["models"].items()))}, indent=1) + "\n")


def table() -> str:
    found = json.loads(FOUND.read_text())["models"] if FOUND.exists() else {}
    rows = collections.defaultdict(list)
    for name in list_models():
        task, row = model_entry(name).task, found.get(name, {})
        if task not in exporting.TASKS:
            rows["-", f"task {task} is not exported", "-"].append(name)
            continue
        onnx = row.get("onnx")
        if onnx == "":
            worst = max(row["differences"].values())
            checked = f"yes, {worst:.0e}"
        else:
            checked = "not tried" if onnx is None else onnx.split(": ", 1)[-1]
        took = row.get("export", "" if onnx == "" else None)  # what became ONNX went through torch.export
        rows[{None: "not tried", "": "yes"}.get(took, "no"), took or "", checked].append(name)
    lines = ["| torch.export | ONNX, onnxruntime v eager | models |", "|---|---|---|"]
    for (verdict, why, checked), members in sorted(rows.items(), key=lambda r: (r[0][0] != "yes", r[0][2])):
        said = f"{verdict}: {why}" if why else verdict
        lines.append(f"| {said} | {checked} | {' '.join(f'`{m}`' for m in members)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=("try", "page"))
    parser.add_argument("--seconds", type=float, default=400.0)
    parser.add_argument("--onnx", nargs="*", default=[])
    parser.add_argument("--only", nargs="*", default=[])
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.job == "try":
        attempt(args.seconds, args.onnx, args.only)
        return
    text = PAGE.read_text()
    before, after = text[: text.index(MARKS[0]) + len(MARKS[0])], text[text.index(MARKS[1]) :]
    PAGE.write_text(f"{before}\n{table()}\n{after}")


if __name__ == "__main__":
    main()
