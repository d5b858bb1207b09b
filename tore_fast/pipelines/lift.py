"""2D keypoints of a clip of any length -> 3D poses: windows, padding, mirrored pass, blending; and the live version.

In: [T, 17, 2 or 3] pixels in H36M order (data/keypoints.py reads detector files), or one frame at a time. Out: poses
[T, 17, 3] in metres, root-relative, camera axes (x right, y down, z forward). Models:
models/{mixste,motionbert,...}.py.
"""

from __future__ import annotations

import functools
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .._device import check_precision
from ..data.cameras import crop_scale_2d, normalise_2d
from ..engine import Engine
from ..geometry.windows import at_times, blend_windows, covering_indices, window_indices
from ..models import load, model_entry
from ..models._checkpoint import read_config
from ..models._registry import facts_of
from ..models.lifting._base import LiftedPose, PrunableHost, center_pose, is_centered, lift_windows

NORMALISATIONS = ("image", "pixel", "crop")
BUILT_IN = Path(__file__).parents[1] / "models" / "assets" / "lift"


class LiftedClip(NamedTuple):
    pose: np.ndarray  # [T, 17, 3] float32
    kept: np.ndarray  # [T] int64: in how many windows TPC kept the frame (0 without pruning)
    windows: int


def trained_facts(model: str | Path, checkpoint: str | Path | None = None) -> dict:
    """What the weights' folder (or "default") says about its training: fps, normalise, validation errors ...; {} if
    nothing."""
    folder = Path(checkpoint) if checkpoint is not None else BUILT_IN if str(model) == "default" else Path(model)
    return read_config(folder) if folder.is_dir() else {}


def trained_fps(model: str | Path, checkpoint: str | Path | None = None) -> float | None:
    """Frame rate of the training motions, where the folder says so."""
    fps = trained_facts(model, checkpoint).get("fps")
    return None if fps is None else float(fps)


def load_lifter(model: str | Path, checkpoint: str | Path | None = None, **overrides: Any) -> PrunableHost:
    """A video pose model in eval mode: "default" (built in), a checkpoint folder (as either argument), or a registered
    name
    with a checkpoint; the name then tells the frames and how to prune (`models.load`)."""
    if Path(model).is_dir() and checkpoint is not None:
        raise ValueError(
            f"--checkpoint {checkpoint}: {model} is a folder with weights of its own; give a registered model name"
        )
    named = str(model) != "default" and not Path(model).is_dir()
    if named and model_entry(str(model)).task != "lifting":
        raise ValueError(f"{model}: not a video pose model; expected one of task lifting (tore-fast list)")
    if named and checkpoint is None:
        raise ValueError(f"{model}: not a folder with trained weights; give --checkpoint with a registered model name")
    if not named and checkpoint is not None and not Path(checkpoint).is_dir():
        raise ValueError(
            f"--checkpoint {checkpoint}: say with --model which registered model it belongs to (mixste_243 ...)"
        )
    source = Path(checkpoint or (BUILT_IN if str(model) == "default" else model))
    loaded = load(source, model=str(model) if named else None, **overrides)
    facts = facts_of(loaded)
    if facts is None or facts.task != "lifting":
        raise ValueError(f"{source}: not a video pose model; expected one of task lifting (tore-fast list)")
    return loaded  # type: ignore[return-value]  # every model of task lifting is a PrunableHost


def normalise_keypoints(
    keypoints: np.ndarray, how: str, width: float | None = None, height: float | None = None
) -> np.ndarray:
    """Pixels [T, 17, 2+] -> network input.

    "image": x / w * 2 - 1, y alike (VideoPose3D, MixSTE, MHFormer, HoT); "pixel": centred and divided by min(w, h) / 2
    (MotionBERT in the wild); "crop": the clip's bounding box to [-1, 1], needs no image size (MotionBERT).
    """
    if how not in NORMALISATIONS:
        raise ValueError(f"normalise_keypoints: expected one of {NORMALISATIONS}, got {how!r}")
    if how == "crop":
        return crop_scale_2d(keypoints).astype(np.float32)
    if width is None or height is None:
        raise ValueError(f"normalise_keypoints: {how!r} needs the image's width and height")
    if how == "image":
        return normalise_2d(keypoints, width, height).astype(np.float32)
    if width <= 0 or height <= 0:
        raise ValueError(f"normalise_keypoints: width and height must be positive, got {width} x {height}")
    out = np.array(keypoints, np.float32)
    out[..., :2] = (out[..., :2] - np.array([width, height], np.float32) / 2) / (min(width, height) / 2)
    return out


