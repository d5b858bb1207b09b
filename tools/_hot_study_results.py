"""Measuring and drawing for tools/hot_study.py: exports -> one JSON -> table and plots."""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from tore_fast.data.mocap import CAMERA_SEED, film
from tore_fast.data.pose_sets import read_pose_set
from tore_fast.eval.lifting import lifted_pairs
from tore_fast.eval.pose import PoseMeter
from tore_fast.layers.tpc import motion_score
from tore_fast.models import create_model, load_pretrained
from tore_fast.models._count import count_module
from tore_fast.train.vpt import resampled

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
RESULTS = ROOT / "benchmarks" / "results" / "hot_study.json"
FPS, NOISE_PX, BATCH, SPREAD_SHOWN = 50.0, 5.0, 32, 8
# (row whose weights are used, config changes): settings that need no training of their own
REUSED = {
    "hot_mixste, nearest instead of TRA": ("hot_mixste", {"recovery": "nearest"}),
    "tpc_mixste weights + linear": ("tpc_mixste", {"recovery": "linear", "keep_center": False}),
    "mixste weights + TPC + linear": ("mixste", {"prune_block": 1, "keep_frames": 9, "recovery": "linear"}),
    "mixste weights + uniform + linear": ("mixste", {"prune_block": 1, "keep_frames": 9, "recovery": "linear", "pruning": "uniform"}),
}
TITLES = {
    "warm_mixste": "MixSTE, 3 frames (the warm start)", "mixste": "MixSTE", "hot_mixste": "HoT w. MixSTE (TPC + TRA)",
    "hot_mixste_seed1": "HoT w. MixSTE, seed 1", "tpc_mixste": "TPC w. MixSTE (seq2frame)", "uniform_tra": "uniform + TRA",
    "attention_tra": "attention + TRA", "motion_tra": "motion + TRA", "tpc_nearest": "TPC + nearest", "tpc_linear": "TPC + linear",
    "warm_motionbert": "MotionBERT, 3 frames (warm start)", "motionbert": "MotionBERT", "hot_motionbert": "HoT w. MotionBERT",
}  # fmt: skip


def measure(data: Path, out: Path, commands: dict[str, str], target: Path) -> None:
    """Errors of the exported rows in `commands` on the test subjects and what the plots need; other rows and earlier times stay."""
    found = read_pose_set(data)
    clips = film(resampled(found.items["test"], FPS), NOISE_PX, CAMERA_SEED)
    before = json.loads(target.read_text()) if target.is_file() else {}
    old, rows, reused = before.get("rows", {}), dict(before.get("rows", {})), dict(before.get("reused", {}))
    for name, command in commands.items():
        export = out / name / "export"
        if not (export / "config.json").is_file():
            continue
        model = load_pretrained(export)
        meta = json.loads((export / "config.json").read_text())
        rows[name] = {
            "title": TITLES[name], "command": command, "model": meta["model"], "config": meta["config"],
            "validation": meta["validation"], "best_step": meta["step"], **cost(model), **errors(model, clips),
            "curve": curve(out / name / "metrics.jsonl"), "times": old.get(name, {}).get("times"),
        }  # fmt: skip
        if name in ("mixste", "hot_mixste"):
            rows[name]["middle_mpjpe"] = middle_frames(model, clips)
        print(f"{name}: test {rows[name]['test']['mpjpe']:.1f} mm", flush=True)
    for name, (row, changes) in REUSED.items():
        if row in commands and row in rows:
            # TRA's parameters have no place in a model without it
            model = create_model(rows[row]["model"], **{**rows[row]["config"], **changes}).eval()
            model.load_state_dict(load_pretrained(out / row / "export").state_dict(), strict=False)
            reused[name] = {**cost(model), **errors(model, clips)}
    train = np.concatenate([c.pose for c in film(resampled(found.items["train"], FPS), 0.0, 1)])
    facts = {"test_frames": sum(len(c) for c in clips), "test_clips": len(clips), "noise_px": NOISE_PX, "fps": FPS,
             "train_clips": len(found.items["train"]), "validation_clips": len(found.items["validation"]),
             "torch": torch.__version__}  # fmt: skip
    result = {"facts": facts, "baseline": {"constant mean pose": constant(clips, train.mean(0))},
              "rows": {name: rows[name] for name in TITLES if name in rows}, "reused": {n: reused[n] for n in REUSED if n in reused},
              "maps": maps(out, clips)}  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")


def errors(model, clips) -> dict:
    """Test errors, all subjects and each; a seq2frame model is run for every third frame and its MPJVE is not comparable."""
    centered = model.config.pruned and model.config.recovery == "none"
    meters: dict[str, PoseMeter] = {"": PoseMeter()}
    with torch.inference_mode():
        for clip, pred, target in lifted_pairs(model, clips, stride=3 if centered else 0):
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
        for clip, pred, target in lifted_pairs(model, clips, stride=3):
            meter.add(clip.action, pred[at : at + 1], target[at : at + 1])
    return meter.result()["mpjpe"]


