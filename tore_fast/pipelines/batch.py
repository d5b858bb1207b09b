"""Prediction over any number of images in tars and folders, by any number of processes, resumable after every kind of end.

`run(inputs, out)` plans units of work (batch_units.py) and lets worker processes (or Ray actors, or torchrun's processes) take
them. Each unit becomes one npz in `out/results`, see ARRAYS; `results(out)` reads them back. Called by cli/batch.py.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..data.boxes import boxes_of, read_boxes
from ..io.image import ImageError, read_image
from .batch_units import BatchError, BatchFolder, BatchUnfinished, Claim, Image, list_images
from .images import BOX_MODES, ImagePipeline, ImageResult

ENGINES = ("processes", "torchrun", "ray")
ARRAYS = {
    "image_name": "[N] images of the unit, in order",
    "image_error": "[N] why a image gave nothing; empty: it was done",
    "image_size": "[N, 2] width, height",
    "image_index": "[P] image of each person",
    "box": "[P, 4] x0, y0, x1, y1 pixels",
    "camera": "[P, 3] scale, tx, ty in the crop's [-1, 1]",
    "camera_image": "[P, 3] scale_px, x_px, y_px: pixel = scale_px * xy + (x_px, y_px)",
    "translation": "[P, 3] metres, perspective camera",
    "focal_px": "[P]",
    "joints_3d": "[P, 14, 3] metres; hands: 21",
    "joints_2d": "[P, 14, 2] pixels",
    "vertices_coarse": "[P, 431, 3] metres; hands: 195",
    "vertices": "[P, 6890, 3] metres; hands: 778; only with save_vertices",
    "seconds": "[] time the unit took",
}


@dataclass(frozen=True)
class ModelFactory:
    """Makes the pipeline of a worker; small enough to be sent to other processes and machines."""

    model: str = "default"
    checkpoint: str | None = None
    device: str = "auto"
    batch_size: int = 8
    threads: int = 0
    options: dict[str, Any] = field(default_factory=dict)  # of ImagePipeline: upstream, mesh_data

    def __post_init__(self):
        if unknown := sorted(self.options.keys() - {"upstream", "mesh_data"}):
            raise ValueError(f"options (--extra): expected upstream, mesh_data, got {unknown[0]!r}")

    def __call__(self, worker: int = 0) -> ImagePipeline:
        import torch

        from .._device import pick_device

        if self.threads:
            torch.set_num_threads(self.threads)
        device = pick_device(self.device)
        if device == "cuda":
            device = f"cuda:{worker % torch.cuda.device_count()}"
        return ImagePipeline(
            self.model, checkpoint=self.checkpoint, device=device, batch_size=self.batch_size, **self.options
        )

    def identity(self) -> dict:
        return {"model": self.model, "checkpoint": self.checkpoint, "options": self.options}


@dataclass(frozen=True)
class BatchConfig:
    """How a batch runs; the first three decide the results and must stay the same to go on."""

    boxes: str = "auto"
    """auto, full, centre, a box file (data/boxes.py), or sidecar: KEY.json with "boxes" beside each image."""
    save_vertices: bool = False
    unit_images: int = 256
    """Images per unit of work: what a killed worker loses at most."""
    stale_s: float = 60.0
    """A worker of another machine that gave no sign for so long is taken for dead."""
    poll_s: float = 0.5
    max_deaths: int = 100
    """Workers that may die before the run gives up."""


@dataclass(frozen=True)
class BatchSummary:
    images: int
    people: int
    failed: int
    deaths: int  # of workers in this run
    fresh_images: int  # done in this run
    seconds: float

    @property
    def images_per_s(self) -> float:
        return self.fresh_images / self.seconds if self.seconds else 0.0


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
    """Predicts every image of the inputs once.

    Args:
        inputs: tars, `{000..012}.tar` patterns, folders (with all below), images.
        out: folder of plan, claims and results; the same call goes on after a kill.
        factory: `factory(worker)` gives a ImagePipeline; picklable. Default: the built-in model.
        workers: processes on this machine ("processes"), or actors in the cluster ("ray").
        engine: "processes": this call starts them and replaces those that die. "torchrun": this process is one of many that
            torchrun (or any launcher, on any number of machines with a common file system) started with the same arguments.
            "ray": Ray Data (extra `scale`); uses a running cluster where there is one.

    Returns:
        Counts over the whole batch, checked against the plan, and the speed of this run.

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
    rank = int(os.environ.get("RANK", 0)) if engine == "torchrun" else 0
    settings = {"boxes": config.boxes, "save_vertices": config.save_vertices, **getattr(factory, "identity", dict)()}
    if rank == 0:
        manifest = folder.make(list_images(inputs), config.unit_images, settings)
        log(f"{manifest.images} images in {manifest.units} units, {len(folder.done())} units done before")
    else:
        while not (folder.root / "manifest.json").is_file():
            time.sleep(config.poll_s)
    before = images_in(folder, folder.done())
    started = time.monotonic()
    deaths = 0
    if engine == "torchrun":
        work(folder, factory, config, worker=int(os.environ.get("LOCAL_RANK", 0)), log=log)
    elif folder.pending():
        if engine == "ray":
            from .batch_ray import run_ray as start
        else:
            start = _run_processes
        deaths = start(folder, factory, config, workers, log)
    seconds = time.monotonic() - started
    counts = folder.verify()
    return BatchSummary(
        counts["images"], counts["people"], counts["failed"], deaths, counts["images"] - before, seconds
    )


