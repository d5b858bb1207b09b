"""Whole pipelines against the model alone, and what each step of the engine gains: `tore-fast bench pipelines`.

Inputs are made here from the embedded photograph, so that every machine has the same. Rows:

- waterfall: one model, eager float32 to overlapped batches, images/s each;
- batch, video: files in, results out, against the engine on crops in memory (target: a share of its rate);
- predict: files of 12 megapixels in, png, glb and npz out, against the same pipeline on decoded images without files;
- busy: an engine call beside a process that keeps one core busy, against the same call without it;
- cold: the command on one photograph, in a fresh process, against `import torch`.

Contenders alternate; medians. A ratio is the slower way's rate over the faster way's, or time over time (`unit`).
"""

from __future__ import annotations

import contextlib
import copy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

BATCH_TARGETS = {"fastmetro_tore_l_r50": 0.9, "hmr2_vits": 0.9, "tore_default": 0.7, "default": 0.7}
WATERFALL = "fastmetro_tore_l_r50"
KINDS = ("waterfall", "batch", "predict", "video", "busy", "cold")
BUSY_MODELS = ("tore_default", "fastmetro_tore_l_r50", "hmr2_vits", "tcformer_light", "mixste_27", "body_landmarks")
SPIN = "x = 1\nwhile True: x = (x * 7 + 1) % 1000003"


@dataclass
class Row:
    """One measured line."""

    case: str
    kind: str
    values: dict[str, float]  # name -> images/s (waterfall, batch, video) or seconds
    unit: str
    ratio: float | None = None
    target: str = ""
    met: bool | None = None
    note: str = ""
    samples: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    device: str = "cpu"
    precision: str = "fp32"
    models: tuple[str, ...] = ()
    quick: bool = False
    rounds: int = 3

    def count(self, full: int, few: int) -> int:
        return few if self.quick else full


