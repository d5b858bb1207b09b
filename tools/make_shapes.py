"""Writes a picture set of shapes for `tore-fast train classify`: OUT/{train,val}/<class>/<number>.png, 72x72 pixels.

Ten shapes of equal area with random place, size, turn and colour on a random smooth background with stripes of clutter:
mean and spread of the colours say nothing about the class, only form does (`--baseline` measures that). Needs numpy and
Pillow; the same seed gives the same pictures.

    python tools/make_shapes.py shapes/ --train 600 --val 60 --baseline
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZE, SCALE = 72, 3  # drawn three times as large: smooth edges
AREA = 0.055 * (SIZE * SCALE) ** 2  # of every shape at zoom 1


def polygon(angles_deg, radii) -> np.ndarray:
    a = np.deg2rad(np.asarray(angles_deg, float))
    return np.stack([np.cos(a), np.sin(a)], 1) * np.asarray(radii, float)[:, None]


def outlines() -> dict[str, list[tuple[np.ndarray, bool]]]:
    """Shape name -> outlines [P, 2] and whether each is filled (True) or cut out (False)."""
    circle = polygon(np.arange(0, 360, 6), np.ones(60))
    star = polygon(np.arange(0, 360, 36), np.tile([1.0, 0.42], 5))
    bar = np.array([[-1, -0.33], [1, -0.33], [1, 0.33], [-1, 0.33]])
    return {
        "arrow": [(np.array([[-1, -0.3], [0, -0.3], [0, -0.8], [1, 0], [0, 0.8], [0, 0.3], [-1, 0.3]]), True)],
        "bar": [(bar, True)],
        "crescent": [(circle, True), (circle * 0.85 + [0.5, 0], False)],
        "cross": [(bar, True), (bar[:, ::-1], True)],
        "disc": [(circle, True)],
        "hook": [(np.array([[-0.8, -1], [-0.2, -1], [-0.2, 0.4], [0.9, 0.4], [0.9, 1], [-0.8, 1]]), True)],
        "pair": [(circle * 0.5 - [0.7, 0], True), (circle * 0.5 + [0.7, 0], True)],
        "ring": [(circle, True), (circle * 0.6, False)],
        "star": [(star, True)],
        "triangle": [(polygon([0, 120, 240], [1, 1, 1]), True)],
    }


def shape_mask(parts: list[tuple[np.ndarray, bool]], rng: np.random.Generator) -> np.ndarray:  # [S, S] 0..1
    side = SIZE * SCALE
    unit = Image.new("1", (200, 200))
    _draw(unit, parts, np.eye(2) * 70, np.full(2, 100.0))
    zoom = rng.uniform(0.75, 1.3) * np.sqrt(AREA / np.asarray(unit).sum()) * 70
    turn = rng.uniform(0, 2 * np.pi)
    linear = zoom * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    reach = max(np.abs(points @ linear.T).max() for points, _ in parts)
    mask = Image.new("1", (side, side))
    _draw(mask, parts, linear, rng.uniform(reach, side - reach, 2))
    return np.asarray(mask, np.float32).reshape(SIZE, SCALE, SIZE, SCALE).mean((1, 3))


def _draw(mask: Image.Image, parts, linear: np.ndarray, centre: np.ndarray) -> None:
    pen = ImageDraw.Draw(mask)
    for points, filled in parts:
        pen.polygon([tuple(p) for p in points @ linear.T + centre], fill=int(filled))


def picture(parts, rng: np.random.Generator) -> Image.Image:
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    canvas = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32)
    clutter = Image.fromarray(canvas.astype(np.uint8))
    pen = ImageDraw.Draw(clutter)
    for _ in range(rng.integers(2, 6)):
        ends = [tuple(p) for p in rng.uniform(0, SIZE, (2, 2))]
        pen.line(ends, tuple(int(c) for c in rng.integers(0, 256, 3)), int(rng.integers(1, 4)))
    canvas = np.asarray(clutter, np.float32)
    mask = shape_mask(parts, rng)[..., None]
    behind = (canvas * mask).sum((0, 1)) / mask.sum()
    colour = rng.uniform(0, 255, 3)
    while np.abs(colour - behind).mean() < 50:  # a shape nobody can see has no class
        colour = rng.uniform(0, 255, 3)
    canvas = canvas * (1 - mask) + colour * mask + rng.normal(0, 8, canvas.shape)
    return Image.fromarray(canvas.clip(0, 255).round().astype(np.uint8))


def colour_baseline(folder: Path) -> float:
    """Accuracy in percent on val/ of a linear classifier over mean, spread and a 4x4x4 histogram of the colours."""
    import torch

    def split(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        rows, labels = [], []
        for label, place in enumerate(sorted((folder / name).iterdir())):
            for path in sorted(place.iterdir()):
                pixels = np.asarray(Image.open(path)).reshape(-1, 3)
                bins = (pixels // 64) @ [16, 4, 1]
                histogram = np.bincount(bins, minlength=64) / len(bins)
                rows.append(np.concatenate([pixels.mean(0) / 255, pixels.std(0) / 255, histogram]))
                labels.append(label)
        return torch.tensor(np.array(rows), dtype=torch.float32), torch.tensor(labels)

    x, y = split("train")
    test, truth = split("val")
    test, x = (test - x.mean(0)) / (x.std(0) + 1e-6), (x - x.mean(0)) / (x.std(0) + 1e-6)
    torch.manual_seed(0)
    model = torch.nn.Linear(x.shape[1], int(y.max()) + 1)
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=200)

    def closure():
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y) + 1e-3 * model.weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return 100 * float((model(test).argmax(1) == truth).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=600, help="pictures per class")
    parser.add_argument("--val", type=int, default=60, help="held-out pictures per class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--baseline", action="store_true", help="also print what the colours alone tell")
    args = parser.parse_args()
    for label, (name, parts) in enumerate(outlines().items()):
        for stream, (split, count) in enumerate((("train", args.train), ("val", args.val))):
            place = args.out / split / name
            place.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                picture(parts, np.random.default_rng((args.seed, stream, label, i))).save(place / f"{i:05}.png")
    print(f"{args.out}: {len(outlines())} classes, {args.train} + {args.val} pictures each")
    if args.baseline:
        print(f"linear classifier on colour statistics: {colour_baseline(args.out):.1f} % (chance {100 / len(outlines()):.0f} %)")


if __name__ == "__main__":
    main()
