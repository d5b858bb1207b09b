"""Draws docs/images/synthetic_samples.jpg: rows of growing difficulty from the final generator."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image

from tore_fast.body import load_body
from tore_fast.data.synth import SynthGenerator

COLUMNS, SIZE = 8, 144
ROWS = (0.0, 0.4, 1.0, 1.0)


def main(path: str = "docs/images/synthetic_samples.jpg") -> None:
    generator = SynthGenerator(load_body("free"), SIZE, seed=2)
    rows = [generator.batch(i, COLUMNS, difficulty)["images"] for i, difficulty in enumerate(ROWS)]
    grid = torch.cat([torch.cat(list(row), 2) for row in rows], 1)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid.permute(1, 2, 0).numpy()).save(path, quality=82, optimize=True)
    print(f"{path}: {Path(path).stat().st_size / 1000:.0f} kB; rows: difficulty {', '.join(map(str, ROWS))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
