"""HMR's adversarial prior on body parameters: one small critic per joint, one for the whole pose, one for the shape.

In: rotations and betas, predicted and real; out: least-squares losses for train/smpl.py. Source: Kanazawa et al.,
"End-to-end Recovery of Human Shape and Pose" (2018), section 3.3; HMR2.0 trains with weight 0.0005.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PoseDiscriminator(nn.Module):
    """[B, J, 3, 3] local rotations (without the root) and [B, S] betas -> [B, J + 2] scores, 1 = real."""

    def __init__(self, joints: int = 23, betas: int = 10):
        super().__init__()
        self.joint_features = nn.Sequential(nn.Linear(9, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.joint_weight = nn.Parameter(torch.empty(joints, 32))
        self.joint_bias = nn.Parameter(torch.zeros(joints))
        self.pose = nn.Sequential(
            nn.Linear(joints * 32, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1)
        )
        self.shape = nn.Sequential(nn.Linear(betas, 10), nn.ReLU(), nn.Linear(10, 5), nn.ReLU(), nn.Linear(5, 1))
        nn.init.xavier_uniform_(self.joint_weight)

    def forward(self, rotations: Tensor, betas: Tensor) -> Tensor:
        x = self.joint_features(rotations.flatten(2))
        each = (x * self.joint_weight).sum(-1) + self.joint_bias
        return torch.cat((each, self.pose(x.flatten(1)), self.shape(betas)), 1)

    def frozen(self, rotations: Tensor, betas: Tensor) -> Tensor:
        """The same scores with constant weights: gradients reach the inputs only."""
        return torch.func.functional_call(self, {k: v.detach() for k, v in self.named_parameters()}, (rotations, betas))


def adversarial_losses(
    critic: PoseDiscriminator, fake: tuple[Tensor, Tensor], real: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """(generator's, critic's) least-squares losses per image; each sends gradients to its own network only."""
    generator = (critic.frozen(*fake) - 1).square().sum(1).mean()
    wrong = critic(*(t.detach() for t in fake)).square().sum(1).mean()
    right = (critic(*real) - 1).square().sum(1).mean()
    return generator, wrong + right
