"""Real motion rendered as clips of a person, and what a regressor makes of them: training data of FastHMR's stage 2,
test data of docs/smpl.md.

In: motions (data/mocap.py) on the free body; out: one `.npz` per clip with images and labels (`write_clips`), and one
with poses and a regressor's per-frame features (`write_tokens`, `write_view_tokens`), which train/motion.py:read_motion
takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...geometry.rotation import axis_angle_to_matrix
from ...geometry.warp import normalise_image
from ...io.atomic import write_arrays
from ...layers.mask_tome import ellipse_mask
from ..mocap import Motion
from .clips import ClipCrops
from .motion import mirror_rotations, motion_rotations

VIEW_STRIDE = 100_000  # between the random streams of a motion's renderings


class ClipImages(NamedTuple):
    """A rendered clip."""

    images: Tensor  # [F, 3, S, S] uint8
    masks: Tensor  # [F, S, S] bool
    poses: np.ndarray  # [F, 72] axis-angle, camera axes
    betas: np.ndarray  # [10]
    fps: float


def write_clips(
    motions: Sequence[Motion],
    crops: ClipCrops,
    folder: str | Path,
    fps: float = 30.0,
    frames: int | None = None,
    each: Callable[[Iterable], Iterable] = lambda x: x,
) -> list[Path]:
    """FOLDER/ID.npz per motion, at `fps`, at most `frames` frames from its middle; clips that are there stay."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, motion in enumerate(each(motions)):
        path = folder / f"{motion.id}.npz"
        paths.append(path)
        if path.exists():
            continue
        clip = render_clip(motion, crops, index, fps, frames)
        _save(path, images=clip.images.numpy(), masks=np.packbits(clip.masks.numpy(), -1), **_labels(clip))
    return paths


def render_clip(
    motion: Motion, crops: ClipCrops, index: int, fps: float = 30.0, frames: int | None = None, view: int = 0
) -> ClipImages:
    """A motion as images, at `fps`.

    Args:
        index: number of the motion; with `view` it decides shape, clothes, light and camera.
        frames: at most so many frames, of the middle (view 0) or from a random place on (other views).
        view: number of the rendering; odd ones show the mirrored motion.
    """
    rotations = motion_rotations(motion.resampled(fps))
    if frames is not None and len(rotations) > frames:
        last = len(rotations) - frames
        start = int(np.random.default_rng((crops.seed, index, view)).integers(last + 1)) if view else last // 2
        rotations = rotations[start : start + frames]
    if view % 2:
        rotations = mirror_rotations(rotations)
    clip = crops.clip(rotations, index + VIEW_STRIDE * view)
    return ClipImages(
        clip["images"].cpu(),
        (clip["mask"] > 0).cpu(),
        clip["pose"].flatten(1).cpu().numpy(),
        clip["betas"][0].cpu().numpy(),
        fps,
    )


def _labels(clip: ClipImages) -> dict[str, np.ndarray | float]:
    return {"poses": clip.poses, "betas": clip.betas, "mocap_framerate": clip.fps}


def read_clip(path: str | Path) -> ClipImages:
    """A file of `write_clips`."""
    with np.load(path, allow_pickle=False) as data:
        if "images" not in data.files:
            raise ValueError(f"{path}: not a rendered clip (no 'images')")
        images = torch.from_numpy(data["images"])
        masks = torch.from_numpy(np.unpackbits(data["masks"], -1, count=images.shape[-1]).astype(bool))
        return ClipImages(images, masks, data["poses"], data["betas"], float(data["mocap_framerate"]))


class ModelClip(NamedTuple):
    """A regressor's read-outs on a clip."""

    rotations: Tensor  # [F, 24, 3, 3]
    betas: Tensor  # [F, 10]
    tokens: Tensor  # [F, D]


