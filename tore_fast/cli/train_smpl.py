"""`tore-fast train smpl`: TCFormer's body-parameter regressor on labelled data sets or on synthetic people."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..train.config import TrainConfig
from . import arguments
from ._sets import SetArgs, open_sets, validation


@dataclass(kw_only=True)
class Args(SetArgs):
    """Trains (or tests) pose, shape and camera regression on data sets of yours (--data), or on synthetic images of the free
    body; the same command resumes a stopped run."""

    model: str = "tcformer_light_hmr"
    """tcformer_light_hmr or tcformer_base_hmr."""
    options: dict[str, str] = field(default_factory=dict)
    """Fields of the model's config as NAME VALUE pairs: reduction conv parts 4,4,2,2,1,1 depths 1,1,1,1 ..."""
    image_size: int = 0
    """Side of the crops; 0: 112 for synthetic images, 224 for data sets."""
    difficulty: float = 0.5
    """Synthetic images: of poses, views, occlusion and backgrounds, 0..1."""
    pretrained: Path | None = None
    """Start the backbone from an ImageNet classifier: official TCFormer file or a folder of ours."""
    checkpoint: Path | None = None
    """Start from (or test) a folder of ours."""
    test: bool = False
    """Only print the metrics on held-out images (--val, or synthetic ones)."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(lr=2.5e-4, schedule="constant", weight_decay=0.0, clip_norm=1.0)
    )
    export: Path | None = None
    """Write the trained model here as a checkpoint folder."""


def run(args: Args) -> int:
    import torch

    from ._training import check_crops, finish, start_model

    torch.manual_seed(args.train.seed)
    size = args.image_size or (224 if args.sets or args.val else 112)
    with arguments():
        options = {**args.options, "image_size": str(size), "mesh": "free" if args.body == "auto" else "smpl"}
        model = start_model(args.model, args.checkpoint, options, backbone=args.pretrained, tag="smpl")
        check_crops(model, (size, size))
        task = _labelled(args, model, size) if args.sets or args.val else _synthetic(args, model, size)
    return finish(
        task, args, {"data": list(args.sets) or "synth", "difficulty": None if args.sets else args.difficulty}
    )


def _synthetic(args: Args, model, size: int):
    from ..body import load_body
    from ..train.tcformer_synth import synth_body_recovery

    if args.body != "auto":
        raise ValueError("--body: synthetic images show the free body; leave it at auto, or give --data")
    return synth_body_recovery(model, load_body("free"), size, args.difficulty, args.train.seed + 1)


def _labelled(args: Args, model, size: int):
    from ..data.augment import AugmentConfig
    from ..train.keypoints import labelled_body_recovery
    from ..train.mesh_labels import LabelledCrops
    from .mesh_body import protocol_of

    protocol = protocol_of(False, args.body, args.mesh_data)
    validate = validation(args.val, protocol, image_size=size, batch_size=args.train.batch_size, items=args.val_items)
    if args.test and validate is None:
        raise ValueError("--test: give --val, the data set to test on")
    if not args.sets and not args.test:
        raise ValueError("--val: give --data, too: the data sets to train on")
    readers, weights = open_sets(args.sets or (args.val,))
    return labelled_body_recovery(
        model, protocol.body, LabelledCrops(readers, weights, AugmentConfig(), size, args.train.seed), validate
    )
