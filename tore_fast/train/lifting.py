"""Training of the video pose hosts: 2D windows in, root-relative 3D out, base, HoT and TPC alike.

`PoseLifting` is the task that train/loop.py runs; eval/lifting.py measures a model on whole clips. Data: data/mocap.py
(random cameras, new at every step) or recorded clips of data/h36m.py. Command: cli/train_lifting.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.mocap import CAMERA_SEED, Motion, film, seen_by_camera
from ..data.pose_clip import PoseClip
from ..eval.lifting import evaluate_clips
from ..geometry.skeleton import H36M17, mirror_points
from ..geometry.windows import window_indices
from ..layers.tpc import gather_frames
from ..models.lifting._base import LiftedPose, PrunableHost, pose_frames
from .config import Task
from .pose_losses import FurtherLossConfig, further_losses, mixste_loss, motionbert_loss, position_loss

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
    zoom: float = 1.0
    """Training figures are enlarged or shrunk by up to this factor (other lenses, cropped video); 1: never."""
    shift: float = 0.0
    """Training figures are moved by up to this much of half the image's width."""
    eval_stride: int = 0
    """Frames between evaluated windows; 0: the window length (seq2seq) or 9 (seq2frame)."""
    eval_windows: int = 400
    """At most this many windows per evaluation, spread evenly; 0: all."""


def host_loss(model: nn.Module) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    """The loss the host was published with."""
    return LOSSES[unwrapped(model).facts.loss]


def unwrapped(model: nn.Module) -> PrunableHost:
    """The host inside a data-parallel wrapper."""
    plain: Any = getattr(model, "module", model)
    return plain


def lifting_loss(
    model: nn.Module, x: Tensor, y: Tensor, loss: Callable, further: FurtherLossConfig | None = None
) -> dict[str, Tensor]:
    """Losses of one batch: x [B, F, 17, C], y [B, F, 17, 3] root-relative. The target follows the frames the model
    kept."""
    lifted: LiftedPose = model(x)
    target = y - y[:, :, :1]
    if lifted.pose.shape[1] != target.shape[1]:
        recovered = pose_frames(unwrapped(model).config)
        if recovered is not None:
            target = target[:, recovered.to(target.device)]
        else:
            assert lifted.index is not None
            target = gather_frames(target, lifted.index)
    parts = loss(lifted.pose, target)
    more = {} if further is None else further_losses(lifted.pose, target, further)
    return {**parts, **more, "total": parts["total"] + sum(more.values())}


FRAME_EMBEDDINGS = ("Temporal_pos_embed", "temp_embed", "x_token")  # [1, F, (1,) C]
JOINT_EMBEDDINGS = ("Spatial_pos_embed", "pos_embed")  # [1, 17, C]


def frame_waves(frames: int, channels: int) -> Tensor:
    """[frames, channels] sines and cosines of the frame number, wave lengths from 4 frames to 4 windows; variance about
    1."""
    count = (channels + 1) // 2
    waves = 2 * torch.pi / torch.logspace(np.log10(4.0), np.log10(4.0 * max(frames, 2)), count)
    angle = torch.arange(frames)[:, None] * waves
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :channels] * 2**0.5


