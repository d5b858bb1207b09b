"""`tore-fast train fasthmr`: a small host on synthetic crops, FastHMR's motion prior (stage 1), its denoiser (stage 2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..train.config import TrainConfig
from ..train.motion import Stage2Config
from ..train.smpl import HostConfig
from . import UsageError, arguments


@dataclass
class Args:
    """Trains a host (--stage host), the motion VAE on motion files (vae), or the denoiser on files that also hold a host's
    features (denoiser; needs --vae). The same command resumes a stopped run.
    """

    data: Path
    """Folder of motions. vae: AMASS-like .npz (poses, betas, mocap_framerate), .bvh / .amc files, or clips.npz + index.json;
    host: the latter two; denoiser: .npz that also hold tokens [F, C] (`train fasthmr_clips` writes them)."""
    stage: str = ""
    """host, vae or denoiser; default: denoiser with --vae, else vae."""
    model: str = "hmr2_vitt"
    """Host to train."""
    host: HostConfig = field(default_factory=HostConfig)
    vae: Path | None = None
    """Checkpoint folder of stage 1: train stage 2 (the denoiser) on it."""
    correct: Path | None = None
    """Stage 2, not in the paper: checkpoint folder of the host whose features the files hold; the denoiser then learns to
    correct that host's own motion instead of making one from nothing."""
    loss: Stage2Config = field(default_factory=Stage2Config)
    up: str = "z"
    """z for AMASS world axes, camera for motions in camera axes."""
    body: str = "free"
    """Body for the rest skeleton: free, or a SMPL model file."""
    held_out: int = 10
    """Every how many-th motion is held out for the metric, with all its renderings."""
    frames: int = 243
    export: Path | None = None
    """Write the best weights here (default: OUT/model)."""
    extra: dict[str, int] = field(default_factory=dict)
    """Integer config fields of the model to change, KEY VALUE pairs."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(out="runs/fasthmr", lr=1e-4, weight_decay=0.0, clip_norm=1.0)
    )


def run(args: Args) -> int:
    import torch

    stage = args.stage or ("vae" if args.vae is None else "denoiser")
    if stage not in ("host", "vae", "denoiser") or (stage == "denoiser") != (args.vae is not None):
        raise UsageError(f"--stage must be host, vae or denoiser (with --vae), got {args.stage!r}")
    if stage == "host":
        return _train_host(args)
    from ..io.weights import read_weights
    from ..models import create_model, load_pretrained, save_pretrained
    from ..models.motion.vae import MotionVAE
    from ..pipelines.hosts import RestSkeleton, load_named_body
    from ..train.checkpoint import read_run
    from ..train.loop import train
    from ..train.motion import MotionDenoiserTask, MotionVAETask, hold_out, read_motion_folder

    with arguments():
        clips = read_motion_folder(args.data, 30.0, args.up)
        kept, held = hold_out(clips, args.held_out)
        rest = RestSkeleton(load_named_body(args.body))
        torch.manual_seed(args.train.seed)
        if args.vae is None:
            model = create_model("fasthmr_motion_vae", **args.extra)
            task, name = MotionVAETask(model, kept, held, rest, args.frames, args.train.seed), "fasthmr_motion_vae"
        else:
            vae = load_pretrained(args.vae)
            if not isinstance(vae, MotionVAE):
                raise ValueError(f"--vae: {args.vae} is not a motion VAE")
            stats = read_weights(args.vae / "statistics.pt")
            own = vae.config
            sizes = {
                "latent_tokens": own.latent_tokens,
                "latent_dim": own.latent_dim,
                "ff_size": own.ff_size,
                "heads": own.heads,
                "decoder_layers": own.decoder_layers,
                "encoder_layers": own.encoder_layers,
                "dist_mlp": own.dist_mlp,
                "correct_host": args.correct is not None,
            }
            width = clips[0].tokens.shape[1] if clips[0].tokens is not None else 1024
            model = create_model("fasthmr_motion", frames=args.frames, condition_dim=width, **{**sizes, **args.extra})
            model.use_vae(vae, stats["mean"], stats["std"])
            if args.correct is not None:
                model.host_motion.use_head(load_pretrained(args.correct).smpl_head, rest(torch.zeros(1, 10))[0])
            task, name = MotionDenoiserTask(model, vae, kept, held, rest, args.train.seed, args.loss), "fasthmr_motion"
    print(f"{name}: {len(kept)} clips, {len(held)} held out")
    train(task, args.train)
    best = read_run(Path(args.train.out) / "best.pt", ("model", "step", "metrics"))
    model.load_state_dict(best["model"])
    out = args.export or Path(args.train.out) / "model"
    save_pretrained(model.cpu(), out, name, metrics=best["metrics"], step=best["step"])
    if args.vae is None:
        torch.save({"mean": task.mean, "std": task.std}, out / "statistics.pt")
    print(f"{out}: step {best['step']}, {best['metrics']['joints_mm']:.1f} mm on held-out clips")
    return 0


def _train_host(args: Args) -> int:
    import dataclasses

    import torch

    from ..data.mocap import read_motions
    from ..data.synth.motion import motion_rotations
    from ..data.synth.poses import PoseBank
    from ..models import create_model, save_pretrained
    from ..pipelines.hosts import load_named_body
    from ..train.checkpoint import read_run
    from ..train.loop import train
    from ..train.smpl import HostTask

    with arguments(also=(TypeError,)):
        motions = read_motions(args.data)
        test = [i for i, m in enumerate(motions) if m.split == "test"] or list(range(0, len(motions), args.held_out))
        banks = [
            PoseBank(
                torch.cat(
                    [motion_rotations(m, max(1, round(m.fps / 10))) for i, m in enumerate(motions) if (i in test) == t]
                )
            )
            for t in (False, True)
        ]
        torch.manual_seed(args.train.seed)
        model = create_model(args.model, **args.extra)
        body = load_named_body(args.body)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    task = HostTask(model.to(device), body, args.host, *banks, device=device)
    print(f"{args.model}: {len(banks[0])} poses of motions to train on, {len(banks[1])} held out")
    train(task, args.train)
    # the averaged weights at the end, not the best on the held-out images: choosing there would flatter the numbers
    last = read_run(Path(args.train.out) / "last.pt", ("model", "step", "ema"))
    task.model.load_state_dict({**last["model"], **last["ema"].get("average", {})})
    metrics = task.evaluate(task.model.eval())
    out = args.export or Path(args.train.out) / "model"
    facts = {"step": last["step"], "losses": dataclasses.asdict(args.host), "training": dataclasses.asdict(args.train)}
    save_pretrained(model.cpu().eval(), out, args.model, metrics=metrics, trained_on=facts)
    print(f"{out}: step {last['step']}  " + "  ".join(f"{k} {v:.1f}" for k, v in metrics.items()))
    return 0
