"""`tore-fast train motion`: FastHMR's motion prior (stage 1, a VAE) and the one-step denoiser on it (stage 2)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..train.config import TrainConfig
from ..train.motion import Stage2Config
from . import arguments
from ._train_options import TrainArgs, begin, build_model, model_name, run_task

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..train.motion import MotionClip, MotionDenoiserTask, MotionVAETask


@dataclass(kw_only=True)
class Args(TrainArgs):
    """Trains the motion prior on motion files, or with --motion-prior the denoiser, on files that also hold a
    regressor's features. The same command resumes a stopped run. Every tenth motion is measured; the last averaged
    weights are
    exported."""

    data: Path
    """Folder of motions. Prior: AMASS-like .npz (poses, betas, mocap_framerate), .bvh / .amc files, or clips.npz +
    index.json;
    denoiser: .npz that also hold tokens [F, C] (`tore-fast synth clips` writes them)."""
    motion_prior: Path | None = None
    """Checkpoint folder of stage 1: train stage 2, the denoiser, on it."""
    regressor: Path | None = None
    """Stage 2, not in the paper: checkpoint folder of the regressor whose features the files hold; the denoiser then
    learns to
    correct that regressor's own motion instead of making one from nothing."""
    loss: Stage2Config = field(default_factory=Stage2Config)
    """Stage 2."""
    up: str = "z"
    """z for AMASS world axes, camera for motions in camera axes."""
    body: str = "free"
    """Body for the rest skeleton: free, or a SMPL model file."""
    held_out: int = 10
    """Every how many-th motion is held out for the metric, with all its renderings."""
    frames: int = 243
    """Frames of a window."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(lr=1e-4, weight_decay=0.0, clip_norm=1.0))


def run(args: Args) -> int:
    from ..pipelines.hosts import RestSkeleton, load_named_body
    from ..train.motion import hold_out, read_motion_folder

    begin(args)
    with arguments(also=(TypeError,)):
        default = "fasthmr_motion_vae" if args.motion_prior is None else "fasthmr_motion"
        name = model_name(args, default)
        if args.motion_prior is None and args.regressor is not None:
            raise ValueError("--regressor: is for stage 2; give --motion-prior, the checkpoint folder of stage 1, too")
        clips = read_motion_folder(args.data, 30.0, args.up)
        parts = hold_out(clips, args.held_out)
        rest = RestSkeleton(load_named_body(args.body))
        task = (_prior if args.motion_prior is None else _denoiser)(args, name, parts, rest)
    print(f"clips: train {len(parts[0])}  held out {len(parts[1])}")
    facts = {"data": str(args.data), "frames": args.frames, "held_out_every": args.held_out}
    if args.motion_prior is not None:
        facts |= {"motion_prior": str(args.motion_prior), "loss": dataclasses.asdict(args.loss)}
    beside = getattr(task, "save_statistics", None)
    return run_task(args, task, name, facts=facts, beside=beside)


def _prior(args: Args, name: str, parts: tuple[list[MotionClip], list[MotionClip]], rest: Callable) -> MotionVAETask:
    from ..train.motion import MotionVAETask

    return MotionVAETask(build_model(args, name), *parts, rest, args.frames, args.train.seed)


def _denoiser(
    args: Args, name: str, parts: tuple[list[MotionClip], list[MotionClip]], rest: Callable
) -> MotionDenoiserTask:
    import torch

    from ..models import load
    from ..train.motion import MotionDenoiserTask, read_prior

    assert args.motion_prior is not None  # checked by the caller
    vae, mean, std = read_prior(args.motion_prior)
    sizes: dict[str, Any] = {f: getattr(vae.config, f) for f in SHARED}
    tokens = parts[0][0].tokens
    width = tokens.shape[1] if tokens is not None else 1024
    decided: dict[str, Any] = {
        "frames": args.frames,
        "condition_dim": width,
        "correct_host": args.regressor is not None,
    }
    model = build_model(args, name, **sizes, **decided)
    model.use_vae(vae, mean, std)
    if args.regressor is not None:
        model.host_motion.use_head(load(args.regressor).smpl_head, rest(torch.zeros(1, 10))[0])
    return MotionDenoiserTask(model, vae, *parts, rest, args.train.seed, args.loss)


# sizes of the prior that the denoiser shares
SHARED = ("latent_tokens", "latent_dim", "ff_size", "heads", "decoder_layers", "encoder_layers", "dist_mlp")
