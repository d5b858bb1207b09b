"""HoT: what MixSTE, MotionBERT, MHFormer and MotionAGFormer share when the frames between block n and the end are
pruned.

A host (models/<host>.py) calls `self.prune(...)` before its block n and `self.recover(...)` after its last one.
`hot_<host>_F` recovers all F frames by TRA (seq2seq), `tpc_<host>_F` keeps the f frames incl. the centre (seq2frame).
Source: HoT, CVPR 2024. Layers: layers/tpc.py, layers/tra.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from ...geometry.skeleton import H36M17, mirror_points
from ...layers.prepared import Prepared
from ...layers.tpc import FrameSelector, Pruning, gather_frames, motion_score
from ...layers.tra import TokenRecovery, interpolate_frames
from ...ops._cluster_args import FORMS
from .._registry import Facts, PaperRow, register_model

JOINTS = 17
TIES = ("index", "strict")
RECOVERIES = ("none", "tra", "nearest", "linear")


class LiftedPose(NamedTuple):
    """What every host returns."""

    pose: Tensor  # [B, F, 17, 3]; [B, f, 17, 3] where frames are pruned and not recovered
    index: Tensor | None  # type: ignore[assignment]  # hides tuple.index; [B, f] int64 kept frames, ascending; None without pruning


@dataclass(frozen=True)
class PruneConfig:
    """Frame pruning, the same fields in every host's config. `prune_block` None: the host as published."""

    prune_block: int | None = None  # n: blocks 0..n-1 see all frames, the rest the kept ones
    keep_frames: int | None = None  # f
    recovery: str = "none"  # "tra" (HoT), "nearest", "linear", or "none" (TPC, seq2frame)
    recover_frames: int | None = None  # length of x_token; None: the input length
    pruning: str = "tpc"  # "tpc", "uniform", "attention", "motion"
    keep_center: bool = False  # the middle frame is always kept
    knn: int = 2  # neighbours in the density, the frame itself included
    tie: str = "index"  # "index" (deterministic) or "strict"
    knn_form: str = "released"  # of TPC's density: the official code's, or "printed" (the paper's; knn without itself)

    @property
    def pruned(self) -> bool:
        return self.prune_block is not None

    @property
    def output_frames(self) -> int:
        """Frames of the returned pose."""
        frames: int = self.frames  # type: ignore[attr-defined]
        if not self.pruned:
            return frames
        if self.recovery == "none":
            return self.keep_frames  # type: ignore[return-value]
        return self.recover_frames or frames


def register_lifting(
    model: type[PrunableHost], rows: dict[str, dict], papers: dict[str, PaperRow] | None = None
) -> None:
    """Registers a table {name: config fields} of lifting networks; input and tags follow from the fields."""
    for name, given in rows.items():
        shape = (given["frames"], JOINTS, model.in_channels)
        tags = pose_tags(name, is_seq2frame(model, given))
        register_model(name, model, given, paper=(papers or {}).get(name), input_shape=shape, tags=tags)


def is_seq2frame(model: type[PrunableHost], given: dict) -> bool:
    """Whether these config fields make a model for the middle frame of a window."""
    if "prune_block" not in given:
        return model.facts.frames_out == "middle"
    return given.get("recovery", "none") == "none"


def pose_tags(name: str, seq2frame: bool) -> tuple[str, ...]:
    """Tags of a registered host, for `tore-fast list --tag`."""
    kind = name.split("_")[0]
    return ("pose", "seq2frame" if seq2frame else "seq2seq", kind if kind in ("hot", "tpc") else "base")


