"""A host's own motion, read again from its per-frame features: what models/motion/fasthmr.py corrects with
`correct_host`.

In: features [B, F, C] of a host whose pose read-out is linear (models/smpl/hmr2.py, models/smpl/camerahmr.py); out:
pose features [B, F, 133] of layers/ik.py on one rest skeleton. Not in the paper.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..geometry.rotation import rot6d_to_matrix
from .ik import SMPL_TREE, pose_to_features


class HostMotion(nn.Module):
    """The host's pose read-out and a rest skeleton, as buffers.

    Args:
        dim: width of the features.
    """

    weight: Tensor
    bias: Tensor
    rest_joints: Tensor

    def __init__(self, dim: int):
        super().__init__()
        n = SMPL_TREE.num_rotations
        self.register_buffer("weight", torch.zeros(6 * n, dim))
        self.register_buffer("bias", torch.tensor([1.0, 0, 0, 0, 1, 0]).repeat(n))
        rest = torch.arange(3.0 * len(SMPL_TREE.parents)).unflatten(0, (-1, 3)).sin()  # any skeleton with no empty bone
        self.register_buffer("rest_joints", rest)

    @torch.no_grad()
    def use_head(self, head: Any, rest_joints: Tensor) -> HostMotion:
        """Takes a host's read-out (`smpl_head` of models/smpl/hmr2.py) and the rest skeleton [29, 3] of the mean shape.

        Raises:
            ValueError: its poses are no linear function of the feature, or of another width.
        """
        if head.joint_rep != "6d" or head.ief_iters != 1:
            raise ValueError(
                f"HostMotion: needs a host with joint_rep '6d' and ief_iters 1, got {head.joint_rep!r}, "
                f"{head.ief_iters}"
            )
        if head.decpose.weight.shape != self.weight.shape:
            raise ValueError(
                f"HostMotion: read-out must be {list(self.weight.shape)}, got {list(head.decpose.weight.shape)}"
            )
        self.weight.copy_(head.decpose.weight)
        self.bias.copy_(head.decpose.bias + head.init_body_pose[0])
        self.rest_joints.copy_(rest_joints)
        return self

    def fits(self, head: Any) -> bool:
        """Whether the read-out is the one of this host (merging its layers or tokens does not change it)."""
        bias = head.decpose.bias + head.init_body_pose[0]
        pairs = ((self.weight, head.decpose.weight), (self.bias, bias))
        return all(a.shape == b.shape and torch.allclose(a, b.to(a), atol=1e-4, rtol=1e-3) for a, b in pairs)

    def forward(self, tokens: Tensor) -> Tensor:
        pose = nn.functional.linear(tokens.float(), self.weight, self.bias)
        rotations = rot6d_to_matrix(pose.reshape(-1, SMPL_TREE.num_rotations, 6))
        return pose_to_features(rotations, self.rest_joints).reshape(*tokens.shape[:2], -1).to(tokens.dtype)
