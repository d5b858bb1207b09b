"""Time of what each speed-up of `tore_fast.accelerate` leaves out, at SAM 3D Body's sizes, on re-creations of tests/.

    python tools/accelerate_shares.py [--json benchmarks/results/cpu_accelerate_shares.json]

Milliseconds of one image with one person, with and without the speed-up; medians, in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tore_fast.accelerate import speedups

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from made_up import foreign_body, foreign_vit  # noqa: E402

BLOCKS, WIDTH, GRID = 32, 1280, 32


def timed(plain: Callable[[], Any], fast: Callable[[], Any], seconds: float = 2.0) -> dict[str, float]:
    """Medians in ms of both."""
    found: dict[str, list[float]] = {"before_ms": [], "after_ms": []}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found["before_ms"]) < 5:
        for key, run in (("before_ms", plain), ("after_ms", fast)):
            start = time.perf_counter()
            run()
            found[key].append(1000 * (time.perf_counter() - start))
    return {k: statistics.median(v[1:]) for k, v in found.items()}


def repeat(run: Callable[[], Any], times: int) -> Callable[[], None]:
    def all_of_them() -> None:
        for _ in range(times):
            run()

    return all_of_them


@torch.no_grad()
def shares() -> dict[str, dict[str, float]]:
    rope = foreign_vit.Rope(64)
    kept = speedups._Remembered(rope.eval())
    out = {
        "rope_table": timed(repeat(lambda: rope(H=GRID, W=GRID), BLOCKS), repeat(lambda: kept(H=GRID, W=GRID), BLOCKS))
    }
    # the product itself costs the same in both; what is left out is the masking of the bias
    qkv = foreign_vit.MaskedBias(WIDTH)
    folded = qkv.bias * qkv.bias_mask
    out["k_bias"] = timed(repeat(lambda: qkv.bias * qkv.bias_mask, BLOCKS), repeat(lambda: folded, BLOCKS))
    foreign_body.DIM = WIDTH
    prompts = foreign_body.Prompts()
    table = speedups._PromptTable(prompts)
    points, labels = torch.rand(1, 4, 2), torch.tensor([[41.0, 62, 8, 7]])
    plain, fast = prompts._embed_keypoints, table.__call__
    out["prompt_table"] = timed(repeat(lambda: plain(points, labels), 4), repeat(lambda: fast(points, labels), 4))
    camera = foreign_body.Fourier()
    camera.num_bands, camera.max_resolution = 16, [64] * 3
    rays, quick = torch.rand(1, GRID * GRID, 3), speedups._RayFeatures(camera)
    out["ray_features"] = timed(repeat(lambda: camera(rays), 4), repeat(lambda: quick(rays), 4))
    mapping, skin = torch.randn(308, 18566), torch.randn(18566, 3)
    few = mapping[: speedups.KEYPOINTS]
    out["keypoint_rows"] = timed(repeat(lambda: mapping @ skin, 26), repeat(lambda: few @ skin, 26))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": "cpu", "shares": shares()}
    for name, row in found["shares"].items():
        print(f"{name:16} {row['before_ms']:8.2f} ms -> {row['after_ms']:8.2f} ms")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
