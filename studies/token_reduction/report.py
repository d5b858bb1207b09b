"""Tables, plots and inference timings of the study, from the JSON files that run_row (.train.py) wrote.

In: a folder of NAME_sSEED.json and timings.json; out: Markdown text and PNG files. Nothing is computed but means.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import torch

from tore_fast.layers.prepared import prepare
from tore_fast.models._count import count_model

from .rows import CHANNELS, GRID, ROWS, Protocol, Row, build

TIMINGS = "timings.json"
COLOURS = {
    "mlp": "0.5",
    "fastmetro": "C0",
    "tore": "C3",
    "metro": "C2",
    "metro_tore": "C1",
    "graphormer": "C4",
    "tcformer": "C5",
}


class Spread(NamedTuple):
    mean: float
    sd: float  # of one seed (n - 1); NaN with one seed
    count: int

    def text(self, digits: int = 1) -> str:
        return f"{self.mean:.{digits}f}" + (f" ± {self.sd:.{digits}f}" if self.count > 1 else "")


def load(results: Path) -> dict[str, list[dict]]:
    """Results by row, rows in the order of ROWS, unknown names (older studies) last."""
    found: dict[str, list[dict]] = {}
    for path in sorted(results.glob("*_s[0-9]*.json")):
        one = json.loads(path.read_text())
        if not {"name", "seed", "easy_pa_mpjpe_mm"} <= one.keys():
            raise ValueError(
                f"{path}: expected a result of `study.py run` (name, seed, metrics), got keys {sorted(one)[:5]}"
            )
        found.setdefault(one["name"], []).append(one)
    if not found:
        raise FileNotFoundError(
            f"{results}: no results (NAME_sSEED.json); start with `python -m studies.token_reduction.run run`"
        )
    # fields that came later have their defaults in an older file
    protocols = {Protocol(**one["protocol"]) for rows in found.values() for one in rows}
    if len(protocols) > 1:
        raise ValueError(
            f"{results}: results of {len(protocols)} different protocols lie together; they cannot be compared"
        )
    return {name: found[name] for name in (*(n for n in ROWS if n in found), *(n for n in found if n not in ROWS))}


def spread(rows: list[dict], key: str) -> Spread:
    values = [r[key] for r in rows]
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan, len(values))


def pooled_sd(found: dict[str, list[dict]], key: str) -> float:
    """Seed noise: root mean variance over all rows with two seeds or more, weighted by their degrees of freedom."""
    rows = [r for r in found.values() if len(r) > 1]
    free = sum(len(r) - 1 for r in rows)
    return math.sqrt(sum((len(r) - 1) * spread(r, key).sd ** 2 for r in rows) / free) if free else math.nan


def timings(results: Path) -> dict:
    path = results / TIMINGS
    return json.loads(path.read_text()) if path.exists() else {}


def main_rows(found: dict[str, list[dict]]) -> list[str]:
    return [n for n in found if n not in ROWS or _is_main(ROWS[n])]


def _is_main(row: Row) -> bool:
    return not row.train_noise and row.lr_factor == 1 and row.budget == 1


def table(results: Path, full: bool = False) -> str:
    """Markdown: the main table, the pruning and noise studies, the learning-rate check; `full`: the papers' sizes,
    too."""
    found, speed = load(results), timings(results).get("rows", {})
    any_row = next(iter(found.values()))[0]
    lines = [
        "| row | PA-MPJPE | MPJPE | MPVPE | PA, joint tokens | PA, hard set | seeds | head MMACs | all MMACs | "
        "train MiB | images/s head | images/s all |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in main_rows(found):
        rows = found[name]
        one = rows[0]
        s = speed.get(name, {})
        cells = [
            _label(name),
            *(spread(rows, f"easy_{k}_mm").text() for k in ("pa_mpjpe", "mpjpe", "mpvpe")),
            spread(rows, "easy_token_pa_mpjpe_mm").text(),
            spread(rows, "hard_pa_mpjpe_mm").text(),
            str(len(rows)),
            f"{one['head_macs'] / 1e6:.2f}",
            f"{(one['head_macs'] + one['trunk_macs']) / 1e6:.1f}",
            f"{one['train_bytes'] / 2**20:.1f}",
            *(f"{s[k]:.0f}" if k in s else "-" for k in ("head_images_per_s", "images_per_s")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    baseline = [f"{any_row[f'easy_{k}']:.1f}" for k in ("mean_pose_pa_mpjpe_mm", "constant_mean_mpjpe_mm")]
    lines.append(
        f"| constant mean mesh | {baseline[0]} | {baseline[1]} | - | - | {any_row['hard_mean_pose_pa_mpjpe_mm']:.1f}"
        " | - | 0 | 0 | - | - | - |"
    )
    lines += [
        "",
        f"One seed's noise (pooled sd): PA-MPJPE {pooled_sd(found, 'easy_pa_mpjpe_mm'):.2f} mm, "
        f"MPVPE {pooled_sd(found, 'easy_mpvpe_mm'):.2f} mm.",
    ]
    for title, part in (
        ("Four times the steps", budget_table(found)),
        ("Pruning (H7)", pruning_table(found)),
        ("NSR noise (D6)", noise_table(found)),
        ("Learning rate", lr_table(found)),
    ):
        if part:
            lines += ["", f"**{title}**", "", *part]
    if full:
        lines += ["", "**At the papers' size**", "", *full_size_table()]
    return "\n".join(lines)


def full_size_table() -> list[str]:
    """The rows at the papers' size (ResNet-50 or HRNet-W64, 224 px, 431 vertices): multiply-adds only, nothing
    trained."""
    lines = ["| row | model | GMACs without trunk | with trunk |", "|---|---|---|---|"]
    for name, row in ROWS.items():
        if row.full[0]:
            counts = count_model(row.full[0], **row.full[1])
            cells = [
                _label(name),
                f"`{row.full[0]}`",
                f"{(counts.macs - counts.backbone_macs) / 1e9:.2f}",
                f"{counts.macs / 1e9:.2f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def pruning_table(found: dict[str, list[dict]]) -> list[str]:
    """Every selector and share of TORE, after one and after four passes."""
    lines = [
        "| size, selector, keep | tokens | head MMACs | one pass: PA-MPJPE | joint tokens | four passes: "
        "PA-MPJPE | joint tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in [n for n in found if n in ROWS and ROWS[n].family == "tore" and _is_main(ROWS[n])]:
        row = ROWS[name]
        size = "L" if row.layers == 3 else "S"
        kept = 49 if row.selector == "none" else int(49 * row.keep)
        cells = [
            f"{size}, " + ("no ITP" if row.selector == "none" else f"{row.selector} {row.keep:g}"),
            str(kept),
            f"{found[name][0]['head_macs'] / 1e6:.2f}",
        ]
        for n in (name, f"{name}_x4"):
            keys = ("easy_pa_mpjpe_mm", "easy_token_pa_mpjpe_mm")
            cells += [spread(found[n], k).text() for k in keys] if n in found else ["-", "-"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines if len(lines) > 2 else []


def noise_table(found: dict[str, list[dict]]) -> list[str]:
    names = [n for n, rows in found.items() if all("noise10_pa_mpjpe" in r for r in rows)]
    lines = ["| trained | tested without | 5 % | 7.5 % | 10 % |", "|---|---|---|---|---|"]
    for name in names:
        keys = [f"noise{x}_pa_mpjpe" for x in ("0", "5", "7.5", "10")]
        lines.append("| " + " | ".join([_label(name), *(spread(found[name], k).text(2) for k in keys)]) + " |")
    return lines if names else []


def budget_table(found: dict[str, list[dict]]) -> list[str]:
    lines = [
        "| row | one pass: PA-MPJPE | MPJPE | MPVPE | four passes: PA-MPJPE | MPJPE | MPVPE |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in [n for n in found if n in ROWS and ROWS[n].budget > 1]:
        base = name.rsplit("_x", 1)[0]
        if base in found:
            cells = [
                spread(found[n], f"easy_{k}_mm").text() for n in (base, name) for k in ("pa_mpjpe", "mpjpe", "mpvpe")
            ]
            lines.append("| " + " | ".join([_label(base), *cells]) + " |")
    return lines if len(lines) > 2 else []


def lr_table(found: dict[str, list[dict]]) -> list[str]:
    lines = ["| row, seed 0 | x0.25 | x0.5 | x1 | x2 |", "|---|---|---|---|---|"]
    for base in found:
        cells = []
        for factor in (0.25, 0.5, 1, 2):
            rows = found.get(base if factor == 1 else f"{base}_lr{factor:g}", [])
            first = [r for r in rows if r["seed"] == 0]
            cells.append(f"{first[0]['easy_pa_mpjpe_mm']:.1f}" if first else "-")
        if cells.count("-") <= 2:
            lines.append("| " + " | ".join([_label(base), *cells]) + " |")
    return lines if len(lines) > 2 else []


def _label(name: str) -> str:
    return ROWS[name].label if name in ROWS and ROWS[name].label else name


def plot(results: Path, out: Path) -> list[Path]:
    """study_pareto.png (error against multiply-adds and images/s) and study_tore.png (pruning, noise)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found, speed = load(results), timings(results).get("rows", {})
    out.mkdir(parents=True, exist_ok=True)
    names = [n for n in found if n not in ROWS or _is_main(dataclasses.replace(ROWS[n], budget=1))]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True)
    for axis, title, place in (
        (axes[0], "multiply-adds of the head, millions", lambda n: found[n][0]["head_macs"] / 1e6),
        (
            axes[1],
            "images/s of the head, one CPU thread",
            lambda n: speed.get(n.removesuffix("_x4"), {}).get("head_images_per_s"),
        ),
    ):
        shown = [(n, place(n)) for n in names if place(n) is not None]
        for name, x in shown:
            y = spread(found[name], "easy_pa_mpjpe_mm")
            colour = COLOURS[ROWS[name].family] if name in ROWS else "k"
            axis.errorbar(
                x,
                y.mean,
                None if math.isnan(y.sd) else y.sd,
                fmt="D" if name.endswith("_x4") else "o",
                color=colour,
                capsize=2,
                markersize=4,
            )
        if shown:
            axis.set_xscale("log")
            axis.margins(x=0.15, y=0.2)
            _name_points(axis, [(n, x, spread(found[n], "easy_pa_mpjpe_mm").mean) for n, x in shown])
        else:
            axis.text(0.5, 0.5, "not measured yet", ha="center", transform=axis.transAxes)
        axis.set_xlabel(title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("PA-MPJPE, mm (circles: one pass, diamonds: four)")
    paths = [_save(figure, out / "study_pareto.png")]
    plt.close(figure)

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    for budget, tail, style in (("one pass", "", "--"), ("four passes", "_x4", "-")):
        for selector, colour in (("soft", "C3"), ("cluster", "C0"), ("attention", "C2")):
            names = {1.0: f"tore_s_gtr{tail}" if selector != "soft" else f"tore_s_soft100{tail}"}
            names |= {k: f"tore_s_{selector}{100 * k:g}{tail}" for k in (0.8, 0.5, 0.25)}
            ys = [(k, spread(found[n], "easy_token_pa_mpjpe_mm")) for k, n in names.items() if n in found]
            if ys and ys[-1][0] < 1:
                axes[0].errorbar(
                    [k for k, _ in ys],
                    [y.mean for _, y in ys],
                    [0 if math.isnan(y.sd) else y.sd for _, y in ys],
                    fmt="o" + style,
                    capsize=2,
                    markersize=4,
                    color=colour,
                    label=f"{selector}, {budget}",
                )
        if f"tore_s_gtr{tail}" in found:
            level = spread(found[f"tore_s_gtr{tail}"], "easy_token_pa_mpjpe_mm").mean
            axes[0].axhline(level, color="0.6", ls=style, lw=1, label=f"no ITP, {budget}")
    axes[0].set(xlabel="share of tokens kept (TORE-S)", ylabel="PA-MPJPE of the joint tokens, mm")
    keys = [f"noise{x}_pa_mpjpe" for x in ("0", "5", "7.5", "10")]
    for name in [n for n, rows in found.items() if all(keys[-1] in r for r in rows)]:
        values = [spread(found[name], k).mean for k in keys]
        axes[1].plot(
            [0, 5, 7.5, 10],
            [v - values[0] for v in values],
            "-" if name.endswith("_x4") else "--",
            marker="o",
            markersize=3,
            label=name,
        )
    axes[1].set(xlabel="test-time noise on the NSR's input, % of its sd", ylabel="PA-MPJPE lost, mm")
    for axis in axes:
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7)
    paths.append(_save(figure, out / "study_tore.png"))
    plt.close(figure)
    return paths


