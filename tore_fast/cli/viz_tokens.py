"""`tore-fast viz tokens photo.jpg`: which pixels each dynamic token stands for, as in the TCFormer paper."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from . import arguments
from ._options import ModelArgs, OutArgs


@dataclass(kw_only=True)
class Args(ModelArgs, OutArgs):
    """Draws the token regions of every stage beside the image (NAME_tokens.png)."""

    image: Positional[Path]
    """A photograph."""
    model: str = "tcformer_base"
    """A registered TCFormer (tore-fast list), or a checkpoint folder. Part-wise clustering: --set parts
    4,4,2,2,1,1 (rows and columns of parts for each merge)."""
    size: int = 224
    """Shorter side the image is scaled to before the model sees it."""
    features: bool = False
    """The tokens' features as a map (NAME_features.png) instead of the image's colours (figures 5c, 5d)."""
    seed: int = 0
    """Of the random weights, where none are given."""


def run(args: Args) -> int:
    import torch
    from PIL import Image

    from ..geometry.warp import normalise_image
    from ..io.atomic import replacing
    from ..io.image import read_image
    from ..pipelines.names import output_names
    from ..vis.tokens import token_panel

    with arguments():
        pixels = read_image(args.image)
        if args.size < 32:
            raise ValueError(f"--size: expected at least 32, got {args.size}")
        model = args.network()
        args.note_random("regions")
        backbone = getattr(model, "backbone", model)
        if not hasattr(backbone, "forward_features"):
            raise ValueError(f"--model: {args.model} has no dynamic tokens; expected a tcformer model")
        scale = args.size / min(pixels.shape[:2])
        height, width = (max(round(s * scale), 32) for s in pixels.shape[:2])
        small = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        pixels = read_image(small)
        with torch.no_grad():
            stages = backbone.forward_features(normalise_image(torch.from_numpy(pixels).permute(2, 0, 1))[None])
    with args.folder() as folder:
        name = output_names([args.image], folder, (".png",))[0]
        out = folder / f"{name}_{'features' if args.features else 'tokens'}.png"
        with arguments(f"--out: {out} cannot be written"), replacing(out) as part:
            Image.fromarray(token_panel(pixels, stages, features=args.features)).save(part)
    counts = [t.num_tokens for t in stages]
    text = f"{out}: " + ", ".join(f"stage {i}: {n}" for i, n in enumerate(counts, 1)) + " tokens"
    args.say({"image": str(out), "tokens": counts}, text)
    return 0
