"""`tore-fast viz keypoints photo.jpg`: key points of a heat-map model (TCFormer, PPT), drawn on the photograph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from . import arguments
from ._options import ModelArgs, OutArgs


@dataclass(kw_only=True)
class Args(ModelArgs, OutArgs):
    """Draws one person's or face's key points and writes NAME_keypoints.png and NAME_keypoints.json."""

    image: Positional[Path]
    """A photograph."""
    model: str = "tcformer_base_wholebody"
    """A registered heat-map model (tore-fast list --tag keypoints), or a checkpoint folder."""
    box: tuple[float, float, float, float] | None = None
    """x0 y0 x1 y1 pixels of the person or face; default: the whole image."""
    threshold: float = 0.3
    """Points with a smaller score are not drawn."""
    seed: int = 0
    """Of the random weights, where none are given."""


def run(args: Args) -> int:
    import json

    from ..io.atomic import write_text
    from ..pipelines.names import output_names
    from ..vis.overlay import save_png

    with arguments():
        canvas, points, scores = _draw(args)
    with args.folder() as folder:
        name = output_names([args.image], folder, (".png",))[0]
        out = folder / f"{name}_keypoints.png"
        save_png(canvas, out)
        rows = {"points": points.round(2).tolist(), "scores": scores.round(4).tolist()}
        write_text(folder / f"{name}_keypoints.json", json.dumps(rows))
    drawn = int((scores >= args.threshold).sum())
    args.say({"image": str(out), "drawn": drawn, **rows}, f"{out}: {drawn} of {len(points)} points drawn")
    return 0


def _draw(args: Args) -> tuple[Any, Any, Any]:
    import numpy as np
    import torch

    from ..data.topdown import Instance
    from ..eval.keypoint_metrics import batch_keypoints
    from ..geometry.warp import normalise_image, warp
    from ..io.image import read_image
    from ..models import model_entry
    from ..vis.keypoints import draw_keypoints

    pixels = read_image(args.image)
    torch.manual_seed(args.seed)
    model: Any = args.network()
    args.note_random("points")
    facts = getattr(model, "facts", None)
    if facts is None or facts.task != "keypoints" or facts.crop != "topdown":
        raise ValueError(
            f"--model {args.model}: no heat maps of key points; expected tcformer_*_wholebody, *_wflw, ppt_*"
        )
    named = args.model if not Path(args.model).exists() else "tcformer_base_wholebody"
    size = tuple(getattr(model.config, "image_size", None) or model_entry(named).input_shape[1:])
    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = args.box or (0.0, 0.0, float(width), float(height))
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"--box: expected x0 < x1 and y0 < y1, got {args.box}")
    person = Instance(args.image, 0, (x0, y0, x1 - x0, y1 - y0), np.zeros((1, 3)), 0.0, 1.0, 0)
    crop = person.crop(size)
    image = normalise_image(torch.from_numpy(np.array(warp(pixels, crop, size, "affine"))).permute(2, 0, 1))[None]
    center, extent = (torch.tensor(np.asarray(v), dtype=torch.float32)[None] for v in (crop.center, crop.size))
    points, scores = batch_keypoints(model, image, center, extent, None)
    points, scores = points[0].numpy(), scores[0].numpy()
    return draw_keypoints(pixels, [points], [scores], args.threshold), points, scores