def results(out: str | Path) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of each finished unit (see ARRAYS), in order."""
    folder = BatchFolder(out)
    for unit in sorted(folder.done()):
        yield folder.load(unit)


def failures(out: str | Path) -> Iterator[str]:
    """Of each image that gave nothing, why; the text names it."""
    folder = BatchFolder(out)
    for unit in sorted(folder.done()):
        with np.load(folder.result_path(unit)) as part:
            yield from (str(error) for error in part["image_error"] if error)


# ---- one worker ----------------------------------------------------------------------------------------------------------


def work(
    folder: BatchFolder,
    factory: Callable[..., ImagePipeline],
    config: BatchConfig,
    worker: int = 0,
    parent: int | None = None,
    log: Callable[[str], None] | None = None,
) -> None:
    """Takes units until all are done; waits for those of others in case they die. `parent`: end when that process does."""
    pipeline, table = None, box_table(config.boxes)
    while True:
        pending = folder.pending()
        if not pending:
            return
        pipeline = pipeline or factory(worker)  # before a unit is claimed: its failure is no unit's fault
        shift = worker * len(pending) // 8 % len(pending)  # workers start at different places
        claim = None
        for unit in pending[shift:] + pending[:shift]:
            if parent is not None and os.getppid() != parent:
                return
            claim = folder.claim(unit, config.stale_s)
            if claim is None:
                continue
            if folder.result_path(unit).exists():  # finished between the listing and the claim
                claim.path.unlink(missing_ok=True)
                continue
            predict_unit(folder, unit, claim, pipeline, config, table)
            if log is not None:
                log(f"worker {worker}: unit {unit} done, {len(folder.done())} of {folder.manifest.units}")
        if claim is None:
            time.sleep(config.poll_s)


def predict_unit(
    folder: BatchFolder, unit: int, claim: Claim, pipeline: ImagePipeline, config: BatchConfig, table: dict | None
) -> bool:
    """One unit: predict its images, put the result there. True if it is ours."""
    start = time.monotonic()
    images = folder.images(unit)
    with claim.beating():
        if claim.careful:
            found: list[ImageResult] = []
            for i, image in enumerate(images):
                if i in claim.bad:
                    found.append(ImageResult(image.name, error="the process died on this image"))
                    continue
                claim.mark(i)
                found += predict_images([image], pipeline, config.boxes, table)
            claim.mark(-1)
        else:
            found = predict_images(images, pipeline, config.boxes, table)
        arrays = unit_arrays(found, person_shapes(pipeline), config.save_vertices)
        return folder.commit(unit, {**arrays, "seconds": np.float64(time.monotonic() - start)})


def predict_images(images: list[Image], pipeline: ImagePipeline, boxes: str, table: dict | None) -> list[ImageResult]:
    """Results in the order of the images; bad ones carry their reason."""
    failed: dict[int, str] = {}
    fed: list[int] = []
    given: list[Any] = []

    def decoded() -> Iterator[np.ndarray]:
        for i, (pixels, box, error) in enumerate(
            _prefetch(lambda p: _read(p, boxes, table), images, 2 * pipeline.batch_size)
        ):
            if error is not None:
                failed[i] = error
            else:
                fed.append(i)
                given.append(box)  # before the image is handed over: stream() looks boxes up by position
                yield pixels

    stream = pipeline.stream(decoded(), boxes if boxes in BOX_MODES else given)
    out: list[ImageResult | None] = [None] * len(images)
    for position, result in enumerate(stream):
        index = fed[position]
        text = None if result.error is None else result.error.replace("image", images[index].name, 1)
        out[index] = ImageResult(images[index].name, result.size, result.people, text)  # pixels are let go
    for i, error in failed.items():
        out[i] = ImageResult(images[i].name, error=error)
    return out


def _prefetch(function: Callable, items: Iterable, ahead: int) -> Iterator:
    """map() in order with a few results made in advance by threads (decoding lets go of the interpreter lock)."""
    with ThreadPoolExecutor(2) as pool:
        rest = iter(items)
        waiting = [pool.submit(function, item) for item in islice(rest, ahead)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(function, item) for item in islice(rest, 1)]


def _read(image: Image, boxes: str, table: dict | None) -> tuple[np.ndarray | None, Any, str | None]:
    """Pixels and boxes, or the reason why not."""
    try:
        pixels = read_image(image.read(), image.name)
        box = None
        if boxes == "sidecar":
            beside = image.sidecar()
            box = None if beside is None else json.loads(beside)["boxes"]
        elif table is not None:
            box = boxes_of(table, image.name) or boxes_of(table, image.name.rpartition(":")[2])
        return pixels, box, None
    except ImageError as e:
        return None, None, str(e)
    except (json.JSONDecodeError, KeyError, TypeError):
        return None, None, f'{image.name}: its .json must be an object with "boxes": [[x0, y0, x1, y1], ...]'
    except (OSError, ValueError, EOFError) as e:
        return None, None, f"{image.name}: cannot be read ({e})"


def box_table(boxes: str) -> dict | None:
    """Boxes of a file; None for the modes and for sidecars."""
    return None if boxes in BOX_MODES or boxes == "sidecar" else read_boxes(boxes)


def person_shapes(pipeline: ImagePipeline) -> dict[str, tuple[int, ...]]:
    """Shape of one person's share of each array, which a unit without people needs, too."""
    joints, mesh = len(pipeline.joint_names), pipeline.topology.hierarchy
    shapes = {"box": (4,), "camera": (3,), "camera_image": (3,), "translation": (3,), "focal_px": ()}
    shapes |= {"joints_3d": (joints, 3), "joints_2d": (joints, 2)}
    return shapes | {"vertices_coarse": (mesh.counts[-1], 3), "vertices": (mesh.counts[0], 3)}


