"""From benchmark results (the JSON of run.py) to text, a Markdown table and PNG charts. Losses are listed like wins.

`python -m benchmarks.report cpu_ops.json` writes cpu_ops.md and cpu_<op>.png beside the JSON; with a folder as second
argument, report.md and <op>.png into that folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def key(result: dict) -> tuple:
    """What makes a row of a document unique."""
    return tuple(result[k] for k in ("op", "case", "direction", "device", "dtype"))


def _megabytes(row: dict) -> str:
    return "-" if row.get("peak_bytes") is None else f"{row['peak_bytes'] / 1e6:.3g}"


def _rate(result: dict, row: dict) -> str:
    """Items (images, sequences) per second."""
    return f"{result['items'] / row['median_ms'] * 1e3:.4g}" if "median_ms" in row else "-"


def text_block(result: dict) -> str:
    """One case on the terminal."""
    head = f"{result['op']}  {result['case']}  {result['direction']}  {result['dtype']}  {result['device']}"
    lines = [head]
    for row in result["contenders"]:
        mark = "*" if row["ours"] else " "
        if "median_ms" in row:
            spread = f"{row['median_ms']:9.4f} ms  [{row['p20_ms']:.4f}, {row['p80_ms']:.4f}]  err {row['error']:.1e}"
            if row.get("peak_bytes") is not None:
                spread += f"  +{_megabytes(row)} MB"
            if row.get("graph_ms") is not None:
                spread += f"  graph {row['graph_ms']:.4f}"
            lines.append(f"  {mark} {row['name']:28} {spread}  {row['note']}".rstrip())
        else:
            lines.append(f"  {mark} {row['name']:28} {row['note']}")
    if result["speedup"] is not None:
        verdict = "faster than" if result["speedup"] >= 1 else "SLOWER than"
        least = f" ({result['speedup_of_minima']:.2f}x by minima)"
        lines.append(f"    -> {result['speedup']:.2f}x{least} {verdict} {result['best_baseline']}{_floor_text(result)}")
    elif result["wrong"]:
        lines.append(f"    -> no ratio: {', '.join(result['wrong'])} gave a wrong answer")
    return "\n".join(lines)


def _floor_text(result: dict) -> str:
    if not result.get("floor_ms") or not result["ours_ms"]:
        return ""
    return f"; {100 * result['floor_ms'] / result['ours_ms']:.0f} % of the floor {_ms(result['floor_ms'])} ms"


def markdown(document: dict) -> str:
    """The whole run as Markdown: environment, ceilings, one row per case, then every contender."""
    env = document["environment"]
    device = env.get("gpu") or f"{env['cpu']}, {env['threads']} threads"
    lines = [
        f"**{device}** · torch {env['torch']} · triton {env['triton'] or '-'} · tore_fast {env['tore_fast']} · "
        f"commit {(env['commit'] or 'unknown')[:10]}{' (modified)' if env['dirty'] else ''} · {env['date']}",
        "",
    ]
    for dtype, c in document["ceilings"].items():
        lines.append(
            f"Measured ceilings, {dtype}: copy {c['bytes_per_s'] / 1e9:.1f} GB/s, matmul "
            f"{c['macs_per_s'] / 1e9:.1f} GMAC/s."
        )
    lines += [
        "",
        "| op | case | direction | dtype | ours ms (p20–p80) | items/s | peak MB | best baseline | its ms | "
        "ratio | ratio of minima | floor ms | % of floor |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in document["results"]:
        mine = next((c for c in r["contenders"] if c.get("headline", c["ours"]) and "median_ms" in c), None)
        ours = (
            "wrong"
            if r["wrong"]
            else "-"
            if mine is None
            else f"{_ms(mine['median_ms'])} ({_ms(mine['p20_ms'])}–{_ms(mine['p80_ms'])})"
        )
        ratio = "-" if r["speedup"] is None else f"{r['speedup']:.2f}×" + ("" if r["speedup"] >= 1 else " (loss)")
        least = "-" if r["speedup"] is None else f"{r['speedup_of_minima']:.2f}×"
        share = f"{100 * r['floor_ms'] / r['ours_ms']:.0f}" if r.get("floor_ms") and r["ours_ms"] else "-"
        lines.append(
            f"| {r['op']} | {r['case']} | {r['direction']} | {r['dtype']} | {ours} | {_rate(r, mine or {})} | "
            f"{_megabytes(mine or {})} | "
            f"{r['best_baseline'] or '-'} | "
            f"{_ms(r['best_baseline_ms'])} | {ratio} | {least} | {_ms(r.get('floor_ms'))} | {share} |"
        )
    losses = [r for r in document["results"] if r["speedup"] is not None and r["speedup"] < 1]
    lines += [
        "",
        f"Losses: {len(losses)} of {len(document['results'])} cases." if losses else "Losses: none.",
        "",
        "<details><summary>Every contender</summary>",
        "",
        "| op | case | direction | dtype | contender | median ms | p20 | p80 | graph ms | peak MB | error | note |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in document["results"]:
        for c in r["contenders"]:
            error = "-" if c["error"] is None else f"{c['error']:.1e}"
            lines.append(
                f"| {r['op']} | {r['case']} | {r['direction']} | {r['dtype']} | "
                f"{c['name']}{' (ours)' if c['ours'] else ''} | "
                f"{_ms(c.get('median_ms'))} | {_ms(c.get('p20_ms'))} | {_ms(c.get('p80_ms'))} | "
                f"{_ms(c.get('graph_ms'))} | {_megabytes(c)} | {error} | {c['note']} |"
            )
    return "\n".join([*lines, "", "</details>", ""])


def charts(document: dict, folder: Path, prefix: str = "") -> list[Path]:
    """One PNG per op: a group of bars per case, one bar per contender, the roofline floor as a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    paths = []
    for op in sorted({r["op"] for r in document["results"]}):
        results = [r for r in document["results"] if r["op"] == op and any("median_ms" in c for c in r["contenders"])]
        if not results:
            continue
        names = list(dict.fromkeys(c["name"] for r in results for c in r["contenders"] if "median_ms" in c))
        figure, axis = plt.subplots(figsize=(9, 0.8 + 0.22 * len(results) * (len(names) + 1)))
        height = 0.8 / len(names)
        for i, name in enumerate(names):
            rows = [next((c for c in r["contenders"] if c["name"] == name and "median_ms" in c), None) for r in results]
            at = [y + i * height for y, c in enumerate(rows) if c]
            times = [c["median_ms"] for c in rows if c]
            ours = any(c["ours"] for c in rows if c)
            axis.barh(
                at, times, height, label=name, color="#c0392b" if ours else plt.cm.Greys(0.35 + 0.5 * i / len(names))
            )
        for y, r in enumerate(results):
            if r.get("floor_ms"):
                axis.plot(
                    [r["floor_ms"]] * 2,
                    [y - height / 2, y + 0.8],
                    color="#2980b9",
                    lw=1.5,
                    label="floor" if y == 0 else None,
                )
        axis.set_yticks([y + 0.4 for y in range(len(results))])
        axis.set_yticklabels([f"{r['case']} {r['direction']} {r['dtype']}" for r in results], fontsize=7)
        axis.invert_yaxis()
        axis.set_xscale("log")
        axis.set_xlabel("ms per call (median)")
        axis.set_title(f"{op} on {document['environment'].get('gpu') or document['environment']['cpu']}")
        axis.legend(fontsize=7)
        figure.tight_layout()
        paths.append(folder / f"{prefix}{op.replace(' ', '_')}.png")
        figure.savefig(paths[-1], dpi=120)
        plt.close(figure)
    return paths


def write(document: dict, folder: Path, stem: str = "report", prefix: str = "") -> None:
    """folder/<stem>.md and one PNG per op."""
    folder.mkdir(parents=True, exist_ok=True)
    text = markdown(document)
    try:
        text += "\n" + "\n".join(f"![{p.stem}]({p.name})" for p in charts(document, folder, prefix)) + "\n"
    except ImportError:
        text += "\n(no charts: matplotlib is not installed)\n"
    (folder / f"{stem}.md").write_text(text)


def main(source: Path, folder: Path | None = None) -> None:
    document = json.loads(source.read_text())
    if folder is None:
        write(document, source.parent, source.stem, source.stem.split("_")[0] + "_")
    else:
        write(document, folder)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
