"""Person detector and body landmarks of BlazePose (arXiv:2006.10204) as torch modules.

The weights are Google's (MediaPipe, Apache-2.0); tools/bake/landmarks.py and models/keypoints/_mediapipe.py read them
out of the original .tflite files. The branch that segments the body is left out. Float16 in the file, float32 in the
arithmetic. What comes before (windows, rotated crops) and after (people, tracks) is in pipelines/people.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._config import make_config
from .._registry import model_facts, register_models
from ._blazepose_blocks import (
    Block,
    Down,
    Separable,
    SeparableResidual,
    Trunk,
    depth_to_space,
    enlarge,
    pointwise,
    relu6,
)

LANDMARKS = (
    "nose left_eye_inner left_eye left_eye_outer right_eye_inner right_eye right_eye_outer left_ear right_ear "
    "mouth_left mouth_right left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist left_pinky "
    "right_pinky left_index right_index left_thumb right_thumb left_hip right_hip left_knee right_knee left_ankle "
    "right_ankle left_heel right_heel left_foot_index right_foot_index"
).split()
"""The 33 points of the body, in the order of the nets. Left is the person's left."""
LANDMARK_BONES = tuple(
    (LANDMARKS.index(a), LANDMARKS.index(b))
    for chain in (
        "left_ear left_eye nose right_eye right_ear|mouth_left mouth_right|"
        "left_shoulder right_shoulder right_hip left_hip left_shoulder|"
        "left_shoulder left_elbow left_wrist left_index left_pinky left_wrist left_thumb|"
        "right_shoulder right_elbow right_wrist right_index right_pinky right_wrist right_thumb|"
        "left_hip left_knee left_ankle left_heel left_foot_index left_ankle|"
        "right_hip right_knee right_ankle right_heel right_foot_index right_ankle"
    ).split("|")
    for a, b in zip(chain.split(), chain.split()[1:])
)
"""Pairs of landmarks that are joined by a line in drawings."""
ALIGNMENT = (33, 34)  # further points: middle of the hips; a point on the circle round the whole body, above the head
NUM_POINTS = 39  # 33 of the body, 2 of alignment, 4 that are not described
REFINE_WINDOW, REFINE_SCORE = 7, 0.5  # heat map cells a side; a map whose best cell scores less is not used


class DetectorOutput(NamedTuple):
    """Candidates, before overlapping ones are merged; A is 2254 for 224 x 224. Pixels of the input."""

    scores: Tensor  # [B, A] 0..1
    boxes: Tensor  # [B, A, 4] x0, y0, x1, y1 of the head and shoulders
    points: Tensor  # [B, A, 4, 2] middle of the hips, point on the circle round the body, two of the upper body


class LandmarksOutput(NamedTuple):
    """Points of one person in a crop. The first 33 are LANDMARKS."""

    points: (
        Tensor  # [B, 39, 3] x, y px of the 256 px crop (pixel edges at whole numbers), z on the same scale, hips at 0
    )
    visibility: Tensor  # [B, 39] 0..1: in the image and not hidden
    presence: Tensor  # [B, 39] 0..1: in the image
    world: Tensor  # [B, 39, 3] metres about the middle of the hips, x right, y down, z away; depth is not metric
    score: Tensor  # [B] 0..1: there is a person in the crop


@dataclass(frozen=True)
class PersonDetectorConfig:
    image_size: int = 224
    stem: tuple[int, int] = (24, 16)
    blocks: tuple[Block, ...] = (
        (64, 3, 2, 24),
        (144, 3, 1, 24),
        (144, 5, 2, 40),
        (240, 5, 1, 40),
        (240, 3, 2, 80),
        (480, 3, 1, 80),
        (480, 3, 1, 80),
        (480, 5, 1, 112),
        (672, 5, 1, 112),
        (672, 5, 1, 112),
        (672, 5, 2, 192),
        (1152, 5, 1, 192),
        (1152, 5, 1, 192),
        (1152, 5, 1, 192),
    )
    head: int = 1152
    laterals: tuple[int, int] = (96, 192)  # channels at 1/8 and 1/16 of the side


