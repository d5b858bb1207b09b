"""The pose prior: one Gaussian of the log rotations of 23 joints, baked by tools/bake/pose_prior.py.

In: assets/pose_prior.safetensors; out: mean and precision for the fit. Joint 0 (where the body faces) has no prior.
"""

from __future__ import annotations

import functools

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..assets import FOLDER

FILE = FOLDER / "pose_prior.safetensors"


@functools.cache
def load_pose_prior() -> tuple[Tensor, Tensor]:
    """(mean [69], precision [69, 69]) float64, radians; joints 1..23 in SMPL's order, three numbers each."""
    data = load_file(FILE)
    lower = data["precision_factor"].double()
    return data["mean"].double(), lower @ lower.T


def gaussian(log_rotations: Tensor, spread_degrees: float) -> tuple[Tensor, Tensor]:  # [N, D] -> [D], [D, D]
    """Mean and lower Cholesky factor of the precision of samples, widened by `spread_degrees` in every direction."""
    x = log_rotations.double()
    mean = x.mean(0)
    covariance = torch.cov(x.T) + torch.deg2rad(torch.tensor(spread_degrees, dtype=x.dtype)) ** 2 * torch.eye(
        x.shape[1], dtype=x.dtype
    )
    return mean, torch.linalg.cholesky(torch.linalg.inv(covariance))
