"""Images of held-out synthetic images: the image, the built-in model's overlay, the mesh from the side.

    python -m tools.assets.readme_image docs/images/overlay.jpg                                    # README
    python -m tools.assets.readme_image docs/images/worst_body.jpg --set hard --worst              #
    docs/default_model.md python -m tools.assets.readme_image docs/images/worst_hand.jpg --model tore_default_hand --set
    hard --worst

The first six images of a held-out set as they come, no picking; with --worst the six of the first hundred with the
largest PA-MPJPE.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from PIL import Image

from tore_fast.body import load_body
from tore_fast.data.synth import generator_class, held_out
from tore_fast.eval.pose import p_mpjpe
from tore_fast.pipelines.images import ImagePipeline, ImageResult
from tore_fast.vis.overlay import panel

SIZE, COUNT, AMONG = 256, 6, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--model", default="tore_default", choices=["tore_default", "tore_default_hand"])
    parser.add_argument("--set", default="easy", choices=["easy", "hard"])
    parser.add_argument("--worst", action="store_true")
    args = parser.parse_args()
    body = load_body("free_hand" if args.model.endswith("hand") else "free")
    held = held_out(body)[args.set]
    generator = generator_class(body)(body, SIZE, held.seed, held.difficulty, split="test")
    pipeline = ImagePipeline(args.model)
    found: list[tuple[float, ImageResult]] = []
    for index in range(-(-AMONG // held.batch_size) if args.worst else 1):
        batch = generator.batch(index, held.batch_size)
        images = [p.permute(1, 2, 0).numpy() for p in batch["images"]]
        boxes = [[tuple(b.tolist())] for b in batch["box"]]
        count = len(images) if args.worst else COUNT
        for result, truth in zip(pipeline.predict(images[:count], boxes[:count]), batch["joints3d"]):
            joints = torch.as_tensor(result.people[0].joints_3d)
            found.append((p_mpjpe(joints[None], truth[None]).item() * 1000, result))
    if args.worst:
        found = sorted(found[:AMONG], key=lambda pair: -pair[0])[:COUNT]
    print("PA-MPJPE mm: " + ", ".join(f"{error:.0f}" for error, _ in found))
    faces = pipeline.topology.hierarchy.faces[0]
    rows = [
        panel(r.pixels, [p.vertices for p in r.people], faces, [p.camera_image for p in r.people]) for _, r in found
    ]
    columns = [np.concatenate(rows[i::2], 0) for i in range(2)]
    Image.fromarray(np.concatenate(columns, 1)).save(args.path, quality=72)


if __name__ == "__main__":
    main()
