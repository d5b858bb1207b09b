"""`tore-fast train smpl`: TCFormer's body-parameter regressor on synthetic people."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..train.loop import TrainConfig
from . import arguments


@dataclass
class Args:
    """Trains (or tests) pose, shape and camera regression on images of the free body; the same command resumes."""

    model: str = "tcformer_light_hmr"
    """tcformer_light_hmr or tcformer_base_hmr."""
    options: dict[str, str] = field(default_factory=dict)
    """Fields of the model's config as NAME VALUE pairs: reduction conv neck none depths 1,1,1,1 ..."""
    image_size: int = 112
    difficulty: float = 0.5
    """Of poses, views, occlusion and backgrounds, 0..1."""
    checkpoint: Path | None = None
    """Start from (or test) a folder of ours."""
    test: bool = False
    """Only print the metrics on held-out images."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(lr=2.5e-4, schedule="constant", weight_decay=0.0, clip_norm=1.0))
    export: Path | None = None
    """Write the trained model here as a checkpoint folder."""


def run(args: Args) -> int:
    import torch

    from ..body import load_body
    from ..train.tcformer_synth import synth_body_recovery
    from ._training import finish, start_model

    torch.manual_seed(args.train.seed)
    with arguments():
        model = start_model(args.model, args.checkpoint, args.options)
        task = synth_body_recovery(model, load_body("free"), args.image_size, args.difficulty, args.train.seed + 1)
    return finish(task, args, {"data": "synth", "difficulty": args.difficulty})
