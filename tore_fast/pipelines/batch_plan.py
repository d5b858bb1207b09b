"""Book-keeping of batch prediction: which images belong to which unit of work, who works on it, what is done.

In: tars and folders; out: a folder with `manifest.json`, `plan/unit-*.json` (the images of each unit), `claims/` (who
is at it) and `results/unit-*.npz`. A result appears whole and only once, whoever wrote it, so no image is lost or there
twice after any kill. A claim is a file lock: it ends with its process. Next on the way: batch.py runs a model over
units.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ..data.image_list import Image
from ..io.atomic import write_bytes

try:
    import fcntl
except ImportError:  # Windows: without locks a unit may be done twice, its result still is there once
    fcntl = None  # type: ignore[assignment]


class BatchError(ValueError):
    """Batch prediction cannot go on; the text says why."""


class BatchUnfinished(BatchError):
    """It ran, but units are open: the same call goes on."""


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
            size = p.size if p.offset >= 0 else os.stat(p.path).st_size
            digest.update(os.fsencode(p.name) + f"\0{size}\n".encode())
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
            write_bytes(self.plan / f"unit-{unit:06d}.json", json.dumps(part).encode())
        write_bytes(self.root / "manifest.json", json.dumps(asdict(wanted), indent=2).encode())
        return wanted

    def _check(self, wanted: Manifest) -> None:
        there = self.manifest
        before, now = there.settings, wanted.settings
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                was = f"{key} = {before.get(key)!r}, now it is {now.get(key)!r}"
                raise BatchError(f"{self.root}: was begun with {was}; give another output folder")
        if there != wanted:
            now_holds = f"{there.images} images, the inputs now hold {wanted.images} or others"
            raise BatchError(f"{self.root}: was begun on {now_holds}; give another output folder")

    def images(self, unit: int) -> list[Image]:
        return [Image(*p) for p in json.loads((self.plan / f"unit-{unit:06d}.json").read_text())]

    def result_path(self, unit: int) -> Path:
        return self.results / f"unit-{unit:06d}.npz"

    def done(self) -> set[int]:
        return {int(n[5:-4]) for n in os.listdir(self.results) if n.startswith("unit-") and n.endswith(".npz")}

    def pending(self) -> list[int]:
        return sorted(set(range(self.manifest.units)) - self.done())

    def images_in(self, units: Iterable[int]) -> int:
        """How many images the units hold."""
        manifest = self.manifest
        size = manifest.settings["unit_images"]
        return sum(min(size, manifest.images - u * size) for u in units)

    def commit(self, unit: int, arrays: dict[str, np.ndarray]) -> bool:
        """Puts a unit's result there, whole; False if somebody else's is there already (ours is dropped)."""
        part, target = self.results / f".{uuid.uuid4().hex}", self.result_path(unit)
        try:
            with open(part, "wb") as f:
                np.savez(f, **arrays)  # type: ignore[arg-type]  # names of ours, never allow_pickle
                f.flush()
                os.fsync(f.fileno())
            try:
                os.link(part, target)
            except FileExistsError:
                return False
            except OSError:  # a file system without hard links: not exclusive in a race, but whole
                if target.exists():
                    return False
                os.replace(part, target)
            return True
        finally:
            part.unlink(missing_ok=True)

    def load(self, unit: int) -> dict[str, np.ndarray]:
        with np.load(self.result_path(unit), allow_pickle=False) as z:
            return {k: z[k] for k in z.files}

    def verify(self) -> dict[str, int]:
        """Counts after checking that every planned image has exactly one entry in the results.

        Raises:
            BatchError: units are open, or a result does not match its plan.
        """
        manifest, pending = self.manifest, self.pending()
        if pending:
            raise BatchError(
                f"{self.root}: {len(pending)} of {manifest.units} units are not done (first: {pending[0]})"
            )
        seen: set[str] = set()
        counts = {"images": 0, "people": 0, "failed": 0}
        for unit in range(manifest.units):
            result, names = self.load(unit), [p.name for p in self.images(unit)]
            if result["source"].tolist() != names or seen & set(names):
                raise BatchError(f"{self.result_path(unit)}: its images are not those of the plan")
            seen.update(names)
            counts["images"] += len(names)
            counts["people"] += len(result["image_index"])
            counts["failed"] += int((result["error"] != "").sum())
        if counts["images"] != manifest.images:
            raise BatchError(f"{self.root}: {counts['images']} images in the results, {manifest.images} planned")
        return counts

    def claim(self, unit: int) -> Claim | None:
        """The right to work on a unit; None while another live process has it, or where the unit is done."""
        file = os.open(self.claims / f"unit-{unit:06d}.json", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        except OSError:
            pass  # a file system without locks: the commit decides
        if self.result_path(unit).exists():
            os.close(file)
            return None
        return Claim(file, self.claims / f"unit-{unit:06d}.json")


class Claim:
    """A unit held by this process. What a dead holder left in the file tells how it died."""

    def __init__(self, file: int, path: Path):
        self.path, self._file = path, file
        try:
            old = json.loads(os.pread(file, 1 << 20, 0))
            self.deaths = old["deaths"] + 1
            self.bad: list[int] = [*old["bad"], *([old["at"]] if old["at"] >= 0 else [])]
        except (ValueError, KeyError, TypeError):
            self.deaths, self.bad = 0, []
        self.mark(-1)

    @property
    def careful(self) -> bool:
        """Whether to go image by image, to find the one that kills: a worker died here before."""
        return self.deaths > 0

    def mark(self, image: int) -> None:
        """Says which image is next (-1: none), for whoever comes after a death."""
        state = json.dumps({"pid": os.getpid(), "deaths": self.deaths, "at": image, "bad": self.bad}).encode()
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, state, 0)

    def release(self) -> None:
        """A regular end. The file goes before the lock, so that nobody takes the rest of it for a death."""
        self.path.unlink(missing_ok=True)
        os.close(self._file)
