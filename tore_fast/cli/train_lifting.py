"""`tore-fast train lifting`: video pose networks, base, HoT or TPC, on motion capture or Human3.6M / 3DHP files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from ..train.config import TrainConfig
from ..train.lifting import PoseDataConfig
from ..train.pose_losses import FurtherLossConfig
from . import arguments
from ._train_options import TrainArgs, begin, build_model, model_name, run_task

DEFAULT_MODEL = "hot_mixste_27"


@dataclass(kw_only=True)
class Args(TrainArgs):
    """Trains a 2D-to-3D video pose model; the same command resumes a stopped run without losing a step.

    The exported checkpoint is the best one on training subjects that are held out, never chosen on the test set.
    """

    data: Path
    """Folder of motion files (clips.npz + index.json, .bvh, .asf/.amc), folder with data_3d_h36m.npz and
    data_2d_h36m_*.npz, data_train_3dhp.npz, or a folder of MotionBERT's clips (H36M-SH)."""
    cameras: Path | None = None
    """Human3.6M only: JSON with the camera parameters."""
    keypoints_2d: str = ""
    """Human3.6M only: cpn, sh, gt or a file of 2D key points; default: the first data_2d_h36m_*.npz by name."""
    val_subjects: str = "S8"
    """Human3.6M only: training subjects that are held out to choose the checkpoint, or none: all five train, as in the
    papers, and the last weights are exported."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(lr=4e-4, weight_decay=0.1, clip_norm=1.0))
    windows: PoseDataConfig = field(default_factory=PoseDataConfig)
    loss: FurtherLossConfig = field(default_factory=FurtherLossConfig)
    """Loss terms beside the model's own."""
    embed_std: float = 0.0
    """Spread of the joint and frame embeddings at the start; 0 keeps the published start (zero or nearly). Short
    trainings
    from nothing need about 1: they leave the mean pose several times sooner."""


def run(args: Args) -> int:
    import torch

    from ..data.pose_sets import read_pose_set
    from ..train.lifting import PoseLifting, spread_embeddings

    begin(args)
    with arguments(also=(TypeError,)):
        name = model_name(args, DEFAULT_MODEL, "seq2seq", "seq2frame")
        model = build_model(args, name, ("seq2seq", "seq2frame"))
        if args.embed_std:
            spread_embeddings(model, args.embed_std, args.train.seed)
        found = read_pose_set(args.data, args.cameras, keypoints_2d=args.keypoints_2d, val_subjects=args.val_subjects)
        splits = found.items
        if args.test and not splits["test"]:
            raise ValueError(f"--test: {args.data} has no test clips")
        task = PoseLifting(
            model,
            splits["train"],
            splits["validation"],
            args.windows,
            args.train.seed,
            splits["test"],
            found.pck_joints,
            args.loss,
        )
    print("clips: " + "  ".join(f"{split} {len(items)}" for split, items in splits.items()))
    facts = {"data": str(args.data), "windows": dataclasses.asdict(args.windows), "loss": dataclasses.asdict(args.loss)}
    card = {"normalise": "image", "fps": args.windows.fps}  # what `lift` must do to its input
    return run_task(args, task, name, dtype=torch.float16, facts=facts, card=card)
