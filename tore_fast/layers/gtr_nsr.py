"""GTR's neural shape regressor (NSR): 14 body or 21 hand joint features become mesh vertices, without image tokens.

In: camera and joint features of a model's last transformer (models/mesh/tore.py, models/mesh/metro.py); out: vertex
features. The vertex queries attend to their mesh neighbours only (ops.mesh_attention) and to the encoded joints.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import MeshTopology
from .positional import sine_position
from .transformer import Maps, Transformer, TransformerOutput


class NeuralShapeRegressor(Transformer):
    """Transformer over [camera; joints] with vertex queries (TORE supplement).

    Args:
        num_joints: J; joints carry the sine encoding of a J x 1 grid.
        the rest: see Transformer.
    """

    joint_pos: Tensor

    def __init__(self, num_joints: int, dim: int, heads: int, feedforward: int, layers: int, dropout: float = 0.1):
        super().__init__(dim, heads, feedforward, layers, dropout)
        self.register_buffer("joint_pos", sine_position(num_joints, 1, dim), persistent=False)

    def forward(  # type: ignore[override]  # positions are its own; noise is added
        self,
        camera: Tensor,  # [B, 1, C]
        joints: Tensor,  # [B, J, C]
        vertex_tokens: Tensor,  # [1, V, C] learned
        topology: MeshTopology,  # V vertices, no global tokens
        noise: float = 0.0,
        maps: Maps | None = None,
    ) -> TransformerOutput:
        """`noise` > 0 adds Gaussian noise of that share of the joint features' standard deviation (figure D6)."""
        if noise:
            joints = joints + noise * joints.std() * torch.randn_like(joints)
        return super().forward(camera, joints, vertex_tokens, self.joint_pos, topology, maps)
