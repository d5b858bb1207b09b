"""`tore-fast bench tables`: rows of the papers' efficiency tables on this machine, ratios beside the papers' ratios.

TORE B1 (images/s at the largest batch that fits a memory budget), B2/B3 (memory of a training step), C4 (images/s at
batch 1), HoT table 1 (frames/s), FastHMR's speed end to end. Both sides of a ratio are this package's, prepared the
same way: the ratio tells what the reduction brings, not what our kernels do. Absolute numbers of other machines are not
compared. In: run.py's options; out: rows for its JSON and a table in markdown.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tore_fast.geometry.crop import Crop
from tore_fast.geometry.warp import person_crops
from tore_fast.layers.prepared import prepare
from tore_fast.models import create_model
from tore_fast.models._inputs import input_shape

from .memory import largest_fitting, peak_growth

FRAME = (720, 1280)  # of the video that FastHMR's rows read


@dataclass(frozen=True)
class Row:
    """One ratio. `paper` is the printed ratio; None: no printed pair is at hand, `note` says what stands for it."""

    table: str
    metric: str  # what is compared; "throughput", "train memory", "fps", "frames", "end to end"
    base: str
    reduced: str
    paper: float | None = None
    note: str = ""
    cuda_only: bool = False

    @property
    def name(self) -> str:
        return f"{self.table}: {self.reduced} v {self.base}"


def _pairs(table: str, metric: str, notes: str) -> list[Row]:
    pairs = [
        ("metro_r50", "metro_tore_r50", "GMACs 31.6 / 5.4 = 5.9x", False),
        ("fastmetro_l_r50", "fastmetro_tore_l_r50", "GMACs 10.9 / 5.3 = 2.1x", False),
        ("metro_h64", "metro_tore_h64", "GMACs 56.5 / 30.3 = 1.9x", True),
        ("fastmetro_l_h64", "fastmetro_tore_l_h64", "GMACs 35.7 / 30.2 = 1.2x", True),
    ]
    return [Row(table, metric, a, b, None, f"{notes}{gmacs}", big) for a, b, gmacs, big in pairs]


ROWS = [
    *_pairs("TORE B1", "throughput", "printed "),
    *_pairs("TORE B2/B3", "train memory", "inference, printed: "),
    *_pairs("TORE C4", "fps", "printed in B1: "),
    Row("HoT 1", "frames", "mixste_243", "hot_mixste_243", 1.51, "RTX 3090"),
    Row("HoT 1", "frames", "motionbert_lite_243", "hot_motionbert_243", 1.74, "RTX 3090"),
    Row("FastHMR", "end to end", "hmr2_vits", "hmr2_vits:10:90", None, "ViT-S stands for ViT-H, whose ratio is 2.3"),
    Row("FastHMR", "end to end", "hmr2_vith", "fasthmr_hmr2", 2.3, "RTX 3090: 65.2 to 150.0 frames/s", True),
]
UNITS = {
    "throughput": "images/s",
    "train memory": "MB",
    "fps": "images/s",
    "frames": "frames/s",
    "end to end": "frames/s",
}


@dataclass(frozen=True)
class Setting:
    """How rows are measured."""

    device: str
    dtype: torch.dtype = torch.float32
    seconds: float = 1.0
    budget: int = 0  # bytes a call may take; 0: 24 GB on a GPU (the papers'), 0.5 GB on a CPU
    max_batch: int = 1024
    train_batch: int = 0  # 0: 16 on a GPU (FastMETRO's recipe), 2 on a CPU
    clip: int = 0  # frames of FastHMR's clip; 0: 243 on a GPU, 16 on a CPU

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def bytes(self) -> int:
        return self.budget or (24_000_000_000 if self.on_gpu else 500_000_000)

    @property
    def step(self) -> int:
        return self.train_batch or (16 if self.on_gpu else 2)

    @property
    def frames(self) -> int:
        return self.clip or (243 if self.on_gpu else 16)


def build(name: str, **fields: Any) -> nn.Module:
    """A registered model in eval mode; "NAME:DEPTH:TOKENS" is a host with fewer blocks and tokens."""
    torch.manual_seed(0)
    base, *reduced = name.split(":")
    return create_model(base, **dict(zip(("depth", "keep_tokens"), map(int, reduced))), **fields).eval()


def _ready(name: str, setting: Setting, **fields: Any) -> nn.Module:
    return prepare(build(name, **fields).to(setting.device, setting.dtype))


def _inputs(model: nn.Module, batch: int, setting: Setting) -> Tensor:
    return torch.randn(batch, *input_shape(model)).to(setting.device, setting.dtype)


def seconds_per_call(call: Callable[[], object], setting: Setting) -> dict[str, float]:
    """Median, least and number of wall-clock times; the device is waited for."""

    def once() -> float:
        start = time.perf_counter()
        call()
        if setting.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    samples = [once()]
    end = time.perf_counter() + setting.seconds
    while len(samples) < 3 or (time.perf_counter() < end and len(samples) < 200):
        samples.append(once())
    return {"median_s": statistics.median(samples), "min_s": min(samples), "samples": len(samples)}


def _throughput(name: str, setting: Setting) -> dict[str, Any]:
    model = _ready(name, setting)

    def peak_at(batch: int) -> int | None:
        x = _inputs(model, batch, setting)
        with torch.inference_mode():
            try:
                model(x)  # packs weights for so many rows: kept, so no part of a call
                return peak_growth(lambda: model(x), setting.device)
            except torch.OutOfMemoryError:
                return None if batch == 1 else setting.bytes + 1

    batch = largest_fitting(peak_at, setting.bytes, setting.max_batch)
    if batch is None:
        raise RuntimeError(f"bench tables: batch 1 of {name} needs over {setting.bytes} bytes, or memory is not told")
    x = _inputs(model, batch, setting)
    with torch.inference_mode():
        times = seconds_per_call(lambda: model(x), setting)
    return {"value": batch / times["median_s"], "batch": batch, "peak_bytes": peak_at(batch), **times}


def _train_memory(name: str, setting: Setting) -> dict[str, Any]:
    """Growth during forward and backward, gradients included; weights and the optimiser's state come on top."""
    model = build(name).to(setting.device).train()
    x = _inputs(model, setting.step, Setting(setting.device))

    def step() -> None:
        out = model(x)
        tensors = [t for t in out if isinstance(t, Tensor) and t.requires_grad]
        sum(t.float().square().mean() for t in tensors).backward()  # type: ignore[union-attr]

    step()
    model.zero_grad(set_to_none=True)
    peak = peak_growth(step, setting.device)
    return {"value": None if peak is None else peak / 1e6, "batch": setting.step}


