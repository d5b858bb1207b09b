"""Measuring and drawing for studies/lifting/run.py: exports -> one JSON -> table and plots."""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from tore_fast.data.mocap import CAMERA_SEED, film
from tore_fast.data.pose_sets import read_pose_set
from tore_fast.eval.lifting import lifted_pairs
from tore_fast.eval.pose import PoseMeter
from tore_fast.layers.tpc import motion_score
from tore_fast.models import create_model, load
from tore_fast.models._count import count_module
from tore_fast.train.lifting import resampled

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
RESULTS = ROOT / "benchmarks" / "results" / "lifting_study.json"
FPS, NOISE_PX, SPREAD_SHOWN = 50.0, 5.0, 8
FRAMES = 32 * 27  # in the large batch of times and memory: 32 windows of 27 frames, 4 of 243
STRICT = ("02", "11", "12", "14")  # test subjects whose skeletons are not in training
# title -> (run whose weights are used, config changes): settings that need no training of their own
_AFTERWARDS = {"prune_block": 1, "keep_frames": 9, "recovery": "linear"}
REUSED = {
    "HoT w. MixSTE, nearest instead of TRA": ("hot_mixste", {"recovery": "nearest"}),
    "TPC w. MixSTE weights + linear": ("tpc_mixste", {"recovery": "linear", "keep_center": False}),
    "MixSTE weights + TPC + linear": ("mixste", _AFTERWARDS),
    "MixSTE weights + uniform + linear": ("mixste", {**_AFTERWARDS, "pruning": "uniform"}),
    "MotionBERT weights + TPC + linear": ("motionbert", _AFTERWARDS),
    "MixSTE, F = 243, weights + TPC + linear": ("mixste_243", {**_AFTERWARDS, "keep_frames": 81}),
}
TITLES = {
    "warm_mixste": "MixSTE, 3 frames (the warm start)",
    "mixste": "MixSTE",
    "hot_mixste": "HoT w. MixSTE (TPC + TRA)",
    "tpc_mixste": "TPC w. MixSTE (seq2frame)",
    "uniform_tra": "uniform + TRA",
    "attention_tra": "attention + TRA",
    "motion_tra": "motion + TRA",
    "tpc_nearest": "TPC + nearest",
    "tpc_linear": "TPC + linear",
    "warm_motionbert": "MotionBERT, 3 frames (warm start)",
    "motionbert": "MotionBERT",
    "hot_motionbert": "HoT w. MotionBERT",
    "tpc_motionbert": "TPC w. MotionBERT (seq2frame)",
    "tpc_linear_motionbert": "MotionBERT, TPC + linear",
    "mixste_243": "MixSTE, F = 243",
    "hot_mixste_243": "HoT w. MixSTE, F = 243, f = 81",
    "tpc_linear_243": "TPC + linear, F = 243, f = 81",
}


def base_of(name: str) -> str:
    """The row whose trained host a row prunes."""
    return "motionbert" if "motionbert" in name else "mixste_243" if name.endswith("_243") else "mixste"


def split_run(run: str) -> tuple[str, int]:
    """("mixste", 2) of "mixste_seed2"."""
    name, _, seed = run.partition("_seed")
    return name, int(seed or 0)


