"""Runs a model over a reader: items -> model -> rows on disk -> means.

In: module, items, a scoring (mesh: `evaluate` with protocols.py; key points and classes: task_scoring.py), a folder.
Out: a dict of metrics. Killed and started again it goes on; under torchrun every process takes its share and rank 0
reports. Called by cli/eval_{mesh,keypoints,classify}.py.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..body import Body
from ..data.readers import DataError, MissingData, Reader, Record, evaluation_crop
from ..engine import Engine
from ..io.image import ImageError
from ..models._registry import facts_of
from .protocols import BodyProtocol, HandProtocol
from .rows import MemoryRows, RowStore

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def process_rank() -> tuple[int, int]:
    """Rank and number of processes, as torchrun sets them."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def mesh_of(output: Any, body: Body, smpl_head: bool = False) -> Tensor:  # [B, V, 3]
    """Vertices of what a mesh model returns; models of body parameters (HMR2.0 ...) are posed with `body`.

    smpl_head: take the SMPL parameters of a FastMETRO with parameter head instead of its vertices.
    """
    vertices, rotations = (
        getattr(output, "vertices", None),
        getattr(output, "rotations", getattr(output, "rotmat", None)),
    )
    if smpl_head or vertices is None:
        if rotations is None:
            raise ValueError(
                f"evaluate: the model returns no {'SMPL parameters' if smpl_head else 'vertices'}: "
                f"{type(output).__name__}"
            )
        return body(rotations.float(), output.betas.float()).vertices
    return vertices


def weights_hash(model: nn.Module) -> str:
    """Short hash of all weights, so that rows of another checkpoint are not taken over."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class EngineModel:
    """A model as the scorings see it: calls go to its engine, everything else to the prepared network."""

    def __init__(self, model: nn.Module, device: torch.device, precision: str, batch_size: int) -> None:
        self.engine = Engine(model, device, precision, batch_size)

    def __call__(self, *inputs: Any) -> Any:
        return self.engine(*inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine.network, name)


class Scoring(Protocol):
    """What `evaluate_rows` needs to know about a task."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the rows that are averaged per sequence."""

    def identity(self) -> dict:
        """JSON-able facts that decide the numbers; "protocol" is what the report calls it."""

    def item(self, record: Any) -> tuple[np.ndarray | Tensor, dict[str, Any]]:
        """Model input and truth (arrays of fixed shape) of one item."""

    def rows(self, model: Any, inputs: Tensor, truth: dict[str, Tensor]) -> dict[str, Tensor]:
        """Numbers of a batch, each [B, ...]."""

    def summary(self, rows: dict[str, np.ndarray], sequences: Sequence[str], frames: Sequence[int]) -> dict:
        """Metrics from the rows of all items that could be read, ordered by `rows["index"]`."""


class Items(Protocol):
    """Random access to a data set: a Reader, or the lists of task_scoring.py."""

    format: str

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...
    def place(self, index: int) -> tuple[str, int]: ...


class MeshScoring:
    """A mesh protocol with the official crops and a model that returns vertices or body parameters."""

    def __init__(
        self,
        protocol: BodyProtocol | HandProtocol,
        image_size: int | tuple[int, int],
        smpl_head: bool,
        crop: Any = evaluation_crop,
    ) -> None:
        self.crop = crop
        self.protocol, self.image_size, self.smpl_head, self.metrics = protocol, image_size, smpl_head, protocol.metrics

    def identity(self) -> dict:
        size = list(self.image_size) if isinstance(self.image_size, (tuple, list)) else self.image_size
        return {**self.protocol.identity(), "image_size": size, "smpl_head": self.smpl_head}

    def item(self, record: Record) -> tuple[np.ndarray, dict[str, Any]]:
        return self.crop(record, self.image_size), self.protocol.truth(record)

    def rows(self, model: Any, inputs: Tensor, truth: dict[str, Tensor]) -> dict[str, Tensor]:
        output = model(inputs)
        # averaged views bring their own joints (multiscale.py); otherwise the protocol regresses them from the mesh
        given = {"joints": output.mesh_joints} if hasattr(output, "mesh_joints") else {}
        with torch.autocast(inputs.device.type, enabled=False):
            return self.protocol.rows(mesh_of(output, self.protocol.body, self.smpl_head), truth, **given)

    def summary(self, rows: dict[str, np.ndarray], sequences: Sequence[str], frames: Sequence[int]) -> dict:
        return self.protocol.summary(rows, sequences, frames)


