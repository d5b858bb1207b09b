"""Synthetic images on disk: what `tore-fast synth` writes and `SynthShards` reads.

A data set is a folder with `synth.json` (the settings that made it) and `shard-00000.npz`, `shard-00001.npz`, ... of
`shard_size` images each (the last one shorter). Sample i is row i % BATCH of SynthGenerator.batch(i // BATCH, BATCH),
so neither the number of workers nor an interruption changes a byte. A shard is an uncompressed npz with n rows of

    jpeg, jpeg_end           all JPEG files one after the other (uint8), and where each ends (int64 [n])
    mask, mask_end           likewise 8-bit PNG part masks: 0 = background or occluder, 1 + part label on the body
    pose [n, 24, 3]  betas [n, 10]  camera [n, 3]  joints3d [n, 14, 3]  joints2d [n, 14, 2]  visible2d [n, 14]
    box [n, 4]  translation [n, 3]  crop [n, 3]        float32, as SynthGenerator.batch returns them

Vertices are not stored: body(pose, betas) gives them again (`SynthShards(folder, body)` does it per batch).
"""

from __future__ import annotations

import contextlib
import io
import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ...body import Body, load_body
from ...io.atomic import write_arrays, write_json
from .generator import SynthGenerator
from .motion import load_pose_bank

BATCH = 16  # images generated together; part of the format
FORMAT = 1
LABELS = ("pose", "betas", "camera", "joints3d", "joints2d", "visible2d", "box", "translation", "crop")
_JPEG_QUALITY = 93


@dataclass(frozen=True)
class SynthSettings:
    """What decides every byte of a data set but its length."""

    seed: int = 0
    size: int = 224
    difficulty: float = 1.0
    split: str = "train"
    backgrounds: str = "photos"
    poses: str = ""
    bank_share: float = 0.5
    shard_size: int = 512

    def generator(self) -> SynthGenerator:
        bank = load_pose_bank([self.poses]) if self.poses else None
        return SynthGenerator(
            load_body("free"),
            self.size,
            self.seed,
            self.difficulty,
            self.split,
            "cpu",
            backgrounds=self.backgrounds,
            pose_bank=bank,
            bank_share=self.bank_share,
        )