def check_pruning(host: str, config: PruneConfig, blocks: range) -> None:
    """ValueError that says which field does not fit; `blocks` are the n the host can prune before."""
    frames: int = config.frames  # type: ignore[attr-defined]
    if frames < 1:
        raise ValueError(f"{host}: frames must be positive, got {frames}")
    if not config.pruned:
        plain = PruneConfig()
        changed = [f.name for f in fields(PruneConfig) if getattr(config, f.name) != getattr(plain, f.name)]
        if changed:
            raise ValueError(f"{host}: {', '.join(changed)} given without prune_block, so nothing would be pruned")
        return
    n, f = config.prune_block, config.keep_frames
    if n not in blocks:
        raise ValueError(f"{host}: prune_block must be in {blocks.start}..{blocks.stop - 1}, got {n}")
    if f is None or not 1 <= f <= frames:
        raise ValueError(f"{host}: keep_frames must be in 1..{frames} (frames), got {f}")
    for name, allowed in (("pruning", get_args(Pruning)), ("tie", TIES)):
        if getattr(config, name) not in allowed:
            raise ValueError(f"{host}: {name} must be one of {allowed}, got {getattr(config, name)!r}")
    if config.recovery not in RECOVERIES:
        raise ValueError(f"{host}: recovery must be one of {RECOVERIES}, got {config.recovery!r}")
    if config.recover_frames is not None:
        if config.recovery != "tra":
            raise ValueError(f"{host}: recover_frames needs recovery='tra', got {config.recovery!r}")
        if config.recover_frames < 1:
            raise ValueError(f"{host}: recover_frames must be positive, got {config.recover_frames}")
    if config.knn_form not in FORMS:
        raise ValueError(f"{host}: knn_form must be one of {FORMS}, got {config.knn_form!r}")
    if config.pruning == "tpc" and not 1 <= config.knn <= frames:
        raise ValueError(f"{host}: knn must be in 1..{frames} (frames), got {config.knn}")


def pose_frames(config: Any) -> Tensor | None:
    """[f'] frames that the poses of TRA with `recover_frames` f' < F stand for (HoT, table 11): the middles of f' equal
    parts of the window. None where every frame has a pose, or only the kept ones have."""
    frames, recovered = config.frames, config.recover_frames
    if config.recovery != "tra" or recovered in (None, frames):
        return None
    if recovered > frames:
        raise ValueError(f"recover_frames: more poses ({recovered}) than the window has frames ({frames})")
    return ((torch.arange(recovered) + 0.5) * frames / recovered).floor().long()


PRUNE_FIELDS = tuple(f.name for f in fields(PruneConfig))