class _Items(torch.utils.data.Dataset):
    """Input and truth of the items of one process; a bad item becomes its reason."""

    def __init__(self, items: Items, indices: list[int], scoring: Scoring):
        self.items, self.indices, self.scoring = items, indices, scoring

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Any:
        index = self.indices[i]
        try:
            return index, *self.scoring.item(self.items[index])
        except (ImageError, DataError, MissingData) as e:
            return index, None, str(e)


def _collate(items: list) -> tuple[list[tuple[int, str]], np.ndarray, Tensor | None, dict[str, Tensor]]:
    bad = [(index, reason) for index, crop, reason in items if crop is None]
    good = [item for item in items if item[1] is not None]
    if not good:
        return bad, np.zeros(0, np.int64), None, {}
    truth = {k: torch.from_numpy(np.stack([t[k] for _, _, t in good])) for k in good[0][2]}
    return bad, np.array([i for i, _, _ in good]), torch.stack([torch.as_tensor(c) for _, c, _ in good]), truth


def evaluate(
    model: nn.Module,
    reader: Reader,
    protocol: BodyProtocol | HandProtocol,
    folder: str | Path,
    *,
    image_size: int | tuple[int, int] = 224,
    batch_size: int = 32,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    workers: int = 0,
    limit: int | None = None,
    smpl_head: bool = False,
    crop: Callable[[Record, Any], np.ndarray] = evaluation_crop,
    scoring: type[MeshScoring] = MeshScoring,
    label: dict | None = None,
    log: Callable[[str], None] = print,
) -> tuple[dict, dict[str, np.ndarray]] | None:
    """Metrics of a model on a data set, and the rows behind them ordered by item.

    Args:
        folder: rows are kept here (rows.py); the same call goes on after a kill.
        image_size: side of the crop or (height, width).
        limit: only the first items.
        crop: what the model gets of an item (multiscale.view_crops for a MultiScale model).
        scoring: parameter_models.CameraScoring for a CameraHMR.
        label: facts about the run for the result (model name, data path); they must stay the same to go on.

    Returns:
        On rank 0 (metrics, rows), elsewhere None. metrics: see the protocol, with `items`, `failed` (name -> reason),
        `per_sequence` where the data has sequences, `images_per_s` of this run.

    Raises:
        ValueError: the folder holds another evaluation, or nothing could be evaluated. RuntimeError: items are missing
        (another process died).
    """
    for body in {id(b): b for b in getattr(protocol, "bodies", {"": protocol.body}).values()}.values():
        body.to(torch.device(device))
    return evaluate_rows(
        model,
        reader,
        scoring(protocol, image_size, smpl_head, crop),
        folder,
        batch_size=batch_size,
        device=device,
        precision=precision,
        workers=workers,
        limit=limit,
        label=label,
        log=log,
    )