@torch.no_grad()
def spread_embeddings(model: PrunableHost, std: float, seed: int = 0) -> None:
    """Starts the embeddings with deviation `std`: random ones of the joints, waves (`frame_waves`) of the frames and of
    TRA's queries.

    Their published start is zero or nearly so. Hours of training find out from there which joint and frame a token is;
    minutes do not.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if name in JOINT_EMBEDDINGS:
            value.copy_(torch.randn(value.shape, generator=generator) * std)
        elif name in FRAME_EMBEDDINGS:
            value.copy_(frame_waves(value.shape[1], value.shape[-1]).reshape(value.shape) * std)


class PoseLifting(Task):
    """Task of train/loop.py: windows drawn by (seed, index) alone, so a resumed run sees the same ones.

    Args:
        model: a registered video pose host.
        train: motions (filmed by a new random camera per window) or recorded clips.
        validation: the same kind, of *training* subjects that `train` does not contain; chooses the best checkpoint.
        test: the same kind, for `report`; pck_joints: the joints that PCK and AUC count there (None: all).
        further: weights of loss terms beside the model's own.
    """

    best_metric = "mpjpe"
    validation = "training subjects that are held out"

    def __init__(
        self,
        model: PrunableHost,
        train: Sequence[Motion] | Sequence[PoseClip],
        validation: Sequence[Motion] | Sequence[PoseClip],
        config: PoseDataConfig,
        seed: int = 0,
        test: Sequence[Motion] | Sequence[PoseClip] = (),
        pck_joints: Sequence[int] | None = None,
        further: FurtherLossConfig | None = None,
    ) -> None:
        shared = {c.subject for c in train} & {c.subject for c in validation} - {""}
        if shared:
            raise ValueError(f"PoseLifting: subjects {sorted(shared)} are in both training and validation")
        if not train:
            raise ValueError("PoseLifting: needs training data, got 0 clips")
        if not validation:  # all subjects train: nothing chooses a checkpoint, the last one is exported
            self.validation = ""
        self.model, self.config, self.seed = model, config, seed
        self.frames, self.channels = model.config.frames, model.in_channels
        pose_frames(model.config)  # refuses more poses than frames
        if config.zoom < 1:
            raise ValueError(f"PoseLifting: zoom must be at least 1, got {config.zoom}")
        self.train_items = resampled(train, config.fps)
        lengths = np.array([_length(m) for m in self.train_items], np.float64)
        self.share = lengths / lengths.sum()
        # an epoch: every frame once as a target; MHFormer regresses one frame a window
        targets = 1 if model.facts.frames_out == "middle" else self.frames
        self.items_per_epoch = max(1, round(lengths.sum() / targets))
        self.held_out = film(resampled(validation, config.fps), config.noise_px, seed=seed + 1)
        self.test, self.pck_joints, self.further = test, pck_joints, further
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
            keypoints, pose = mirror_points(keypoints, H36M17), mirror_points(pose, H36M17)
        if self.config.zoom > 1 or self.config.shift > 0:
            reach = np.log(self.config.zoom)
            place = rng.uniform(-1, 1, 2) * self.config.shift, np.exp(rng.uniform(-reach, reach))
            keypoints = keypoints.copy()
            keypoints[..., :2] = keypoints[..., :2] * place[1] + place[0]
        return keypoints, pose

    def batch(self, index: int, batch_size: int, step: int) -> dict[str, Tensor]:
        windows = [self.window(index * batch_size + i) for i in range(batch_size)]
        return {k: torch.from_numpy(np.stack(v)) for k, v in zip("xy", zip(*windows))}

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        parts = lifting_loss(model, batch["x"], batch["y"], self.loss_fn, self.further)
        return parts["total"], {k: v.detach() for k, v in parts.items() if k != "total"}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        if not self.held_out:
            return {}
        c = self.config
        meter = evaluate_clips(unwrapped(model), self.held_out, flip=c.flip, stride=c.eval_stride, limit=c.eval_windows)
        return meter.result()

    def report(self, model: nn.Module) -> dict:
        """All windows of the test clips, and the means of each action."""
        if not self.test:
            return {}
        clips = film(resampled(self.test, self.config.fps), self.config.noise_px, CAMERA_SEED)
        meter = evaluate_clips(unwrapped(model), clips, self.config.flip, pck_joints=self.pck_joints)
        return {**meter.result(), "per_action": meter.per_action()}


def resampled(items: Sequence[Motion] | Sequence[PoseClip], fps: float) -> list:
    """Motions at another frame rate; recorded clips as they are."""
    return [m.resampled(fps) if isinstance(m, Motion) else m for m in items]


def _length(item: Motion | PoseClip) -> int:
    return len(item.joints) if isinstance(item, Motion) else len(item)