def measure(data: Path, out: Path, commands: dict[str, str], target: Path) -> None:
    """Errors of the exported runs in `commands` on the test subjects and what the plots need; other runs and earlier
    times stay."""
    found = read_pose_set(data)
    clips = film(resampled(found.items["test"], FPS), NOISE_PX, CAMERA_SEED)
    before = json.loads(target.read_text()) if target.is_file() else {}
    old, rows, reused = before.get("rows", {}), dict(before.get("rows", {})), dict(before.get("reused", {}))
    train = np.concatenate([c.pose for c in film(resampled(found.items["train"], FPS), 0.0, 1)])
    facts = {
        "test_frames": sum(len(c) for c in clips),
        "test_clips": len(clips),
        "noise_px": NOISE_PX,
        "fps": FPS,
        "train_clips": len(found.items["train"]),
        "validation_clips": len(found.items["validation"]),
        "torch": torch.__version__,
    }
    around = {
        "facts": facts,
        "baseline": {"constant mean pose": constant(clips, train.mean(0))},
        "maps": maps(out, clips),
    }
    for run, command in commands.items():
        export = out / run / "export"
        if not (export / "config.json").is_file():
            continue
        name, seed = split_run(run)
        model = load(export)
        meta = json.loads((export / "config.json").read_text())
        rows[run] = {
            "title": TITLES[name],
            "row": name,
            "seed": seed,
            "command": command,
            "model": meta["model"],
            "config": meta["config"],
            "validation": meta["validation"],
            "best_step": meta["step"],
            **cost(model),
            **errors(model, clips),
            "curve": curve(out / run / "metrics.jsonl"),
            "times": old.get(run, {}).get("times"),
        }
        if name in ("mixste", "hot_mixste", "motionbert"):
            rows[run]["middle_mpjpe"] = middle_frames(model, clips)
        print(f"{run}: test {rows[run]['test']['mpjpe']:.1f} mm", flush=True)
        for title, (start, changes) in REUSED.items():
            if start == name:
                # TRA's parameters have no place in a model without it
                other = create_model(meta["model"], **{**meta["config"], **changes}).eval()
                missing = other.load_state_dict(model.state_dict(), strict=False).missing_keys
                if missing:
                    raise ValueError(f"{title}: the weights of {run} leave {missing} untrained")
                reused[f"{title}{f' seed {seed}' if seed else ''}"] = {
                    "title": title,
                    "row": name,
                    "seed": seed,
                    "changes": changes,
                    **cost(other),
                    **errors(other, clips),
                }
        write(target, rows, reused, around)  # after every run: a kill costs one


def write(target: Path, rows: dict, reused: dict, around: dict) -> None:
    order = lambda entries, names: dict(
        sorted(entries.items(), key=lambda e: (names.index(e[1]["title"]), e[1]["seed"]))
    )
    result = {**around, "rows": order(rows, [*TITLES.values()]), "reused": order(reused, [*REUSED])}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")


def errors(model, clips) -> dict:
    """Test errors, all subjects and each; a seq2frame model is run for every third frame and its MPJVE is not
    comparable."""
    centered = model.config.pruned and model.config.recovery == "none"
    meters: dict[str, PoseMeter] = {"": PoseMeter()}
    with torch.inference_mode():
        for clip, pred, target, _ in lifted_pairs(model, clips, stride=3 if centered else 0):
            meters[""].add(clip.action, pred, target)
            meters.setdefault(clip.subject, PoseMeter()).add("all", pred, target)
    total = meters.pop("").result()
    if centered:
        total["mpjve"] = None
    return {"test": total, "per_subject": {s: m.result()["mpjpe"] for s, m in sorted(meters.items())}}


def middle_frames(model, clips) -> float:
    """MPJPE of the middle frame of a window, every third frame, as seq2frame models are measured."""
    meter, at = PoseMeter(), (model.config.frames - 1) // 2
    with torch.inference_mode():
        for clip, pred, target, _ in lifted_pairs(model, clips, stride=3):
            meter.add(clip.action, pred[at : at + 1], target[at : at + 1])
    return meter.result()["mpjpe"]


