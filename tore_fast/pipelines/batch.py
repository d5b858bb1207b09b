"""Prediction over any number of images in tars and folders, by any number of processes, resumable after every kind of
end.

`run(inputs, out)` plans units of work (batch_plan.py) and lets workers take them: processes of this machine,
torchrun's, or Ray's. Each unit becomes one npz in `out/results` (keys: results.py); `results(out)` reads them back.
Called by cli/batch.py.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .._device import pick_device
from ..data.boxes import boxes_of, read_boxes
from ..data.image_list import Image, list_images
from .batch_plan import BatchError, BatchFolder, BatchUnfinished, Claim
from .images import BOX_MODES, ImagePipeline, ImageResult, Stored
from .photographs import image_pipeline
from .results import unit_arrays

NO_MODEL = 3  # exit code of a worker whose factory failed: it would fail in every other worker, too


@dataclass(frozen=True)
class ModelFactory:
    """Makes the pipeline of a worker; small enough to be sent to other processes and machines."""

    model: str = "default"
    checkpoint: str | None = None
    device: str = "auto"
    batch_size: int = 8
    threads: int = 0
    options: dict[str, Any] = field(default_factory=dict)  # further ones of image_pipeline; they decide the results

    def __call__(self, worker: int = 0) -> ImagePipeline:
        import torch

        if self.threads:
            torch.set_num_threads(self.threads)
        device = pick_device(self.device)
        device = f"cuda:{worker % torch.cuda.device_count()}" if device == "cuda" else device
        given = {"device": device, "batch_size": self.batch_size, "fixed_batch": True, **self.options}
        return image_pipeline(self.model, checkpoint=self.checkpoint, **given)

    def identity(self) -> dict:
        options = {k: str(v) for k, v in self.options.items()}
        return {"model": self.model, "checkpoint": self.checkpoint, "batch_size": self.batch_size, "options": options}


@dataclass(frozen=True)
class BatchConfig:
    """How a batch runs; the first three decide the results and must stay the same to go on."""

    boxes: str = "auto"
    """auto, full, centre, a box file (data/boxes.py), or sidecar: KEY.json with "boxes" beside each image."""
    save_vertices: bool = False
    unit_images: int = 256
    """Images per unit of work: what a killed worker loses at most."""
    poll_s: float = 0.5
    max_deaths: int = 100
    """Workers that may die before the run gives up."""


@dataclass(frozen=True)
class BatchSummary:
    """Counts over the whole batch, and the speed of this run."""

    images: int
    people: int
    failed: int
    deaths: int  # of workers in this run
    fresh_images: int  # done in this run
    seconds: float

    @property
    def images_per_s(self) -> float:
        return self.fresh_images / self.seconds if self.seconds else 0.0


class Scaler(Protocol):
    """Gets all pending units of a folder worked on; returns how many workers died on the way."""

    def __call__(
        self, folder: BatchFolder, factory: Callable, config: BatchConfig, workers: int, log: Callable[[str], None]
    ) -> int: ...


def run(
    inputs: Iterable[str | Path],
    out: str | Path,
    factory: Callable[..., ImagePipeline] | None = None,
    config: BatchConfig = BatchConfig(),  # noqa: B008 (frozen)
    *,
    workers: int = 1,
    engine: str = "processes",
    log: Callable[[str], None] = print,
) -> BatchSummary:
    """Predicts every image of the inputs once. A script that calls it needs `if __name__ == "__main__":`.

    Args:
        inputs: tars, `{000..012}.tar` patterns, folders (with all below), images.
        out: folder of plan, claims and results; the same call goes on after a kill.
        factory: `factory(worker)` gives an ImagePipeline; picklable. Default: landmarks and fit, as `predict`.
        workers: processes on this machine ("processes"), or actors in the cluster ("ray").
        engine: "processes": this call starts them and replaces those that die. "torchrun": this process is one of many
            that torchrun (or any launcher, on any number of machines with a common file system) started with the same
            arguments. "ray": Ray Data (extra `scale`); uses a running cluster where there is one.

    Raises:
        BatchError: inputs without images, a folder begun with other inputs or settings, too many dead workers.
        ImportError: engine "ray" without ray.
    """
    if engine not in ENGINES:
        raise ValueError(f"batch: engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if workers < 1 or config.unit_images < 1:
        raise ValueError(f"batch: workers and unit_images must be at least 1, got {workers}, {config.unit_images}")
    factory = factory or ModelFactory()
    box_table(config.boxes)  # a bad box file shows before any work
    folder = BatchFolder(out)
    settings = {"boxes": config.boxes, "save_vertices": config.save_vertices, **getattr(factory, "identity", dict)()}
    if engine == "torchrun" and int(os.environ.get("RANK", 0)):
        while not (folder.root / "manifest.json").is_file():
            time.sleep(config.poll_s)
    else:
        manifest = folder.make(list_images(inputs), config.unit_images, settings)
        log(f"{manifest.images} images in {manifest.units} units, {len(folder.done())} units done before")
    before, started = folder.images_in(folder.done()), time.monotonic()
    deaths = ENGINES[engine](folder, factory, config, workers, log) if folder.pending() else 0
    seconds, counts = time.monotonic() - started, folder.verify()
    return BatchSummary(**counts, deaths=deaths, fresh_images=counts["images"] - before, seconds=seconds)


def results(out: str | Path) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of each finished unit (keys: results.py), in order."""
    folder = BatchFolder(out)
    for unit in sorted(folder.done()):
        yield folder.load(unit)