def _name_points(axis, points: list[tuple[str, float, float]], size: float = 6.0) -> None:
    """Names inside the axes, each as near to its point as it goes without covering a name, a point or a line to one."""
    import numpy as np
    from matplotlib.transforms import Bbox

    axis.autoscale_view()  # limits, before places are read off
    axis.figure.tight_layout()
    to_pt = axis.transData + axis.figure.dpi_scale_trans.inverted()
    room = Bbox(72 * axis.get_window_extent().transformed(axis.figure.dpi_scale_trans.inverted()).get_points()).padded(
        -2
    )
    at = {name: 72 * to_pt.transform((x, y)) for name, x, y in points}
    obstacles = [Bbox.from_bounds(*(place - 3), 6, 6) for place in at.values()]
    drawn: list[np.ndarray] = []  # points along the lines so far
    angles = np.arange(0, 2 * np.pi, np.pi / 12)
    offsets = [(8.0, 0.0), *((r * np.cos(a), r * np.sin(a)) for r in np.arange(10, 200, 4.0) for a in angles)]
    for name, x, y in sorted(points, key=lambda p: -p[2]):
        width, own = 0.58 * size * len(name), at[name]
        for dx, dy in offsets:
            near = own + (dx, dy)  # the end of the name that the line meets
            box = Bbox.from_bounds(near[0] - (width if dx < 0 else 0), near[1] - size / 2, width, size)
            line = own + np.linspace(0.2, 0.9, 12)[:, None] * (dx, dy)
            if (
                box.x0 >= room.x0
                and box.x1 <= room.x1
                and box.y0 >= room.y0
                and box.y1 <= room.y1
                and not any(box.overlaps(o) for o in obstacles)
                and not any(box.contains(*q) for q in drawn)
                and not any(o.contains(*q) for o in obstacles for q in line[4:])
            ):
                break
        obstacles.append(box)
        colour = COLOURS[ROWS[name].family] if name in ROWS else "k"
        arrow = {"arrowstyle": "-", "lw": 0.4, "color": colour, "shrinkA": 0, "shrinkB": 2}
        axis.annotate(
            name,
            (x, y),
            fontsize=size,
            color=colour,
            xytext=(dx, dy),
            textcoords="offset points",
            va="center_baseline",
            ha="right" if dx < 0 else "left",
            arrowprops=None if dy == 0 and dx <= 10 else arrow,
        )
        drawn.extend(line)


