"""Milliseconds by stage of one photograph, from file to result, nothing written; and a person in batches.

    python -m studies.photographs.times PHOTO [--threads 2] [--batch 32] [--repeat 20]

Median of the repeats. The machine must be otherwise idle.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tore_fast.body.fit import fit_body
from tore_fast.io.image import read_image
from tore_fast.pipelines.people import joined
from tore_fast.pipelines.photographs import PhotographPipeline


def median_ms(work: Callable[[], object], repeat: int) -> float:
    work()
    took = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return 1e3 * statistics.median(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pipeline = PhotographPipeline(device=args.device, batch_size=1)
    finder, pixels = pipeline.finder, read_image(args.photo)
    people = finder(pixels)
    if not len(people):
        raise SystemExit(f"{args.photo}: nobody found")
    job, one = (pixels, people.rois[0]), people[[0]]
    many = joined([one] * args.batch)
    stages: dict[str, Callable[[], object]] = {
        "read": lambda: read_image(args.photo),
        "find and landmarks": lambda: finder(pixels),
        "landmarks of one crop": lambda: finder.at([job]),
        "fit and mesh": lambda: fit_body(one.landmarks(args.device)),
        "photograph, file to result": lambda: pipeline.predict([args.photo]),
    }
    print(f"{len(people)} people, {pixels.shape[1]} x {pixels.shape[0]} px, {args.threads} threads, {args.device}")
    for name, work in stages.items():
        print(f"{name}: {median_ms(work, args.repeat):.1f} ms")
    few = max(3, args.repeat // 5)
    jobs = [job] * args.batch
    crops = median_ms(lambda: finder.at(jobs, True), few) + median_ms(lambda: finder.at(jobs), few)
    fits = median_ms(lambda: fit_body(many.landmarks(args.device)), few)
    print(
        f"a person in batches of {args.batch}: landmarks (3 passes) {crops / args.batch:.1f} ms, fit "
        f"{fits / args.batch:.1f} ms"
    )


if __name__ == "__main__":
    main()
