"""`tore-fast viz tokens photo.jpg`: which pixels each dynamic token stands for, as in the TCFormer paper."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from . import arguments


@dataclass
class Args:
    """Draws the token regions of every stage beside the image."""

    image: Positional[Path]
    """A photograph."""
    model: str = "tcformer_base"
    """A registered TCFormer (tore-fast list), or a folder written by save_pretrained."""
    weights: Path | None = None
    """Official TCFormer file; its own sizes are used."""
    out: Path | None = None
    """PNG to write, or a folder for NAME_tokens.png; default: the current folder."""
    size: int = 224
    """Shorter side the image is scaled to before the model sees it."""
    parts: tuple[int, ...] = ()
    """Part-wise clustering: rows and columns of parts for each merge, e.g. 4 4 2 2 1 1."""
    seed: int = 0
    """Of the random weights, where none are given."""


def run(args: Args) -> int:
    import torch
    from PIL import Image

    from ..geometry.warp import normalise_image
    from ..io.image import read_image
    from ..models import create_model, load_pretrained
    from ..models.convert.keypoints import load_tcformer
    from ..vis.tokens import token_panel

    with arguments():
        pixels = read_image(args.image)
        if args.size < 32:
            raise ValueError(f"--size: expected at least 32, got {args.size}")
        overrides = {"parts": tuple(args.parts)} if args.parts else {}
        if args.weights is not None:
            model = load_tcformer(args.weights, **overrides)
        elif Path(args.model).is_dir():
            model = load_pretrained(args.model, **overrides)
        else:
            torch.manual_seed(args.seed)
            model = create_model(args.model, **overrides).eval()
            print("note: random weights (no --weights): the regions follow untrained features", file=sys.stderr)
        backbone = getattr(model, "backbone", model)
        if not hasattr(backbone, "forward_features"):
            raise ValueError(f"--model: {args.model} has no dynamic tokens; expected a tcformer model")
        scale = args.size / min(pixels.shape[:2])
        height, width = (max(round(s * scale), 32) for s in pixels.shape[:2])
        small = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        pixels = read_image(small)
        with torch.no_grad():
            stages = backbone.forward_features(normalise_image(torch.from_numpy(pixels).permute(2, 0, 1))[None])
    out = args.out or Path(".")
    if out.is_dir() or not out.suffix:
        out = out / f"{args.image.stem}_tokens.png"
    with arguments(f"--out: {out} cannot be written"):  # ValueError: Pillow does not know the suffix
        out.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(token_panel(pixels, stages)).save(out)
    print(f"{out}: " + ", ".join(f"stage {i}: {t.num_tokens}" for i, t in enumerate(stages, 1)) + " tokens")
    return 0
