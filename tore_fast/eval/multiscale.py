"""METRO's test-time augmentation for hands: crops of 5 sizes turned 19 ways, meshes aligned to the plain one and
averaged.

In: a record of a reader and a mesh model; out: one mesh and its joints. Used by `tore-fast eval mesh --multiscale`
(evaluate.py). Meshes are aligned by their vertices, the joints regressed from them by the joints, as the official
script does: the mean joints are not those of the mean mesh. Only Procrustes-aligned errors mean anything afterwards,
which is what FreiHAND's evaluator reports. Source: METRO's hand script (run_hand_multiscale).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..data.augment import Augmentation, training_crop
from ..geometry.procrustes import similarity_align

SCALES = (0.7, 0.8, 0.9, 1.0, 1.1)  # of the box
ROTATIONS_DEG = (0, *(sign * 10 * i for i in range(1, 10) for sign in (1, -1)))  # 0, 10, -10, ... -90
PLAIN = (1.0, 0)
VIEWS = (PLAIN, *((s, r) for s in SCALES for r in ROTATIONS_DEG if (s, r) != PLAIN))  # 95, the plain one first


def view_crops(record: Any, image_size: int, views: Any = VIEWS) -> np.ndarray:
    """Normalised crops [K, 3, S, S] float32 of a record's box for all (scale, rotation) views."""
    crops = [
        training_crop(
            record.image, record.center, record.scale, Augmentation(rotation_deg=float(r), scale=s), image_size
        )
        for s, r in views
    ]
    return np.stack(crops)


def aligned_mean(points: Tensor) -> Tensor:  # [K, B, N, 3] -> [B, N, 3]
    """Mean of K point sets after similarity alignment to the first; that one counts twice, as in the official script.

    Example:
        >>> aligned_mean(torch.stack([torch.eye(3)[None], 5 * torch.eye(3)[None]]))[0].diagonal()
        tensor([1., 1., 1.])
    """
    if points.dim() != 4:
        raise ValueError(f"aligned_mean: points must be [views, B, N, 3], got {list(points.shape)}")
    reference = points[0]
    total = 2 * reference
    for other in points[1:]:
        total = total + similarity_align(other, reference)
    return total / (len(points) + 1)


class AveragedMesh(NamedTuple):
    vertices: Tensor  # [B, V, 3]
    mesh_joints: Tensor  # [B, J, 3] regressed from the mesh of every view, then averaged on their own


class MultiScale(nn.Module):
    """A mesh model over all views of an item: crops [B, K, 3, S, S] -> MeshOutput. One view of the batch at a time.

    Args:
        regress: joints [B, J, 3] of vertices [B, V, 3].
    """

    def __init__(self, model: nn.Module, regress: Callable[[Tensor], Tensor]):
        super().__init__()
        self.model, self.regress = model, regress

    def forward(self, crops: Tensor) -> AveragedMesh:
        meshes = torch.stack([self.model(view).vertices.float() for view in crops.unbind(1)])
        joints = self.regress(meshes.flatten(0, 1)).unflatten(0, meshes.shape[:2])
        return AveragedMesh(aligned_mean(meshes), aligned_mean(joints))
