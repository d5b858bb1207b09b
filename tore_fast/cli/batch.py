"""`tore-fast batch shards/*.tar --out DIR`: bodies for any number of images; a stopped or killed run goes on."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from . import FAILED, UsageError, arguments, print_error
from ._options import ModelArgs, OutArgs, RunArgs

SHOWN = 5  # bad images named at the end; all of them are in the results


@dataclass(kw_only=True)
class Args(ModelArgs, RunArgs, OutArgs):
    """Bodies for many images: tars and folders in, one npz per unit of images out (keys: docs/results.md), by several
    processes, torchrun or Ray. The same command goes on after a kill; no image is lost or there twice."""

    inputs: Annotated[Positional[list[str]], tyro.conf.arg(metavar="INPUT ...")]
    """Tars, {000000..000012}.tar patterns, folders (with all below), images."""
    out: Path = Path("out_batch")
    """Folder of plan and results (results/unit-*.npz)."""
    boxes: str = "auto"
    """auto, full, centre, a JSON/CSV box file, or sidecar: KEY.json with "boxes" beside each image."""
    min_score: float = 0.5
    """People that are less sure to be people are dropped (0 to 1)."""
    max_people: int = 64
    """The best so many people of an image are kept."""
    body: str = "free"
    """Body posed by models of SMPL parameters: free, or a SMPL model file."""
    fov: float | None = None
    """Vertical field of view of the camera in degrees."""
    workers: int = 1
    """Processes on this machine, or Ray actors."""
    engine: Literal["auto", "processes", "torchrun", "ray"] = "auto"
    """auto: torchrun where its environment is set, else processes."""
    save_vertices: bool = False
    """Keep all 6,890 vertices (82 kB a person); the 431 coarse ones always are."""
    unit: int = 256
    """Images per unit of work: what a killed worker loses at most."""
    threads: int = 0
    """CPU threads of each worker (0: cores / workers)."""
    verify: bool = False
    """Only check that --out holds every image exactly once."""


def run(args: Args) -> int:
    from ..pipelines.batch import BatchConfig, ModelFactory, failures
    from ..pipelines.batch import run as run_batch
    from ..pipelines.batch_plan import BatchFolder, BatchUnfinished

    if args.verify:
        counts = BatchFolder(args.out).verify()
        text = f"{args.out}: every image is there once: " + "  ".join(f"{k} {v}" for k, v in counts.items())
        args.say({"out": str(args.out), **counts}, text)
        return 0
    with arguments():  # a killed run, too: the same command goes on
        if args.limit is not None:
            raise UsageError("--limit does not go with batch: it takes every image once")
        torchrun = "TORCHELASTIC_RUN_ID" in os.environ
        engine = args.engine if args.engine != "auto" else "torchrun" if torchrun else "processes"
        if not 0 <= args.min_score <= 1 or args.max_people < 1:
            raise UsageError("--min-score must lie in 0..1 and --max-people be at least 1")
        options: dict[str, Any] = {"precision": args.precision, "body": args.body, "fov_deg": args.fov}
        options |= {k: getattr(args, k) for k in ("min_score", "max_people") if getattr(args, k) != getattr(Args, k)}
        options |= {
            "mesh_data": None if args.mesh_data is None else str(args.mesh_data),
            "overrides": args.config_fields(),
        }
        factory = ModelFactory(
            args.model,
            None if args.checkpoint is None else str(args.checkpoint),
            args.device,
            args.batch_size,
            args.threads or max(1, (os.cpu_count() or 1) // max(1, args.workers)),
            {k: v for k, v in options.items() if v not in (None, {}, [])},
        )
        config = BatchConfig(args.boxes, args.save_vertices, args.unit)
        log = (lambda _: None) if args.quiet else (lambda line: print(line, file=sys.stderr))
        try:
            summary = run_batch(args.inputs, args.out, factory, config, workers=args.workers, engine=engine, log=log)
        except BatchUnfinished as e:
            print_error(str(e))
            return FAILED
    if int(os.environ.get("RANK", 0)) and engine == "torchrun":
        return 0  # rank 0 reports
    args.say(
        {"out": str(args.out), **asdict(summary)},
        f"{summary.images} images, {summary.people} people, {summary.failed} failed; this run: "
        f"{summary.fresh_images} images "
        f"in {summary.seconds:.1f} s = {summary.images_per_s:.1f} images/s, {summary.deaths} workers died; results in "
        f"{args.out}/results",
    )
    for error in islice(failures(args.out), SHOWN):
        print_error(error)
    if summary.failed > SHOWN:
        print_error(f"... and {summary.failed - SHOWN} more: `error` in {args.out}/results")
    return FAILED if summary.failed else 0