def _fps(name: str, setting: Setting, frames: bool = False) -> dict[str, Any]:
    model = _ready(name, setting)
    x = _inputs(model, 1, setting)
    with torch.inference_mode():
        times = seconds_per_call(lambda: model(x), setting)
    return {"value": (x.shape[1] if frames else 1) / times["median_s"], "batch": 1, **times}


def _end_to_end(name: str, setting: Setting) -> dict[str, Any]:
    """Frames of 1280 x 720 to bodies: crops cut on the device, the host with a person mask, for a reduced host its
    motion decoder. Boxes and masks are given; the papers' detector and segmenter are other projects."""
    host = _ready(name, setting)
    is_reduced = ":" in name or name.startswith("fasthmr")
    size = input_shape(host)[-1]
    frame = torch.randint(0, 256, (*FRAME, 3), dtype=torch.uint8).to(setting.device)
    batch = min(setting.frames, 64 if setting.on_gpu else 8)
    mask = torch.zeros(batch, size, size, device=setting.device)
    mask[:, size // 8 : -size // 8, size // 4 : -size // 4] = 1

    decoder = None
    if is_reduced:
        with torch.inference_mode():
            width = host(torch.zeros(1, 3, size, size).to(mask.device, setting.dtype), mask[:1]).token.shape[-1]
        decoder = _ready("fasthmr_motion", setting, frames=setting.frames, condition_dim=width)

    def clip() -> object:
        tokens = []
        for first in range(0, setting.frames, batch):
            count = min(batch, setting.frames - first)
            crops = person_crops(frame, [Crop.square(640.0, 360.0, 600.0)] * count, size).to(setting.dtype)
            tokens.append(host(crops, mask[:count] if is_reduced else None).token)
        return tokens if decoder is None else decoder(torch.cat(tokens)[None].to(setting.dtype))

    with torch.inference_mode():
        times = seconds_per_call(clip, setting)
    return {"value": setting.frames / times["median_s"], "batch": batch, "frames": setting.frames, **times}


MEASURES: dict[str, Callable[[str, Setting], dict[str, Any]]] = {
    "throughput": _throughput,
    "train memory": _train_memory,
    "fps": _fps,
    "frames": lambda name, setting: _fps(name, setting, frames=True),
    "end to end": _end_to_end,
}


def rows(device: str, tables: list[str], quick: bool = False) -> Iterator[Row]:
    """Rows that this device can do, of the chosen tables (part of a name, any case; none: all)."""
    wanted = [t.lower() for t in tables]
    for row in ROWS:
        if row.cuda_only and not device.startswith("cuda"):
            continue
        if quick and row.metric != "fps":
            continue
        if not wanted or any(w in row.table.lower() for w in wanted):
            yield row


def check(given: list[str]) -> None:
    """ValueError for a table that is not there."""
    known = list(dict.fromkeys(row.table for row in ROWS))
    for name in given:
        if not any(name.lower() in table.lower() for table in known):
            raise ValueError(f"bench tables: no table {name!r}; expected part of {', '.join(known)}")


def measure(row: Row, setting: Setting) -> dict[str, Any]:
    """Both sides of a row and their ratio; above 1 the reduced model is better (faster, or smaller)."""
    found = {side: MEASURES[row.metric](getattr(row, side), setting) for side in ("base", "reduced")}
    base, reduced = (found[side]["value"] for side in ("base", "reduced"))
    known = base is not None and reduced is not None
    less = row.metric == "train memory"
    return {
        "case": row.name,
        "table": row.table,
        "metric": row.metric,
        "unit": UNITS[row.metric],
        "device": setting.device,
        "dtype": "float32" if less else str(setting.dtype).removeprefix("torch."),
        "base": {"model": row.base, **found["base"]},
        "reduced": {"model": row.reduced, **found["reduced"]},
        "ratio": (base / reduced if less else reduced / base) if known else None,
        "paper_ratio": row.paper,
        "paper_note": row.note,
        "memory_budget_bytes": setting.bytes if row.metric == "throughput" else None,
        "wrong": [],
    }


def text(result: dict[str, Any]) -> str:
    """One line on a row."""
    sides = ", ".join(f"{result[s]['model']} {_value(result[s])}" for s in ("base", "reduced"))
    ratio, paper = (("-" if v is None else f"{v:.2f}x") for v in (result["ratio"], result["paper_ratio"]))
    return f"{result['table']} {result['unit']}: {sides}; ratio {ratio}, paper {paper}"


def markdown(document: dict[str, Any]) -> str:
    lines = [
        "| table | base | reduced | base | reduced | unit | ratio here | paper | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in document["results"]:
        sides = [r[s] for s in ("base", "reduced")]
        names = " | ".join(f"`{s['model']}`" for s in sides)
        values = " | ".join(_value(s) for s in sides)
        ratio, paper = (("-" if v is None else f"{v:.2f}x") for v in (r["ratio"], r["paper_ratio"]))
        lines.append(f"| {r['table']} | {names} | {values} | {r['unit']} | {ratio} | {paper} | {r['paper_note']} |")
    return "\n".join(lines)


def _value(side: dict[str, Any]) -> str:
    value = side["value"]
    return "-" if value is None else f"{value:.1f} (batch {side['batch']})"
