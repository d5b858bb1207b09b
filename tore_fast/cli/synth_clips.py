"""`tore-fast synth clips`: motion files rendered as clips, and a regressor's features on them (data of
`train motion`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import arguments


@dataclass
class Args:
    """Renders real motion on the free body as video crops, and with --model writes that regressor's tokens for every
    frame.

    Clips that are there already are kept, so an interrupted run goes on.
    """

    data: Path
    """Folder with clips.npz + index.json, or .bvh / .amc files."""
    out: Path | None = None
    """Folder for the clips: OUT/ID.npz (images, masks, poses in camera axes); none: only the tokens are kept."""
    split: str = "train"
    """train or test; motions without a split count as train."""
    fps: float = 30.0
    """Frames per second of the clips."""
    frames: int | None = None
    """At most so many frames of a motion, from its middle."""
    motions: int | None = None
    """At most so many motions."""
    image_size: int = 128
    """Side of the square images in pixels."""
    margin: float = 1.15
    """Square side over box height, as the regressor was trained."""
    difficulty: float = 0.1
    """Of views, occlusion and backgrounds, 0..1."""
    seed: int = 21
    """Of shapes, clothes, light and cameras."""
    model: Path | None = None
    """Checkpoint folder of a regressor (possibly layer-merged): also write its tokens."""
    tokens: Path | None = None
    """Folder for the tokens, files as `train motion --motion-prior` takes them."""
    keep_tokens: int | None = None
    """Mask-ToMe down to this many tokens while the regressor runs."""
    views: int = 1
    """Without --out: renderings of every motion, each with its own person, light and camera; every second one is
    mirrored."""
    merge_per_block: int | None = None
    """At most so many merges per block; none: as it was saved (40)."""


def run(args: Args) -> int:
    from tqdm import tqdm

    from ..body import load_body
    from ..data.mocap import read_motions
    from ..data.synth import rendered
    from ..data.synth.clips import ClipCrops
    from ..layers.prepared import prepare
    from ..models import load

    with arguments():
        if args.split not in ("train", "test"):
            raise ValueError(f"--split must be train or test, got {args.split!r}")
        if (args.model is None) != (args.tokens is None):
            raise ValueError("--model and --tokens belong together")
        if args.out is None and args.model is None:
            raise ValueError("give --out for the images, --model and --tokens for a regressor's features, or both")
        if args.views < 1 or (args.views > 1 and args.out is not None):
            raise ValueError(f"--views must be at least 1, and 1 with --out, got {args.views}")
        motions = [m for m in read_motions(args.data) if (m.split or "train") == args.split][: args.motions]
        if not motions:
            raise ValueError(f"{args.data}: no motion of the split {args.split!r}")
        crops = ClipCrops(
            load_body("free"), args.image_size, args.seed, args.difficulty, split=args.split, margin=args.margin
        )
        model = load(args.model) if args.model is not None else None
        if model is not None and not hasattr(model, "smpl_head"):
            raise ValueError(
                f"--model {args.model}: expected a regressor of body parameters (hmr2_*, camerahmr_*, fasthmr_*)"
            )
    if model is not None:
        if args.keep_tokens is not None:
            model.keep_tokens(args.keep_tokens, args.merge_per_block)
        prepare(model)
    written: list[Any] = []
    if args.out is None:
        assert model is not None and args.tokens is not None  # checked above
        written = rendered.write_view_tokens(
            model, motions, crops, args.tokens, args.views, args.fps, args.frames, lambda x: tqdm(x, desc="views")
        )
    else:
        paths = rendered.write_clips(motions, crops, args.out, args.fps, args.frames, lambda x: tqdm(x, desc="clips"))
        print(f"{args.out}: {len(paths)} clips")
        if model is not None and args.tokens is not None:
            written = rendered.write_tokens(model, paths, args.tokens, each=lambda x: tqdm(x, desc="tokens"))
    if written:
        print(f"{args.tokens}: tokens of {len(written)} clips")
    return 0