def unit_arrays(
    found: list[ImageResult], shapes: dict[str, tuple[int, ...]], save_vertices: bool
) -> dict[str, np.ndarray]:
    """Results as the arrays of ARRAYS."""
    people = [(i, person) for i, result in enumerate(found) for person in result.people]
    arrays = {
        "image_name": np.array([r.name for r in found], dtype=np.str_),
        "image_error": np.array([r.error or "" for r in found], dtype=np.str_),
        "image_size": np.array([r.size for r in found], np.int32).reshape(len(found), 2),
        "image_index": np.array([i for i, _ in people], np.int32),
    }
    for name, shape in shapes.items():
        if name != "vertices" or save_vertices:
            arrays[name] = np.array([getattr(p, name) for _, p in people], np.float32).reshape(len(people), *shape)
    return arrays


def images_in(folder: BatchFolder, units: Iterable[int]) -> int:
    """How many images the units hold."""
    manifest = folder.manifest
    size = manifest.settings["unit_images"]
    return sum(min(size, manifest.images - u * size) for u in units)


# ---- engines -------------------------------------------------------------------------------------------------------------


NO_MODEL = 3  # exit code of a worker whose factory failed


class _Loud:
    """Factory whose failure ends the process with NO_MODEL: it would fail in every other worker, too."""

    def __init__(self, factory):
        self.factory = factory

    def __call__(self, worker: int) -> ImagePipeline:
        try:
            return self.factory(worker)
        except Exception:
            traceback.print_exc()
            sys.exit(NO_MODEL)


def _worker_process(root: str, factory, config: BatchConfig, worker: int, parent: int) -> None:
    work(BatchFolder(root), _Loud(factory), config, worker, parent)


def _run_processes(folder: BatchFolder, factory, config: BatchConfig, workers: int, log: Callable[[str], None]) -> int:
    """Starts workers, replaces those that die, tells the speed. Returns how many died."""
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork

    def start(worker: int):
        process = context.Process(target=_worker_process, args=(str(folder.root), factory, config, worker, os.getpid()))
        process.start()
        return process

    workers = min(workers, len(folder.pending()))
    processes = {worker: start(worker) for worker in range(workers)}
    deaths, idle_deaths, first, told = 0, 0, folder.done(), time.monotonic()
    last, began = len(first), time.monotonic()
    try:
        while processes:
            time.sleep(min(config.poll_s, 0.2))
            done = len(folder.done())
            idle_deaths = 0 if done > last else idle_deaths
            if done > last or time.monotonic() - told > 30:
                last, told = done, time.monotonic()
                speed = images_in(folder, folder.done() - first) / (told - began)
                log(f"{done} of {folder.manifest.units} units, {speed:.1f} images/s")
            for worker, process in list(processes.items()):
                if process.is_alive():
                    continue
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
                    raise BatchUnfinished(
                        f"{deaths} workers died, {len(folder.pending())} units are open; the same command goes on"
                    )
                processes[worker] = start(worker)
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.join()
    return deaths
