"""Images of what the built-in models answer.

    python -m tools.assets.readme_image docs/images/overlay.jpg
    python -m tools.assets.readme_image docs/images/worst_body.jpg --set hard --worst
    python -m tools.assets.readme_image docs/images/worst_hand.jpg --model tore_default_hand --set hard --worst

The first is the README's: the default (landmarks and fit) on the built-in portrait and on the first five images of
the easy held-out set, no picking: image, landmarks, body, the body from the side. The others, of docs/default_model.md:
a named model on the six of the first hundred images of a held-out set with the largest PA-MPJPE: image, overlay, the
mesh from the side.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from PIL import Image

from tore_fast.body import load_body
from tore_fast.data.synth import generator_class, held_out
from tore_fast.eval.pose import p_mpjpe
from tore_fast.pipelines.demo_image import portrait
from tore_fast.pipelines.images import ImagePipeline, ImageResult
from tore_fast.pipelines.photographs import PhotographPipeline
from tore_fast.pipelines.results import sheet
from tore_fast.vis.overlay import panel

SIZE, COUNT, AMONG = 256, 6, 100


def default_images() -> list[np.ndarray]:
    """A row an image: what the default makes of the portrait and of rendered people."""
    body = load_body("free")
    held = held_out(body)["easy"]
    batch = generator_class(body)(body, SIZE, held.seed, held.difficulty, split="test").batch(0, held.batch_size)
    pipeline = PhotographPipeline(device="cpu")
    square = np.asarray(Image.fromarray(portrait()).resize((SIZE, SIZE), Image.Resampling.LANCZOS))
    images = [square, *(p.permute(1, 2, 0).numpy() for p in batch["images"][: COUNT - 1])]
    rows = []
    for result in pipeline.predict(images):
        print([(round(p.score, 2), p.believed, p.reason) for p in result.people])
        nothing = np.concatenate([result.pixels, *[np.full_like(result.pixels, 236)] * 3], 1)
        rows.append(sheet(result, pipeline) if result.people else nothing)
    return rows


def worst_images(model: str, name: str) -> list[np.ndarray]:
    """A row an image: what a named model makes of those it is worst at."""
    body = load_body("free_hand" if model.endswith("hand") else "free")
    held = held_out(body)[name]
    generator = generator_class(body)(body, SIZE, held.seed, held.difficulty, split="test")
    pipeline = ImagePipeline(model)
    found: list[tuple[float, ImageResult]] = []
    for index in range(-(-AMONG // held.batch_size)):
        batch = generator.batch(index, held.batch_size)
        images = [p.permute(1, 2, 0).numpy() for p in batch["images"]]
        boxes = [[tuple(b.tolist())] for b in batch["box"]]
        for result, truth in zip(pipeline.predict(images, boxes), batch["joints3d"]):
            joints = torch.as_tensor(result.people[0].joints_3d)
            found.append((p_mpjpe(joints[None], truth[None]).item() * 1000, result))
    found = sorted(found[:AMONG], key=lambda pair: -pair[0])[:COUNT]
    print("PA-MPJPE mm: " + ", ".join(f"{error:.0f}" for error, _ in found))
    faces = pipeline.topology.hierarchy.faces[0]
    return [
        panel(r.pixels, [p.vertices for p in r.people], faces, [p.camera_image for p in r.people]) for _, r in found
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--model", default="tore_default", choices=["tore_default", "tore_default_hand"])
    parser.add_argument("--set", default="easy", choices=["easy", "hard"])
    parser.add_argument("--worst", action="store_true")
    args = parser.parse_args()
    rows = worst_images(args.model, args.set) if args.worst else default_images()
    columns = [np.concatenate(rows[i::2], 0) for i in range(2)]
    Image.fromarray(np.concatenate(columns, 1)).save(args.path, quality=72)


if __name__ == "__main__":
    main()