def _save(figure, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    return path


@torch.inference_mode()
def measure(results: Path, protocol: Protocol, batch: int, seconds: float, threads: int) -> None:
    """Images/s of every row's head from features and of trunk plus head from images; random weights, `prepare()` where
    the
    model has it, median of the samples. Rows take turns, so a disturbance hits all of them."""
    from tore_fast.body import load_body

    from .features import frozen_trunk, study_body

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    body = load_body("free")
    body = study_body(body, protocol.vertices, body(0.3 * torch.randn(50, 24, 3), level=2).vertices).to(device)
    trunk = frozen_trunk().to(device, memory_format=torch.channels_last)
    features = torch.randn(batch, CHANNELS, *GRID, device=device)
    images = torch.randn(batch, 3, protocol.image_size, protocol.image_size, device=device).contiguous(
        memory_format=torch.channels_last
    )
    names = [n for n in ROWS if _is_main(ROWS[n])]
    models = {n: _ready(ROWS[n], protocol, body).to(device) for n in names}
    samples: dict[str, list[float]] = {n: [] for n in ("trunk", *names)}
    end, turn = time.perf_counter() + seconds * len(samples), 0
    while turn < 3 or time.perf_counter() < end:  # the first turn is a warm-up
        for name in samples:
            took = _took(trunk, images, device) if name == "trunk" else _took(models[name], features, device)
            if turn:
                samples[name].append(took)
        turn += 1
    middle = {n: statistics.median(s) for n, s in samples.items()}
    rows = {
        n: {"head_images_per_s": batch / middle[n], "images_per_s": batch / (middle[n] + middle["trunk"])}
        for n in names
    }
    facts = {
        "batch": batch,
        "threads": threads,
        "turns": turn - 1,
        "device": _device_name(device),
        "torch": torch.__version__,
        "trunk_images_per_s": batch / middle["trunk"],
        "rows": rows,
    }
    results.mkdir(parents=True, exist_ok=True)
    (results / TIMINGS).write_text(json.dumps(facts, indent=1) + "\n")


def _ready(row: Row, protocol: Protocol, body) -> torch.nn.Module:
    return prepare(build(row, protocol, body).eval())


def _took(call, x: torch.Tensor, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call(x)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "CPU")
