"""ImageNet-style class folders (`root/class/image.jpg`) with the official training and test transforms.

In: a folder per class; out: (image [3, H, W], class index) for train/keypoints.py. torchvision reads the folders, timm
makes the augmentations, both as in the official recipe.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timm.data import Mixup, create_transform
from torchvision.datasets import ImageFolder


def imagenet_transform(training: bool, image_size: int = 224, augment: str = "official") -> Any:
    """RandAugment rand-m9-mstd0.5-inc1, colour jitter 0.4, random erasing 0.25; test: resize 256/224, centre crop.

    augment: "official", or "light": crops of at least 80 % of the area and mirroring only (short runs, small data).
    """
    if augment not in ("official", "light"):
        raise ValueError(f"imagenet_transform: augment must be official or light, got {augment!r}")
    if training and augment == "light":
        return create_transform(
            image_size,
            is_training=True,
            scale=(0.8, 1.0),
            color_jitter=None,  # type: ignore[arg-type]  # timm takes None for "no jitter"
            auto_augment=None,
            interpolation="bicubic",
        )
    if training:
        return create_transform(
            image_size,
            is_training=True,
            color_jitter=0.4,
            auto_augment="rand-m9-mstd0.5-inc1",
            re_prob=0.25,
            re_mode="pixel",
            re_count=1,
            interpolation="bicubic",
        )
    return create_transform(image_size, is_training=False, crop_pct=224 / 256, interpolation="bicubic")


def imagenet_folder(root: str | Path, training: bool, image_size: int = 224, augment: str = "official") -> ImageFolder:
    """Dataset of (image, class index) from a folder of class folders; ValueError if there is none."""
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"imagenet_folder: {root} is not a folder")
    try:
        return ImageFolder(str(root), imagenet_transform(training, image_size, augment))
    except FileNotFoundError as e:
        raise ValueError(f"imagenet_folder: {root}: expected root/<class>/<image>; {e}") from None


def imagenet_mixup(num_classes: int) -> Mixup:
    """mixup 0.8, cutmix 1.0, label smoothing 0.1 (batch -> mixed images and soft targets; even batch sizes)."""
    return Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=num_classes)
