"""Plots training curves and writes the numbers behind them: RUN/metrics.jsonl (or such a CSV) to a PNG of two panels.

Left the loss of every logged step, right one metric on held-out data with flat lines for its baselines; `--csv` keeps
the numbers for the repository. Needs matplotlib.

    python tools/plot_runs.py runs/pose/metrics.jsonl --metric pck_0.1 --baseline mean_point_pck_0.1 --png pose.png
    --csv pose.csv
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

from tore_fast.cli._report import unit_of


def read_rows(path: Path) -> list[dict[str, float]]:
    """Rows of a metrics.jsonl or of a CSV this tool wrote; a step that a resumed run repeated counts once, the later
    one."""
    if path.suffix == ".csv":
        with path.open(newline="") as f:
            rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(f)]
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    merged: dict[float, dict[str, float]] = {}
    for row in rows:
        merged.setdefault(row["step"], {}).update({k: v for k, v in row.items() if isinstance(v, (int, float))})
    return [merged[step] for step in sorted(merged)]


def write_csv(rows: list[dict[str, float]], columns: list[str], path: Path) -> None:
    with path.open("w", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([f"{row[c]:.5g}" if c in row else "" for c in columns] for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="metrics.jsonl, or a CSV of this tool")
    parser.add_argument("--metric", required=True, help="name of a held-out metric, without eval/")
    parser.add_argument("--baseline", nargs="*", default=[], help="held-out metrics drawn as flat lines")
    parser.add_argument("--level", nargs="*", default=[], help="NAME=VALUE drawn as flat lines")
    parser.add_argument("--png", type=Path, required=True)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows, metric = read_rows(args.run), f"eval/{args.metric}"
    tested = [r for r in rows if metric in r]
    if not tested:
        raise SystemExit(f"{args.run}: no {metric}; has {sorted({k for r in rows for k in r})}")
    levels = {name: tested[-1][f"eval/{name}"] for name in args.baseline}
    levels |= {name: float(value) for name, value in (text.split("=") for text in args.level)}
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
    left.plot([r["step"] for r in rows if "loss" in r], [r["loss"] for r in rows if "loss" in r], lw=1)
    left.set(xlabel="step", ylabel="training loss")
    right.plot(
        [r["step"] for r in tested], [r[metric] for r in tested], marker="o", ms=3, label=f"{args.metric}, held out"
    )
    for colour, (name, value) in zip(("tab:red", "tab:gray", "tab:olive"), levels.items()):
        right.axhline(value, ls="--", color=colour, label=f"{name} {value:.3g}")
    right.set(xlabel="step", ylabel=f"{args.metric} [{unit_of(args.metric)}]")
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    args.png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.png, dpi=110)
    if args.csv is not None:
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        write_csv(
            rows, ["step", "loss", "lr", *sorted({k for r in tested for k in r if k.startswith("eval/")})], args.csv
        )


if __name__ == "__main__":
    main()
