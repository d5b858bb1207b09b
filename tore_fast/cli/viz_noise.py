"""`tore-fast viz noise photo.jpg`: the mesh under noise on what the shape regressor reads (TORE, figure D6)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from . import arguments
from ._options import ModelArgs, OutArgs

LEVELS = (0.05, 0.075, 0.1)  # eval/nsr_noise.py's, which imports torch


@dataclass(kw_only=True)
class Args(ModelArgs, OutArgs):
    """Draws the meshes of one image side by side, without noise and with every level (NAME_noise.png); colours are the
    way that a vertex moved, violet 0 to yellow the most of its mesh."""

    image: Positional[Path]
    """A photograph of one person (or hand)."""
    levels: tuple[float, ...] = LEVELS
    """Deviations of the noise, as shares of the joint features' own."""
    repeats: int = 8
    """Draws of noise per level, over which the printed millimetres are averaged."""
    seed: int = 0
    """Of the noise, and of random weights."""


def run(args: Args) -> int:
    from ..pipelines.names import output_names
    from ..vis.overlay import save_png

    with arguments():
        canvas, moved = _draw(args)
    with args.folder() as folder:
        out = folder / f"{output_names([args.image], folder, ('.png',))[0]}_noise.png"
        save_png(canvas, out)
    text = f"{out}: " + ", ".join(f"{100 * level:g} % noise: {mm:.2f} mm" for level, mm in moved.items())
    args.say({"image": str(out), "moved_mm": {str(k): v for k, v in moved.items()}}, text)
    return 0


def _draw(args: Args) -> tuple[Any, dict[float, float]]:
    import numpy as np
    import torch

    from ..eval.nsr_noise import nsr_noise_test
    from ..geometry.warp import model_input
    from ..pipelines.images import ImagePipeline
    from ..vis.attention_maps import on_mesh, sheet

    if args.repeats < 1 or not args.levels or min(args.levels) <= 0:
        raise ValueError("--levels, --repeats: expected positive numbers")
    torch.manual_seed(args.seed)
    model: Any = args.network()
    args.note_random("meshes")
    if not hasattr(model, "transformer_3"):
        raise ValueError(f"--model {args.model}: no shape regressor; expected fastmetro_tore* or metro_tore*")
    pipeline = ImagePipeline(model, mesh_data=args.mesh_data, device="cpu")
    result = pipeline.predict([args.image], ["full" if args.is_random() else "auto"])[0]
    if result.error:
        raise ValueError(result.error)
    seen_by: Any = pipeline.body_model
    assert result.pixels is not None
    crop = model_input(result.pixels, result.people[0].crop, seen_by.image_size)[None]
    faces, tiles = pipeline.topology.hierarchy.faces[0], []
    moved = nsr_noise_test(model, crop, args.levels, args.repeats, args.seed)
    with torch.inference_mode():
        plain = model(crop).vertices[0].numpy()
        tiles.append((on_mesh(plain, faces, np.zeros(len(plain))), "no noise"))
        for level in args.levels:
            torch.manual_seed(args.seed)
            noisy = model(crop, nsr_noise=level).vertices[0].numpy()
            way = 1000 * np.linalg.norm(noisy - plain, axis=1)
            tiles.append((on_mesh(noisy, faces, way), f"{100 * level:g} % noise: mean {way.mean():.1f} mm"))
    return sheet(tiles, columns=len(tiles)), moved
