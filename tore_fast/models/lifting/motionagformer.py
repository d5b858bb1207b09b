"""MotionAGFormer: attention stream and graph stream side by side; with HoT and TPC.

In: [B, F, 17, 3] = x, y, confidence. Out: `LiftedPose`. Source: MotionAGFormer, WACV 2024, and its copy in the HoT
repository (not in the HoT paper). The graph stream normalises over nodes, so weights of deeper blocks depend on the
frame count they see: base weights do not fit a pruned model after block n.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...layers.linear import Linear
from ...layers.metres import metres
from ...layers.pose_blocks import Axis, Mlp, PoseAttention
from .._config import make_config
from .._registry import model_facts
from ._base import JOINTS, PRUNE_FIELDS, LiftedPose, PrunableHost, PruneConfig, check_pruning, register_lifting
from .motionbert import fuse_streams

# Neighbours of each joint in the spatial graph as published: the torso's links to the left hip and to both shoulders
# are one-way.
NEIGHBOURS = (
    (1, 7),
    (2, 0),
    (3, 1),
    (2,),
    (5, 0),
    (6, 4),
    (5,),
    (0, 8),
    (7, 9),
    (8, 10),
    (9,),
    (12, 8),
    (13, 11),
    (12,),
    (15, 8),
    (16, 14),
    (15,),
)
NEIGHBOUR_FRAMES = 4  # similar frames each frame listens to, itself usually among them


@dataclass(frozen=True)
class MotionagformerConfig(PruneConfig):
    frames: int = 243
    channels: int = 128
    rep_channels: int = 512
    depth: int = 16
    heads: int = 4
    mlp_ratio: int = 4
    layer_scale: float = 1e-5


class GraphMixer(nn.Module):
    """relu(x + BN(A V(x) + U(x))); A = D^-1/2 adj D^-1/2 over the body's links or over the most similar frames."""

    def __init__(self, dim: int, nodes: int, axis: Axis) -> None:
        super().__init__()
        self.axis = axis
        self.U, self.V = Linear(dim, dim), Linear(dim, dim)
        self.batch_norm = nn.BatchNorm1d(nodes)
        for linear in (self.U, self.V):
            nn.init.normal_(linear.weight, 0, (2.0 / dim) ** 0.5)
        if axis == "joints":
            adjacency = torch.zeros(JOINTS, JOINTS)
            for joint, others in enumerate(NEIGHBOURS):
                adjacency[joint, list(others)] = 1.0
            self.register_buffer("adjacency", _normalised(adjacency), persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # [B, F, J, C]
        b, f, j, c = x.shape
        if self.axis == "joints":
            nodes = x.reshape(b * f, j, c)
            graph = self.adjacency.to(x.dtype)
        else:
            nodes = x.transpose(1, 2).reshape(b * j, f, c)
            similarity = nodes @ nodes.transpose(1, 2)
            least = similarity.topk(min(NEIGHBOUR_FRAMES, f), dim=-1).values[..., -1:]
            graph = _normalised((similarity >= least).to(x.dtype))
        out = F.relu(nodes + self.batch_norm(self.U(nodes, residual=graph @ self.V(nodes))))
        return out.view(b, f, j, c) if self.axis == "joints" else out.view(b, j, f, c).transpose(1, 2)


def _normalised(adjacency: Tensor) -> Tensor:
    scale = adjacency.sum(dim=-1).rsqrt()
    return scale[..., :, None] * adjacency * scale[..., None, :]


class MixerBlock(nn.Module):
    """Pre-norm mixer (attention or graph) and MLP over one axis, both with layer scale."""

    def __init__(self, config: MotionagformerConfig, axis: Axis, graph_nodes: int | None) -> None:
        super().__init__()
        dim = config.channels
        self.axis: Axis = axis
        self.graph = graph_nodes is not None
        self.norm1 = nn.LayerNorm(dim)
        self.mixer = (
            GraphMixer(dim, graph_nodes, axis)
            if graph_nodes is not None
            else PoseAttention(dim, config.heads, qkv_bias=False)
        )
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, config.mlp_ratio * dim)
        self.layer_scale_1 = nn.Parameter(torch.full((dim,), config.layer_scale))
        self.layer_scale_2 = nn.Parameter(torch.full((dim,), config.layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.layer_scale_1 * (self.mixer(h) if self.graph else self.mixer(h, self.axis))
        return x + self.layer_scale_2 * self.mlp(self.norm2(x))


class DualStreamLayer(nn.Module):
    """Attention stream and graph stream (each joints, then frames), fused per token."""

    def __init__(self, config: MotionagformerConfig, frames: int) -> None:
        super().__init__()
        self.att_spatial = MixerBlock(config, "joints", None)
        self.att_temporal = MixerBlock(config, "frames", None)
        self.graph_spatial = MixerBlock(config, "joints", JOINTS)
        self.graph_temporal = MixerBlock(config, "frames", frames)
        self.fusion = nn.Linear(2 * config.channels, 2)
        nn.init.zeros_(self.fusion.weight)
        nn.init.constant_(self.fusion.bias, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        attention = self.att_temporal(self.att_spatial(x))
        graph = self.graph_temporal(self.graph_spatial(x))
        return fuse_streams(attention, graph, self.fusion)


@model_facts(
    task="lifting",
    family="motionagformer",
    pixels="",
    loss="motionagformer",
    frames_out="all",
    free_fields=PRUNE_FIELDS,
)
class Motionagformer(PrunableHost):
    """MotionAGFormer, and HoT / TPC w. MotionAGFormer when `config.prune_block` is set (before layer n = 0..depth-1).

    Example:
        >>> config = MotionagformerConfig(frames=27, depth=4, prune_block=2, keep_frames=9, recovery="tra")
        >>> Motionagformer(config).eval()(torch.randn(1, 27, 17, 3)).pose.shape
        torch.Size([1, 27, 17, 3])
    """

    config_class = MotionagformerConfig
    in_channels = 3

    def __init__(self, config: MotionagformerConfig | None = None, **fields: Any) -> None:
        super().__init__()
        config = make_config(type(self), config, fields)
        check_pruning("Motionagformer", config, range(config.depth))
        self.config = config
        dim = config.channels
        self.joints_embed = nn.Linear(self.in_channels, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, JOINTS, dim))
        first_pruned = config.depth if config.prune_block is None else config.prune_block
        lengths: list[Any] = [config.frames if i < first_pruned else config.keep_frames for i in range(config.depth)]
        self.layers = nn.Sequential(*(DualStreamLayer(config, f) for f in lengths))
        self.norm = nn.LayerNorm(dim)
        self._add_pruning(dim, config.heads, qkv_bias=False)
        self.rep_logit = nn.Sequential(OrderedDict(fc=Linear(dim, config.rep_channels), act=nn.Tanh()))
        self.head = nn.Linear(config.rep_channels, 3)

    def paper_extra_macs(self) -> int:
        return super().paper_extra_macs() + self._two_stream_macs()

    def forward(
        self,
        x: Tensor,  # [B, F, 17, 3]
        index: Tensor | None = None,  # [B, f] frames to keep instead of choosing them
        density_noise: Tensor | None = None,  # [B, F] added to TPC's density
    ) -> LiftedPose:
        self._check_input(x, index, density_noise)
        keypoints = x
        x = self.joints_embed(x) + self.pos_embed[:, None]
        for i, layer in enumerate(self.layers):
            if i == self.config.prune_block:
                scores = lambda x=x, block=layer.att_temporal: block.mixer.frame_scores(block.norm1(x))
                x, index = self.prune(x, index, scores, keypoints, density_noise)
            x = layer(x)
        x = self.recover(self.norm(x), index)
        return LiftedPose(metres(self.head, self.rep_logit(x)), index)


MODELS: dict[str, dict] = {
    "motionagformer_27": dict(frames=27),
    "motionagformer_81": dict(frames=81),
    "motionagformer_243": dict(frames=243),
    "hot_motionagformer_27": dict(frames=27, prune_block=7, keep_frames=9, recovery="tra"),
    "hot_motionagformer_81": dict(frames=81, prune_block=7, keep_frames=27, recovery="tra"),
    "hot_motionagformer_243": dict(frames=243, prune_block=7, keep_frames=81, recovery="tra"),
    "tpc_motionagformer_27": dict(frames=27, prune_block=7, keep_frames=9, keep_center=True),
    "tpc_motionagformer_81": dict(frames=81, prune_block=7, keep_frames=27, keep_center=True),
    "tpc_motionagformer_243": dict(frames=243, prune_block=7, keep_frames=81, keep_center=True),
}
register_lifting(Motionagformer, MODELS)
