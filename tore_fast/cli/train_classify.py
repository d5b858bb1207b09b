"""`tore-fast train classify`: TCFormer on a folder of class folders, official recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..train.config import TrainConfig
from . import arguments
from ._train_options import TrainArgs, begin, build_model, model_name, run_task

DEFAULT_MODEL = "tcformer_light"


@dataclass(kw_only=True)
class Args(TrainArgs):
    """Trains an image classifier; the same command resumes a stopped run. val/ is the reported set, so the last
    averaged
    weights are exported."""

    data: Path
    """Folder with train/<class>/<image> and val/<class>/<image>."""
    image_size: int = 224
    """Side of the crops in pixels."""
    augment: Literal["official", "light"] = "official"
    """official: RandAugment, jitter, erasing, strong crops; light: mild crops and mirroring, for short runs."""
    mixup: bool = True
    """mixup 0.8, cutmix 1.0, label smoothing 0.1."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(batch_size=128, lr=1.25e-4, weight_decay=0.05, clip_norm=0.0)
    )
    """The official rate is 5e-4 x (items of a step) / 512; far above it the full-width models stay at chance
    (docs/keypoints.md)."""


def run(args: Args) -> int:
    from ..data.imagenet_folder import imagenet_folder, imagenet_mixup
    from ..train.keypoints import Classification
    from ._models import check_crops

    begin(args)
    with arguments():
        held_out = imagenet_folder(args.data / "val", False, args.image_size)
        training = imagenet_folder(args.data / "train", True, args.image_size, args.augment)
        classes = len(held_out.classes)
        if training.classes != held_out.classes:
            raise ValueError(f"{args.data}: train/ and val/ hold different classes")
        if args.mixup and args.train.batch_size % 2:
            raise ValueError(
                "--train.batch-size: mixup takes images in pairs, so an even number (or --no-mixup), got "
                f"{args.train.batch_size}"
            )
        name = model_name(args, DEFAULT_MODEL, "classification")
        model = build_model(args, name, ("classification",), num_classes=classes)
        check_crops(model, (args.image_size, args.image_size))
    mixup = imagenet_mixup(classes) if args.mixup else None
    task = Classification(model, training, held_out, mixup, args.train.seed)
    facts = {"data": str(args.data), "classes": held_out.classes, "image_size": [args.image_size] * 2}
    return run_task(args, task, name, facts=facts)