def _with_confidence(x: np.ndarray, channels: int) -> np.ndarray:
    if x.shape[-1] < channels:
        return np.concatenate([x, np.ones((*x.shape[:-1], 1), np.float32)], axis=-1)
    return x[..., :channels]


@functools.lru_cache(maxsize=2)  # preparing costs more than a short clip
def _engine(model: PrunableHost, device: str, precision: str) -> Engine:
    return Engine(model, device, precision, follow=True)


def lifting_engine(model: PrunableHost, precision: str, batch_size: int = 8) -> Engine:
    """The engine of a model on the device that it is on; the last two stay."""
    engine = _engine(model, str(next(model.parameters()).device), precision)
    if engine.buckets[-1] != batch_size:
        engine.set_batch(batch_size)
    return engine


@torch.inference_mode()
def _run(model: PrunableHost, windows: np.ndarray, flip: bool, precision: str, batch_size: int = 8) -> LiftedPose:
    engine = lifting_engine(model, precision, batch_size)
    return lift_windows(engine, torch.from_numpy(np.ascontiguousarray(windows, dtype=np.float32)), flip)


def lift_clip(
    model: PrunableHost,
    keypoints: np.ndarray,  # [T, 17, 2 or 3], normalised
    overlap: float = 0.5,
    flip: bool = True,
    batch_size: int = 8,
    precision: str = "fp32",
) -> LiftedClip:
    """3D poses of every frame of a clip of any length.

    seq2seq models run on windows that share `overlap` of their frames; where windows meet, poses are blended with
    weights that fall towards a window's ends. seq2frame models run once per frame, the frame in the middle. Short clips
    and ends are padded by repeating the first or last frame.

    Args:
        overlap: share of a window, 0 <= overlap < 1.
        flip: average with the mirrored pass (twice the time, slightly better).
        precision: of the matrix products: fp32, bf16 or fp16; bf16 pays on GPUs and on CPUs with bf16 units.
    """
    check_precision(precision)
    if keypoints.ndim != 3 or keypoints.shape[1] != 17 or keypoints.shape[2] not in (2, 3) or len(keypoints) == 0:
        raise ValueError(f"lift_clip: keypoints must be [T, 17, 2 or 3] with T >= 1, got {list(keypoints.shape)}")
    if not np.isfinite(keypoints).all():
        raise ValueError("lift_clip: keypoints hold NaN or infinity; fill gaps first (data/keypoints.py does)")
    if not 0 <= overlap < 1:
        raise ValueError(f"lift_clip: overlap must be in [0, 1), got {overlap}")
    frames, length = model.config.frames, len(keypoints)
    x = _with_confidence(keypoints, model.in_channels)
    centered = is_centered(model)
    slots = window_indices(length, frames, 1) if centered else covering_indices(length, frames, int(overlap * frames))
    kept = np.zeros(length, np.int64)
    poses = []
    for start in range(0, len(slots), batch_size):
        part = slots[start : start + batch_size]
        lifted = _run(model, x[part], flip, precision, batch_size)
        poses.append((center_pose(lifted, frames) if centered else lifted.pose).float().cpu().numpy())
        if lifted.index is not None:
            for row, index in zip(part, lifted.index.cpu().numpy()):
                kept[np.unique(row[index])] += 1
    pose = np.concatenate(poses)
    if not centered:
        if pose.shape[1] != frames:
            raise ValueError(
                f"lift_clip: the model recovers {pose.shape[1]} of {frames} frames; windows cannot be joined"
            )
        pose = blend_windows(pose, slots, length)
    return LiftedClip(pose - pose[:, :1], kept, len(slots))


