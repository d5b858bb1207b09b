"""`tore-fast train smpl`: regressors of body parameters, TCFormer's and HMR2.0's, on data sets or on synthetic
people."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..train.config import TrainConfig, local_device
from ..train.smpl import HMRConfig
from . import arguments
from ._sets import SYNTH, SetArgs, check_given, open_sets, validation
from ._train_options import begin, build_model, model_name, run_task

if TYPE_CHECKING:
    from torch import nn

    from ..train.config import Task

DEFAULT_MODEL = "tcformer_light_hmr"


@dataclass(kw_only=True)
class Args(SetArgs):
    """Trains pose, shape and camera regression: TCFormer's models on data sets of yours (--data) or on synthetic images
    of the
    free body, HMR2.0's (hmr2_*) on synthetic crops. The same command resumes a stopped run."""

    image_size: int = 0
    """TCFormer: side of the crops; 0: 112 for synthetic images, 224 for data sets."""
    difficulty: float = 0.5
    """TCFormer, synthetic images: of poses, views, occlusion and backgrounds, 0..1."""
    poses: Path | None = None
    """HMR2.0: motion files (clips.npz + index.json, .bvh, .amc) whose poses the synthetic people take; their test
    split, or
    every tenth motion, is held out."""
    hmr: HMRConfig = field(default_factory=HMRConfig)
    """HMR2.0: losses and synthetic crops."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(lr=2.5e-4, schedule="constant", weight_decay=0.0, clip_norm=1.0)
    )


def run(args: Args) -> int:
    from ..models import model_entry

    begin(args)
    with arguments(also=(TypeError,)):
        check_given(args)
        name = model_name(args, DEFAULT_MODEL, "smpl", "small")
        tcformer = "smpl" in model_entry(name).tags
        task, facts = _tcformer(args, name) if tcformer else _hmr(args, name)
    return run_task(args, task, name, facts={"data": list(args.data), "val": args.val, **facts})


def _tcformer(args: Args, name: str) -> tuple[Task, dict[str, Any]]:
    from ._models import check_crops

    size = args.image_size or (112 if args.data == SYNTH else 224)
    if args.poses is not None:
        raise ValueError(f"--poses: is for HMR2.0's models, {name} takes poses of the prior")
    mesh = "free" if args.body == "auto" else "smpl"
    model = build_model(args, name, ("smpl",), image_size=size, mesh=mesh)
    check_crops(model, (size, size))
    if args.data == SYNTH:
        return _synthetic(args, model, size), {"difficulty": args.difficulty}
    return _labelled(args, model, size), {}


def _synthetic(args: Args, model: nn.Module, size: int) -> Task:
    from ..body import load_body
    from ..train.tcformer_synth import synth_body_recovery

    if args.body != "auto" or args.val:
        raise ValueError("--body and --val: synthetic images show the free body and have their own held-out ones")
    return synth_body_recovery(model, load_body("free"), size, args.difficulty, args.train.seed + 1)


def _labelled(args: Args, model: nn.Module, size: int) -> Task:
    from ..data.augment import AugmentConfig
    from ..train.keypoints import labelled_body_recovery
    from ..train.mesh_labels import LabelledCrops
    from ._body import protocol_of

    protocol = protocol_of(False, args.body, args.mesh_data)
    validate = validation(args.val, protocol, image_size=size, batch_size=args.train.batch_size, items=args.val_items)
    if args.test and validate is None:
        raise ValueError("--test: give --val, the data set to test on")
    readers, weights = open_sets(args.data)
    return labelled_body_recovery(
        model, protocol.body, LabelledCrops(readers, weights, AugmentConfig(), size, args.train.seed), validate
    )


def _hmr(args: Args, name: str) -> tuple[Task, dict[str, Any]]:
    from ..body import load_body
    from ..train.smpl import HMRTask, pose_banks

    if args.data != SYNTH or args.val or args.body != "auto":
        raise ValueError(
            f"--model {name}: HMR2.0's models train on synthetic crops of the free body (--data synth); data "
            "sets train tcformer_light_hmr and tcformer_base_hmr"
        )
    banks: Any = pose_banks(args.poses) if args.poses is not None else (None, None)
    device = local_device()
    model = build_model(args, name).to(device)
    task = HMRTask(model, load_body("free"), args.hmr, banks[0], banks[1], device=device)
    if args.poses is not None:
        print(f"{args.poses}: {len(banks[0])} poses of motions to train on, {len(banks[1])} held out")
    return task, {"poses": str(args.poses or ""), "hmr": dataclasses.asdict(args.hmr)}