@torch.inference_mode()
def run_model(model: nn.Module, clip: ClipImages, masks: str = "given", batch_size: int = 64) -> ModelClip:
    """The regressor on every frame; masks "ellipse" puts one in every crop, "none" withholds them (plain ToMe when
    tokens merge)."""
    if masks not in ("given", "ellipse", "none"):
        raise ValueError(f"run_model: masks must be given, ellipse or none, got {masks!r}")
    device = next(model.parameters()).device
    side = clip.masks.shape[-1]
    out = []
    for a in range(0, len(clip.images), batch_size):
        part = slice(a, a + batch_size)
        images = normalise_image(clip.images[part].to(device))
        own = clip.masks[part].to(device) if masks == "given" else None
        out.append(model(images, ellipse_mask(len(images), side, side, device) if masks == "ellipse" else own))
    fields = (torch.cat([getattr(o, k) for o in out]).float().cpu() for k in ("rotations", "betas", "token"))
    return ModelClip(*fields)


def write_tokens(
    model: nn.Module,
    clips: Sequence[Path],
    folder: str | Path,
    masks: str = "given",
    each: Callable[[Iterable], Iterable] = lambda x: x,
) -> list[Path]:
    """FOLDER/ID.npz per clip: poses, betas, mocap_framerate and the regressor's `tokens`; files that are there stay."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for source in each(clips):
        path = folder / source.name
        paths.append(path)
        if not path.exists():
            clip = read_clip(source)
            _save(path, tokens=run_model(model, clip, masks).tokens.numpy(), **_labels(clip))
    return paths


def write_view_tokens(
    model: nn.Module,
    motions: Sequence[Motion],
    crops: ClipCrops,
    folder: str | Path,
    views: int,
    fps: float = 30.0,
    frames: int | None = None,
    each: Callable[[Iterable], Iterable] = lambda x: x,
) -> list[Path]:
    """As write_tokens, of `views` renderings of every motion whose images are not kept: FOLDER/ID.npz is the clip of
    write_clips, FOLDER/ID.vNN.npz are others (`render_clip`). The key `motion` says which clips belong together."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for view, index in each([(v, i) for v in range(views) for i in range(len(motions))]):
        motion = motions[index]
        path = folder / (f"{motion.id}.v{view:02d}.npz" if view else f"{motion.id}.npz")
        paths.append(path)
        if not path.exists():
            clip = render_clip(motion, crops, index, fps, frames, view)
            _save(path, tokens=run_model(model, clip).tokens.numpy(), motion=np.array(motion.id), **_labels(clip))
    return paths


def _save(path: Path, **arrays: Any) -> None:
    write_arrays(path, arrays)


class ClipFrames(NamedTuple):
    """Frames spread evenly over rendered clips."""

    crops: Tensor  # [N, 3, S, S] normalised
    joints: Tensor  # [N, 24, 3] metres


def labelled_crops(folder: str | Path, count: int, joints: Callable[[Tensor, Tensor], Tensor]) -> ClipFrames:
    """About `count` frames of the clips in a folder, the same number of each clip, evenly spaced (as the paper
    calibrates).

    Args:
        joints: (rotations [B, 24, 3, 3], betas [B, 10]) -> joints in metres.

    Raises:
        ValueError: no rendered clip there.
    """
    paths = sorted(Path(folder).glob("*.npz"))
    if not paths:
        raise ValueError(f"{folder}: no rendered clip (.npz of `tore-fast synth clips`)")
    each = max(1, count // len(paths))
    crops, targets = [], []
    for path in paths:
        clip = read_clip(path)
        rows = torch.linspace(0, len(clip.images) - 1, min(each, len(clip.images))).round().long()
        crops.append(normalise_image(clip.images[rows]))
        rotations, betas = clip_truth(clip)
        targets.append(joints(rotations[rows], betas[rows]))
    return ClipFrames(torch.cat(crops)[:count], torch.cat(targets)[:count])


def clip_truth(clip: ClipImages) -> tuple[Tensor, Tensor]:
    """Rotations [F, 24, 3, 3] and betas [F, 10] of a clip's labels."""
    rotations = axis_angle_to_matrix(torch.from_numpy(clip.poses).unflatten(1, (24, 3)))
    return rotations, torch.from_numpy(clip.betas).expand(len(rotations), -1)