class PrunableHost(Prepared):
    """Base of the four hosts: the pruning layers, official key names, input checks."""

    facts: Facts
    config_class: type[PruneConfig]
    config: Any  # its own PruneConfig, with frames
    in_channels: int

    def _add_pruning(self, dim: int, heads: int, qkv_bias: bool = True) -> None:
        """Selector and, with TRA, pos_embed_token [1, f, dim], x_token [1, F', dim] and cross_attention."""
        c = self.config
        self.selector: FrameSelector | None = None
        if not c.pruned:
            return
        frames: int = c.frames  # type: ignore[attr-defined]
        center = (frames - 1) // 2 if c.keep_center else None
        assert c.keep_frames is not None  # check_pruning
        self.selector = FrameSelector(frames, c.keep_frames, c.pruning, c.knn, center, c.tie, c.knn_form)  # type: ignore[arg-type]  # ditto
        if c.recovery == "tra":
            self.pos_embed_token = nn.Parameter(torch.zeros(1, c.keep_frames, dim))
            self.x_token = nn.Parameter(torch.zeros(1, c.output_frames, dim))
            self.cross_attention = TokenRecovery(dim, heads, qkv_bias)

    def _check_input(self, x: Tensor, index: Tensor | None, density_noise: Tensor | None) -> None:
        c, host = self.config, type(self).__name__
        want = (c.frames, JOINTS, self.in_channels)  # type: ignore[attr-defined]
        if x.ndim != 4 or tuple(x.shape[1:]) != want:
            raise ValueError(f"{host}: x must be [B, {want[0]}, {want[1]}, {want[2]}], got {list(x.shape)}")
        for name, value, width in (("index", index, c.keep_frames), ("density_noise", density_noise, want[0])):
            if value is None:
                continue
            if not c.pruned:
                raise ValueError(f"{host}: {name} given, but this configuration prunes nothing")
            if tuple(value.shape) != (x.shape[0], width):
                raise ValueError(f"{host}: {name} must be [{x.shape[0]}, {width}], got {list(value.shape)}")

    def select(
        self,
        tokens: Callable[[], Tensor],
        attention: Callable[[], Tensor],
        keypoints: Tensor,
        density_noise: Tensor | None,
    ) -> Tensor:
        """Kept frames [B, f]. `tokens()` gives the pooled tokens, `attention()` the frame scores, only when needed."""
        with torch.no_grad():
            assert self.selector is not None
            rule = self.selector.pruning
            score = attention() if rule == "attention" else motion_score(keypoints) if rule == "motion" else None
            pooled = tokens() if rule == "tpc" else keypoints
            return self.selector(pooled, score=score, noise=density_noise).index

    def prune(
        self,
        x: Tensor,  # [B, F, J, C]
        index: Tensor | None,
        attention: Callable[[], Tensor],
        keypoints: Tensor,
        density_noise: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Kept frames of x (+ pos_embed_token with TRA) and their index; a given index is taken as it is."""
        if index is None:
            index = self.select(lambda: x.mean(dim=2), attention, keypoints, density_noise)
        x = gather_frames(x, index)
        if self.config.recovery == "tra":
            x = x + self.pos_embed_token[:, :, None]
        return x, index

    def recover(self, x: Tensor, index: Tensor | None) -> Tensor:
        """[B, f, J, C] -> [B, F, J, C] by the configured recovery; x itself where nothing is recovered."""
        if index is None or self.config.recovery == "none":
            return x
        if self.config.recovery == "tra":
            return self.cross_attention(x, self.x_token)
        return interpolate_frames(x, index, self.config.frames, self.config.recovery)  # type: ignore[attr-defined]

    def paper_extra_macs(self) -> int:
        """What the tables of the HoT paper count of one clip beside linear and convolution layers: the pooling of the
        tokens
        that TPC chooses by, and TRA's query once per joint, as the official code computes it (ours: once)."""
        c, channels = self.config, self.config.channels  # type: ignore[attr-defined]
        pooling = (JOINTS + 1) * c.frames * channels if c.pruned and c.pruning == "tpc" else 0  # type: ignore[attr-defined]
        queries = (JOINTS - 1) * channels**2 * c.output_frames if c.recovery == "tra" else 0
        return pooling + queries

    def _two_stream_macs(self) -> int:
        """The layer of two outputs that fuses two streams in the official code; ours computes their difference."""
        c = self.config
        first = c.depth if c.prune_block is None else c.prune_block  # type: ignore[attr-defined]
        seen = first * c.frames + (c.depth - first) * (c.keep_frames or 0)  # type: ignore[attr-defined]
        return 4 * c.channels * seen * JOINTS  # type: ignore[attr-defined]


def is_centered(model: PrunableHost) -> bool:
    """Whether only the middle frame of a window is meant to be used (seq2frame)."""
    return model.config.recovery == "none" and (model.config.pruned or model.facts.frames_out == "middle")


def center_pose(lifted: LiftedPose, frames: int) -> Tensor:
    """[B, 17, 3] pose of the middle frame (seq2frame); the middle must be among the kept frames."""
    center = (frames - 1) // 2
    if lifted.index is None or lifted.pose.shape[1] == frames:
        return lifted.pose[:, center]
    rows = (lifted.index == center).nonzero()
    if len(rows) != len(lifted.pose):
        raise ValueError("center_pose: the model does not keep the middle frame; use keep_center=True or a recovery")
    return lifted.pose[rows[:, 0], rows[:, 1]]


@torch.no_grad()
def lift_windows(model: Callable[..., Any], x: Tensor, flip: bool) -> LiftedPose:
    """Poses of windows [B, F, 17, C]; with `flip` the mean of the plain and the mirrored pass.

    Models that return only the kept frames use the plain pass's frames for the mirrored one, the others choose anew.
    """
    lifted = model(x)
    if not flip:
        return lifted
    partial = lifted.index is not None and lifted.pose.shape[1] != x.shape[1]
    mirrored = model(mirror_points(x, H36M17), lifted.index if partial else None)
    return LiftedPose((lifted.pose + mirror_points(mirrored.pose, H36M17)) / 2, lifted.index)