class _Anchors(nn.Module):
    """Scores and boxes of one scale: depthwise 3x3 of stride 2 and a pointwise layer each."""

    def __init__(self, channels: int, anchors: int):
        super().__init__()
        self.score = nn.ModuleList(
            [nn.Conv2d(channels, channels, 3, 2, 1, groups=channels), pointwise(channels, anchors)]
        )
        self.box = nn.ModuleList(
            [nn.Conv2d(channels, channels, 3, 2, 1, groups=channels), pointwise(channels, 12 * anchors)]
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        score, box = (point(depth(x)).permute(0, 2, 3, 1) for depth, point in (self.score, self.box))
        return score.flatten(1), box.reshape(x.shape[0], -1, 12)


@model_facts(task="keypoints", family="blazepose", crop="letterbox", pixels="unit", licence="Apache-2.0")
class PersonDetector(nn.Module):
    """People in an image by head and shoulders, with the middle of the hips and a circle round the body.

    Made for a person up to about 4 m away whose head can be seen, in an image of 224 px. Smaller people are found in a
    larger one: both sides may be any multiple of 32 (pipelines/people.py).

    Args of forward: images [B, 3, H, W] in 0..1, on zeros where the image does not fill them; channels_last preferred.
    """

    config_class = PersonDetectorConfig

    def __init__(self, config: PersonDetectorConfig | None = None, **fields: Any):
        super().__init__()
        self.config = c = make_config(type(self), config, fields)
        self.trunk = Trunk(c.stem, c.blocks, c.head)
        fine, middle = c.laterals
        self.lateral_middle = Separable(self.trunk.widths[3], middle, linear_depth=True)
        self.lateral_fine = Separable(self.trunk.widths[2], fine, linear_depth=True)
        self.fuse_middle, self.fuse_fine = pointwise(c.head, middle), pointwise(middle, fine)
        self.residual_middle = nn.Sequential(*(SeparableResidual(middle, linear_depth=True) for _ in range(2)))
        self.residual_fine = nn.Sequential(*(SeparableResidual(fine, linear_depth=True) for _ in range(2)))
        self.anchors_fine, self.anchors_middle = _Anchors(fine // 4, 2), _Anchors(middle // 4, 2)
        self.anchors_coarse = _Anchors(c.head // 4, 6)

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Score logits [B, A] and boxes [B, A, 12] (centre offset, size and four point offsets, px), as in the file."""
        if (
            images.ndim != 4
            or images.shape[1] != 3
            or images.shape[2] % 32
            or images.shape[3] % 32
            or 0 in images.shape[2:]
        ):
            raise ValueError(
                "PersonDetector: images must be [B, 3, H, W] in 0..1, H and W multiples of 32, got "
                f"{list(images.shape)}"
            )
        levels, x = self.trunk(images * 2 - 1)
        middle = self.residual_middle(self.lateral_middle(levels[3]) + relu6(self.fuse_middle(enlarge(x))))
        fine = self.residual_fine(self.lateral_fine(levels[2]) + relu6(self.fuse_fine(enlarge(middle))))
        scales = (self.anchors_fine, fine), (self.anchors_middle, middle), (self.anchors_coarse, x)
        scores, boxes = zip(*(anchors(depth_to_space(y)) for anchors, y in scales))
        return torch.cat(scores, 1), torch.cat(boxes, 1)

    def forward(self, images: Tensor) -> DetectorOutput:
        logits, values = self.raw(images)
        values = values.float()
        anchors = anchor_centres(images.shape[2], images.shape[3], images.device)
        centre, half = values[..., :2] + anchors, values[..., 2:4] / 2
        points = values[..., 4:].unflatten(-1, (4, 2)) + anchors[:, None]
        return DetectorOutput(torch.sigmoid(logits.float()), torch.cat([centre - half, centre + half], -1), points)


def anchor_centres(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """[A, 2] px: centres of the detector's cells: strides 8 and 16 with two anchors a cell, 32 with six."""
    rows = []
    for stride, count in ((8, 2), (16, 2), (32, 6)):
        x, y = (
            (torch.arange(side // stride, dtype=torch.float32, device=device) + 0.5) * stride
            for side in (width, height)
        )
        y, x = torch.meshgrid(y, x, indexing="ij")
        rows.append(torch.stack([x, y], -1).reshape(-1, 1, 2).expand(-1, count, 2).reshape(-1, 2))
    return torch.cat(rows)


@dataclass(frozen=True)
class BodyLandmarksConfig:
    """Sizes; the default is the "full" net.

    Args:
        stem, blocks, head: of the trunk (Trunk). lateral: channels of the heat map path.
        tower: (channels, residual blocks) of each halving of the side on the way to the numbers.
        shallow: how many of them come before the trunk's deepest level joins; the path then starts at the heat maps.
        neck: channels of the deepest level where it joins.
    """

    image_size: int = 256
    stem: tuple[int, int] = (24, 16)
    blocks: tuple[Block, ...] = (
        (64, 3, 2, 24),
        (144, 3, 1, 24),
        (144, 5, 2, 32),
        (192, 5, 1, 32),
        (192, 3, 2, 64),
        (384, 3, 1, 64),
        (384, 3, 1, 64),
        (384, 5, 1, 88),
        (528, 5, 1, 88),
        (528, 5, 1, 88),
        (528, 5, 2, 144),
        (864, 5, 1, 144),
        (864, 5, 1, 144),
        (864, 5, 1, 144),
    )
    head: int = 864
    lateral: int = 48
    neck: int = 288
    tower: tuple[tuple[int, int], ...] = ((288, 4), (288, 5))
    shallow: int = 0


@model_facts(task="keypoints", family="blazepose", crop="roi", pixels="unit", licence="Apache-2.0")
class BodyLandmarks(nn.Module):
    """33 points of one person in a square crop: 2D, relative depth, visibility, and metric-like 3D about the hips.

    Args of forward: images [B, 3, 256, 256] in 0..1 (crop of `roi_of_points`), channels_last preferred.
    """

    config_class = BodyLandmarksConfig

    def __init__(self, config: BodyLandmarksConfig | None = None, **fields: Any):
        super().__init__()
        self.config = c = make_config(type(self), config, fields)
        self.trunk = Trunk(c.stem, c.blocks, c.head)
        widths = self.trunk.widths  # at 1/2, 1/4, 1/8 and 1/16 of the side
        self.laterals = nn.ModuleList(Separable(w, c.lateral) for w in widths[1:])
        self.deepest = Separable(c.head, c.lateral)
        self.heat = pointwise(c.lateral, NUM_POINTS)
        self.neck = Separable(c.head, c.neck)
        joins, channels, tower = [], c.lateral if c.shallow else c.neck, []
        for i, (width, depth) in enumerate(c.tower):
            tower.append(nn.Sequential(Down(channels, width), *(SeparableResidual(width) for _ in range(depth))))
            if i < c.shallow - 1:
                joins.append(Separable(widths[2 + i], width))
            channels = width
        self.tower, self.joins = nn.ModuleList(tower), nn.ModuleList(joins)
        self.points = nn.Conv2d(channels, 5 * NUM_POINTS, 2)
        self.world = nn.Conv2d(channels, 3 * NUM_POINTS, 2)
        self.score = nn.Conv2d(channels, 1, 2)

    def features(self, images: Tensor) -> Tensor:
        """[B, 288, 8, 8] (lite: 192) of the deepest level, after ReLU6: what a head of one's own can stand on."""
        _check(images, self.config.image_size, "BodyLandmarks")
        return self.neck(self.trunk(images)[1])

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The file's four outputs: points [B, 195], score 0..1 [B], world [B, 117], heat map logits [B, 39, 64, 64]."""
        _check(images, self.config.image_size, "BodyLandmarks")
        levels, top = self.trunk(images)
        x = self.deepest(top)
        for lateral, level in zip(reversed(self.laterals), reversed(levels)):
            x = enlarge(x) + lateral(level)
        heat = self.heat(x)
        shallow = self.config.shallow
        for i, stage in enumerate(self.tower[:shallow]):
            x = stage(x)
            if i < len(self.joins):
                x = x + self.joins[i](levels[2 + i])
        x = x + self.neck(top) if shallow else self.neck(top)
        for stage in self.tower[shallow:]:
            x = stage(x)
        score = torch.sigmoid(self.score(x).flatten())
        return self.points(x).flatten(1), score, self.world(x).flatten(1), heat

    def forward(self, images: Tensor) -> LandmarksOutput:
        values, score, world, heat = (y.float() for y in self.raw(images))
        values = values.unflatten(1, (NUM_POINTS, 5))
        size = self.config.image_size
        xy = refine_points(values[..., :2] / size, heat) * size
        sure = torch.sigmoid(values[..., 3:])
        points = torch.cat([xy, values[..., 2:3]], -1)
        return LandmarksOutput(points, sure[..., 0], sure[..., 1], world.unflatten(1, (NUM_POINTS, 3)), score)


def refine_points(points: Tensor, heat: Tensor) -> Tensor:
    """Points [B, N, 2] in 0..1 moved to the mean of the heat maps [B, N, H, W] (logits) about them.

    The mean is over the cells of a 7 x 7 window, weighted by their score; cells count from their corner (column / W),
    as the nets were trained. A point outside the map, or whose window has no cell of score 0.5, stays.
    """
    height, width = heat.shape[-2:]
    offset = torch.arange(REFINE_WINDOW, device=heat.device) - REFINE_WINDOW // 2
    column, row = (points[..., 0] * width).trunc().long(), (points[..., 1] * height).trunc().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    x, y = column[..., None] + offset, row[..., None] + offset  # [B, N, 7]
    known = ((y >= 0) & (y < height))[..., :, None] & ((x >= 0) & (x < width))[..., None, :]
    cells = y.clamp(0, height - 1)[..., :, None] * width + x.clamp(0, width - 1)[..., None, :]
    weight = torch.sigmoid(heat.flatten(2).gather(2, cells.flatten(2))).unflatten(2, known.shape[2:]) * known
    total = weight.sum((-1, -2)).clamp(min=1e-12)
    mean = (
        torch.stack([(weight.sum(-2) * x).sum(-1) / width, (weight.sum(-1) * y).sum(-1) / height], -1)
        / total[..., None]
    )
    use = inside & (weight.amax((-1, -2)) >= REFINE_SCORE)
    return torch.where(use[..., None], mean, points)


def _check(images: Tensor, size: int, who: str) -> None:
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
        raise ValueError(f"{who}: images must be [B, 3, {size}, {size}] in 0..1, got {list(images.shape)}")


LITE: dict = {
    "stem": (24, 8),
    "blocks": (
        (32, 3, 2, 16),
        (96, 3, 1, 16),
        (96, 5, 2, 24),
        (144, 5, 1, 24),
        (144, 3, 2, 40),
        (240, 3, 1, 40),
        (240, 3, 1, 40),
        (240, 5, 1, 56),
        (336, 5, 1, 56),
        (336, 5, 1, 56),
        (336, 5, 2, 96),
        (576, 5, 1, 96),
        (576, 5, 1, 96),
        (576, 5, 1, 96),
    ),
    "head": 576,
    "lateral": 32,
    "neck": 192,
    "tower": ((192, 2), (192, 3)),
}
HEAVY: dict = {
    "stem": (24, 24),
    "blocks": (
        (96, 3, 2, 32),
        (128, 3, 1, 32),
        *((192, 3, 1, 32),) * 2,
        (192, 5, 2, 56),
        *((336, 5, 1, 56),) * 3,
        (336, 3, 2, 112),
        *((672, 3, 1, 112),) * 5,
        (672, 5, 1, 160),
        *((960, 5, 1, 160),) * 5,
        (960, 5, 2, 272),
        *((1632, 5, 1, 272),) * 7,
    ),
    "head": 1632,
    "tower": ((96, 6), (192, 7), (288, 7), (288, 7), (288, 7)),
    "shallow": 3,
}
LANDMARK_NETS = {"body_landmarks": {}, "body_landmarks_lite": LITE, "body_landmarks_heavy": HEAVY}
register_models(PersonDetector, {"person_detector": {}}, input_shape=(3, 224, 224), tags=("keypoints",))
register_models(BodyLandmarks, LANDMARK_NETS, input_shape=(3, 256, 256), tags=("keypoints",))
