"""MHFormer: 2D keypoints of F frames -> 3D pose via three hypotheses in cascade; with TPC (and HoT).

In: [B, F, 17, 2] normalised 2D. Out: `LiftedPose`; trained on all (kept) frames, tested on the centre one. Source:
MHFormer, CVPR 2022; pruned: HoT, CVPR 2024. The hypothesis generator mixes frames as channels and is never pruned; HoT
w. MHFormer (recovery to all frames) is not in the paper and follows the other hosts on the concatenated 3C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...layers.metres import metres
from ...layers.pose_blocks import DropPath, Mlp, PoseAttention, PoseBlock, linear_rates
from ...layers.tpc import gather_frames
from ...layers.tra import CrossAttention
from .._config import make_config
from .._registry import PaperRow, model_facts
from ._base import JOINTS, PRUNE_FIELDS, LiftedPose, PrunableHost, PruneConfig, check_pruning, register_lifting

MHG_HEADS = 9  # attention heads over the F-dimensional tokens of the hypothesis generator
EPS = 1e-6


@dataclass(frozen=True)
class MhformerConfig(PruneConfig):
    frames: int = 351
    channels: int = 512
    mlp_hidden: int = 1024
    layers: int = 3  # self-refinement blocks + 1 cross-interaction block
    mhg_depth: int = 4
    heads: int = 8
    drop: float = 0.1
    drop_path: float = 0.2


class HypothesisEncoder(nn.Module):
    """One stage of the generator: transformer over 34 coordinate tokens whose features are the F frames."""

    def __init__(self, config: MhformerConfig) -> None:
        super().__init__()
        f = config.frames
        self.pos_embed = nn.Parameter(torch.zeros(1, 2 * JOINTS, f))
        self.pos_drop = nn.Dropout(config.drop)
        rates = linear_rates(config.drop_path, config.mhg_depth)
        self.blocks = nn.ModuleList(PoseBlock(f, MHG_HEADS, 2 * f, config.drop, rate) for rate in rates)
        self.norm = nn.LayerNorm(f, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:  # [B, 34, F]
        x = self.pos_drop(x + self.pos_embed)[:, None]
        for block in self.blocks:
            x = block(x, "joints")  # one "frame" of 34 tokens
        return self.norm(x[:, 0])


class _ConcatMlp(nn.Module):
    """MLP over the three hypotheses' joined channels, the second half of both block kinds."""

    def __init__(self, config: MhformerConfig, drop_path: float) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(3 * config.channels, eps=EPS)
        self.mlp = Mlp(3 * config.channels, config.mlp_hidden, config.drop)
        self.drop_path = DropPath(drop_path)

    def mix(self, hypotheses: list[Tensor]) -> list[Tensor]:
        x = torch.cat(hypotheses, dim=-1)
        if self.training and self.drop_path.p:
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        else:
            x = self.mlp(x, residual=x, norm=self.norm2)
        return list(x.chunk(3, dim=-1))


class SelfRefinement(_ConcatMlp):
    """SHR: self-attention over frames within each hypothesis, then the joint MLP."""

    def __init__(self, config: MhformerConfig, drop_path: float) -> None:
        super().__init__(config, drop_path)
        for i in (1, 2, 3):
            setattr(self, f"norm1_{i}", nn.LayerNorm(config.channels, eps=EPS))
            setattr(self, f"attn_{i}", PoseAttention(config.channels, config.heads, proj_drop=config.drop))

    def _normed(self, i: int, x: Tensor) -> Tensor:
        return getattr(self, f"norm1_{i}")(x)[:, None]  # [B, 1, F, C]: the frames are the tokens of one group

    def forward(self, *hypotheses: Tensor) -> list[Tensor]:  # three of [B, F, C]
        out = []
        for i, x in enumerate(hypotheses, 1):
            out.append(x + self.drop_path(getattr(self, f"attn_{i}")(self._normed(i, x), "joints")[:, 0]))
        return self.mix(out)

    def frame_scores(self, *hypotheses: Tensor) -> Tensor:
        """[B, F]: attention each frame receives, mean over the hypotheses."""
        scores = [
            getattr(self, f"attn_{i}").frame_scores(self._normed(i, x).transpose(1, 2))
            for i, x in enumerate(hypotheses, 1)
        ]
        return torch.stack(scores).mean(dim=0)


