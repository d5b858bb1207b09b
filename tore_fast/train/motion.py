"""Training of FastHMR's motion models: stage 1 (VAE on motion) and stage 2 (denoiser on a host's features), as Tasks.

In: AMASS-like .npz clips (poses, betas, mocap_framerate), or BVH, AMC and joint archives for stage 1; for stage 2 also
`tokens` [F, C], the per-frame features of a frozen host on the video of that motion, with poses in camera axes. Out:
losses for train/loop.py. Everything about a batch follows from (seed, index), so runs resume exactly. Source: FastHMR
(arXiv 2510.10868).
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.mocap import read_motions
from ..data.synth.motion import mirror_rotations, motion_rotations
from ..data.synth.poses import to_camera_axes
from ..geometry.rotation import axis_angle_to_matrix, matrix_to_quaternion, quaternion_to_matrix
from ..geometry.windows import resample
from ..io.weights import read_weights
from ..layers.ik import pose_to_features, split_features
from ..models.motion.fasthmr import FastHMRMotion, feature_statistics
from ..models.motion.vae import MotionVAE, vae_losses
from .config import Task

STATISTICS = "statistics.pt"  # beside the exported prior
_Z_UP_TO_CAMERA = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # x right, y down, z forward


@dataclass(frozen=True)
class MotionClip:
    """One sequence: local rotations [F, 24, 3, 3] in camera axes, shape [10], optional host features [F, C].

    `motion` names what it shows: renderings of one motion share it, and are held out together.
    """

    rotations: Tensor
    betas: Tensor
    tokens: Tensor | None = None
    motion: str = ""


def read_motion(path: str | Path, fps: float = 30.0, up: str = "z") -> MotionClip:
    """A clip from an AMASS-like .npz: `poses` [F, >= 66] axis-angle, `betas`, `mocap_framerate` (or AMASS's newer
    `mocap_frame_rate`), maybe `tokens`.

    Args:
        fps: frame rate wanted (rotations are interpolated as quaternions). up: "z" for AMASS world axes, "camera" for
            files of `tore-fast predict` and other camera-axes motions.

    Raises:
        ValueError: a key is missing or has another shape.
    """
    if up not in ("z", "camera"):
        raise ValueError(f"read_motion: up must be 'z' or 'camera', got {up!r}")
    with np.load(path, allow_pickle=False) as data:
        if "poses" not in data.files or data["poses"].ndim != 2 or data["poses"].shape[1] < 66:
            raise ValueError(f"{path}: needs poses [F, >= 66], has {', '.join(data.files)}")
        poses = torch.from_numpy(np.asarray(data["poses"], np.float32))
        betas = (
            torch.from_numpy(np.asarray(data["betas"], np.float32).reshape(-1)[:10])
            if "betas" in data.files
            else torch.zeros(10)
        )
        rates = [
            float(data[k]) for k in ("mocap_framerate", "mocap_frame_rate") if k in data.files
        ]  # AMASS SMPL-H, SMPL-X
        rate = rates[0] if rates else fps
        tokens = torch.from_numpy(np.asarray(data["tokens"], np.float32)) if "tokens" in data.files else None
        name = str(data["motion"]) if "motion" in data.files else str(path)
    full = torch.zeros(len(poses), 72)  # SMPL-H and SMPL-X files: the 22 body joints, hands straight
    width = 72 if poses.shape[1] == 72 else 66
    full[:, :width] = poses[:, :width]
    rotations = axis_angle_to_matrix(full.reshape(-1, 24, 3))
    if up == "z":
        rotations[:, 0] = _Z_UP_TO_CAMERA @ rotations[:, 0]
    frames = max(1, round((len(poses) - 1) * fps / rate) + 1)
    if frames != len(poses):
        rotations = _resample_rotations(rotations, frames)
        tokens = None if tokens is None else resample(tokens, frames)
    return MotionClip(rotations, betas, tokens, name)


def read_motion_folder(path: str | Path, fps: float = 30.0, up: str = "z") -> list[MotionClip]:
    """Every clip of a folder: AMASS-like .npz files, .bvh / .amc files, or clips.npz + index.json (its test split left
    out).

    From BVH, AMC and joint archives come 17 joints, so twists of straight limbs are those of the rest pose
    (body/fit/start.py:pose_from_joints) and the shape is the mean one.

    Raises:
        ValueError: fewer than two clips, or a file that is not a motion. FileNotFoundError: no motion at all.
    """
    path = Path(path)
    kinds = ("*.npz", "*.bvh", "*.amc")
    if not path.is_dir() or not any(next(path.rglob(k), None) for k in kinds):
        raise FileNotFoundError(
            f"{path}: expected a folder with AMASS-like .npz, .bvh or .amc files, or clips.npz + index.json"
        )
    npz = [] if (path / "index.json").is_file() else sorted(path.rglob("*.npz"))
    if npz:
        motions = [p for p in npz if _has_poses(p)]
        if len(motions) < len(npz):
            warnings.warn(
                f"{path}: {len(npz) - len(motions)} of {len(npz)} .npz files hold no `poses` (AMASS's shape "
                "files) and are skipped"
            )
        clips = [read_motion(p, fps, up) for p in motions]
    else:
        clips = []
        for motion in read_motions(path):
            if motion.split != "test":
                rotations = motion_rotations(motion.resampled(fps))
                rotations[:, 0] = to_camera_axes(rotations[:, 0])
                clips.append(MotionClip(rotations, torch.zeros(10), motion=motion.id))
    if len(clips) < 2:
        raise ValueError(f"{path}: needs at least two motions, found {len(clips)}")
    return clips


def hold_out(clips: Sequence[MotionClip], every: int) -> tuple[list[MotionClip], list[MotionClip]]:
    """Clips to train on and held out: the first motion of each `every`, with all its renderings."""
    motions = list(dict.fromkeys(c.motion for c in clips))
    away = set(motions[::every])
    return [c for c in clips if c.motion not in away], [c for c in clips if c.motion in away]


def read_prior(folder: str | Path) -> tuple[MotionVAE, Tensor, Tensor]:
    """The motion VAE of a checkpoint folder of stage 1, and the mean and deviation [133] of its features.

    Raises:
        ValueError: the folder of another model.
    """
    from ..models import load

    vae = load(folder)
    if not isinstance(vae, MotionVAE) or not (Path(folder) / STATISTICS).is_file():
        raise ValueError(f"--motion-prior: {folder} is not a motion VAE (stage 1 of `tore-fast train motion`)")
    stats = read_weights(Path(folder) / STATISTICS)
    return vae, stats["mean"], stats["std"]


def _has_poses(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return "poses.npy" in archive.namelist()
    except zipfile.BadZipFile:
        raise ValueError(f"{path}: not an .npz file") from None


def _resample_rotations(rotations: Tensor, frames: int) -> Tensor:
    q = matrix_to_quaternion(rotations)
    sign = torch.where((q[1:] * q[:-1]).sum(-1, keepdim=True) < 0, -1.0, 1.0).cumprod(0)  # no jumps between q and -q
    return quaternion_to_matrix(resample(torch.cat((q[:1], q[1:] * sign)), frames))


class _MotionTask(Task):
    """Windows of features, by (seed, index)."""

    best_metric = "joints_mm"

    def __init__(
        self, clips: Sequence[MotionClip], held_out: Sequence[MotionClip], rest: Any, frames: int, seed: int
    ) -> None:
        if not clips or not held_out:
            raise ValueError("motion training: needs clips to train on and clips held out")
        self.clips, self.held_out, self.rest, self.frames, self.seed = clips, held_out, rest, frames, seed
        lengths = np.array([len(c.rotations) for c in clips], np.float64)
        self.weights = lengths / lengths.sum()
        self._whole: dict[tuple[int, bool], Tensor] = {}
        self._fixed: list[tuple[Tensor, Tensor | None]] = []
        self.items_per_epoch = max(1, round(lengths.sum() / frames))

    @torch.no_grad()
    def features(self, rotations: Tensor, betas: Tensor) -> Tensor:
        """[F, 133] of a motion with the rest skeleton of its shape."""
        return pose_to_features(rotations, self.rest(betas[None])[0].float())

    def clip_features(self, number: int, mirrored: bool = False) -> Tensor:
        """[F, 133] of a whole training clip, computed once: 81 frames a window take longer than the VAE's step."""
        if (number, mirrored) not in self._whole:
            clip = self.clips[number]
            rotations = mirror_rotations(clip.rotations) if mirrored else clip.rotations
            self._whole[number, mirrored] = self.features(rotations, clip.betas)
        return self._whole[number, mirrored]

    def window(self, rng: np.random.Generator, mirror: bool, time: bool) -> tuple[Tensor, Tensor | None]:
        """Features [frames, 133] (and tokens [frames, C]) of a random window, with the augmentations asked for."""
        number = int(rng.choice(len(self.clips), p=self.weights))
        clip = self.clips[number]
        n, length = len(clip.rotations), self.frames
        if time and rng.random() < 0.5:
            length = int(self.frames * rng.uniform(0.67, 1.5))  # time warp: faster or slower
        length = min(n, length)
        start = int(rng.integers(0, n - length + 1))
        part = slice(start, start + length)
        tokens = None if clip.tokens is None else clip.tokens[part]
        mirrored = mirror and rng.random() < 0.5
        features = resample(
            self.clip_features(number, mirrored)[part], self.frames
        )  # linear, as the decoder's results are
        tokens = None if tokens is None else resample(tokens, self.frames)
        if time and rng.random() < 0.5:
            features, tokens = features.flip(0), None if tokens is None else tokens.flip(0)
        return features, tokens

    def _windows(self, index: int, batch_size: int, mirror: bool, time: bool) -> list[tuple[Tensor, Tensor | None]]:
        rng = np.random.default_rng((self.seed, index))
        return [self.window(rng, mirror, time) for _ in range(batch_size)]

    def fixed_windows(self) -> list[Window]:
        """Every held-out clip's windows, without augmentation."""
        if not self._fixed:
            self._fixed = [w for clip in self.held_out for w in windows_of(clip, self.rest, self.frames)]
        return self._fixed


