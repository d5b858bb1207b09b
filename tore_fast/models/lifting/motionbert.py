"""MotionBERT's DSTformer: 2D keypoints with confidence -> 3D poses, two streams of joint and frame attention; with HoT,
TPC.

In: [B, F, 17, 3] = x, y, confidence. Out: `LiftedPose`. Source: MotionBERT, ICCV 2023; pruned: HoT, CVPR 2024, tables
1-3 (the "lite" size, 16.00 M). TPC w. MotionBERT has no official code: centre kept, the head runs on the f frames.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...layers.linear import Linear
from ...layers.metres import metres
from ...layers.pose_blocks import Axis, Mlp, PoseAttention
from .._config import make_config
from .._registry import PaperRow, model_facts
from ._base import JOINTS, PRUNE_FIELDS, LiftedPose, PrunableHost, PruneConfig, check_pruning, register_lifting


@dataclass(frozen=True)
class MotionbertConfig(PruneConfig):
    frames: int = 243
    max_frames: int = 243  # length of temp_embed; frames may be shorter
    channels: int = 256
    rep_channels: int = 512
    depth: int = 5
    heads: int = 8
    mlp_hidden: int = 1024


class StreamBlock(nn.Module):
    """Attention and MLP over one axis, then over the other; `order` is ("joints", "frames") or its reverse."""

    norm1_s: nn.LayerNorm
    attn_s: PoseAttention
    norm2_s: nn.LayerNorm
    mlp_s: Mlp
    norm1_t: nn.LayerNorm
    attn_t: PoseAttention
    norm2_t: nn.LayerNorm
    mlp_t: Mlp

    def __init__(self, dim: int, heads: int, hidden: int, order: tuple[Axis, Axis]) -> None:
        super().__init__()
        self.order = order
        for a in ("s", "t"):
            setattr(self, f"norm1_{a}", nn.LayerNorm(dim, eps=1e-6))
            setattr(self, f"attn_{a}", PoseAttention(dim, heads))
            setattr(self, f"norm2_{a}", nn.LayerNorm(dim, eps=1e-6))
            setattr(self, f"mlp_{a}", Mlp(dim, hidden))

    def forward(self, x: Tensor) -> Tensor:
        for axis in self.order:
            if axis == "joints":
                x = self.attn_s(x, axis, residual=x, norm=self.norm1_s)
                x = self.mlp_s(x, residual=x, norm=self.norm2_s)
            else:
                x = self.attn_t(x, axis, residual=x, norm=self.norm1_t)
                x = self.mlp_t(x, residual=x, norm=self.norm2_t)
        return x


def fuse_streams(a: Tensor, b: Tensor, fusion: nn.Linear) -> Tensor:
    """w0 a + w1 b with (w0, w1) = softmax(fusion(concat(a, b))) per token; the concatenation is never built."""
    c = a.shape[-1]
    weight = fusion.weight[0] - fusion.weight[1]  # softmax over two logits is the sigmoid of their difference
    logit = a @ weight[:c, None] + b @ weight[c:, None] + (fusion.bias[0] - fusion.bias[1])
    return torch.lerp(b, a, logit.sigmoid().to(a.dtype))  # autocast makes the logits 16 bit


@model_facts(
    task="lifting", family="motionbert", pixels="", loss="motionbert", frames_out="all", free_fields=PRUNE_FIELDS
)
class Motionbert(PrunableHost):
    """DSTformer, and HoT / TPC w. MotionBERT when `config.prune_block` is set (before layer n = 0..depth-1).

    Example:
        >>> model = Motionbert(MotionbertConfig(frames=27, prune_block=1, keep_frames=9, keep_center=True)).eval()
        >>> model(torch.randn(1, 27, 17, 3)).pose.shape
        torch.Size([1, 9, 17, 3])
    """

    config_class = MotionbertConfig
    in_channels = 3

    def __init__(self, config: MotionbertConfig | None = None, **fields: Any) -> None:
        super().__init__()
        config = make_config(type(self), config, fields)
        check_pruning("Motionbert", config, range(config.depth))
        if config.frames > config.max_frames:
            raise ValueError(f"Motionbert: frames {config.frames} exceeds max_frames {config.max_frames} (temp_embed)")
        self.config = config
        dim, depth = config.channels, config.depth
        self.joints_embed = nn.Linear(self.in_channels, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, JOINTS, dim))
        self.temp_embed = nn.Parameter(torch.zeros(1, config.max_frames, 1, dim))
        streams: dict[str, tuple[Axis, Axis]] = {"st": ("joints", "frames"), "ts": ("frames", "joints")}
        for name, order in streams.items():
            blocks = (StreamBlock(dim, config.heads, config.mlp_hidden, order) for _ in range(depth))
            setattr(self, f"blocks_{name}", nn.ModuleList(blocks))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pre_logits = nn.Sequential(OrderedDict(fc=Linear(dim, config.rep_channels), act=nn.Tanh()))
        self.head = nn.Linear(config.rep_channels, 3)
        self.ts_attn = nn.ModuleList(nn.Linear(2 * dim, 2) for _ in range(depth))
        self._add_pruning(dim, config.heads)
        self._init_weights()

    def _init_weights(self) -> None:
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.trunc_normal_(m.weight, std=0.02)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.temp_embed, std=0.02)
        fusion: Any
        for fusion in self.ts_attn:  # both streams start with weight 1/2
            nn.init.zeros_(fusion.weight)
            nn.init.constant_(fusion.bias, 0.5)

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
        x = self.joints_embed(x) + self.pos_embed[:, None] + self.temp_embed[:, : x.shape[1]]
        stacks: Any = (self.blocks_st, self.blocks_ts, self.ts_attn)
        for i, (st, ts, fusion) in enumerate(zip(*stacks)):
            if i == self.config.prune_block:
                scores = lambda x=x, block=ts: block.attn_t.frame_scores(block.norm1_t(x))
                x, index = self.prune(x, index, scores, keypoints, density_noise)
            x = fuse_streams(st(x), ts(x), fusion)
        x = self.recover(self.norm(x), index)
        return LiftedPose(metres(self.head, self.pre_logits(x)), index)


_CVPR24 = "HoT, CVPR 2024, tables 1-3 (the paper prints 2 x multiply-adds)"
FULL = {"channels": 512, "mlp_hidden": 1024}


MODELS: dict[str, dict] = {
    "motionbert_lite_27": dict(frames=27),
    "motionbert_lite_81": dict(frames=81),
    "motionbert_lite_243": dict(frames=243),
    "motionbert_243": dict(frames=243, **FULL),
    "hot_motionbert_27": dict(frames=27, prune_block=1, keep_frames=9, recovery="tra"),
    "hot_motionbert_81": dict(frames=81, prune_block=1, keep_frames=27, recovery="tra"),
    "hot_motionbert_243": dict(frames=243, prune_block=1, keep_frames=81, recovery="tra"),
    "hot_motionbert_full_243": dict(frames=243, prune_block=1, keep_frames=81, recovery="tra", **FULL),
    "tpc_motionbert_27": dict(frames=27, prune_block=1, keep_frames=9, keep_center=True),
    "tpc_motionbert_81": dict(frames=81, prune_block=1, keep_frames=27, keep_center=True),
    "tpc_motionbert_243": dict(frames=243, prune_block=1, keep_frames=81, keep_center=True),
    "tpc_motionbert_243_n2f121": dict(frames=243, prune_block=2, keep_frames=121, keep_center=True),
    "tpc_motionbert_full_243": dict(frames=243, prune_block=1, keep_frames=81, keep_center=True, **FULL),
}
PAPERS = {
    "motionbert_lite_243": PaperRow(16.002, 131.09 / 2, _CVPR24),
    "hot_motionbert_243": PaperRow(16.348, 63.21 / 2, _CVPR24),
    "tpc_motionbert_243": PaperRow(16.002, 61.04 / 2, _CVPR24),
    "tpc_motionbert_243_n2f121": PaperRow(16.002, 91.38 / 2, _CVPR24),
}
register_lifting(Motionbert, MODELS, PAPERS)
