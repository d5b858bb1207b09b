"""`tore-fast train hot`: video pose hosts, base, HoT or TPC, on motion capture or Human3.6M / 3DHP files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from ..train.loop import TrainConfig
from ..train.vpt import PoseDataConfig
from . import arguments


@dataclass
class Args:
    """Trains a 2D-to-3D video pose model; the same command resumes a stopped run without losing a step.

    The best checkpoint is chosen on training subjects that are held out, never on the test set.
    """

    data: Path
    """Folder of motion files (clips.npz + index.json, .bvh, .asf/.amc), folder with data_3d_h36m.npz and
    data_2d_h36m_*.npz, or data_train_3dhp.npz."""
    model: str = "hot_mixste_27"
    """Registered model (tore-fast list)."""
    cameras: Path | None = None
    """Human3.6M only: JSON with the camera parameters."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(out="runs/hot", lr=4e-4, weight_decay=0.1, clip_norm=1.0))
    windows: PoseDataConfig = field(default_factory=PoseDataConfig)
    extra: dict[str, int] = field(default_factory=dict)
    """Integer config fields of the model to change, KEY VALUE pairs (frames, channels, depth, keep_frames ...)."""
    threads: int = 0
    """CPU threads (0: torch's choice)."""
    test: bool = False
    """After training, measure the best weights on the test subjects and write OUT/test.json."""
    export: Path | None = None
    """Write the best weights here, a folder that `tore-fast lift --model FOLDER` takes."""


def run(args: Args) -> int:
    import json

    import torch

    from ..models import create_model, save_pretrained
    from ..train.loop import train
    from ..train.vpt import LOSSES, PoseLifting, evaluate_clips, film

    if args.threads:
        torch.set_num_threads(args.threads)
    with arguments():
        parts = load_splits(args.data, args.cameras)
        torch.manual_seed(args.train.seed)
        model = create_model(args.model, **args.extra)
        if type(model).__name__.lower() not in LOSSES:
            raise ValueError(f"--model: {args.model} is not a video pose model; expected one of the hosts {', '.join(LOSSES)}")
        task = PoseLifting(model, parts[0], parts[1], args.windows, args.train.seed)
    print("clips: " + "  ".join(f"{n} {len(p)}" for n, p in zip(("train", "validation", "test"), parts)))
    train(task, args.train)
    best = torch.load(Path(args.train.out) / "best.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(best["model"])
    model.cpu().eval()
    facts = {"validation": best["metrics"], "step": best["step"], "windows": dataclasses.asdict(args.windows),
             "training": dataclasses.asdict(args.train), "normalise": "image", "fps": args.windows.fps}  # fmt: skip
    if args.test:
        resampled = [m.resampled(args.windows.fps) if hasattr(m, "resampled") else m for m in parts[2]]
        meter = evaluate_clips(model, film(resampled, args.windows.noise_px, seed=12345), flip=args.windows.flip)
        facts["test"] = {**meter.result(), "per_action": meter.per_action()}
        (Path(args.train.out) / "test.json").write_text(json.dumps(facts, indent=2) + "\n")
        print("test: " + "  ".join(f"{k} {v:.2f}" for k, v in meter.result().items()))
    if args.export is not None:
        save_pretrained(model, args.export, args.model, torch.float16, **facts)
        print(f"{args.export}: step {best['step']}, validation MPJPE {best['metrics']['mpjpe']:.1f} mm")
    return 0


def load_splits(data: Path, cameras: Path | None = None) -> tuple[list, list, list]:
    """(train, validation, test) clips or motions of whatever lies at `data`."""
    from ..data.h36m import TEST_SUBJECTS, TRAIN_SUBJECTS, read_3dhp, read_h36m
    from ..data.mocap import read_motions, split_subjects

    if (data / "data_3d_h36m.npz").is_file():
        if cameras is None:
            raise ValueError("--cameras: Human3.6M's pose files hold world coordinates; give the camera parameters (JSON)")
        found = sorted(data.glob("data_2d_h36m_*.npz"))
        if not found:
            raise FileNotFoundError(f"{data}: no data_2d_h36m_*.npz beside data_3d_h36m.npz")
        read = lambda subjects: read_h36m(data / "data_3d_h36m.npz", found[0], cameras, subjects)
        return read(TRAIN_SUBJECTS[:-1]), read(TRAIN_SUBJECTS[-1:]), read(TEST_SUBJECTS)
    if data.name.startswith("data_train_3dhp"):
        clips = read_3dhp(data, "train")
        held_out = sorted({c.subject for c in clips})[-1]
        test = data.with_name(data.name.replace("train", "test"))
        return (
            [c for c in clips if c.subject != held_out],
            [c for c in clips if c.subject == held_out],
            read_3dhp(test, "test") if test.is_file() else [],
        )
    return split_subjects(read_motions(data))
