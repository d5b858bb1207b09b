"""Contact sheet of overlays, to be looked at: what was found, what is not believed.

python -m studies.photographs.sheet PHOTOS OUT.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from tore_fast.io.image import find_images
from tore_fast.pipelines.photographs import PhotographPipeline
from tore_fast.pipelines.results import draw

TILE, LINE = 480, 14  # px


def tile(pixels, text: str) -> Image.Image:
    image = Image.fromarray(pixels)
    image.thumbnail((TILE, TILE))
    out = Image.new("RGB", (TILE, TILE + LINE), "white")
    out.paste(image, (0, LINE))
    ImageDraw.Draw(out).text((2, 1), text, fill="black")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--columns", type=int, default=4)
    args = parser.parse_args()
    paths, _ = find_images([args.photos])
    pipeline, tiles = PhotographPipeline(batch_size=1), []
    for path, result in zip(paths, pipeline.stream(paths)):
        believed = sum(bool(p.believed) for p in result.people)
        print(
            f"{path.name}: {len(result.people)} people, {believed} believed",
            *result.notes,
            result.error or "",
            sep="; ",
        )
        if result.error is None:
            tiles.append(
                tile(draw(result, pipeline), f"{path.name[:40]}  {len(result.people)} people, {believed} believed")
            )
    rows = -(-len(tiles) // args.columns)
    sheet = Image.new("RGB", (TILE * args.columns, (TILE + LINE) * rows), "white")
    for i, one in enumerate(tiles):
        sheet.paste(one, (i % args.columns * TILE, i // args.columns * (TILE + LINE)))
    sheet.save(args.out)
    print(f"{pipeline.counts['people']} people in {pipeline.counts['images']} images: {args.out}")


if __name__ == "__main__":
    main()