def failures(out: str | Path) -> Iterator[str]:
    """Of each image that gave nothing, why; the text names it."""
    for part in results(out):
        yield from (str(error) for error in part["error"] if error)


# ---- one worker


def work(
    folder: BatchFolder,
    factory: Callable[..., ImagePipeline],
    config: BatchConfig,
    worker: int = 0,
    parent: int | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> None:
    """Takes units until all are done; waits for those of others in case they die. `parent`: end when that process
    does."""
    pipeline, table = None, box_table(config.boxes)
    while pending := folder.pending():
        pipeline = pipeline or factory(worker)  # before a unit is claimed: its failure is no unit's fault
        shift, worked = worker * len(pending) // 8 % len(pending), False  # workers start at different places
        for unit in pending[shift:] + pending[:shift]:
            if parent is not None and os.getppid() != parent:
                return
            if predict_unit(folder, unit, pipeline, config, table):
                worked = True
                log(f"worker {worker}: unit {unit} done, {len(folder.done())} of {folder.manifest.units}")
        if not worked:
            time.sleep(config.poll_s)


def predict_unit(
    folder: BatchFolder, unit: int, pipeline: ImagePipeline, config: BatchConfig, table: dict | None
) -> bool:
    """Predicts the images of one unit and puts the result there. False where it is another worker's, or done."""
    claim = folder.claim(unit)
    if claim is None:
        return False
    start, images = time.monotonic(), folder.images(unit)
    found = _carefully(claim, images, pipeline, config, table) if claim.careful else None
    found = found or predict_images(images, pipeline, config.boxes, table)
    arrays = unit_arrays(found, pipeline, config.save_vertices)
    done = folder.commit(unit, {**arrays, "seconds": np.asarray(time.monotonic() - start)})
    claim.release()
    return done


def _carefully(
    claim: Claim, images: list[Image], pipeline: ImagePipeline, config: BatchConfig, table: dict | None
) -> list:
    """One by one, because a worker died on this unit; images on which one died alone are given up."""
    found: list[ImageResult] = []
    for i, image in enumerate(images):
        if i in claim.bad:
            found.append(ImageResult(image.name, error="the process died on this image"))
            continue
        claim.mark(i)
        found += predict_images([image], pipeline, config.boxes, table)
    claim.mark(-1)
    return found


def predict_images(images: list[Image], pipeline: ImagePipeline, boxes: str, table: dict | None) -> list[ImageResult]:
    """Results in the order of the images; bad ones carry their reason."""
    out: dict[int, ImageResult] = {}
    given: dict[int, Any] = {}
    for i, image in enumerate(images):
        try:
            given[i] = _boxes(image, boxes, table)
        except (ValueError, KeyError, TypeError, OSError):
            out[i] = ImageResult(
                image.name, error=f'{image.name}: its .json must be an object with "boxes": [[x0, y0, x1, y1], ...]'
            )
    stored = (Stored(images[i].name, images[i].read) for i in given)
    stream = pipeline.stream(stored, boxes if boxes in BOX_MODES and boxes != "auto" else list(given.values()))
    for i, result in zip(given, stream):
        error = result.error or "; ".join(result.refused) or None  # of some boxes: the other people are there
        out[i] = ImageResult(result.name, result.size, result.people, error)  # pixels are let go
    return [out[i] for i in range(len(images))]


def _boxes(image: Image, boxes: str, table: dict | None) -> Any:
    if boxes == "sidecar":
        beside = image.sidecar()
        return None if beside is None else json.loads(beside)["boxes"]
    if table is None:
        return None
    return boxes_of(table, image.name) or boxes_of(table, image.name.rpartition(":")[2])


def box_table(boxes: str) -> dict | None:
    """Boxes of a file; None for the modes and for sidecars."""
    return None if boxes in BOX_MODES or boxes == "sidecar" else read_boxes(boxes)


# ---- engines


def _torchrun(folder: BatchFolder, factory: Callable, config: BatchConfig, workers: int, log: Callable) -> int:
    """This process is one worker of many."""
    work(folder, factory, config, worker=int(os.environ.get("LOCAL_RANK", 0)), log=log)
    return 0


def _worker_process(root: str, factory: Callable, config: BatchConfig, worker: int, parent: int) -> None:
    def loud(number: int) -> ImagePipeline:
        try:
            return factory(number)
        except (ValueError, OSError, ImportError) as e:  # a wrong file or argument
            print(f"worker {number}: {e}", file=sys.stderr, flush=True)
            sys.exit(NO_MODEL)
        except Exception:
            traceback.print_exc()
            sys.exit(NO_MODEL)

    work(BatchFolder(root), loud, config, worker, parent)


def _processes(folder: BatchFolder, factory: Callable, config: BatchConfig, workers: int, log: Callable) -> int:
    """Starts workers, replaces those that die, tells the speed."""
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork

    def start(worker: int) -> Any:
        process = context.Process(target=_worker_process, args=(str(folder.root), factory, config, worker, os.getpid()))
        process.start()
        return process

    processes = {worker: start(worker) for worker in range(min(workers, len(folder.pending())))}
    deaths, idle_deaths, first = 0, 0, folder.done()
    last, began = len(first), time.monotonic()
    try:
        while processes:
            time.sleep(min(config.poll_s, 0.2))
            if (done := len(folder.done())) > last:
                last, idle_deaths = done, 0
                speed = folder.images_in(folder.done() - first) / (time.monotonic() - began)
                log(f"{done} of {folder.manifest.units} units, {speed:.1f} images/s")
            for worker, process in [(w, p) for w, p in processes.items() if not p.is_alive()]:
                process.join()
                del processes[worker]
                if process.exitcode == 0 or not folder.pending():
                    continue
                if process.exitcode == NO_MODEL:
                    raise BatchError(f"worker {worker} could not load the model (its error is above)")
                deaths, idle_deaths = deaths + 1, idle_deaths + 1
                log(f"worker {worker} died (exit code {process.exitcode}); its unit is done again")
                # workers that die again and again without finishing anything: out of memory, say
                if deaths > config.max_deaths or idle_deaths > 3 * workers + 3:
                    open_units = len(folder.pending())
                    raise BatchUnfinished(
                        f"{deaths} workers died, {open_units} units are open; the same command goes on"
                    )
                processes[worker] = start(worker)
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.join()
    return deaths


class _RayWorker:
    """A Ray Data actor: the model stays loaded, one unit per call."""

    def __init__(self, root: str, factory: Callable, config: BatchConfig):
        self.folder, self.config = BatchFolder(root), config
        self.table, self.pipeline = box_table(config.boxes), factory(0)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for unit in batch["unit"].tolist():
            predict_unit(self.folder, unit, self.pipeline, self.config, self.table)
        return {"unit": batch["unit"]}


def _ray(folder: BatchFolder, factory: Callable, config: BatchConfig, workers: int, log: Callable) -> int:
    """Units as a Ray data set mapped by a pool of actors; Ray replaces actors and nodes that die."""
    try:
        import ray
    except ImportError as e:
        raise ImportError("batch: engine 'ray' needs Ray: pip install 'ray[data]'") from e
    began, first = time.monotonic(), folder.done()
    if not ray.is_initialized():
        ray.init(ignore_reinit_error=True, log_to_driver=False)
    # fewer GPUs than actors: they share them (an actor that asks for none would see none)
    gpus = min(1.0, int(1000 * ray.cluster_resources().get("GPU", 0) / workers) / 1000)
    for _ in range(3):  # a further round only if Ray gave a unit up
        if not (pending := folder.pending()):
            break
        blocks = min(len(pending), max(2000, 20 * workers))  # Ray's own book-keeping grows with blocks
        data = ray.data.from_items([{"unit": u} for u in pending], override_num_blocks=blocks)
        made, pool = (
            (str(folder.root.resolve()), factory, config),
            ray.data.ActorPoolStrategy(size=min(workers, len(pending))),
        )
        data = data.map_batches(_RayWorker, fn_constructor_args=made, batch_size=1, num_gpus=gpus, compute=pool)
        for count, _row in enumerate(data.iter_rows(), len(first) + 1):
            speed = folder.images_in(folder.done() - first) / (time.monotonic() - began)
            log(f"{count} of {folder.manifest.units} units, {speed:.1f} images/s")
    return 0


ENGINES: dict[str, Scaler] = {"processes": _processes, "torchrun": _torchrun, "ray": _ray}
