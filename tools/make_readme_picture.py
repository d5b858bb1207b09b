"""The picture at the top of the README: held-out synthetic images, the built-in model's overlay, the mesh from the side.

    python tools/make_readme_picture.py docs/images/overlay.jpg

The first six images of the easy held-out set, as they come: no picking.
"""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image

from tore_fast.body import load_body
from tore_fast.data.synth import HELD_OUT, SynthGenerator
from tore_fast.pipelines.image_to_mesh import Pipeline
from tore_fast.vis.overlay import panel

SIZE, COUNT = 256, 6


def main(path: str) -> None:
    held = HELD_OUT["easy"]
    generator = SynthGenerator(load_body("free"), SIZE, held.seed, held.difficulty, split="test")
    batch = generator.batch(0, held.batch_size)
    images = [p.permute(1, 2, 0).numpy() for p in batch["images"][:COUNT]]
    boxes = [[tuple(b.tolist())] for b in batch["box"][:COUNT]]
    pipeline = Pipeline()
    faces = pipeline.topology.hierarchy.faces[0]
    rows = [
        panel(r.pixels, [p.vertices for p in r.people], faces, [p.camera_image for p in r.people])
        for r in pipeline.predict(images, boxes)
    ]
    columns = [np.concatenate(rows[i::2], 0) for i in range(2)]
    Image.fromarray(np.concatenate(columns, 1)).save(path, quality=85)


if __name__ == "__main__":
    main(sys.argv[1])