class CrossInteraction(_ConcatMlp):
    """CHI: each hypothesis in turn is updated by attention among the (already updated) others, then the joint MLP."""

    def __init__(self, config: MhformerConfig, drop_path: float) -> None:
        super().__init__(config, drop_path)
        for i in (1, 2, 3):
            for role in (1, 2, 3):  # query, key, value
                setattr(self, f"norm3_{i}{role}", nn.LayerNorm(config.channels, eps=EPS))
            setattr(self, f"attn_{i}", CrossAttention(config.channels, config.heads, proj_drop=config.drop))

    def forward(self, *hypotheses: Tensor) -> list[Tensor]:
        x = list(hypotheses)
        for i, (query, key, value) in enumerate(((1, 2, 0), (0, 2, 1), (0, 1, 2)), 1):
            q, k, v = (getattr(self, f"norm3_{i}{role}")(x[h]) for role, h in enumerate((query, key, value), 1))
            x[i - 1] = x[i - 1] + self.drop_path(getattr(self, f"attn_{i}")(q, k, v))
        return self.mix(x)


class HypothesisTransformer(nn.Module):
    """Position embeddings, the SHR and CHI blocks and the final norm (run by `Mhformer.forward`, which prunes
    between)."""

    def __init__(self, config: MhformerConfig) -> None:
        super().__init__()
        for i in (1, 2, 3):
            setattr(self, f"pos_embed_{i}", nn.Parameter(torch.zeros(1, config.frames, config.channels)))
        self.pos_drop = nn.Dropout(config.drop)
        rates = linear_rates(config.drop_path, config.layers)
        self.SHR_blocks = nn.ModuleList(SelfRefinement(config, rate) for rate in rates[:-1])
        self.CHI_blocks = nn.ModuleList([CrossInteraction(config, rates[-1])])
        self.norm = nn.LayerNorm(3 * config.channels, eps=EPS)


