"""Similarity Procrustes alignment of point sets, batched and on the device: the PA in PA-MPJPE."""

from __future__ import annotations

import torch
from torch import Tensor


def similarity_align(
    source: Tensor,  # [B, N, D]
    target: Tensor,  # [B, N, D]
) -> Tensor:  # [B, N, D]
    """Moves each source set onto its target by the best rotation (no reflection), scale and translation.

    R and the scale minimise ||s R x + t - y||^2: with K = sum x y^T = U S V^T, R = V Z U^T (Z's last entry is the sign
    of det(U V^T)), s = trace(R K) / sum |x|^2, all on centred points. Computed in float64 (SVD of 3x3 is cheap, its
    sign decisions are not forgiving). A source of one repeated point keeps scale 0.

    Source: evaluation of METRO, FastMETRO and TORE; Umeyama 1991.
    """
    if source.shape != target.shape or source.dim() != 3:
        raise ValueError(
            f"similarity_align: source and target must be [B, N, D], got {list(source.shape)}, {list(target.shape)}"
        )
    x, y = source.double(), target.double()
    x_mean, y_mean = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    x, y = x - x_mean, y - y_mean
    k = x.transpose(1, 2) @ y
    u, _, vh = torch.linalg.svd(k)
    sign = torch.det(u @ vh).sign()
    z = torch.ones_like(u[:, 0])
    z = torch.cat([z[:, :-1], torch.where(sign < 0, -1.0, 1.0).to(z)[:, None]], 1)
    rotation = vh.transpose(1, 2) @ (z[:, :, None] * u.transpose(1, 2))
    spread = x.square().sum((1, 2)).clamp_min(1e-300)
    scale = (rotation @ k).diagonal(dim1=1, dim2=2).sum(-1) / spread
    return (scale[:, None, None] * (x @ rotation.transpose(1, 2)) + y_mean).to(source.dtype)


def kabsch(source: Tensor, target: Tensor) -> Tensor:  # [B, N, 3] x 2, about their origins -> [B, 3, 3]
    """The rotation (determinant +1) that takes the source points nearest to the target points, in least squares."""
    covariance = source.mT @ target
    u, _, vh = torch.linalg.svd(covariance if covariance.dtype == torch.float64 else covariance.float())
    sign = torch.linalg.det(u @ vh).sign()
    d = torch.stack((torch.ones_like(sign), torch.ones_like(sign), sign), -1)
    return (vh.mT @ torch.diag_embed(d) @ u.mT).to(source.dtype)