def write_shards(
    folder: str | Path,
    count: int,
    settings: SynthSettings,
    workers: int = 1,
    progress: Callable[[int], None] = lambda n: None,
) -> int:
    """Writes what is missing of a data set of `count` images; returns how many images it made.

    Finished shards are kept, so a second call after an interruption goes on, and a larger `count` extends.

    Args:
        progress: called with the number of images that are done, as shards come in (first with those already there).

    Raises:
        ValueError: bad count, worker number or settings, or a folder made with other settings.
    """
    if count < 1 or workers < 1:
        raise ValueError(f"synth: the numbers of images and workers must be at least 1, got {count} and {workers}")
    if settings.shard_size < BATCH or settings.shard_size % BATCH:
        raise ValueError(f"synth: shard size must be a multiple of {BATCH}, got {settings.shard_size}")
    settings.generator()  # all its complaints now, not from a worker
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _check_manifest(folder, settings)
    starts = range(0, count, settings.shard_size)
    todo = {s: min(settings.shard_size, count - s) for s in starts}
    todo = {s: n for s, n in todo.items() if _rows(shard_path(folder, s // settings.shard_size)) < n}
    ready = count - sum(todo.values())
    progress(ready)
    if workers == 1 or len(todo) <= 1:
        generator = settings.generator()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums in the order every worker uses
        try:
            for start, n in todo.items():
                _write_shard(folder, settings, start, n, generator)
                progress(n)
        finally:
            torch.set_num_threads(threads)
        return sum(todo.values())
    context = get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(todo)), context, _init_worker, (settings,)) as pool:
        with _no_interrupts():  # workers inherit it: a Ctrl-C ends this process, which lets them finish their shards
            jobs = {pool.submit(_worker_shard, folder, settings, s, n): n for s, n in todo.items()}
        try:
            for job in as_completed(jobs):
                job.result()
                progress(jobs[job])
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return sum(todo.values())


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.npz"


_WORKER: dict[str, SynthGenerator] = {}


def _init_worker(settings: SynthSettings) -> None:
    torch.set_num_threads(1)
    _WORKER["generator"] = settings.generator()


def _worker_shard(folder: Path, settings: SynthSettings, start: int, count: int) -> None:
    _write_shard(folder, settings, start, count, _WORKER["generator"])


def _write_shard(folder: Path, settings: SynthSettings, start: int, count: int, generator: SynthGenerator) -> None:
    labels: dict[str, list[np.ndarray]] = {k: [] for k in LABELS}
    files: dict[str, list[bytes]] = {"jpeg": [], "mask": []}
    for first in range(start, start + count, BATCH):
        batch = generator.batch(first // BATCH, BATCH)
        rows = min(BATCH, start + count - first)
        for k in LABELS:
            labels[k].append(batch[k][:rows].numpy())
        for image, mask in zip(batch["images"][:rows].permute(0, 2, 3, 1).numpy(), batch["mask"][:rows].numpy()):
            files["jpeg"].append(_encode(image, "JPEG", quality=_JPEG_QUALITY))
            files["mask"].append(_encode(mask, "PNG"))
    arrays = {k: np.concatenate(v) for k, v in labels.items()}
    for k, items in files.items():
        arrays[k] = np.frombuffer(b"".join(items), np.uint8)
        arrays[f"{k}_end"] = np.cumsum([len(b) for b in items])
    write_arrays(shard_path(folder, start // settings.shard_size), arrays)


def _encode(array: np.ndarray, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind, **options)
    return out.getvalue()


def _rows(path: Path) -> int:
    """Images in a shard; 0 when it is missing or unreadable (it is then written again)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return len(file["jpeg_end"])
    except (OSError, ValueError, KeyError):
        return 0
    except Exception as e:  # zipfile.BadZipFile, zlib.error
        if type(e).__module__ not in ("zipfile", "zlib"):
            raise
        return 0


def _check_manifest(folder: Path, settings: SynthSettings) -> None:
    path = folder / "synth.json"
    want = {"format": FORMAT, "batch": BATCH, **asdict(settings)}
    if path.exists():
        have = json.loads(path.read_text())
        if have != want:
            other = ", ".join(f"{k} {have.get(k)!r}" for k in want if have.get(k) != want[k])
            raise ValueError(
                f"synth: {folder} was made with other settings ({other}); give them again or another folder"
            )
        return
    if any(folder.glob("shard-*.npz")):
        raise ValueError(f"synth: {folder} has shards but no synth.json; give another folder")
    write_json(path, want, indent=2)


class SynthShards(Dataset):
    """Reads a folder written by `tore-fast synth`: a map-style data set of single samples, or whole batches.

    Args:
        folder: the data set.
        body: when given, `batch` adds vertices [B, V, 3] (body's device is used for that only).

    Raises:
        ValueError: not a data set of this format.

    Example:
        >>> data = SynthShards("data/synth", load_body("free"))  # doctest: +SKIP
        >>> data.batch([0, 5, 7])["vertices"].shape  # doctest: +SKIP
        torch.Size([3, 6890, 3])
    """

    def __init__(self, folder: str | Path, body: Body | None = None) -> None:
        self.folder = Path(folder)
        path = self.folder / "synth.json"
        if not path.is_file():
            raise ValueError(f"SynthShards: {self.folder} has no synth.json; make one with `tore-fast synth --out`")
        meta = json.loads(path.read_text())
        if meta.pop("format", None) != FORMAT or meta.pop("batch", None) != BATCH:
            raise ValueError(f"SynthShards: {path} is not of format {FORMAT}")
        self.settings = SynthSettings(**meta)
        self.body = body
        paths = sorted(self.folder.glob("shard-*.npz"))
        counts = [_rows(p) for p in paths]
        bad = [p.name for p, n in zip(paths, counts) if not n]
        if bad:
            raise ValueError(
                f"SynthShards: {self.folder}: cannot read {', '.join(bad)}; run the same synth command again"
            )
        if not paths:
            raise ValueError(f"SynthShards: {self.folder} has no finished shard yet")
        self._paths, self._first = paths, np.cumsum([0, *counts])
        self._open: dict[int, dict[str, np.ndarray]] = {}

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """images [3, S, S] uint8, mask [S, S] uint8, and one row of every label."""
        if not 0 <= index < len(self):
            raise IndexError(f"SynthShards: index must be 0..{len(self) - 1}, got {index}")
        shard = int(np.searchsorted(self._first, index, side="right")) - 1
        data, row = self._shard(shard), index - int(self._first[shard])
        sample = {k: torch.from_numpy(data[k][row].copy()) for k in LABELS}
        sample["images"] = torch.from_numpy(self._decode(data, "jpeg", row)).permute(2, 0, 1).contiguous()
        sample["mask"] = torch.from_numpy(self._decode(data, "mask", row))
        return sample

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The samples stacked, as SynthGenerator.batch returns them (vertices only when a body was given)."""
        items = [self[int(i)] for i in indices]
        out = {k: torch.stack([s[k] for s in items]) for k in items[0]}
        if self.body is not None:
            out["vertices"] = vertices_of(self.body, out["pose"], out["betas"])
        return out

    def batches(self, batch_size: int, seed: int) -> Iterator[dict[str, Tensor]]:
        """One epoch in an order that depends on the seed only; the last, shorter batch is left out."""
        order = np.random.default_rng(seed).permutation(len(self))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            yield self.batch(order[start : start + batch_size].tolist())

    def _shard(self, shard: int) -> dict[str, np.ndarray]:
        if shard not in self._open:
            while len(self._open) >= 64:  # a shard of 512 JPEGs of 224 pixels takes about 10 MB
                self._open.pop(next(iter(self._open)))
            with np.load(self._paths[shard], allow_pickle=False) as file:
                self._open[shard] = {k: file[k] for k in file.files}
        return self._open[shard]

    @staticmethod
    def _decode(data: dict[str, np.ndarray], key: str, row: int) -> np.ndarray:
        end = data[f"{key}_end"]
        return np.array(Image.open(io.BytesIO(data[key][end[row - 1] if row else 0 : end[row]].tobytes())))


@torch.no_grad()
def vertices_of(body: Body, pose: Tensor, betas: Tensor) -> Tensor:  # [B, V, 3]
    """Vertices of stored labels: camera axes, pelvis at the origin, as SynthGenerator.batch returns them."""
    device = body.template.device
    vertices = body(pose.to(device), betas.to(device)).vertices
    return vertices - body.regress("h36m17", vertices)[:, :1]