Window = tuple[Tensor, Tensor | None]  # features [F, 133], tokens [F, C]


@torch.no_grad()
def windows_of(clip: MotionClip, rest: Callable[[Tensor], Tensor], frames: int) -> list[Window]:
    """A clip's windows one after another; a shorter clip is stretched to one."""
    features = pose_to_features(clip.rotations, rest(clip.betas[None])[0].float())
    windows: list[Window] = []
    for start in range(0, max(1, len(features) - frames + 1), frames):
        part = slice(start, start + frames)
        tokens = None if clip.tokens is None else resample(clip.tokens[part], frames)
        windows.append((resample(features[part], frames), tokens))
    return windows


def _stacked(windows: Sequence[Window], size: int = 16) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches of windows."""
    for a in range(0, len(windows), size):
        features, tokens = zip(*windows[a : a + size])
        yield torch.stack(features), None if tokens[0] is None else torch.stack(tokens)


def joints_error_mm(got: Tensor, want: Tensor) -> float:
    """Mean distance of root-relative joints in features [..., 133], millimetres."""
    return float((split_features(got)[0] - split_features(want)[0]).norm(dim=-1).mean()) * 1000


@torch.no_grad()
def window_errors_mm(
    model: nn.Module, windows: Sequence[Window], prior: tuple[Tensor, Tensor] | None = None
) -> list[float]:
    """Joint error of every window: of the motion that comes back from the VAE, or that the denoiser makes of the
    tokens.

    Args:
        prior: mean and deviation [133] of the features where `model` is the VAE; None: it is the denoiser.
    """
    device, errors = next(model.parameters()).device, []
    for features, tokens in _stacked(windows):
        features = features.to(device)
        if prior is not None:
            mean, std = (p.to(device) for p in prior)
            got = model((features - mean) / std)[0] * std + mean
        elif tokens is None:
            raise ValueError("the motions hold no tokens; the denoiser makes motion of a regressor's features")
        else:
            motion = model(tokens.to(device))
            got = torch.cat((motion.joints.flatten(2), motion.twists.flatten(2)), -1)
        errors += [joints_error_mm(g, f) for g, f in zip(got, features)]
    return errors


class MotionVAETask(_MotionTask):
    """Stage 1: z-scored features through the VAE.

    Args:
        vae: model. clips, held_out: motions. rest: (betas [1, 10]) -> rest joints [1, 29, 3]
            (pipelines/hosts.py:RestSkeleton).
        kl_weight, velocity_weight: loss weights.
    """

    def __init__(
        self,
        vae: MotionVAE,
        clips: Any,
        held_out: Any,
        rest: Any,
        frames: int = 243,
        seed: int = 0,
        kl_weight: float = 1e-4,
        velocity_weight: float = 0.0,
    ) -> None:
        super().__init__(clips, held_out, rest, frames, seed)
        self.model, self.kl_weight, self.velocity_weight = vae, kl_weight, velocity_weight
        self.mean, self.std = feature_statistics(torch.cat([self.clip_features(i) for i in range(len(clips))]))

    def save_statistics(self, folder: Path) -> None:
        """Writes mean and deviation of the features beside the exported prior."""
        torch.save({"mean": self.mean, "std": self.std}, folder / STATISTICS)

    def batch(self, index: int, batch_size: int, step: int) -> dict[str, Tensor]:
        features = torch.stack([f for f, _ in self._windows(index, batch_size, mirror=True, time=False)])
        return {"features": (features - self.mean) / self.std}

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        made, mean, log_var = model(batch["features"])
        losses = vae_losses(batch["features"], made, mean, log_var, self.kl_weight, self.velocity_weight)
        return losses.total, {"reconstruction": losses.reconstruction.detach(), "kl": losses.kl.detach()}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        errors = window_errors_mm(model, self.fixed_windows(), (self.mean, self.std))
        return {"joints_mm": float(np.mean(errors))}


@dataclass(frozen=True)
class Stage2Config:
    """What the paper's stage 2 does not have; the defaults are the paper's."""

    last_step: float = 0.0
    """Share of the clips trained at the last timestep, the only one that a single step uses."""
    joints: float = 0.0
    """Weight of the decoded clip's error (joints in decimetres and twists)."""