@model_facts(
    task="lifting", family="mhformer", pixels="", loss="mhformer", frames_out="middle", free_fields=PRUNE_FIELDS
)
class Mhformer(PrunableHost):
    """MHFormer, and TPC / HoT w. MHFormer when `config.prune_block` is set (before SHR block n = 0..layers-2).

    `frames` must be divisible by 9: the generator has 9 heads over F-dimensional tokens.

    Example:
        >>> model = Mhformer(MhformerConfig(frames=27, prune_block=1, keep_frames=9, keep_center=True)).eval()
        >>> model(torch.randn(1, 27, 17, 2)).pose.shape
        torch.Size([1, 9, 17, 3])
    """

    config_class = MhformerConfig
    in_channels = 2

    def __init__(self, config: MhformerConfig | None = None, **fields: Any) -> None:
        super().__init__()
        config = make_config(type(self), config, fields)
        check_pruning("Mhformer", config, range(config.layers - 1))
        if config.frames % MHG_HEADS:
            raise ValueError(
                f"Mhformer: frames must be divisible by {MHG_HEADS} (heads over time), got {config.frames}"
            )
        if config.layers < 2:
            raise ValueError(f"Mhformer: layers must be at least 2 (one SHR, one CHI block), got {config.layers}")
        self.config = config
        f, c = config.frames, config.channels
        for i in (1, 2, 3):
            setattr(self, f"norm_{i}", nn.LayerNorm(f))
            setattr(self, f"Transformer_encoder_{i}", HypothesisEncoder(config))
            conv = nn.Conv1d(2 * JOINTS, c, 1)
            extra = (nn.BatchNorm1d(c), nn.ReLU(), nn.Dropout(0.25))  # the official code adds these for short clips
            setattr(self, f"embedding_{i}", nn.Sequential(conv, *extra) if f <= 27 else conv)
        self.Transformer_hypothesis = HypothesisTransformer(config)
        self.regression = nn.Sequential(nn.BatchNorm1d(3 * c), nn.Conv1d(3 * c, 3 * JOINTS, 1))
        self._add_pruning(3 * c, config.heads)

    def hypotheses(self, x: Tensor) -> list[Tensor]:
        """[B, F, 17, 2] -> three of [B, F, C]: generator, embedding, position."""
        x = x.flatten(2).transpose(1, 2)  # [B, 34, F], joint-major
        out, t = [], self.Transformer_hypothesis
        for i in (1, 2, 3):
            x = x + getattr(self, f"Transformer_encoder_{i}")(getattr(self, f"norm_{i}")(x))
            tokens = getattr(self, f"embedding_{i}")(x).transpose(1, 2)
            out.append(t.pos_drop(tokens + getattr(t, f"pos_embed_{i}")))
        return out

    def paper_extra_macs(self) -> int:
        return 0  # its joints are merged before TPC and TRA

    def forward(
        self,
        x: Tensor,  # [B, F, 17, 2]
        index: Tensor | None = None,  # [B, f] frames to keep instead of choosing them
        density_noise: Tensor | None = None,  # [B, F] added to TPC's density
    ) -> LiftedPose:
        self._check_input(x, index, density_noise)
        keypoints, t = x, self.Transformer_hypothesis
        tokens = self.hypotheses(x)
        for i, block in enumerate(t.SHR_blocks):
            if i == self.config.prune_block:
                tokens, index = self._prune_hypotheses(tokens, index, block, keypoints, density_noise)
            tokens = block(*tokens)
        for block in t.CHI_blocks:
            tokens = block(*tokens)
        x = t.norm(torch.cat(tokens, dim=-1))
        x = self.recover(x[:, :, None], index)[:, :, 0]
        b, frames, c3 = x.shape
        norm, conv = cast(Any, self.regression)
        regress = lambda tokens: nn.functional.linear(norm(tokens), conv.weight[:, :, 0], conv.bias)
        x = metres(regress, x.reshape(-1, c3))
        return LiftedPose(x.view(b, frames, JOINTS, 3), index)

    def _prune_hypotheses(
        self, tokens: Any, index: Any, block: Any, keypoints: Any, density_noise: Any
    ) -> tuple[list[Tensor], Tensor]:
        """One index for all three hypotheses, chosen on their joined channels (no pooling: joints are already
        merged)."""
        if index is None:
            pooled = lambda: torch.cat(tokens, dim=-1)
            index = self.select(pooled, lambda: block.frame_scores(*tokens), keypoints, density_noise)
        tokens = [gather_frames(h, index) for h in tokens]
        if self.config.recovery == "tra":
            tokens = [h + p for h, p in zip(tokens, self.pos_embed_token.chunk(3, dim=-1))]
        return tokens, index


_CVPR24 = "HoT, CVPR 2024, table 1 (the paper prints 2 x multiply-adds)"


MODELS: dict[str, dict] = {
    "mhformer_9": dict(frames=9),
    "mhformer_27": dict(frames=27),
    "mhformer_81": dict(frames=81),
    "mhformer_243": dict(frames=243),
    "mhformer_351": dict(frames=351),
    "tpc_mhformer_9": dict(frames=9, prune_block=1, keep_frames=3, keep_center=True),
    "tpc_mhformer_27": dict(frames=27, prune_block=1, keep_frames=9, keep_center=True),
    "tpc_mhformer_81": dict(frames=81, prune_block=1, keep_frames=27, keep_center=True),
    "tpc_mhformer_243": dict(frames=243, prune_block=1, keep_frames=81, keep_center=True),
    "tpc_mhformer_351": dict(frames=351, prune_block=1, keep_frames=117, keep_center=True),
    "hot_mhformer_27": dict(frames=27, prune_block=1, keep_frames=9, recovery="tra"),
    "hot_mhformer_81": dict(frames=81, prune_block=1, keep_frames=27, recovery="tra"),
    "hot_mhformer_243": dict(frames=243, prune_block=1, keep_frames=81, recovery="tra"),
    "hot_mhformer_351": dict(frames=351, prune_block=1, keep_frames=117, recovery="tra"),
}
PAPERS = {"mhformer_351": PaperRow(31.516, 14.15 / 2, _CVPR24), "tpc_mhformer_351": PaperRow(31.516, 8.22 / 2, _CVPR24)}
register_lifting(Mhformer, MODELS, PAPERS)
