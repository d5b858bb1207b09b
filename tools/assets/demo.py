"""Renders the image with a known truth that `tore-fast demo` uses beside its photograph (tore_fast/pipelines/assets);
run once per generator.

    python -m tools.assets.demo [--index I]

The image is item I of the easy held-out stream at 448 pixels, so no training has seen it.
"""

from __future__ import annotations

import argparse

import numpy as np
from PIL import Image

from tore_fast.body import load_body
from tore_fast.data.synth import HELD_OUT, SynthGenerator
from tore_fast.pipelines.demo_image import ASSETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--size", type=int, default=448)
    args = parser.parse_args()
    held = HELD_OUT["easy"]
    generator = SynthGenerator(load_body("free"), args.size, held.seed, held.difficulty, split="test")
    batch = generator.batch(args.index // held.batch_size, held.batch_size)
    i = args.index % held.batch_size
    ASSETS.mkdir(exist_ok=True)
    image = batch["images"][i].permute(1, 2, 0).numpy()
    Image.fromarray(image).save(ASSETS / "demo.jpg", quality=90)
    np.savez_compressed(
        ASSETS / "demo_truth.npz",
        box=batch["box"][i].numpy(),
        vertices=batch["vertices"][i].numpy().astype(np.float16),
        joints_3d=batch["joints3d"][i].numpy().astype(np.float32),
    )
    print(f"{ASSETS}: demo.jpg {image.shape}, box {batch['box'][i].tolist()}")


if __name__ == "__main__":
    main()
