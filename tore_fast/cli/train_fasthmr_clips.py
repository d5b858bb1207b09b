"""`tore-fast train fasthmr_clips`: motion files rendered as clips, and a host's features on them (the denoiser's data)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import arguments


@dataclass
class Args:
    """Renders real motion on the free body as video crops, and with --host writes that host's tokens for every frame.

    Clips that are there already are kept, so an interrupted run goes on.
    """

    data: Path
    """Folder with clips.npz + index.json, or .bvh / .amc files."""
    out: Path | None = None
    """Folder for the clips: OUT/ID.npz (images, masks, poses in camera axes); none: only the tokens are kept."""
    split: str = "train"
    """train or test; motions without a split count as train."""
    fps: float = 30.0
    frames: int | None = None
    """At most so many frames of a motion, from its middle."""
    motions: int | None = None
    """At most so many motions."""
    image_size: int = 128
    margin: float = 1.15
    """Square side over box height, as the host was trained."""
    difficulty: float = 0.1
    seed: int = 21
    host: Path | None = None
    """Checkpoint folder of a host (possibly layer-merged): also write its tokens."""
    tokens: Path | None = None
    """Folder for the tokens, files as `train fasthmr --vae` takes them."""
    keep_tokens: int | None = None
    """Mask-ToMe down to this many tokens while the host runs."""
    views: int = 1
    """Without --out: renderings of every motion, each with its own person, light and camera; every second one is mirrored."""
    merge_per_block: int | None = None
    """At most so many merges per block; none: as the host was saved (40)."""


def run(args: Args) -> int:
    from tqdm import tqdm

    from ..body import load_body
    from ..data.mocap import read_motions
    from ..data.synth.clips import ClipCrops
    from ..layers.prepared import prepare
    from ..pipelines import synth_clips
    from ..pipelines.hosts import load_host

    with arguments():
        if args.split not in ("train", "test"):
            raise ValueError(f"--split must be train or test, got {args.split!r}")
        if (args.host is None) != (args.tokens is None):
            raise ValueError("--host and --tokens belong together")
        if args.out is None and args.host is None:
            raise ValueError("give --out for the images, --host and --tokens for a host's features, or both")
        if args.views < 1 or (args.views > 1 and args.out is not None):
            raise ValueError(f"--views must be at least 1, and 1 with --out, got {args.views}")
        motions = [m for m in read_motions(args.data) if (m.split or "train") == args.split][: args.motions]
        if not motions:
            raise ValueError(f"{args.data}: no motion of the split {args.split!r}")
        crops = ClipCrops(
            load_body("free"), args.image_size, args.seed, args.difficulty, split=args.split, margin=args.margin
        )
        host = load_host(str(args.host))[1] if args.host is not None else None
    if host is not None:
        if args.keep_tokens is not None:
            host.keep_tokens(args.keep_tokens, args.merge_per_block)
        prepare(host)
    if args.out is None:
        written = synth_clips.write_view_tokens(
            host, motions, crops, args.tokens, args.views, args.fps, args.frames, lambda x: tqdm(x, desc="views")
        )
    else:
        paths = synth_clips.write_clips(
            motions, crops, args.out, args.fps, args.frames, lambda x: tqdm(x, desc="clips")
        )
        print(f"{args.out}: {len(paths)} clips")
        written = (
            synth_clips.write_tokens(host, paths, args.tokens, each=lambda x: tqdm(x, desc="tokens"))
            if host is not None
            else []
        )
    if written:
        print(f"{args.tokens}: tokens of {len(written)} clips")
    return 0
