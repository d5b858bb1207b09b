"""`tore-fast train hot`: video pose hosts, base, HoT or TPC, on motion capture or Human3.6M / 3DHP files."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path

from ..train.config import TrainConfig
from ..train.lifting import PoseDataConfig
from . import arguments


@dataclass
class Args:
    """Trains a 2D-to-3D video pose model; the same command resumes a stopped run without losing a step.

    The best checkpoint is chosen on training subjects that are held out, never on the test set.
    """

    data: Path
    """Folder of motion files (clips.npz + index.json, .bvh, .asf/.amc), folder with data_3d_h36m.npz and
    data_2d_h36m_*.npz, data_train_3dhp.npz, or a folder of MotionBERT's clips (H36M-SH)."""
    model: str = "hot_mixste_27"
    """Registered model (tore-fast list)."""
    cameras: Path | None = None
    """Human3.6M only: JSON with the camera parameters."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(out="runs/hot", lr=4e-4, weight_decay=0.1, clip_norm=1.0)
    )
    windows: PoseDataConfig = field(default_factory=PoseDataConfig)
    extra: dict[str, str] = field(default_factory=dict)
    """Config fields of the model to change, KEY VALUE pairs: frames 81 depth 4 prune_block 1 keep_frames 27 pruning uniform ..."""
    init: Path | None = None
    """Start from these weights: a folder of --export, also of a model with other frames or without pruning. What does not
    fit starts anew and is named."""
    embed_std: float = 0.0
    """Spread of the joint and frame embeddings at the start; 0 keeps the published start (zero or nearly). Short trainings
    from nothing need about 1: they leave the mean pose several times sooner."""
    threads: int = 0
    """CPU threads (0: torch's choice)."""
    test: bool = False
    """After training, measure the best weights on the test subjects and write OUT/test.json."""
    export: Path | None = None
    """Write the best weights here, a folder that `tore-fast lift --model FOLDER` takes."""


def run(args: Args) -> int:
    import json

    import torch

    from ..data.mocap import CAMERA_SEED, film
    from ..data.pose_sets import read_pose_set
    from ..eval.lifting import evaluate_clips
    from ..models import create_model, model_entry, save_pretrained
    from ..train.checkpoint import read_run
    from ..train.lifting import LOSSES, PoseLifting, resampled, start_weights
    from ..train.loop import train

    if args.threads:
        torch.set_num_threads(args.threads)
    with arguments(also=(TypeError,)):  # TypeError: --extra names a field the model does not have
        found = read_pose_set(args.data, args.cameras)
        splits = found.items
        if args.test and not splits["test"]:
            raise ValueError(f"--test: {args.data} has no test clips")
        torch.manual_seed(args.train.seed)
        check_fields(args.model, args.extra)
        model = create_model(args.model, **config_values(args.extra))
        if model_entry(args.model).task != "lifting":
            raise ValueError(
                f"--model: {args.model} is not a video pose model; expected one of the hosts {', '.join(LOSSES)}"
            )
        print(start_weights(model, args.init, args.embed_std, args.train.seed), end="")
        task = PoseLifting(model, splits["train"], splits["validation"], args.windows, args.train.seed)
    print("clips: " + "  ".join(f"{name} {len(items)}" for name, items in splits.items()))
    train(task, args.train)
    if int(os.environ.get("RANK", "0")):
        return 0  # rank 0 measures and writes
    best = read_run(Path(args.train.out) / "best.pt", ("model", "step", "metrics"))
    model.load_state_dict(best["model"])
    model.cpu().eval()
    facts = {
        "validation": best["metrics"],
        "step": best["step"],
        "windows": dataclasses.asdict(args.windows),
        "training": dataclasses.asdict(args.train),
        "normalise": "image",
        "fps": args.windows.fps,
    }
    if args.test:
        clips = film(resampled(splits["test"], args.windows.fps), args.windows.noise_px, CAMERA_SEED)
        meter = evaluate_clips(model, clips, args.windows.flip, pck_joints=found.pck_joints)
        facts["test"] = {**meter.result(), "per_action": meter.per_action()}
        (Path(args.train.out) / "test.json").write_text(json.dumps(facts, indent=2) + "\n")
        print("test: " + "  ".join(f"{k} {v:.2f}" for k, v in meter.result().items()))
    if args.export is not None:
        save_pretrained(model, args.export, args.model, torch.float16, **facts)
        print(f"{args.export}: step {best['step']}, validation MPJPE {best['metrics']['mpjpe']:.1f} mm")
    return 0


def check_fields(name: str, pairs: dict[str, str]) -> None:
    """ValueError that lists the model's config fields if --extra names another, or gives text for a number."""
    import torch

    from ..models import create_model

    with torch.device("meta"):
        config = getattr(create_model(name), "config", None)
    known = [f.name for f in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else []
    wrong = [k for k in pairs if k not in known]
    if wrong and known:
        raise ValueError(f"--extra: {name} has no field {wrong[0]!r}; its fields: {', '.join(known)}")
    for key, value in config_values(pairs).items():
        usual = getattr(config, key, "")
        if isinstance(usual, (int, float)) and not isinstance(value, (int, float)):
            raise ValueError(f"--extra {key}: expected a number like {usual}, got {value!r}")


def config_values(pairs: dict[str, str]) -> dict:
    """Config fields as typed on a command line: numbers, true/false and null as JSON writes them, the rest as text."""
    import json

    values = {}
    for key, text in pairs.items():
        try:
            values[key] = json.loads(text)
        except json.JSONDecodeError:
            values[key] = text
    return values
