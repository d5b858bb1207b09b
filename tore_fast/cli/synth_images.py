"""`tore-fast synth images`: writes synthetic training images of the licence-free body to disk (format:
data/synth/shards.py)."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import arguments


@dataclass
class Args:
    """Writes synthetic images with labels as npz shards; run the same command again to go on after an interruption."""

    out: Path
    """Folder for the shards."""
    n: int = 10_000
    """Number of images."""
    seed: int = 0
    """The same seed gives the same bytes, whatever the number of workers."""
    size: int = 224
    """Side of the square images in pixels."""
    workers: int = 1
    """Processes; each uses one core."""
    difficulty: float = 1.0
    """0 = upright people from the front, 1 = any pose and view, cut-off bodies, occluders."""
    split: Literal["train", "test"] = "train"
    """Random stream and background images."""
    backgrounds: str = "photos"
    """photos (scikit-image's licence-free images), noise, or a folder of images."""
    poses: str = ""
    """Real-motion poses: a file or folder of AMASS-like .npz or .bvh files."""
    bank_share: float = 0.5
    """Share of images with a pose from --poses."""
    shard_size: int = 512
    """Images per shard."""
    json: bool = False
    """Print the summary as JSON."""


def run(args: Args) -> int:
    from tqdm import tqdm

    from ..data.synth.shards import SynthSettings, write_shards

    settings = SynthSettings(
        args.seed,
        args.size,
        args.difficulty,
        args.split,
        args.backgrounds,
        args.poses,
        args.bank_share,
        args.shard_size,
    )
    start = time.perf_counter()
    with tqdm(total=args.n, unit="img", desc=str(args.out), disable=None) as bar:
        with arguments():
            made = write_shards(args.out, args.n, settings, args.workers, bar.update)
    time_s = time.perf_counter() - start
    size_mb = sum(p.stat().st_size for p in args.out.glob("shard-*.npz")) / 1e6
    text = (
        f"{args.n} images in {args.out} ({size_mb:.0f} MB); made {made} in {time_s:.1f} s = "
        f"{made / time_s:.0f} img/s with {args.workers} worker(s), start-up included"
    )
    facts = {"out": str(args.out), "images": args.n, "made": made, "megabytes": size_mb, "seconds": time_s}
    print(json.dumps(facts, indent=2) if args.json else text)
    return 0