def lift_at_rate(
    model: PrunableHost,
    keypoints: np.ndarray,  # [T, 17, 2 or 3], normalised
    fps: float,
    model_fps: float,
    overlap: float = 0.5,
    flip: bool = True,
    precision: str = "fp32",
) -> LiftedClip:
    """`lift_clip` at the model's frame rate: keypoints of `fps` are interpolated to `model_fps`, the poses back.

    `kept` then counts the clip's frame nearest to each kept one.
    """
    if fps <= 0 or model_fps <= 0:
        raise ValueError(f"lift_at_rate: frame rates must be positive, got {fps} and {model_fps}")
    length = len(keypoints)
    count = int((length - 1) * model_fps / fps) + 1
    if fps == model_fps or count < 2:
        return lift_clip(model, keypoints, overlap, flip, precision=precision)
    # the last frame of the clip lies at or after the last one of the model's, which is then held
    at = np.arange(count) * fps / model_fps
    lifted = lift_clip(model, at_times(keypoints, at), overlap, flip, precision=precision)
    kept = np.zeros(length, np.int64)
    np.add.at(kept, np.minimum(at.round().astype(np.int64), length - 1), lifted.kept)
    pose = at_times(lifted.pose, np.minimum(np.arange(length) * model_fps / fps, count - 1))
    return LiftedClip(pose, kept, lifted.windows)


class PoseStream:
    """Live lifting with a fixed latency: feed one frame, get the pose of the frame `latency` frames ago.

    A seq2seq model sees the last F frames and its output for the wanted one is taken; a seq2frame model sees a window
    whose middle is the wanted frame, with frames that have not come yet replaced by the newest. Every pose depends on
    frames up to `latency` ahead only, whatever the caller's speed.

    Example:
        >>> stream = PoseStream(model, latency=4, normalisation="image", width=1920, height=1080)  # doctest: +SKIP
        >>> for keypoints in camera: pose = stream.push(keypoints)  # None for the first 4 frames  # doctest: +SKIP
    """

    def __init__(
        self,
        model: PrunableHost,
        latency: int,
        normalisation: str = "image",
        width: float | None = None,
        height: float | None = None,
        flip: bool = False,
        precision: str = "fp32",
    ) -> None:
        frames = model.config.frames
        if not 0 <= latency < frames:
            raise ValueError(f"PoseStream: latency must be in 0..{frames - 1} (window - 1), got {latency}")
        if normalisation == "crop":
            raise ValueError("PoseStream: 'crop' needs the whole clip; use 'image' or 'pixel' with width and height")
        normalise_keypoints(
            np.zeros((1, 17, 2)), normalisation, width, height
        )  # complains now rather than at the first frame
        check_precision(precision)
        self.model, self.latency, self.flip, self.precision = model.eval(), latency, flip, precision
        self._normalise = lambda x: normalise_keypoints(x, normalisation, width, height)
        self._buffer: deque[np.ndarray] = deque(maxlen=2 * frames)
        self._count = 0
        self._given = 0
        lifting_engine(model, precision)

    @property
    def frames(self) -> int:
        return self.model.config.frames

    def push(self, keypoints: np.ndarray) -> np.ndarray | None:
        """keypoints [17, 2 or 3] in pixels -> pose [17, 3] of the frame `latency` pushes ago, None while there is
        none."""
        keypoints = np.asarray(keypoints, np.float32)
        if keypoints.shape[0] != 17 or keypoints.ndim != 2 or keypoints.shape[1] not in (2, 3):
            raise ValueError(f"PoseStream.push: keypoints must be [17, 2 or 3], got {list(keypoints.shape)}")
        if not np.isfinite(keypoints).all():
            raise ValueError("PoseStream.push: keypoints hold NaN or infinity; repeat the last good frame instead")
        self._buffer.append(_with_confidence(self._normalise(keypoints), self.model.in_channels))
        self._count += 1
        return self._pose(self._given) if self._count > self.latency else None

    def flush(self) -> list[np.ndarray]:
        """Poses of the last frames, which were waiting for their latency."""
        out = []
        while self._given < self._count:
            out.append(self._pose(self._given))
        return out

    def _pose(self, wanted: int) -> np.ndarray:
        newest = self._count - 1
        first = newest - len(self._buffer) + 1
        if is_centered(self.model):
            start, at = wanted - (self.frames - 1) // 2, (self.frames - 1) // 2
        else:
            start = newest - self.frames + 1
            at = wanted - start
        slots = np.clip(np.arange(start, start + self.frames), max(first, 0), newest) - first
        window = np.stack([self._buffer[i] for i in slots])[None]
        lifted = _run(self.model, window, self.flip, self.precision)
        pose = center_pose(lifted, self.frames)[0] if is_centered(self.model) else lifted.pose[0, at]
        self._given += 1
        points = pose.float().cpu().numpy()
        return points - points[:1]
