"""`tore-fast batch shards/*.tar --out DIR`: meshes for any number of images; a stopped or killed run goes on."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from tyro.conf import Positional

from . import FAILED, arguments, complain

SHOWN = 5  # bad images named at the end; all of them are in the results


@dataclass
class Args:
    """Meshes for many images: tars and folders in, one npz per unit of images out, by several processes, torchrun or Ray.
    The same command goes on after a kill; no image is lost or there twice."""

    inputs: Positional[list[str]]
    """Tars, {000000..000012}.tar patterns, folders (with all below), images."""
    out: Path = Path("out_batch")
    """Folder of plan and results (results/unit-*.npz, arrays: docs/data.md)."""
    model: str = "default"
    """`default`, a registered name (tore-fast list), or a folder written by save_pretrained."""
    checkpoint: str | None = None
    """Weights: a folder of ours, or an official file."""
    boxes: str = "auto"
    """auto, full, centre, a JSON/CSV box file, or sidecar: KEY.json with "boxes" beside each image."""
    workers: int = 1
    """Processes on this machine, or Ray actors."""
    engine: str = "auto"
    """auto (torchrun where its environment is set, else processes), processes, torchrun, ray."""
    save_vertices: bool = False
    """Keep all 6,890 vertices (82 kB a person); the 431 coarse ones always are."""
    unit: int = 256
    """Images per unit of work: what a killed worker loses at most."""
    batch_size: int = 8
    device: str = "auto"
    """auto, cpu, cuda; workers are spread over the GPUs."""
    threads: int = 0
    """CPU threads of each worker (0: cores / workers)."""
    verify: bool = False
    """Only check that --out holds every image exactly once."""
    extra: dict[str, str] = field(default_factory=dict)
    """Further options of an official file as KEY VALUE pairs: upstream, mesh_data."""


def run(args: Args) -> int:
    from ..pipelines.batch import BatchConfig, ModelFactory, failures
    from ..pipelines.batch import run as run_batch
    from ..pipelines.batch_units import BatchFolder, BatchUnfinished

    if args.verify:
        counts = BatchFolder(args.out).verify()
        print(f"{args.out}: every image is there once: " + "  ".join(f"{k} {v}" for k, v in counts.items()))
        return 0
    with arguments():  # a killed run, too: the same command goes on
        engine = (
            args.engine if args.engine != "auto" else "torchrun" if "TORCHELASTIC_RUN_ID" in os.environ else "processes"
        )
        threads = args.threads or max(1, (os.cpu_count() or 1) // max(1, args.workers))
        factory = ModelFactory(args.model, args.checkpoint, args.device, args.batch_size, threads, args.extra)
        config = BatchConfig(args.boxes, args.save_vertices, args.unit)
        try:
            summary = run_batch(args.inputs, args.out, factory, config, workers=args.workers, engine=engine)
        except BatchUnfinished as e:
            complain(str(e))
            return FAILED
    if int(os.environ.get("RANK", 0)) and engine == "torchrun":
        return 0  # rank 0 reports
    print(
        f"{summary.images} images, {summary.people} people, {summary.failed} failed; this run: {summary.fresh_images} images "
        f"in {summary.seconds:.1f} s = {summary.images_per_s:.1f} images/s, {summary.deaths} workers died"
    )
    for error in islice(failures(args.out), SHOWN):
        complain(error)
    if summary.failed > SHOWN:
        complain(f"... and {summary.failed - SHOWN} more: image_error in {args.out}/results")
    return FAILED if summary.failed else 0
