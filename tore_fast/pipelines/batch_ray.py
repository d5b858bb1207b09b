"""Batch prediction on Ray Data (extra `scale`): the units of batch_units.py mapped by a pool of actors, on one machine or many.

Called by batch.py with engine "ray". Results are committed as by any other worker, so Ray's retries make nothing twice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np

from .batch import BatchConfig, box_table, images_in, predict_unit
from .batch_units import BatchFolder

MAX_BLOCKS = 2000  # Ray's own book-keeping grows with blocks; a block's units that are done are skipped on a retry


class _RayWorker:
    """A Ray Data actor: the model stays loaded, one unit per call."""

    def __init__(self, root: str, factory, config: BatchConfig):
        self.folder, self.config = BatchFolder(root), config
        self.table, self.pipeline = box_table(config.boxes), factory(0)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for unit in batch["unit"].tolist():
            if not self.folder.result_path(unit).exists():  # a retry of what was done before the kill
                claim = self.folder.claim(unit, force=True)
                if claim is not None:
                    predict_unit(self.folder, unit, claim, self.pipeline, self.config, self.table)
        return {"unit": batch["unit"]}


def run_ray(folder: BatchFolder, factory, config: BatchConfig, workers: int, log: Callable[[str], None]) -> int:
    """Units as a Ray data set mapped by a pool of actors; Ray replaces actors and nodes that die."""
    try:
        import ray
    except ImportError as e:
        raise ImportError("batch: engine 'ray' needs the extra: pip install 'tore_fast[scale]'") from e
    began, first = time.monotonic(), folder.done()
    if not ray.is_initialized():
        ray.init(ignore_reinit_error=True, log_to_driver=False)
    # fewer GPUs than actors: they share them (an actor that asks for none would see none)
    gpus = min(1.0, math.floor(1000 * ray.cluster_resources().get("GPU", 0) / workers) / 1000)
    for _ in range(3):  # a second round only if Ray gave a unit up
        pending = folder.pending()
        if not pending:
            break
        blocks = min(len(pending), max(MAX_BLOCKS, 20 * workers))
        data = ray.data.from_items([{"unit": u} for u in pending], override_num_blocks=blocks)
        data = data.map_batches(
            _RayWorker,
            fn_constructor_args=(str(folder.root.resolve()), factory, config),
            batch_size=1,
            num_gpus=gpus,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(pending))),
        )
        for count, _row in enumerate(data.iter_rows(), len(first) + 1):
            speed = images_in(folder, folder.done() - first) / (time.monotonic() - began)
            log(f"{count} of {folder.manifest.units} units, {speed:.1f} images/s")
    return 0
