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
from PIL import Image
from torch import Tensor

from ..io.image import read_image
from .heatmap import encode_heatmaps

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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


@dataclass(frozen=True)
class Crop:
    """Rectangle of the image that fills the crop: centre, size (width, height) in image pixels, rotation in degrees."""

    center: np.ndarray
    size: np.ndarray
    rotation_deg: float = 0.0

    def matrix(self, out_size: tuple[int, int]) -> np.ndarray:  # [2, 3] image -> crop
        """Affine map from image to crop pixel indices; the crop's width decides the scale."""
        h, w = out_size
        scale = w / self.size[0]
        angle = np.deg2rad(self.rotation_deg)
        cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
        linear = np.array([[cos, sin], [-sin, cos]])
        return np.concatenate([linear, (np.array([w, h]) * 0.5 - linear @ self.center)[:, None]], axis=1)


def crop_of_box(box_xywh, out_size: tuple[int, int], padding: float = 1.25) -> Crop:
    """Crop around a box (x, y, width, height), grown to the output's aspect ratio and by `padding`."""
    x, y, w, h = (float(v) for v in box_xywh)
    if not (w > 0 and h > 0):
        raise ValueError(f"crop_of_box: box must have positive width and height, got {(x, y, w, h)}")
    aspect = out_size[1] / out_size[0]
    w, h = max(w, h * aspect), max(h, w / aspect)
    return Crop(np.array([x + 0.5 * float(box_xywh[2]), y + 0.5 * float(box_xywh[3])]), np.array([w, h]) * padding)


def warp(image: np.ndarray, matrix: np.ndarray, out_size: tuple[int, int]) -> np.ndarray:
    """Bilinear warp of [H, W, 3] uint8 by an image -> crop matrix; outside is black."""
    inverse = np.linalg.inv(np.concatenate([matrix, [[0.0, 0.0, 1.0]]]))[:2]
    # Pillow maps pixel centres (index + 0.5), the matrix maps indices
    offset = inverse[:, 2] - 0.5 * inverse[:, :2].sum(1) + 0.5
    coefficients = (*inverse[0, :2], offset[0], *inverse[1, :2], offset[1])
    out = Image.fromarray(image).transform(
        (out_size[1], out_size[0]), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )
    return np.asarray(out)


def transform_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """[J, 2] points through a [2, 3] affine matrix."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def normalise(image: np.ndarray) -> Tensor:
    """[H, W, 3] uint8 -> [3, H, W] float32 with ImageNet mean and standard deviation."""
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return (x - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]


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
    center, size = crop.center.copy(), crop.size.copy()
    labelled = visible > 0
    if upper_body is not None and labelled.sum() > augment.half_body_min and rng.random() < augment.half_body_p:
        upper, lower = labelled & upper_body, labelled & ~upper_body
        chosen = upper if rng.random() < 0.7 else lower
        if chosen.sum() <= 2:
            chosen = lower if chosen is upper else upper
        if chosen.sum() >= 2:
            low, high = points[chosen].min(0), points[chosen].max(0)
            extent = np.maximum(high - low, 1.0)
            half = crop_of_box((*low, *extent), out_size, 1.5)
            center, size = half.center, half.size
    if rng.random() < augment.shift_p:
        center = center + rng.uniform(-1, 1, 2) * augment.shift * size
    size = size * np.clip(rng.normal() * augment.scale + 1, 1 - augment.scale, 1 + augment.scale)
    rotation = 0.0
    if rng.random() < augment.rotation_p:
        limit = 2 * augment.rotation_deg
        rotation = float(np.clip(rng.normal() * augment.rotation_deg, -limit, limit))
    return Crop(center, size, rotation)


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
        crop = crop_of_box(item.box, self.image_size, self.padding)
        rng = np.random.default_rng((self.seed, self.epoch, i))
        if self.augment is not None:
            crop = augmented_crop(crop, points, visible, self.augment, rng, self.image_size, self.upper_body)
        matrix = crop.matrix(self.image_size)
        image = warp(read_image(item.image), matrix, self.image_size)
        points = transform_points(points, matrix)
        if self.augment is not None and rng.random() < self.augment.flip_p:
            image, points, visible = mirror(image, points, visible, self.flip_index)
        map_size = (self.image_size[0] // 4, self.image_size[1] // 4)
        target, weight = encode_heatmaps(
            torch.from_numpy(points).float(), torch.from_numpy(visible.copy()), map_size, 4, self.sigma
        )
        return {
            "image": normalise(image),
            "target": target,
            "weight": weight,
            "center": torch.from_numpy(crop.center).float(),
            "size": torch.from_numpy(crop.size).float(),
            "index": torch.tensor(i),
        }