class MotionDenoiserTask(_MotionTask):
    """Stage 2: the denoiser learns the frozen VAE's latents from the frozen host's tokens (mirroring needs other
    tokens, so only time is augmented: reversal and warping, each with probability one half).

    Args:
        motion: model whose `use_vae` has been called; only its denoiser is trained. vae: the trained VAE.
        loss: options of FastHMRMotion.stage2_losses.
    """

    def __init__(
        self,
        motion: FastHMRMotion,
        vae: MotionVAE,
        clips: Any,
        held_out: Any,
        rest: Any,
        seed: int = 0,
        loss: Stage2Config | None = None,
    ) -> None:
        super().__init__(clips, held_out, rest, motion.config.frames, seed)
        if any(c.tokens is None for c in (*clips, *held_out)):
            raise ValueError("MotionDenoiserTask: every clip needs `tokens` [F, C], the host's per-frame features")
        self.model, self.vae = motion, vae.eval().requires_grad_(False)
        self.options = loss or Stage2Config()
        motion.freeze_vae()

    def batch(self, index: int, batch_size: int, step: int) -> dict[str, Tensor]:
        windows = self._windows(index, batch_size, mirror=False, time=True)
        noise_seed = torch.tensor((self.seed * 1_000_003 + index) % 2**31)
        return {
            "features": torch.stack([f for f, _ in windows]),
            "tokens": torch.stack([t for _, t in windows if t is not None]),
            "seed": noise_seed,
        }

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        plain: Any = getattr(model, "module", model)
        device = batch["features"].device
        generator = torch.Generator(device=device).manual_seed(int(batch["seed"]))
        losses = plain.stage2_losses(
            self.vae.to(device),
            batch["features"],
            batch["tokens"],
            generator,
            self.options.last_step,
            self.options.joints,
        )
        logs = {"velocity": losses.velocity.detach(), "noise": losses.noise.detach()}
        return losses.total, {**logs, "decoded": losses.decoded.detach()} if self.options.joints else logs

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {"joints_mm": float(np.mean(window_errors_mm(model, self.fixed_windows())))}