def photograph(width: int, height: int, seed: int = 0) -> np.ndarray:
    """The embedded photograph enlarged, with a little noise so that no two files are the same."""
    from tore_fast.pipelines.demo_image import portrait

    pixels = np.asarray(Image.fromarray(portrait()).resize((width, height), Image.Resampling.BILINEAR), np.int16)
    noise = np.random.default_rng(seed).integers(-6, 7, (height // 2, width // 2, 1), np.int16)
    noise = noise.repeat(2, 0).repeat(2, 1)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def write_jpegs(folder: Path, count: int, width: int, height: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(count):
        paths.append(folder / f"{i:04d}.jpg")
        Image.fromarray(photograph(width, height, i % 4)).save(paths[-1], quality=92)
    return paths


def alternate(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, `rounds` times in turn, after one call of each."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def rates(seconds: dict[str, list[float]], items: int) -> dict[str, float]:
    return {name: items / statistics.median(s) for name, s in seconds.items()}


# ---- what each step gains


def waterfall(name: str, s: Setting) -> Row:
    """images/s of a model by the steps that `Engine` takes, each on top of those before."""
    from tore_fast.engine import Engine, fold_batch_norms
    from tore_fast.engine.precision import autocast, choose_precision
    from tore_fast.models import load
    from tore_fast.models._inputs import input_shape
    from tore_fast.models._registry import facts_of
    from tore_fast.ops import use

    device = torch.device(s.device)
    base = load(name).eval().requires_grad_(False).to(device)
    shape, facts = input_shape(base), facts_of(base)
    batch = s.count(64 if device.type == "cuda" else 8, 2)
    batches = 4
    word = s.precision if s.precision != "auto" else "bf16"
    low = choose_precision(word, device, facts.family if facts else None).dtype
    x = torch.randn((batch, *shape), generator=torch.Generator().manual_seed(0))

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def call(model: torch.nn.Module, dtype: Any, plain: bool, last: bool) -> Callable[[], None]:
        @torch.no_grad()
        def run() -> None:
            with use("reference") if plain else contextlib.nullcontext(), autocast(device.type, dtype):
                for _ in range(batches):
                    inputs = x.to(device)
                    if last and len(shape) == 3:
                        inputs = inputs.contiguous(memory_format=torch.channels_last)
                    model(inputs)
            wait()

        return run

    last = copy.deepcopy(base)
    if len(shape) == 3:
        last = last.to(memory_format=torch.channels_last)
    folded = copy.deepcopy(last)
    with torch.no_grad(), contextlib.suppress(ValueError):
        fold_batch_norms(folded, lambda: folded(x[:1].to(device)))
    ways: dict[str, Callable[[], None]] = {"eager fp32, plain ops": call(base, None, True, False)}
    if low is not None:
        ways[word] = call(base, low, True, False)
    ways["channels_last"] = call(last, low, True, True)
    ways["folded"] = call(folded, low, True, True)
    ways["our ops"] = call(folded, low, False, True)
    engine = Engine(name, device, word, [batch], mode="auto")

    def step() -> None:
        for _ in range(batches):
            engine(x)
        wait()

    def overlapped() -> None:
        for _ in engine.stream(x for _ in range(batches)):
            pass

    ways["engine (" + engine.report().mode + ")"] = step
    ways["overlapped"] = overlapped
    seconds = alternate(ways, s.count(3, 1))
    values = rates(seconds, batch * batches)
    first, end = next(iter(values.values())), values["overlapped"]
    return Row(f"waterfall {name} {word} b{batch}", "waterfall", values, "images/s", end / first, samples=seconds)


# ---- pipelines


def batch_row(name: str, s: Setting, work: Path) -> Row:
    """`tore-fast batch` (one worker, steady state: what a worker does with a warm model) against the engine alone."""
    from tore_fast.data.image_list import list_images
    from tore_fast.pipelines.batch import BatchConfig, ModelFactory, predict_unit
    from tore_fast.pipelines.batch_plan import BatchFolder

    count = s.count({"fastmetro_tore_l_r50": 32, "tore_default": 96}.get(name, 48), 4)
    size = (256, 192) if s.quick else (1280, 960)
    inputs = work / f"jpg{size[0]}"
    paths = write_jpegs(inputs, 96 if not s.quick else 4, *size)[:count]
    fitted = name == "default"
    pipeline = ModelFactory(name, device=s.device, options={"precision": s.precision})()
    config = BatchConfig(boxes="auto" if fitted else "full", unit_images=count)
    runs = iter(range(1000))

    def from_files() -> None:
        folder = BatchFolder(work / f"{name}-{next(runs)}")
        folder.make(list_images([str(p) for p in paths]), count, {"boxes": config.boxes})
        assert predict_unit(folder, 0, pipeline, config, None)

    if fitted:
        pixels = [np.asarray(Image.open(p)) for p in paths]
        alone: Callable[[], Any] = lambda: list(pipeline.stream(pixels))  # noqa: E731
        what = "the same on decoded images"
    else:
        engine = pipeline.body_model.engine
        assert engine is not None
        crops = torch.randint(0, 256, (8, *engine.input_shape), dtype=torch.uint8)
        if pipeline.body_model.task == "smpl":
            crops = crops.float() / 128 - 1
        alone = lambda: [engine(crops) for _ in range(count // 8 or 1)]  # noqa: E731
        what = "the engine on crops in memory"
    seconds = alternate({what: alone, "batch": from_files}, s.count(s.rounds, 1))
    values = rates({"batch": seconds["batch"]}, count)
    values[what] = (count if fitted else 8 * (count // 8 or 1)) / statistics.median(seconds[what])
    ratio, target = values["batch"] / values[what], BATCH_TARGETS.get(name)
    met = None if target is None else ratio >= target
    text = "" if target is None else f">= {target}"
    note = f"{count} JPEGs of {size[0]}x{size[1]}, boxes {config.boxes}"
    return Row(f"batch {name}", "batch", values, "images/s", ratio, text, met, note, seconds)


def predict_row(name: str, s: Setting, work: Path) -> Row:
    """Files in, png, glb and npz out, as `tore-fast predict` does it, against the pipeline on decoded images."""
    from functools import partial

    from tore_fast._threads import available_cpus
    from tore_fast.pipelines.photographs import image_pipeline
    from tore_fast.pipelines.results import write_result
    from tore_fast.pipelines.writing import InOrder

    size = (320, 240) if s.quick else (4000, 3000)
    paths = write_jpegs(work / f"jpg{size[0]}", s.count(6, 2), *size)
    pipeline = image_pipeline(name, device=s.device, precision=s.precision)
    boxes = None if name == "default" else "full"
    pixels = [np.asarray(Image.open(p)) for p in paths]
    out = work / f"predict-{name}"

    def with_files() -> None:
        with InOrder(available_cpus(), lambda _: None) as queue:
            for path, result in zip(paths, pipeline.stream(paths, boxes)):
                queue.put(partial(write_result, result, pipeline, out, path.stem, ("png", "glb", "npz")))

    ways = {"model": lambda: list(pipeline.stream(pixels, boxes)), "predict": with_files}
    seconds = alternate(ways, s.count(s.rounds, 1))
    values = {k: statistics.median(v) / len(paths) for k, v in seconds.items()}
    ratio = values["predict"] / values["model"]
    note = f"{len(paths)} JPEGs of {size[0]}x{size[1]}, --format png,glb,npz"
    return Row(f"predict {name}", "predict", values, "s/image", ratio, "<= 1.3", ratio <= 1.3, note, seconds)


def video_row(name: str, s: Setting, work: Path) -> Row:
    """Every frame of a clip read, cropped and encoded into rows on disk, against the engine on crops in memory."""
    from tore_fast.io.video import open_video, why_no_mp4, write_mp4
    from tore_fast.pipelines.options import VideoOptions
    from tore_fast.pipelines.video import VideoPipeline

    if reason := why_no_mp4():
        return Row(f"video {name}", "video", {}, "crops/s", note=reason)
    count, size = s.count(96, 8), (320, 240) if s.quick else (1280, 720)
    clip = work / "clip.mp4"
    still = photograph(*size)
    write_mp4(clip, (np.roll(still, i, 1) for i in range(count)), 30.0)
    options = VideoOptions(batch_size=s.count(16, 4), precision=s.precision)
    pipeline = VideoPipeline.from_checkpoint(name, options=options, device=s.device)
    two = {0: (0.0, 0.0, size[0] / 2, float(size[1])), 1: (size[0] / 2, 0.0, float(size[0]), float(size[1]))}
    runs = iter(range(1000))

    def whole() -> None:
        pipeline.encode_video(open_video(clip), work / f"{name}-clip-{next(runs)}", lambda i, frame: two)

    crops = torch.randn(options.batch_size, *pipeline.engine.input_shape, device=s.device)
    steps = 2 * count // options.batch_size
    ways = {"the engine on crops in memory": lambda: [pipeline.engine(crops) for _ in range(steps)], "video": whole}
    seconds = alternate(ways, s.count(s.rounds, 1))
    values = rates(seconds, 2 * count)
    ratio = values["video"] / values["the engine on crops in memory"]
    note = f"{count} frames of {size[0]}x{size[1]} H.264, two people a frame"
    return Row(f"video {name}", "video", values, "crops/s", ratio, ">= 0.9", ratio >= 0.9, note, seconds)


# ---- not alone on the machine, and cold


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """Another process that keeps one core busy."""
    process = subprocess.Popen([sys.executable, "-c", SPIN])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def busy_row(name: str, s: Setting) -> Row:
    from tore_fast.engine import Engine
    from tore_fast.models import load

    model = load(name).eval()
    engine = Engine(model, s.device, s.precision, 2, own=True)
    x = torch.rand((2, *engine.input_shape))
    quiet, busy = [], []
    engine(x)
    for _ in range(s.count(3, 1)):
        for samples, beside in ((quiet, contextlib.nullcontext()), (busy, busy_process())):
            with beside:
                until = time.perf_counter() + s.count(20, 2) / 20
                while time.perf_counter() < until or not samples:
                    start = time.perf_counter()
                    engine(x)
                    samples.append(time.perf_counter() - start)
    values = {"quiet": statistics.median(quiet), "busy": statistics.median(busy)}
    ratio = values["busy"] / values["quiet"]
    note = f"batch 2, {torch.get_num_threads()} threads, another process on one core"
    return Row(f"busy {name}", "busy", values, "s", ratio, "<= 2.5", ratio <= 2.5, note)


def cold_row(s: Setting, work: Path) -> Row:
    """A fresh process each time; `import torch` alternates with the command."""
    path = write_jpegs(work / "cold", 1, *((320, 240) if s.quick else (1280, 960)))[0]
    predict = [sys.executable, "-m", "tore_fast", "predict", str(path), "--out", str(work / "cold-out")]

    def run(command: list[str]) -> Callable[[], Any]:
        return lambda: subprocess.run(command, check=True, capture_output=True)

    ways = {
        "import torch": run([sys.executable, "-c", "import torch"]),
        "predict": run([*predict, "--device", s.device]),
    }
    seconds = alternate(ways, s.count(s.rounds, 1))
    values = {k: statistics.median(v) for k, v in seconds.items()}
    beyond = values["predict"] - values["import torch"]
    values["beyond"] = beyond
    return Row("cold predict one.jpg", "cold", values, "s", beyond, "<= 1.5 s", beyond <= 1.5, "default", seconds)


# ---- all of them


def check(kinds: list[str], models: list[str]) -> None:
    from tore_fast.models import list_models

    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"no pipelines benchmark {kind!r}; expected one of {', '.join(KINDS)}")
    for name in models:
        if name not in ("default", "tore_default", "body_landmarks") and name not in list_models():
            raise ValueError(f"--model: no model {name!r} (tore-fast list)")


def rows(s: Setting, kinds: list[str]) -> Iterator[Row]:
    """Measures the rows of the kinds (all when empty), one after the other."""
    few = s.quick and not s.models
    chosen: dict[str, tuple[str, ...]] = {
        "waterfall": (WATERFALL,),
        "batch": ("tore_default",) if few else tuple(BATCH_TARGETS),
        "predict": ("tore_default",) if few else ("default", "fastmetro_tore_l_r50"),
        "video": ("hmr2_vitt",) if few else ("hmr2_vits",),
        "busy": ("tore_default",) if few else BUSY_MODELS,
    }
    make: dict[str, Callable[..., Row]] = {"batch": batch_row, "predict": predict_row, "video": video_row}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for kind in kinds or KINDS:
            if kind == "cold":
                yield cold_row(s, work)
                continue
            for name in s.models or chosen[kind]:
                if kind in make:
                    yield make[kind](name, s, work)
                else:
                    yield (waterfall if kind == "waterfall" else busy_row)(name, s)


def text(row: dict) -> str:
    """One line of a row."""
    values = "  ".join(f"{k} {v:.3g}" for k, v in row["values"].items())
    ratio = "" if row["ratio"] is None else f"  ratio {row['ratio']:.2f}"
    target = f" (target {row['target']}: {'met' if row['met'] else 'MISSED'})" if row["target"] else ""
    return f"{row['case']}: {values} {row['unit']}{ratio}{target}  {row['note']}".rstrip()


def result_of(row: Row) -> dict:
    return asdict(row)


def markdown(document: dict) -> str:
    """The tables of docs/speed.md."""
    lines = ["| pipeline | this way | model alone | ratio | target | |", "|---|---|---|---|---|---|"]
    for row in document["results"]:
        if row["kind"] == "waterfall" or row["ratio"] is None:
            continue
        names = list(row["values"])
        own, other = {
            "batch": ("batch", names[-1]),
            "predict": ("predict", "model"),
            "video": ("video", names[0]),
            "busy": ("busy", "quiet"),
            "cold": ("predict", "import torch"),
        }[row["kind"]]
        a, b = row["values"][own], row["values"][other]
        note = f"{row['note']}".strip()
        ratio = f"{row['ratio']:.2f}" + (" s" if row["kind"] == "cold" else "x")
        lines.append(
            f"| `{row['case']}`: {note} | {a:.3g} {row['unit']} | {b:.3g} | {ratio} | {row['target']} | "
            f"{'met' if row['met'] else 'missed' if row['target'] else ''} |"
        )
    for row in (r for r in document["results"] if r["kind"] == "waterfall"):
        lines += ["", f"{row['case']}, {row['unit']}:", "", "| step | images/s | of the first |", "|---|---|---|"]
        first = next(iter(row["values"].values()))
        lines += [f"| {k} | {v:.3g} | {v / first:.2f}x |" for k, v in row["values"].items()]
    return "\n".join(lines)


def chart(document: dict, path: Path) -> None:
    """Ratios against their targets as bars; needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = [r for r in document["results"] if r["target"] and r["kind"] != "cold"]
    figure, axes = plt.subplots(figsize=(8, 0.4 * len(found) + 1))
    axes.barh(
        [r["case"] for r in found],
        [r["ratio"] for r in found],
        color=["#59a14f" if r["met"] else "#e15759" for r in found],
    )
    for i, r in enumerate(found):
        axes.plot([float(r["target"].split()[1])] * 2, [i - 0.4, i + 0.4], "k-")
    axes.invert_yaxis()
    axes.set_xlabel("ratio to the model alone (batch, video: rate; predict, busy: time); line: target")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