def cost(model) -> dict:
    from benchmarks.memory import peak_growth

    shape = (model.config.frames, 17, model.in_channels)
    params, macs = count_module(create_like(model).to("meta"), torch.zeros(1, *shape, device="meta"))
    x = torch.randn(BATCH, *shape)
    with torch.inference_mode():
        memory = peak_growth(lambda: model(x).pose, "cpu")
    return {"params": params, "gmacs": macs / 1e9, "memory_mb": None if memory is None else memory / 2**20}


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
    for rule, row in (("TPC", "hot_mixste"), ("uniform", "uniform_tra"), ("attention", "attention_tra"), ("motion", "motion_tra")):
        if (out / row / "export").is_dir():
            with torch.inference_mode():
                index = load_pretrained(out / row / "export")(windows).index
            kept[rule] = (index + 27 * torch.arange(SPREAD_SHOWN)[:, None]).flatten().tolist()
    return {"clip": f"{clip.subject}: {clip.action}", "speed_m_s": speed.round(3).tolist(), "kept": kept,
            "motion_score": motion_score(windows).flatten().tolist()}  # fmt: skip


def time_rows(target: Path, rounds: int = 9) -> None:
    """Frames per second of every row, one thread, random weights of the same shape; medians over interleaved rounds."""
    result = json.loads(target.read_text())
    torch.set_num_threads(1)
    jobs = []
    for name, row in result["rows"].items():
        model = create_model(row["model"], **row["config"]).eval()
        model.freeze()
        for batch in (1, BATCH):
            jobs.append((name, batch, model, torch.randn(batch, model.config.frames, 17, model.in_channels)))
    samples: dict[tuple[str, int], list[float]] = {}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for name, batch, model, x in random.Random(turn).sample(jobs, len(jobs)):
                start = time.perf_counter()
                for _ in range(4 if batch == 1 else 1):
                    model(x)
                seconds = (time.perf_counter() - start) / (4 if batch == 1 else 1)
                if turn:  # the first round warms up
                    samples.setdefault((name, batch), []).append(seconds)
    for name, batch, model, _ in jobs:
        output = 1 if model.config.pruned and model.config.recovery == "none" else model.config.frames
        row = result["rows"][name]
        row["times"] = (row.get("times") or {}) | {f"frames_per_s_b{batch}": batch * output / statistics.median(samples[name, batch])}
    target.write_text(json.dumps(result, indent=1) + "\n")


def table(result: dict) -> str:
    head = ["row", "MPJPE", "P-MPJPE", "MPJVE", "strict", "GMACs", "params k", "MB at 32", "frames/s b1", "b32"]
    number = lambda v, d=1: "-" if v is None else f"{v:.{d}f}"
    body = [["constant mean pose", *(number(result["baseline"]["constant mean pose"][m]) for m in ("mpjpe", "p_mpjpe", "mpjve")), *["-"] * 6]]
    for name, row in [*result["rows"].items(), *result["reused"].items()]:
        strict = statistics.mean(row["per_subject"][s] for s in ("02", "11", "12", "14") if s in row["per_subject"])
        times = row.get("times") or {}
        body.append([
            row.get("title", name), *(number(row["test"][m]) for m in ("mpjpe", "p_mpjpe")), number(row["test"]["mpjve"], 2), number(strict),
            number(row["gmacs"], 3), number(row["params"] / 1e3, 0), number(row["memory_mb"]),
            number(times.get("frames_per_s_b1"), 0), number(times.get(f"frames_per_s_b{BATCH}"), 0),
        ])  # fmt: skip
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *body])


def plot(result: dict, images: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    images.mkdir(parents=True, exist_ok=True)
    rows = {n: r for n, r in result["rows"].items() if not n.startswith("warm")}
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for number, (name, row) in enumerate(rows.items()):
        color = f"C{number}" if number < 10 else "black"
        mark = "s" if "motionbert" in name else "^" if name == "tpc_mixste" else "o"
        left.plot(row["gmacs"], row["test"]["mpjpe"], mark, color=color, label=row["title"])
        if row["curve"]:
            right.plot(*zip(*row["curve"]), marker=".", color=color, label=row["title"])
    left.set(xlabel="GMACs per window of 27 frames", ylabel="test MPJPE, mm", title="unseen subjects")
    right.set(xlabel="step after the warm start", ylabel="validation MPJPE, mm", title="held-out training subjects")
    left.legend(fontsize=6)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(images / "hot_study.png", dpi=80)
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
    figure.savefig(images / "hot_kept_frames.png", dpi=80)
