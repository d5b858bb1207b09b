"""MixSTE: 2D keypoints of F frames -> 3D poses, alternating attention over joints and over frames; with HoT and TPC.

In: [B, F, 17, 2] normalised 2D. Out: `LiftedPose`. Source: MixSTE, CVPR 2022; pruned: HoT, CVPR 2024, tables 1-3,
10-13. Keys are those of the official checkpoints (models/lifting/layouts.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...layers.metres import metres
from ...layers.pose_blocks import PoseBlock, linear_rates
from .._config import make_config
from .._registry import PaperRow, model_facts
from ._base import JOINTS, PRUNE_FIELDS, LiftedPose, PrunableHost, PruneConfig, check_pruning, register_lifting


@dataclass(frozen=True)
class MixsteConfig(PruneConfig):
    frames: int = 243
    channels: int = 512
    depth: int = 8  # pairs of one joint block and one frame block
    heads: int = 8
    mlp_hidden: int = 1024
    drop_path: float = 0.1


@model_facts(task="lifting", family="mixste", pixels="", loss="mixste", frames_out="all", free_fields=PRUNE_FIELDS)
class Mixste(PrunableHost):
    """MixSTE, and HoT / TPC w. MixSTE when `config.prune_block` is set (before pair n = 1..depth-1).

    Example:
        >>> model = Mixste(MixsteConfig(frames=27, prune_block=3, keep_frames=9, recovery="tra")).eval()
        >>> model(torch.randn(2, 27, 17, 2)).pose.shape
        torch.Size([2, 27, 17, 3])
    """

    config_class = MixsteConfig
    in_channels = 2

    def __init__(self, config: MixsteConfig | None = None, **fields: Any) -> None:
        super().__init__()
        config = make_config(type(self), config, fields)
        check_pruning("Mixste", config, range(1, config.depth))
        self.config = config
        dim = config.channels
        self.Spatial_patch_to_embedding = nn.Linear(self.in_channels, dim)
        self.Spatial_pos_embed = nn.Parameter(torch.zeros(1, JOINTS, dim))
        self.Temporal_pos_embed = nn.Parameter(torch.zeros(1, config.frames, dim))
        rates = linear_rates(config.drop_path, config.depth)
        for name in ("STEblocks", "TTEblocks"):
            blocks = (PoseBlock(dim, config.heads, config.mlp_hidden, drop_path=rate) for rate in rates)
            setattr(self, name, nn.ModuleList(blocks))
        self.Spatial_norm = nn.LayerNorm(dim, eps=1e-6)  # shared by all pairs
        self.Temporal_norm = nn.LayerNorm(dim, eps=1e-6)
        self._add_pruning(dim, config.heads)
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 3))

    def forward(
        self,
        x: Tensor,  # [B, F, 17, 2]
        index: Tensor | None = None,  # [B, f] frames to keep instead of choosing them
        density_noise: Tensor | None = None,  # [B, F] added to TPC's density
    ) -> LiftedPose:
        self._check_input(x, index, density_noise)
        keypoints = x
        x = self.Spatial_patch_to_embedding(x) + self.Spatial_pos_embed[:, None]
        stacks: Any = (self.STEblocks, self.TTEblocks)
        for i, (spatial, temporal) in enumerate(zip(*stacks)):
            if i == self.config.prune_block:
                scores = lambda x=x, block=temporal: block.attn.frame_scores(block.norm1(x))
                x, index = self.prune(x, index, scores, keypoints, density_noise)
            x = self.Spatial_norm(spatial(x, "joints"))
            if i == 0:
                x = x + self.Temporal_pos_embed[:, :, None]
            x = self.Temporal_norm(temporal(x, "frames"))
        return LiftedPose(metres(self.head, self.recover(x, index)), index)


_CVPR24 = "HoT, CVPR 2024, tables 2, 10 and 11 (the paper prints 2 x multiply-adds)"


MODELS: dict[str, dict] = {
    "mixste_9": dict(frames=9),
    "mixste_27": dict(frames=27),
    "mixste_81": dict(frames=81),
    "mixste_147": dict(frames=147),
    "mixste_243": dict(frames=243),
    "hot_mixste_27": dict(frames=27, prune_block=3, keep_frames=9, recovery="tra"),
    "hot_mixste_81": dict(frames=81, prune_block=3, keep_frames=27, recovery="tra"),
    "hot_mixste_243": dict(frames=243, prune_block=3, keep_frames=81, recovery="tra"),
    "tpc_mixste_27": dict(frames=27, prune_block=3, keep_frames=9, keep_center=True),
    "tpc_mixste_81": dict(frames=81, prune_block=3, keep_frames=27, keep_center=True),
    "tpc_mixste_243": dict(frames=243, prune_block=3, keep_frames=81, keep_center=True),
    "tpc_mixste_243_n7f61": dict(frames=243, prune_block=7, keep_frames=61, keep_center=True),
}
PAPERS = {
    "mixste_81": PaperRow(33.701, 92.42 / 2, _CVPR24),
    "mixste_147": PaperRow(33.735, 167.72 / 2, _CVPR24),
    "mixste_243": PaperRow(33.784, 277.25 / 2, _CVPR24),
    "hot_mixste_243": PaperRow(35.000, 167.52 / 2, _CVPR24),
    "tpc_mixste_243": PaperRow(33.784, 161.73 / 2, _CVPR24),
    "tpc_mixste_243_n7f61": PaperRow(33.784, 251.29 / 2, _CVPR24),
}
register_lifting(Mixste, MODELS, PAPERS)