def cost(model) -> dict:
    """Parameters, multiply-adds of a window, and the most memory that one inference and one training pass hold at a
    time."""
    frames = model.config.frames
    shape = (frames, 17, model.in_channels)
    params, macs = count_module(create_like(model).to("meta"), torch.zeros(1, *shape, device="meta"))
    fresh, x = create_like(model), torch.randn(FRAMES // frames, *shape)
    with torch.inference_mode():
        inference = peak_allocated(lambda: fresh.eval()(x).pose)
    training = peak_allocated(lambda: fresh.train()(x).pose.square().mean().backward())
    return {"params": params, "gmacs": macs / 1e9, "memory_mb": inference / 2**20, "training_mb": training / 2**20}


def peak_allocated(call) -> int:
    """Most bytes of tensors alive at once during `call()` beyond those before it, as torch's allocator counts them."""
    from torch.profiler import ProfilerActivity, profile

    call()  # what is set up once does not count
    with warnings.catch_warnings(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        warnings.simplefilter("ignore")
        call()
    steps = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(steps, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def create_like(model):
    return type(model)(model.config)


def constant(clips, mean: np.ndarray) -> dict:
    meter = PoseMeter()
    for clip in clips:
        meter.add(clip.action, torch.from_numpy(mean).expand(len(clip), -1, -1), torch.from_numpy(clip.pose))
    return meter.result()


def curve(log: Path) -> list[list[float]]:
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    return [[r["step"], r["eval/mpjpe"]] for r in rows if "eval/mpjpe" in r]


def maps(out: Path, clips) -> dict:
    """Kept frames of one test clip, window by window, of each pruning rule; and how fast the person moves."""
    clip = next(c for c in clips if c.subject == "02" and len(c) >= 27 * SPREAD_SHOWN and "walk" not in c.action)
    length = 27 * SPREAD_SHOWN
    windows = torch.from_numpy(clip.keypoints[:length]).reshape(SPREAD_SHOWN, 27, 17, -1)
    speed = np.linalg.norm(np.diff(clip.pose[:length], axis=0, prepend=clip.pose[:1]), axis=-1).mean(-1) * FPS
    kept = {}
    for rule, row in (
        ("TPC", "hot_mixste"),
        ("uniform", "uniform_tra"),
        ("attention", "attention_tra"),
        ("motion", "motion_tra"),
    ):
        if (out / row / "export").is_dir():
            with torch.inference_mode():
                index = load(out / row / "export")(windows).index
            kept[rule] = (index + 27 * torch.arange(SPREAD_SHOWN)[:, None]).flatten().tolist()
    return {
        "clip": f"{clip.subject}: {clip.action}",
        "speed_m_s": speed.round(3).tolist(),
        "kept": kept,
        "motion_score": motion_score(windows).flatten().tolist(),
    }


def time_rows(target: Path, rounds: int = 9) -> None:
    """Frames per second of every row, one thread, random weights of the same shape; medians over interleaved rounds."""
    result = json.loads(target.read_text())
    torch.set_num_threads(1)
    jobs = []
    for run, row in result["rows"].items():
        if row["seed"]:
            continue  # the same network
        model = create_model(row["model"], **row["config"]).eval()
        model.prepare()
        for batch in {1, FRAMES // model.config.frames}:
            jobs.append((run, batch, model, torch.randn(batch, model.config.frames, 17, model.in_channels)))
    samples: dict[tuple[str, int], list[float]] = {}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for run, batch, model, x in random.Random(turn).sample(jobs, len(jobs)):
                start = time.perf_counter()
                for _ in range(4 if batch == 1 else 1):
                    model(x)
                seconds = (time.perf_counter() - start) / (4 if batch == 1 else 1)
                if turn:  # the first round warms up
                    samples.setdefault((run, batch), []).append(seconds)
    for run, batch, model, _ in jobs:
        output = 1 if model.config.pruned and model.config.recovery == "none" else model.config.frames
        column = "frames_per_s_b1" if batch == 1 else "frames_per_s_many"
        row = result["rows"][run]
        row["times"] = (row.get("times") or {}) | {column: batch * output / statistics.median(samples[run, batch])}
    target.write_text(json.dumps(result, indent=1) + "\n")


def spread(values: list[float], digits: int = 1) -> str:
    """Mean and, of several values, their standard deviation."""
    if not values:
        return "-"
    mean = f"{round(statistics.mean(values), digits) + 0.0:.{digits}f}"  # no -0.0
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def against_base(entries: list[dict], result: dict) -> list[float]:
    """MPJPE minus that of the base trained with the same seed; of the base's middle frames where only those are
    returned."""
    found = []
    for entry in entries:
        name = base_of(entry["row"])
        base = result["rows"].get(name + (f"_seed{entry['seed']}" if entry["seed"] else ""))
        middle = entry["test"]["mpjve"] is None
        if base is None or entry["row"].startswith("warm") or (entry is base):
            continue
        found.append(entry["test"]["mpjpe"] - (base["middle_mpjpe"] if middle else base["test"]["mpjpe"]))
    return found


def grouped(result: dict) -> dict[str, list[dict]]:
    """Title -> its runs, seed by seed: trained rows, then the ones that reuse weights."""
    out: dict[str, list[dict]] = {}
    for entry in [*result["rows"].values(), *result["reused"].values()]:
        out.setdefault(entry["title"], []).append(entry)
    return out


def table(result: dict) -> str:
    head = [
        "row",
        "seeds",
        "MPJPE",
        "to its base",
        "P-MPJPE",
        "MPJVE",
        "strict",
        "GMACs",
        "params k",
        "MB",
        "MB in training",
        "frames/s b1",
        "many",
    ]
    number = lambda v, d=1: "-" if v is None else f"{v:.{d}f}"
    constant_pose = [number(result["baseline"]["constant mean pose"][m]) for m in ("mpjpe", "p_mpjpe", "mpjve")]
    body = [["constant mean pose", "-", constant_pose[0], "-", *constant_pose[1:], *["-"] * 7]]
    for title, entries in grouped(result).items():
        of = lambda metric, d=1, entries=entries: spread(
            [e["test"][metric] for e in entries if e["test"][metric] is not None], d
        )
        strict = [statistics.mean(e["per_subject"][s] for s in STRICT if s in e["per_subject"]) for e in entries]
        first, apart = entries[0], against_base(entries, result)
        times = first.get("times") or {}
        body.append(
            [
                title,
                str(len(entries)),
                of("mpjpe"),
                "-" if not apart else ("+" if statistics.mean(apart) > 0 else "") + spread(apart),
                of("p_mpjpe"),
                of("mpjve", 2),
                spread(strict),
                number(first["gmacs"], 3),
                number(first["params"] / 1e3, 0),
                number(first["memory_mb"]),
                number(first.get("training_mb")),
                number(times.get("frames_per_s_b1"), 0),
                number(times.get("frames_per_s_many"), 0),
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *body])


def plot(result: dict, images: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    images.mkdir(parents=True, exist_ok=True)
    shown = {t: e for t, e in grouped(result).items() if t in TITLES.values() and not e[0]["row"].startswith("warm")}
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4))
    labels = []
    for number, (title, entries) in enumerate(shown.items()):
        color, row = plt.get_cmap("tab20")(number), entries[0]
        mean = statistics.mean(e["test"]["mpjpe"] for e in entries)
        left.plot([mean, mean], [number - 0.35, number + 0.35], color=color, lw=3)
        left.plot(
            [e["test"]["mpjpe"] for e in entries], [number] * len(entries), "o", color=color, ms=6, mec="black", mew=0.6
        )
        labels.append(f"{title}: {row['gmacs'] / row['config']['frames'] * 1e3:.1f} M")
        if row["curve"] and not row["row"].endswith("_243"):
            steps = [step for step, _ in row["curve"]]
            values = np.array([[v for _, v in e["curve"]] for e in entries if len(e["curve"]) == len(steps)])
            right.plot(steps, values.mean(0), marker=".", color=color)
            right.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.15, lw=0)
    left.set_yticks(range(len(labels)), labels, fontsize=7)
    left.invert_yaxis()
    left.set(
        xlabel="test MPJPE, mm: a dot per seed, bars are means", title="unseen subjects; M: multiply-adds per frame"
    )
    right.set(
        xlabel="step after the warm start", ylabel="validation MPJPE, mm", title="held-out training subjects, F = 27"
    )
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(images / "lifting_study.png", dpi=80)
    shown = result["maps"]
    figure, axis = plt.subplots(figsize=(11, 2.8))
    for level, kept in enumerate(shown["kept"].values()):
        axis.vlines(kept, -level - 0.8, -level - 0.1, color=f"C{level}", lw=2)
    axis.set_yticks([-i - 0.45 for i in range(len(shown["kept"]))], list(shown["kept"]))
    for edge in range(0, len(shown["speed_m_s"]) + 1, 27):
        axis.axvline(edge - 0.5, color="0.6", lw=0.8)
    speed = axis.twinx()
    speed.fill_between(range(len(shown["speed_m_s"])), shown["speed_m_s"], color="0.85", zorder=0)
    speed.set_ylabel("mean joint speed, m/s", fontsize=8)
    axis.set_zorder(speed.get_zorder() + 1)
    axis.set_frame_on(False)
    axis.set(xlabel=f"frame (50 per second), clip {shown['clip']}; grey lines: windows of 27, of which 9 are kept")
    figure.tight_layout()
    figure.savefig(images / "lifting_kept_frames.png", dpi=80)
