"""Writes a image set of patterns for `tore-fast train classify`: OUT/{train,val}/<class>/<number>.png, 72x72 pixels.

Ten patterns in two random colours, bright on dark. Each is a scalar field cut at a random quantile, so the share of the
two colours is drawn alike for all classes, and colour statistics say nothing about the class (`--baseline` measures
that); only form does. Needs numpy and Pillow (the baseline torch); the same seed gives the same images.

    python -m tools.assets.patterns patterns/ --train 600 --val 60 --baseline
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 72
Field = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]  # x, y in periods of the pattern


def wave(t: np.ndarray) -> np.ndarray:
    return np.sin(2 * np.pi * t)


def blobs(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sum of waves in random directions."""
    angles, phases = rng.uniform(0, np.pi, 12), rng.uniform(0, 1, 12)
    return sum(wave(0.7 * (np.cos(a) * x + np.sin(a) * y) + p) for a, p in zip(angles, phases))


def rings(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    cx, cy = rng.uniform(0.3, 0.7, 2) * np.array([np.ptp(x), np.ptp(y)])
    return wave(np.hypot(x - x.min() - cx, y - y.min() - cy))


def spokes(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    cx, cy = rng.uniform(0.35, 0.65, 2) * np.array([np.ptp(x), np.ptp(y)])
    return wave(rng.integers(4, 9) * np.arctan2(y - y.min() - cy, x - x.min() - cx) / (2 * np.pi))


PATTERNS: dict[str, Field] = {
    "blobs": blobs,
    "checks": lambda x, y, rng: wave(x / 1.4) * wave(y / 1.4),
    "diagonal": lambda x, y, rng: wave((x + rng.choice([-1, 1]) * y) / 2**0.5),
    "dots": lambda x, y, rng: wave(x) + wave(0.5 * x + 0.866 * y) + wave(0.5 * x - 0.866 * y),
    "grid": lambda x, y, rng: np.maximum(wave(x / 1.4), wave(y / 1.4)),
    "horizontal": lambda x, y, rng: wave(y),
    "rings": rings,
    "spokes": spokes,
    "vertical": lambda x, y, rng: wave(x),
    "zigzag": lambda x, y, rng: wave(y + 0.8 * np.abs(2 * (0.6 * x % 1) - 1)),
}


def image(field: Field, rng: np.random.Generator) -> Image.Image:
    row, col = np.mgrid[:SIZE, :SIZE].astype(float) / rng.uniform(9, 15)
    turn = np.deg2rad(rng.uniform(-12, 12))
    x = np.cos(turn) * col - np.sin(turn) * row + rng.uniform(0, 1)
    y = np.sin(turn) * col + np.cos(turn) * row + rng.uniform(0, 1)
    value = field(x, y, rng) + rng.normal(0, 1e-3, x.shape)  # the noise splits ties at the cut
    inside = (value > np.quantile(value, rng.uniform(0.35, 0.65)))[..., None]
    dark = rng.uniform(0, 110, 3)
    bright = dark + rng.uniform(70, 140, 3)
    light = 1 + 0.3 * (
        np.linspace(-1, 1, SIZE)[:, None] * rng.uniform(-1, 1) + np.linspace(-1, 1, SIZE) * rng.uniform(-1, 1)
    )
    canvas = np.where(inside, bright, dark) * light[..., None] + rng.normal(0, 12, (SIZE, SIZE, 3))
    return Image.fromarray(canvas.clip(0, 255).round().astype(np.uint8))


def colour_baseline(folder: Path) -> float:
    """Accuracy in percent on val/ of a linear classifier over mean, spread and a 4x4x4 histogram of the colours."""
    import torch

    def split(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        rows, labels = [], []
        for label, place in enumerate(sorted((folder / name).iterdir())):
            for path in sorted(place.iterdir()):
                pixels = np.asarray(Image.open(path)).reshape(-1, 3)
                histogram = np.bincount((pixels // 64) @ [16, 4, 1], minlength=64) / len(pixels)
                rows.append(np.concatenate([pixels.mean(0) / 255, pixels.std(0) / 255, histogram]))
                labels.append(label)
        return torch.tensor(np.array(rows), dtype=torch.float32), torch.tensor(labels)

    x, y = split("train")
    test, truth = split("val")
    test, x = (test - x.mean(0)) / (x.std(0) + 1e-6), (x - x.mean(0)) / (x.std(0) + 1e-6)
    torch.manual_seed(0)
    model = torch.nn.Linear(x.shape[1], int(y.max()) + 1)
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=200)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y) + 1e-3 * model.weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return 100 * float((model(test).argmax(1) == truth).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=600, help="images per class")
    parser.add_argument("--val", type=int, default=60, help="held-out images per class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--baseline", action="store_true", help="also print what the colours alone tell")
    args = parser.parse_args()
    for label, (name, field) in enumerate(PATTERNS.items()):
        for stream, (split, count) in enumerate((("train", args.train), ("val", args.val))):
            place = args.out / split / name
            place.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                image(field, np.random.default_rng((args.seed, stream, label, i))).save(place / f"{i:05}.png")
    print(f"{args.out}: {len(PATTERNS)} classes, {args.train} + {args.val} images each")
    if args.baseline:
        print(
            f"linear classifier on colour statistics: {colour_baseline(args.out):.1f} % (chance "
            f"{100 / len(PATTERNS):.0f} %)"
        )


if __name__ == "__main__":
    main()
