"""`tore-fast eval lift`: MPJPE, P-MPJPE, N-MPJPE, MPJVE, PCK and AUC per action and per subject."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from .eval import guarded, write_json

YES, NO = ("true", "1", "yes"), ("false", "0", "no")
_WHOLE = (int, 0, "a whole number from 0 on")
_NUMBERS = {
    "noise_px": (float, 0, "a number from 0 on"),
    "fps": (float, 1e-6, "a positive number"),
    "views": (int, 1, "a whole number from 1 on"),
    "stride": _WHOLE,
    "limit": _WHOLE,
}
OPTIONS = {
    "cameras": "Human3.6M: JSON of the camera parameters",
    "split": "train, validation or test (default test)",
    "noise_px": "motion capture: standard deviation of the synthetic detector's error, pixels of 1000 (default 5)",
    "views": "motion capture: random cameras per clip (default 1)",
    "fps": "motion capture: resampled to this rate (default: the model's, else 50)",
    "flip": "average with the mirrored pass (default true)",
    "stride": "frames between windows (default: the window, or 9 for seq2frame)",
    "limit": "at most so many windows, spread evenly",
    "subjects": "only these, separated by commas",
}


@dataclass
class Args:
    """Errors of a pose-lifting model on Human3.6M, 3DHP or motion files (docs/lifting.md)."""

    data: str
    """Folder or file of the data set; its kind is told by looking."""
    model: str = "default"
    """`default`, a registered name (tore-fast list), or a folder written by save_pretrained."""
    checkpoint: str | None = None
    """Weights: a folder of ours, or an official file."""
    options: dict[str, str] = field(default_factory=dict)
    """KEY VALUE pairs: cameras, split, noise_px, views, fps, flip, stride, limit, subjects."""
    json: Path | None = None
    """Write the metrics here."""
    limit: int | None = None
    """Only so many windows, spread evenly."""
    batch_size: int = 32
    device: str = "auto"


def is_lifting(model: str, data: str) -> bool:
    """Whether --model names a video pose host, or `default` is asked for on motion data."""
    from ..models import list_models, model_entry
    from ..models._hub import CONFIG_NAME, read_config

    if (Path(model) / CONFIG_NAME).is_file():
        model = read_config(model).get("model", "")
    if list_models(model) == [model]:
        return model_entry(model).task == "lifting"
    return model == "default" and looks_like_motion(Path(data))


def looks_like_motion(path: Path) -> bool:
    if path.is_file():
        return path.suffix in (".bvh", ".amc") or "_3dhp" in path.name
    if (path / "data_3d_h36m.npz").is_file() or (path / "clips.npz").is_file() or any(path.glob("data_*_3dhp.npz")):
        return True
    return any(next(path.glob(p), None) for p in ("*.bvh", "*/*.bvh", "*.amc", "*/*.amc"))


def run(args: Args) -> int:
    return guarded(lambda: _evaluate(args))


def _evaluate(args: Args) -> int:
    import torch

    from .._device import pick_device
    from ..data.mocap import CAMERA_SEED, Motion, film
    from ..data.pose_sets import read_pose_set
    from ..eval.lifting import lifted_pairs
    from ..eval.pose import PoseMeter
    from ..pipelines.lift import load_lifter, trained_fps

    option = _options(args.options)
    model = load_lifter(args.model, args.checkpoint).to(pick_device(args.device))
    model.freeze()
    split = option.get("split", "test")
    found = read_pose_set(args.data, option.get("cameras"), (split,))
    items = found.items[split]
    if "subjects" in option:
        wanted = option["subjects"].split(",")
        items = [i for i in items if i.subject in wanted]
    if not items:
        raise ValueError(
            f"--data {args.data}: no {split} clips" + (f" of {option['subjects']}" if "subjects" in option else "")
        )
    facts = {"data": args.data, "kind": found.kind, "split": split, "model": str(args.checkpoint or args.model)}
    if isinstance(items[0], Motion):
        fps = float(option.get("fps", trained_fps(args.model, args.checkpoint) or 50.0))
        facts |= {"fps": fps, "noise_px": float(option.get("noise_px", 5.0)), "views": int(option.get("views", 1))}
        items = film([m.resampled(facts["fps"]) for m in items], facts["noise_px"], CAMERA_SEED, facts["views"])
    facts |= {"flip": option.get("flip", "true").lower() in YES, "stride": int(option.get("stride", 0))}
    by_action, by_subject = PoseMeter(found.pck_joints), PoseMeter(found.pck_joints)
    start, frames = time.perf_counter(), 0
    pairs = lifted_pairs(
        model, items, facts["flip"], facts["stride"], int(option.get("limit", args.limit or 0)), args.batch_size
    )
    with torch.inference_mode():
        for clip, pred, target in pairs:
            by_action.add(clip.action, pred, target)
            by_subject.add(clip.subject or "-", pred, target)
            frames += len(pred)
    seconds = time.perf_counter() - start
    metrics = {
        **by_action.result(),
        "frames": frames,
        "clips": len(items),
        "per_action": by_action.per_action(),
        "per_subject": by_subject.per_action(),
        "identity": facts,
    }
    print(table(metrics))
    if found.kind == "motionbert":
        print(
            "note: MotionBERT's clips hold image units, not metres: read 'mm' as thousandths of half the image's width"
        )
    print(f"{frames} frames of {len(items)} clips in {seconds:.1f} s ({frames / seconds:.0f} frames/s)")
    write_json(metrics, args.json)
    return 0


def _options(given: dict[str, str]) -> dict[str, str]:
    wrong = sorted(given.keys() - OPTIONS.keys())
    if wrong:
        known = "; ".join(f"{k}: {v}" for k, v in OPTIONS.items())
        raise ValueError(f"--options: pose lifting has no option {wrong[0]!r}; it takes {known}")
    for key, (kind, least, what) in _NUMBERS.items():
        try:
            fits = key not in given or kind(given[key]) >= least
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(f"--options {key}: expected {what}, got {given[key]!r}")
    if given.get("flip", "true").lower() not in (*YES, *NO):
        raise ValueError(f"--options flip: expected true or false, got {given['flip']!r}")
    return given


def table(metrics: dict) -> str:
    """Mean over actions, then one line per action and per subject (mm; MPJVE mm per frame; PCK and AUC in percent)."""
    names = ("mpjpe", "p_mpjpe", "n_mpjpe", "mpjve")
    lines = ["  ".join(f"{n} {metrics[n]:.2f}" for n in (*names, "pck150", "auc"))]
    for title in ("action", "subject"):
        rows = metrics[f"per_{title}"]
        width = max(len(title), *map(len, rows))
        lines += ["", f"{title:{width}}" + "".join(f"{n:>10}" for n in names)]
        lines += [f"{name:{width}}" + "".join(f"{row[n]:10.2f}" for n in names) for name, row in rows.items()]
    return "\n".join(lines)
