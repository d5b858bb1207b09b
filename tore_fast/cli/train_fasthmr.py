"""`tore-fast train fasthmr`: FastHMR's motion prior (stage 1) and one-step denoiser (stage 2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..train.loop import TrainConfig
from . import arguments


@dataclass
class Args:
    """Trains the motion VAE on motion files; with --vae, the denoiser on files that also hold a host's features.

    The same command resumes a stopped run.
    """

    data: Path
    """Folder of AMASS-like .npz files (poses, betas, mocap_framerate; stage 2: also tokens [F, C])."""
    vae: Path | None = None
    """Checkpoint folder of stage 1: train stage 2 (the denoiser) on it."""
    up: str = "z"
    """z for AMASS world axes, camera for motions in camera axes."""
    body: str = "free"
    """Body for the rest skeleton: free, or a SMPL model file."""
    held_out: int = 10
    """Every how many-th file is held out for the metric."""
    frames: int = 243
    export: Path | None = None
    """Write the best weights here (default: OUT/model)."""
    extra: dict[str, int] = field(default_factory=dict)
    """Integer config fields of the model to change, KEY VALUE pairs."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(out="runs/fasthmr", lr=1e-4, weight_decay=0.0, clip_norm=1.0))


def run(args: Args) -> int:
    import torch

    from ..models import create_model, load_pretrained, save_pretrained
    from ..models.motion_vae import MotionVAE
    from ..pipelines.hosts import RestSkeleton, load_named_body
    from ..train.fasthmr_motion import MotionDenoiserTask, MotionVAETask, read_motion
    from ..train.loop import train

    with arguments():
        paths = sorted(args.data.rglob("*.npz"))
        if len(paths) < 2:
            raise ValueError(f"{args.data}: needs at least two .npz files, found {len(paths)}")
        clips = [read_motion(p, 30.0, args.up) for p in paths]
        kept = [c for i, c in enumerate(clips) if i % args.held_out]
        held = [c for i, c in enumerate(clips) if not i % args.held_out]
        rest = RestSkeleton(load_named_body(args.body))
        torch.manual_seed(args.train.seed)
        if args.vae is None:
            model = create_model("fasthmr_motion_vae", **args.extra)
            task, name = MotionVAETask(model, kept, held, rest, args.frames, args.train.seed), "fasthmr_motion_vae"
        else:
            vae = load_pretrained(args.vae)
            if not isinstance(vae, MotionVAE):
                raise ValueError(f"--vae: {args.vae} is not a motion VAE")
            stats = torch.load(args.vae / "statistics.pt", weights_only=True)
            own = vae.config
            sizes = {"latent_tokens": own.latent_tokens, "latent_dim": own.latent_dim, "ff_size": own.ff_size,
                     "heads": own.heads, "decoder_layers": own.decoder_layers}  # fmt: skip
            width = clips[0].tokens.shape[1] if clips[0].tokens is not None else 1024
            model = create_model("fasthmr_motion", frames=args.frames, condition_dim=width, **{**sizes, **args.extra})
            model.use_vae(vae, stats["mean"], stats["std"])
            task, name = MotionDenoiserTask(model, vae, kept, held, rest, args.train.seed), "fasthmr_motion"
    print(f"{name}: {len(kept)} clips, {len(held)} held out")
    train(task, args.train)
    best = torch.load(Path(args.train.out) / "best.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(best["model"])
    out = args.export or Path(args.train.out) / "model"
    save_pretrained(model.cpu(), out, name, metrics=best["metrics"], step=best["step"])
    if args.vae is None:
        torch.save({"mean": task.mean, "std": task.std}, out / "statistics.pt")
    print(f"{out}: step {best['step']}, {best['metrics']['joints_mm']:.1f} mm on held-out clips")
    return 0
