"""Training of the video pose hosts: 2D windows in, root-relative 3D out, base, HoT and TPC alike.

`PoseLifting` is the task that train/loop.py runs; `evaluate_clips` measures a model on whole clips. Data: data/mocap.py
(random cameras, new at every step) or recorded clips of data/h36m.py. Command: cli/train_hot.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..data.chunking import flip_pose, window_indices
from ..data.mocap import Motion, seen_by_camera
from ..data.pose_clip import PoseClip
from ..eval.pose import PoseMeter
from ..layers.tpc import gather_frames
from ..models.hot import LiftedPose, PrunableHost
from .pose_losses import mixste_loss, motionbert_loss, position_loss

LOSSES: dict[str, Callable[[Tensor, Tensor], dict[str, Tensor]]] = {
    "mixste": mixste_loss,
    "motionbert": motionbert_loss,
    "mhformer": position_loss,
    "motionagformer": motionbert_loss,
}


@dataclass(frozen=True)
class PoseDataConfig:
    """What the windows are cut from and how hard they are."""

    fps: float = 50.0
    """Motions are resampled to this rate (Human3.6M's)."""
    noise_px: float = 5.0
    """Standard deviation of the synthetic 2D detector's error, pixels of a 1000-pixel image."""
    flip: bool = True
    """Mirror half of the training windows; average with the mirrored pass at evaluation."""
    eval_stride: int = 0
    """Frames between evaluated windows; 0: the window length (seq2seq) or 9 (seq2frame)."""
    eval_windows: int = 400
    """At most this many windows per evaluation, spread evenly; 0: all."""


def host_loss(model: nn.Module) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    """The loss the host was published with."""
    return LOSSES[type(unwrapped(model)).__name__.lower()]


def unwrapped(model: nn.Module) -> PrunableHost:
    """The host inside a data-parallel wrapper."""
    return getattr(model, "module", model)


def lifting_loss(model: nn.Module, x: Tensor, y: Tensor, loss: Callable) -> dict[str, Tensor]:
    """Losses of one batch: x [B, F, 17, C], y [B, F, 17, 3] root-relative. The target follows the frames the model kept."""
    lifted: LiftedPose = model(x)
    target = y - y[:, :, :1]
    if lifted.pose.shape[1] != target.shape[1]:
        target = gather_frames(target, lifted.index)
    return loss(lifted.pose, target)


@torch.no_grad()
def start_weights(model: PrunableHost, init: str | Path | None, embed_std: float = 0.0, seed: int = 0) -> str:
    """Weights to start a training from; returns what was done, for the log.

    Args:
        init: folder of save_pretrained. Tensors of the same name and shape are copied; frame embeddings of another length
            are stretched over the window; the rest keeps its random start.
        embed_std: joint position embeddings start normally distributed with this deviation (not where `init` gives them).
    """
    from ..models import load_pretrained

    own = model.state_dict()
    if embed_std:
        generator = torch.Generator().manual_seed(seed)
        for name in ("Spatial_pos_embed", "pos_embed"):
            if name in own:
                own[name].copy_(torch.randn(own[name].shape, generator=generator) * embed_std)
    if init is None:
        return ""
    given, kept = load_pretrained(init).state_dict(), []
    for name, value in own.items():
        source = given.get(name)
        if source is not None and source.shape != value.shape and name in ("Temporal_pos_embed", "temp_embed"):
            frames = source.shape[1], value.shape[1]
            rows = source.flatten(2).transpose(1, 2)
            rows = nn.functional.interpolate(rows, size=frames[1], mode="linear", align_corners=frames[0] > 1)
            source = rows.transpose(1, 2).reshape(value.shape)
        if source is None or source.shape != value.shape:
            kept.append(name)
        else:
            value.copy_(source)
    if len(kept) == len(own):
        raise ValueError(f"--init {init}: none of its tensors fits this model")
    fresh = f", {len(kept)} start anew: {', '.join(kept[:12])}" if kept else ""
    return f"{init}: {len(own) - len(kept)} of {len(own)} tensors taken{fresh}\n"


class PoseLifting:
    """Task of train/loop.py: windows drawn by (seed, index) alone, so a resumed run sees the same ones.

    Args:
        model: a registered video pose host.
        train: motions (filmed by a new random camera per window) or recorded clips.
        validation: the same kind, of *training* subjects that `train` does not contain; chooses the best checkpoint.
    """

    best_metric = "mpjpe"

    def __init__(
        self,
        model: PrunableHost,
        train: Sequence[Motion] | Sequence[PoseClip],
        validation: Sequence[Motion] | Sequence[PoseClip],
        config: PoseDataConfig,
        seed: int = 0,
    ) -> None:
        shared = {_person(c) for c in train} & {_person(c) for c in validation} - {""}
        if shared:
            raise ValueError(f"PoseLifting: subjects {sorted(shared)} are in both training and validation")
        if not train or not validation:
            raise ValueError(f"PoseLifting: needs training and validation data, got {len(train)} and {len(validation)} clips")
        self.model, self.config, self.seed = model, config, seed
        self.frames, self.channels = model.config.frames, model.in_channels
        resample = lambda items: [m.resampled(config.fps) if isinstance(m, Motion) else m for m in items]
        self.train_items = resample(train)
        lengths = np.array([_length(m) for m in self.train_items], np.float64)
        self.share = lengths / lengths.sum()
        self.validation = film(resample(validation), config.noise_px, seed=seed + 1)
        self.loss_fn = host_loss(model)

    def window(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Training window `index`: keypoints [F, 17, C] and pose [F, 17, 3], the same for the same index and seed."""
        rng = np.random.default_rng((self.seed, index))
        item = self.train_items[rng.choice(len(self.train_items), p=self.share)]
        length = _length(item)
        start = int(rng.integers(0, max(length - self.frames, 0) + 1))
        frames = slice(start, start + self.frames)
        if isinstance(item, Motion):
            clip = seen_by_camera(item, rng, self.config.noise_px, frames)
            keypoints, pose = clip.with_channels(self.channels).keypoints, clip.pose
        else:
            clip = item.with_channels(self.channels)
            keypoints, pose = clip.keypoints[frames], clip.pose[frames]
        if len(pose) < self.frames:
            slots = window_indices(len(pose), self.frames, self.frames)[0] if len(pose) else np.zeros(self.frames, int)
            keypoints, pose = keypoints[slots], pose[slots]
        if self.config.flip and rng.random() < 0.5:
            keypoints, pose = flip_pose(keypoints), flip_pose(pose)
        return keypoints, pose

    def batch(self, index: int, batch_size: int, step: int) -> dict[str, Tensor]:
        windows = [self.window(index * batch_size + i) for i in range(batch_size)]
        return {k: torch.from_numpy(np.stack(v)) for k, v in zip("xy", zip(*windows))}

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        parts = lifting_loss(model, batch["x"], batch["y"], self.loss_fn)
        return parts["total"], {k: v.detach() for k, v in parts.items() if k != "total"}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        c = self.config
        meter = evaluate_clips(unwrapped(model), self.validation, flip=c.flip, stride=c.eval_stride, limit=c.eval_windows)
        return meter.result()


def _person(item: Motion | PoseClip) -> str:
    return item.subject


def _length(item: Motion | PoseClip) -> int:
    return len(item.joints) if isinstance(item, Motion) else len(item)


def film(items: Sequence[Motion] | Sequence[PoseClip], noise_px: float, seed: int, views: int = 1) -> list[PoseClip]:
    """Motions through `views` random cameras each (fixed by `seed` and the motion's id); recorded clips as they are."""
    out = []
    for item in items:
        if isinstance(item, PoseClip):
            out.append(item)
            continue
        for view in range(views):
            rng = np.random.default_rng((seed, view, *item.id.encode()))
            out.append(seen_by_camera(item, rng, noise_px))
    return out


@torch.no_grad()
def lift_windows(model: PrunableHost, x: Tensor, flip: bool) -> LiftedPose:
    """Poses of windows [B, F, 17, C]; with `flip` the mean of the plain and the mirrored pass.

    Models that return only the kept frames use the plain pass's frames for the mirrored one, the others choose anew.
    """
    lifted = model(x)
    if not flip:
        return lifted
    partial = lifted.index is not None and lifted.pose.shape[1] != x.shape[1]
    mirrored = model(flip_pose(x), index=lifted.index if partial else None)
    return LiftedPose((lifted.pose + flip_pose(mirrored.pose)) / 2, lifted.index)


def evaluate_clips(
    model: PrunableHost,
    clips: Sequence[PoseClip],
    flip: bool = True,
    stride: int = 0,
    limit: int = 0,
    batch_size: int = 32,
    pck_joints: Sequence[int] | None = None,
    device: torch.device | str | None = None,
) -> PoseMeter:
    """Errors of a model on clips, as the papers measure them.

    seq2seq: windows of F frames, all their frames count (edge padding included, as the official code does).
    seq2frame (the model returns only kept frames, incl. the centre): one window per evaluated frame, its centre counts; MPJVE
    then differences evaluated neighbours, `stride` frames apart.

    Args:
        stride: frames between windows; 0: F, or 9 for seq2frame (1 evaluates every frame as the papers do).
        limit: at most this many windows, spread evenly over all clips; 0: all.
    """
    model.eval()
    config = model.config
    centered = config.pruned and config.recovery == "none" or type(model).__name__ == "Mhformer" and config.recovery == "none"
    frames, middle = config.frames, (config.frames - 1) // 2
    device = next(model.parameters()).device if device is None else device
    jobs = []
    for number, clip in enumerate(clips):
        slots = window_indices(len(clip), frames, 1 if centered else (stride or frames))
        slots = slots[:: stride or 9] if centered else slots
        if len(slots) == 0:  # a clip shorter than F - stride: one centred window, so that it counts at all
            slots = window_indices(len(clip), frames, frames)
        jobs += [(number, s) for s in slots]
    if limit and len(jobs) > limit:
        jobs = [jobs[i] for i in np.linspace(0, len(jobs) - 1, limit).round().astype(int)]
    meter = PoseMeter(pck_joints)
    collected: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for start in range(0, len(jobs), batch_size):
        part = jobs[start : start + batch_size]
        x = np.stack([clips[n].with_channels(model.in_channels).keypoints[s] for n, s in part])
        lifted = lift_windows(model, torch.from_numpy(x).to(device), flip)
        for row, (number, slots) in enumerate(part):
            clip = clips[number]
            if centered:
                at = middle if lifted.index is None else int((lifted.index[row] == middle).nonzero()[0, 0])
                pose, wanted = lifted.pose[row, at : at + 1].cpu(), slots[middle : middle + 1]
            else:
                pose, wanted = lifted.pose[row].cpu(), slots
            keep = slice(None) if clip.valid is None else torch.from_numpy(clip.valid[wanted])
            pair = pose[keep], torch.from_numpy(clip.pose[wanted])[keep]
            if len(pair[0]):
                collected.setdefault(number, []).append(pair)
    for number, pairs in collected.items():
        action = clips[number].action
        if centered:
            meter.add(action, *(torch.cat(v) for v in zip(*pairs)))
        else:
            for pred, target in pairs:
                meter.add(action, pred, target)
    return meter
