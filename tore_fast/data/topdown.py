"""Person (or face) crops for heat-map models: a box becomes a fixed-size crop, key points follow, with augmentation.

In: RGB array and box from a reader (data/wholebody.py, data/wflw.py); out: image tensor and key points in crop pixels.
Coordinates are (x, y) pixel indices, sizes (H, W) as in tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..geometry.crop import Crop, crop_of_box
from ..geometry.warp import normalise_image, warp
from ..io.image import read_image
from .heatmap import encode_heatmaps


@dataclass(frozen=True)
class CropAugment:
    """Random changes of a training crop; the defaults are those of the COCO-WholeBody recipe."""

    shift: float = 0.16  # of the crop size, with probability shift_p
    shift_p: float = 0.3
    scale: float = 0.5
    rotation_deg: float = 40.0
    rotation_p: float = 0.6
    flip_p: float = 0.5
    half_body_p: float = 0.3
    half_body_min: int = 8  # labelled joints a person must have more of


def augmented_crop(
    crop: Crop,
    points: np.ndarray,  # [J, 2]
    visible: np.ndarray,  # [J]
    augment: CropAugment,
    rng: np.random.Generator,
    out_size: tuple[int, int],
    upper_body: np.ndarray | None = None,  # [J] bool: joints of the upper body, for half-body crops
) -> Crop:
    """Random shift, half-body crop, scale and rotation of a crop."""
    center, size = np.array(crop.center), np.array(crop.size)
    labelled = visible > 0
    if upper_body is not None and labelled.sum() > augment.half_body_min and rng.random() < augment.half_body_p:
        upper, lower = labelled & upper_body, labelled & ~upper_body
        chosen = upper if rng.random() < 0.7 else lower
        if chosen.sum() <= 2:
            chosen = lower if chosen is upper else upper
        if chosen.sum() >= 2:
            low, high = points[chosen].min(0), points[chosen].max(0)
            extent = np.maximum(high - low, 1.0)
            half = crop_of_box((*low, *(low + extent)), "topdown", 1.5, out_size)
            center, size = np.array(half.center), np.array(half.size)
    if rng.random() < augment.shift_p:
        center = center + rng.uniform(-1, 1, 2) * augment.shift * size
    size = size * np.clip(rng.normal() * augment.scale + 1, 1 - augment.scale, 1 + augment.scale)
    rotation = 0.0
    if rng.random() < augment.rotation_p:
        limit = 2 * augment.rotation_deg
        rotation = float(np.clip(rng.normal() * augment.rotation_deg, -limit, limit))
    return Crop(tuple(center.tolist()), tuple(size.tolist()), rotation)


def mirror(
    image: np.ndarray,  # [H, W, 3] crop
    points: np.ndarray,  # [J, 2]
    visible: np.ndarray,  # [J]
    flip_index: tuple[int, ...],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mirrored crop with left and right joints swapped."""
    order = list(flip_index)
    points = points[order].copy()
    points[:, 0] = image.shape[1] - 1 - points[:, 0]
    return np.ascontiguousarray(image[:, ::-1]), points, visible[order]


class Instance(NamedTuple):
    """One annotated or detected person or face."""

    image: Path
    image_id: int
    box: tuple[float, float, float, float]  # x, y, width, height in pixels
    points: np.ndarray  # [J, 3] x, y, visibility (0: not labelled)
    area: float
    score: float  # of the box; 1 for annotations
    annotation_id: int
    ignore: bool = False  # a crowd: neither counted nor missed by OKS-AP

    def crop(self, size: tuple[int, int], padding: float = 1.25) -> Crop:
        """Crop around the box, grown to the aspect ratio of `size` (height, width) and by `padding`."""
        x, y, w, h = self.box
        return crop_of_box((x, y, x + w, y + h), "topdown", padding, size)


class TopDownDataset(torch.utils.data.Dataset):
    """Crops: image [3, H, W], target [J, H/4, W/4], weight [J], and where the crop lies (center, size in pixels).

    Args:
        instances: from a reader.
        image_size: (H, W) of the crop.
        flip_index: joint order of the mirror image.
        augment: None for testing.
        sigma: of the target Gaussians, in map pixels.
        upper_body: [J] bool, joints of the upper body for half-body crops.
        seed: item i of epoch e depends on (seed, e, i) alone; set `epoch` between epochs.
    """

    def __init__(
        self,
        instances: list[Instance],
        image_size: tuple[int, int],
        flip_index: tuple[int, ...],
        augment: CropAugment | None = None,
        sigma: float = 2.0,
        padding: float = 1.25,
        upper_body: np.ndarray | None = None,
        seed: int = 0,
    ):
        self.instances, self.image_size, self.flip_index = instances, image_size, flip_index
        self.augment, self.sigma, self.padding = augment, sigma, padding
        self.upper_body, self.seed, self.epoch = upper_body, seed, 0

    def __len__(self) -> int:
        return len(self.instances)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        item = self.instances[i]
        points, visible = item.points[:, :2].astype(np.float64), item.points[:, 2]
        crop = item.crop(self.image_size, self.padding)
        rng = np.random.default_rng((self.seed, self.epoch, i))
        if self.augment is not None:
            crop = augmented_crop(crop, points, visible, self.augment, rng, self.image_size, self.upper_body)
        image = warp(read_image(item.image), crop, self.image_size, "affine")
        points = crop.to_crop(points, self.image_size)
        if self.augment is not None and rng.random() < self.augment.flip_p:
            image, points, visible = mirror(image, points, visible, self.flip_index)
        map_size = (self.image_size[0] // 4, self.image_size[1] // 4)
        target, weight = encode_heatmaps(
            torch.from_numpy(points).float(), torch.from_numpy(visible.copy()), map_size, 4, self.sigma
        )
        return {
            "image": normalise_image(torch.from_numpy(np.array(image)).permute(2, 0, 1)),
            "target": target,
            "weight": weight,
            "center": torch.tensor(crop.center),
            "size": torch.tensor(crop.size),
            "index": torch.tensor(i),
        }