def evaluate_rows(
    model: nn.Module,
    items: Items,
    scoring: Scoring,
    folder: str | Path,
    *,
    batch_size: int = 32,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    workers: int = 0,
    limit: int | None = None,
    label: dict | None = None,
    log: Callable[[str], None] = print,
) -> tuple[dict, dict[str, np.ndarray]] | None:
    """As `evaluate`, for any task: `scoring` says what an item, a row and the metrics are."""
    if precision not in PRECISIONS:
        raise ValueError(f"evaluate: precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    rank, world = process_rank()
    group = _join(rank, world)
    count = len(items) if limit is None else min(limit, len(items))
    device = torch.device(device)
    model = model.to(device).eval()
    identity = {
        **(label or {}),
        **scoring.identity(),
        "weights": weights_hash(model),
        "format": items.format,
        "items": count,
        "precision": precision,
    }
    store = RowStore(Path(folder), identity, rank)
    done = store.done()
    mine = [i for i in range(rank, count, world) if i not in done]
    if done:
        log(f"{len(done)} of {count} items are there already")
    started = time.perf_counter()
    fast = model if facts_of(model) is None else EngineModel(model, device, precision, batch_size)
    seen = _run(fast, items, scoring, store, mine, batch_size, device, PRECISIONS[precision], workers)
    seconds = time.perf_counter() - started
    if group is not None:
        torch.distributed.barrier()  # every part is on disk
    result = None
    if rank == 0:
        result = _summary(store, items, scoring, count)
        result[0].update(identity=identity, processes=world, images_per_s=seen / seconds if seen else 0.0)
    if group is not None:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    return result


def score(
    model: nn.Module,
    reader: Reader,
    protocol: BodyProtocol | HandProtocol,
    *,
    image_size: int | tuple[int, int] = 224,
    batch_size: int = 32,
    workers: int = 0,
    limit: int | None = None,
    smpl_head: bool = False,
) -> dict[str, float]:
    """Means of a model on a data set, by this process alone and with nothing on disk: for validation while training."""
    count = len(reader) if limit is None else min(limit, len(reader))
    device = next(model.parameters()).device
    protocol.body.to(device)
    store, scoring = MemoryRows(), MeshScoring(protocol, image_size, smpl_head)
    _run(model, reader, scoring, store, list(range(count)), batch_size, device, None, workers)
    result, _ = _summary(store, reader, scoring, count)
    return {k: v for k, v in result.items() if isinstance(v, float)} | {"failed": float(len(result["failed"]))}


def _join(rank: int, world: int) -> Any:
    """Process group for the two barriers; results travel by disk, so gloo does on any device."""
    if world == 1 or torch.distributed.is_initialized():
        return None
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(days=2))
    return True


@torch.inference_mode()
def _run(
    model: Any,
    items: Any,
    scoring: Any,
    store: Any,
    indices: Any,
    batch_size: Any,
    device: torch.device,
    dtype: Any,
    workers: Any,
) -> int:
    loader = torch.utils.data.DataLoader(
        _Items(items, indices, scoring),
        batch_size,
        collate_fn=_collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        multiprocessing_context="fork" if workers else None,
    )
    seen = 0
    # without a terminal the bar is silent
    for bad, index, inputs, truth in tqdm(loader, desc="evaluation", unit="batch", leave=False, disable=None):
        for i, reason in bad:
            store.fail(i, reason)
        if inputs is None:
            continue
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            rows = scoring.rows(
                model, inputs.to(device, non_blocking=True), {k: v.to(device) for k, v in truth.items()}
            )
        store.add(index, rows)
        seen += len(index)
    store.flush()
    return seen


class Incomplete(RuntimeError):
    """Some items have neither a row nor an error: a process died."""


def _summary(
    store: RowStore | MemoryRows, items: Items, scoring: Scoring, count: int
) -> tuple[dict, dict[str, np.ndarray]]:
    rows, failed = store.merged(), store.failures()
    keep = rows["index"] < count
    rows = {k: v[keep] for k, v in rows.items()}
    there = set(rows["index"].tolist())
    # a run of more processes before may have left errors of items that could be read since
    failed = {i: reason for i, reason in failed.items() if i < count and i not in there}
    missing = set(range(count)) - there - set(failed)
    if missing:
        raise Incomplete(
            f"evaluate: {len(missing)} of {count} items have no row (first: {min(missing)}); a process died, "
            "run the command again"
        )
    if not len(rows["index"]):
        first = next(iter(failed.items()), (0, "the data set is empty"))
        raise ValueError(f"evaluate: none of {count} items could be evaluated (first: {first[1]})")
    places = [items.place(int(i)) for i in rows["index"]]
    sequences, frames = [p[0] for p in places], [p[1] for p in places]
    result = scoring.summary(rows, sequences, frames)
    result |= {"items": int(len(rows["index"])), "failed": {str(k): v for k, v in sorted(failed.items())}}
    if any(sequences):
        names = np.array(sequences)
        result["per_sequence"] = {
            s: {
                m: float(np.nanmean(rows[m][names == s].astype(np.float64)))
                for m in scoring.metrics
                if np.isfinite(rows[m][names == s]).any()
            }
            for s in sorted(set(sequences))
        }
    return result, rows
