"""`tore-fast train classify`: TCFormer on a folder of class folders, official recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from ..train.config import TrainConfig
from . import arguments


@dataclass
class Args:
    """Trains (or tests) an image classifier; the same command resumes a stopped run."""

    data: Positional[Path]
    """Folder with train/<class>/<image> and val/<class>/<image>."""
    model: str = "tcformer_light"
    """A TCFormer classifier (tore-fast list)."""
    options: dict[str, str] = field(default_factory=dict)
    """Fields of the model's config as NAME VALUE pairs: reduction conv neck none depths 1,1,1,1 ..."""
    image_size: int = 224
    augment: Literal["official", "light"] = "official"
    """official: RandAugment, jitter, erasing, strong crops; light: mild crops and mirroring, for short runs."""
    mixup: bool = True
    """mixup 0.8, cutmix 1.0, label smoothing 0.1."""
    checkpoint: Path | None = None
    """Start from (or test) a folder of ours or an official file."""
    test: bool = False
    """Only print the metrics on val/."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(batch_size=128, lr=1.25e-4, weight_decay=0.05, clip_norm=0.0)
    )
    """The official rate is 5e-4 x (items of a step) / 512; far above it the full-width models stay at chance (docs/keypoints.md)."""
    export: Path | None = None
    """Write the trained model here as a checkpoint folder."""


def run(args: Args) -> int:
    import torch

    from ..data.imagenet_folder import imagenet_folder, imagenet_mixup
    from ..train.keypoints import Classification
    from ._training import check_crops, finish, start_model

    torch.manual_seed(args.train.seed)
    with arguments():
        held_out = imagenet_folder(args.data / "val", False, args.image_size)
        training = held_out if args.test else imagenet_folder(args.data / "train", True, args.image_size, args.augment)
        classes = len(held_out.classes)
        if training.classes != held_out.classes:
            raise ValueError(f"{args.data}: train/ and val/ hold different classes")
        if args.mixup and not args.test and args.train.batch_size % 2:
            raise ValueError(
                f"--train.batch-size: mixup takes images in pairs, so an even number (or --no-mixup), got {args.train.batch_size}"
            )
        model = start_model(args.model, args.checkpoint, args.options, tag="classification", num_classes=classes)
        check_crops(model, (args.image_size, args.image_size))
    mixup = imagenet_mixup(classes) if args.mixup else None
    task = Classification(model, training, held_out, mixup, args.train.seed)
    return finish(
        task, args, {"data": str(args.data), "classes": held_out.classes, "image_size": [args.image_size] * 2}
    )
