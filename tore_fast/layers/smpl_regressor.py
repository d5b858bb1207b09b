"""FastMETRO's optional head: 24 SMPL joint rotations and 10 shape coefficients from the 1723-vertex mesh.

In: intermediate vertices of models/mesh/fastmetro.py; out: rotation matrices and betas for a body model
(tore_fast.body).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _Block(nn.Module):
    """Linear-BN-ReLU (residual=False) or relu(x + Linear-BN-ReLU-Linear-BN(x))."""

    def __init__(self, in_dim: int, dim: int, residual: bool):
        super().__init__()
        self.residual = residual
        layers = [nn.Linear(in_dim, dim), nn.BatchNorm1d(dim), nn.ReLU()]
        if residual:
            layers += [nn.Linear(dim, dim), nn.BatchNorm1d(dim)]
        self.fc_block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.fc_block(x)).relu() if self.residual else self.fc_block(x)


def nearest_rotation_upstream(m: Tensor) -> Tensor:  # [..., 3, 3]
    """FastMETRO's orthogonalisation: R = U V^T of the SVD, then the whole matrix times det(R).

    For a reflection this gives -R, which is a rotation but not the nearest one; published weights were trained so.
    All matrices go through one batched SVD, in float32 at least.
    """
    u, _, vh = torch.linalg.svd(m.to(torch.promote_types(m.dtype, torch.float32)))
    r = u @ vh
    det = (r[..., 0, :] * torch.linalg.cross(r[..., 1, :], r[..., 2, :], dim=-1)).sum(-1)
    return (r * det[..., None, None]).to(m.dtype)


class SMPLParameterRegressor(nn.Module):
    """Linear 1024, two residual blocks, linear 226 = 24 x 9 + 10 (keys `regressor.{0,1,2}.fc_block.N`,
    `regressor.3`)."""

    def __init__(self, num_vertices: int = 1723, hidden: int = 1024):
        super().__init__()
        self.regressor = nn.Sequential(
            _Block(3 * num_vertices, hidden, residual=False),
            _Block(hidden, hidden, residual=True),
            _Block(hidden, hidden, residual=True),
            nn.Linear(hidden, 24 * 9 + 10),
        )

    def forward(self, vertices: Tensor) -> tuple[Tensor, Tensor]:
        """vertices [B, 1723, 3] metres, not centred -> rotations [B, 24, 3, 3], betas [B, 10]."""
        raw = self.regressor(vertices.flatten(1))
        return nearest_rotation_upstream(raw[:, :216].unflatten(1, (24, 3, 3))), raw[:, 216:]
