"""Book-keeping of batch prediction: which images belong to which unit of work, who works on it, what is done.

In: tars and folders; out: a folder with `manifest.json`, `plan/unit-*.json` (the images of each unit), `claims/` (who is at
it) and `results/unit-*.npz`. A result appears whole and only once, whoever wrote it, so no image is lost or there twice
after any kill; claims only keep workers from doing the same work. Next on the way: batch.py runs a model over units.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..data.readers.hmr2_tar import expand_tars, tar_samples
from ..io.atomic import write_json
from ..io.image import EXTENSIONS
from ..io.natural import natural_sorted

CAREFUL_AFTER = 1  # so many workers died on a unit: from now on it is done image by image, to find the one that kills
BEAT_S = 5.0


class BatchError(ValueError):
    """Batch prediction cannot go on; the text says why."""


class BatchUnfinished(BatchError):
    """It ran, but units are open: the same call goes on."""


class Image(NamedTuple):
    """One image of a unit: a file, or a byte range of a tar."""

    name: str
    path: str
    offset: int = -1  # -1: the whole file
    size: int = 0
    boxes_offset: int = -1  # byte range of its KEY.json in the tar, where there is one
    boxes_size: int = 0

    def read(self) -> bytes:
        return _range(self.path, self.offset, self.size)

    def sidecar(self) -> bytes | None:
        """KEY.json beside the image, or None."""
        if self.offset >= 0:
            return _range(self.path, self.boxes_offset, self.boxes_size) if self.boxes_offset >= 0 else None
        path = Path(self.path).with_suffix(".json")
        return path.read_bytes() if path.is_file() else None


def _range(path: str, offset: int, size: int) -> bytes:
    with open(path, "rb") as f:
        if offset < 0:
            return f.read()
        f.seek(offset)
        return f.read(size)


def list_images(inputs: Iterable[str | Path]) -> list[Image]:
    """Images of tars, tar patterns, folders (with all below) and files, in a fixed order, each once.

    Raises:
        BatchError: an input that gives no image. MissingData, DataError: a tar that is not there or broken.
    """
    found: dict[str, Image] = {}
    known: set[tuple[str, int]] = set()  # file and place in it
    for source in inputs:
        before = len(found)
        text, path = str(source), Path(source)
        images: Iterator[Image]
        if text.endswith(".tar"):
            images = _tar_images(expand_tars(source))
        elif path.is_dir():
            files = natural_sorted(p for p in path.rglob("*") if p.is_file())
            plain = [Image(p.as_posix(), str(p.resolve())) for p in files if p.suffix.lower() in EXTENSIONS]
            images = iter([*plain, *_tar_images([p for p in files if p.suffix == ".tar"])])
        elif path.is_file() and path.suffix.lower() in EXTENSIONS:
            images = iter([Image(path.as_posix(), str(path.resolve()))])
        else:
            raise BatchError(f"{source}: expected a tar, a folder or a image ({', '.join(EXTENSIONS)})")
        for image in images:
            if (image.path, image.offset) not in known:
                known.add((image.path, image.offset))
                name, copy = image.name, 1
                while name in found:  # a tar may hold a name twice
                    copy += 1
                    name = f"{image.name}#{copy}"
                found[name] = image._replace(name=name)
            else:
                before = -1  # it was there, only named twice
        if len(found) == before:
            raise BatchError(f"{source}: no image in it")
    if not found:
        raise BatchError("no input; expected tars, folders or images")
    return list(found.values())


def _tar_images(tars: list[Path]) -> Iterator[Image]:
    for tar in tars:
        for key, members in tar_samples([tar]):
            boxes = members.get("json")
            for extension, member in members.items():
                if f".{extension}" in EXTENSIONS:
                    beside = (boxes.offset, boxes.size) if boxes else (-1, 0)
                    yield Image(
                        f"{tar.as_posix()}:{key}.{extension}", str(tar.resolve()), member.offset, member.size, *beside
                    )


@dataclass(frozen=True)
class Manifest:
    """What a batch folder is about; written once, last of the plan."""

    units: int
    images: int
    names_hash: str  # of all names and sizes in order
    settings: dict = field(default_factory=dict)  # decide the results: model, weights, boxes, arrays


class BatchFolder:
    """The files of one batch prediction."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.plan, self.claims, self.results = (self.root / n for n in ("plan", "claims", "results"))

    @property
    def manifest(self) -> Manifest:
        path = self.root / "manifest.json"
        if not path.is_file():
            raise BatchError(f"{self.root}: no manifest.json; expected the folder of a batch prediction")
        return Manifest(**json.loads(path.read_text()))

    def make(self, images: list[Image], unit_images: int, settings: dict) -> Manifest:
        """Writes plan and manifest, or checks that those there are for the same images and settings."""
        digest = hashlib.blake2b(digest_size=16)
        for p in images:
            digest.update(f"{p.name}\0{p.size if p.offset >= 0 else os.stat(p.path).st_size}\n".encode())
        count = -(-len(images) // unit_images)
        settings = {**settings, "unit_images": unit_images}
        wanted = Manifest(count, len(images), digest.hexdigest(), json.loads(json.dumps(settings)))
        if (self.root / "manifest.json").is_file():
            self._check(wanted)
            return wanted
        for folder in (self.plan, self.claims, self.results):
            folder.mkdir(parents=True, exist_ok=True)
        for unit in range(count):
            part = images[unit * unit_images : (unit + 1) * unit_images]
            write_json(self.plan / f"unit-{unit:06d}.json", part)
        write_json(self.root / "manifest.json", asdict(wanted), indent=2)
        return wanted

    def _check(self, wanted: Manifest) -> None:
        there = self.manifest
        if there.settings != wanted.settings:
            keys = {*there.settings, *wanted.settings}
            key = next(k for k in sorted(keys) if there.settings.get(k) != wanted.settings.get(k))
            raise BatchError(
                f"{self.root}: was begun with {key} = {there.settings.get(key)!r}, now it is {wanted.settings.get(key)!r}; "
                "give another output folder"
            )
        if there != wanted:
            raise BatchError(
                f"{self.root}: was begun on {there.images} images, the inputs now hold {wanted.images} or others; "
                "give another output folder"
            )

    def images(self, unit: int) -> list[Image]:
        return [Image(*p) for p in json.loads((self.plan / f"unit-{unit:06d}.json").read_text())]

    def result_path(self, unit: int) -> Path:
        return self.results / f"unit-{unit:06d}.npz"

    def done(self) -> set[int]:
        return {int(n[5:-4]) for n in os.listdir(self.results) if n.startswith("unit-") and n.endswith(".npz")}

    def pending(self) -> list[int]:
        return sorted(set(range(self.manifest.units)) - self.done())

    def commit(self, unit: int, arrays: dict[str, np.ndarray]) -> bool:
        """Puts a unit's result there, whole; False if somebody else's is there already (ours is dropped)."""
        part = self.results / f".{uuid.uuid4().hex}"
        with open(part, "wb") as f:
            np.savez(f, **arrays)
            f.flush()
            os.fsync(f.fileno())
        try:
            return link_new(part, self.result_path(unit))
        finally:
            part.unlink(missing_ok=True)

    def load(self, unit: int) -> dict[str, np.ndarray]:
        with np.load(self.result_path(unit)) as z:
            return {k: z[k] for k in z.files}

    def verify(self) -> dict[str, int]:
        """Counts after checking that every planned image has exactly one entry in the results.

        Raises:
            BatchError: units are open, or a result does not match its plan.
        """
        pending = self.pending()
        if pending:
            raise BatchError(
                f"{self.root}: {len(pending)} of {self.manifest.units} units are not done (first: {pending[0]})"
            )
        seen: set[str] = set()
        counts = {"images": 0, "people": 0, "failed": 0}
        for unit in range(self.manifest.units):
            result, names = self.load(unit), [p.name for p in self.images(unit)]
            if result["image_name"].tolist() != names or seen & set(names):
                raise BatchError(f"{self.result_path(unit)}: its images are not those of the plan")
            seen.update(names)
            counts["images"] += len(names)
            counts["people"] += len(result["image_index"])
            counts["failed"] += int((result["image_error"] != "").sum())
        if counts["images"] != self.manifest.images:
            raise BatchError(f"{self.root}: {counts['images']} images in the results, {self.manifest.images} planned")
        return counts

    # ---- claims ----------------------------------------------------------------------------------------------------

    def claim(self, unit: int, stale_s: float = 60.0, force: bool = False) -> Claim | None:
        """The right to work on a unit, or None while another live worker has it.

        A claim is dead when its process is gone (same host) or its file was not touched for `stale_s` (another host). A dead
        claim stays where it is; the next worker adds a file with the next number, which only one of several takers can do.
        force: take it anyway (a scheduler like Ray has decided).
        """
        old: dict | None = None
        for number in itertools.count():
            path = self.claims / (f"unit-{unit:06d}.{number}.json" if number else f"unit-{unit:06d}.json")
            claim = Claim(path, {**_me(), "deaths": 0, "at": -1, "bad": []})
            if old is not None:
                claim.state["deaths"] = old["deaths"] + 1
                claim.state["bad"] = [*old["bad"], *([old["at"]] if old["at"] >= 0 else [])]
            if not path.exists():
                return claim if claim.create() else None
            old = _read_claim(path)
            following = path.with_name(f"unit-{unit:06d}.{number + 1}.json")
            if old is None or not (following.exists() or force or _dead(path, old, stale_s)):
                return None


@dataclass
class Claim:
    """A unit held by this process."""

    path: Path
    state: dict

    def create(self) -> bool:
        part = self.path.with_name(f".{self.path.name}.{self.state['token']}.new")
        part.write_text(json.dumps(self.state))
        try:
            return link_new(part, self.path)
        finally:
            part.unlink(missing_ok=True)

    @property
    def careful(self) -> bool:
        """Whether to go image by image: workers died here before."""
        return self.state["deaths"] >= CAREFUL_AFTER

    @property
    def bad(self) -> list[int]:
        """Images on which a careful worker died."""
        return self.state["bad"]

    def mark(self, image: int) -> None:
        """Says which image is next (-1: none), for whoever comes after a death."""
        self.state["at"] = image
        write_json(self.path, self.state, indent=None)

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Touches the claim in the background; removes it at a regular end."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(BEAT_S):
                try:
                    os.utime(self.path)
                except OSError:
                    pass  # taken over: the commit decides

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            there = _read_claim(self.path)
            if there is not None and there["token"] == self.state["token"]:
                self.path.unlink(missing_ok=True)


@functools.cache
def _host() -> str:
    """Where a process number means something: machine (names like `localhost` are not unique), boot and process namespace."""
    parts = [socket.gethostname()]
    try:
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    except OSError:
        pass  # not Linux: the name alone
    return " ".join(parts)


def _me() -> dict:
    pid = os.getpid()
    return {"host": _host(), "pid": pid, "start": _start_time(pid), "token": uuid.uuid4().hex}


def _start_time(pid: int) -> str:
    """Start of a process in clock ticks (Linux), so that a reused number is not taken for the old process; "" elsewhere."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]  # a zombie is dead


def _dead(path: Path, state: dict, stale_s: float) -> bool:
    if state["host"] == _host() and state["start"]:
        return _start_time(state["pid"]) != state["start"]
    try:
        return time.time() - path.stat().st_mtime > stale_s
    except FileNotFoundError:
        return False


def _read_claim(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None


def link_new(source: Path, target: Path) -> bool:
    """Gives `source` a second name if that is free; atomic. File systems without hard links get an exclusive copy."""
    try:
        os.link(source, target)
        return True
    except FileExistsError:
        return False
    except OSError:
        if target.exists():
            return False
        os.replace(source, target)  # not exclusive in a race, but whole
        return True
