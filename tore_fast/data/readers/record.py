"""What every reader yields: one person (or hand) with its image, box and whatever labels the file has.

In: nothing. Out: `Record` and the base class `Reader` (a sequence: `len(reader)`, `reader[i]`, safe in worker
processes).
Next on the way: sample.py crops a record for training or evaluation.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...io.image import ImageError, read_image


@dataclass(frozen=True)
class Camera:
    """Pinhole camera of a image: pixel = K (R x + t), x in metres."""

    intrinsics: np.ndarray  # [3, 3]
    rotation: np.ndarray = field(default_factory=lambda: np.eye(3))  # [3, 3] world to camera
    translation: np.ndarray = field(default_factory=lambda: np.zeros(3))  # [3] metres


@dataclass(frozen=True)
class Record:
    """One person or hand. Labels that a file lacks are None (or False); lengths in metres, camera axes (y down)."""

    name: str  # unique within the reader
    open_image: Callable[[], np.ndarray] | None = None  # decodes the image; motion files have none
    center: np.ndarray | None = None  # [2] x, y of the box in pixels
    scale: float = 0.0  # side of the square box / 200 px, margin included
    box_size: np.ndarray | None = None  # [2] width, height in pixels, margin included
    keypoints_2d: np.ndarray | None = None  # [K, 3] x, y in pixels of the image, confidence
    keypoints_2d_set: str = ""  # name in joint_sets.JOINT_SETS
    keypoints_3d: np.ndarray | None = None  # [K, 4] x, y, z, confidence
    keypoints_3d_set: str = ""
    pose: np.ndarray | None = None  # [72] SMPL or [48] MANO axis-angle, root turned into camera axes
    betas: np.ndarray | None = None  # [10]
    has_smpl: bool = False  # pose and betas are labels, not fillers
    vertices: np.ndarray | None = None  # [V, 3] where the file holds the mesh itself (FreiHAND evaluation)
    translation: np.ndarray | None = None  # [3] of the body in camera axes
    gender: str = "neutral"  # neutral | male | female
    camera: Camera | None = None
    sequence: str = ""  # frames of one person of one video share this
    frame: int = -1  # number within the sequence
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def image(self) -> np.ndarray:  # [H, W, 3] uint8
        """Decodes the image (each time it is asked for)."""
        if self.open_image is None:
            raise ImageError(f"{self.name}: this record has no image")
        return self.open_image()

    @property
    def is_hand(self) -> bool:
        """The labels speak of a hand (21 points or MANO pose)."""
        return "hand21" in (self.keypoints_2d_set, self.keypoints_3d_set) or (
            self.pose is not None and len(self.pose) == 48
        )

    @property
    def has_2d(self) -> bool:
        return self.keypoints_2d is not None and bool((self.keypoints_2d[:, 2] > 0).any())

    @property
    def has_3d(self) -> bool:
        return self.keypoints_3d is not None and bool((self.keypoints_3d[:, 3] > 0).any())


class Reader:
    """A data set of records with random access. Sub-classes have `_name(i)` and `_record(i)`."""

    format = ""  # short name, see readers.FORMATS
    root: Path

    def __len__(self) -> int:
        raise NotImplementedError

    def _record(self, index: int) -> Record:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Record:
        n = len(self)
        if not -n <= index < n:  # also ends Python's iteration protocol
            raise IndexError(f"{self.format}: index {index} outside 0..{n - 1}")
        return self._record(index % n)

    def place(self, index: int) -> tuple[str, int]:
        """Sequence and frame of an item, as in its record, without making the record."""
        return "", -1  # formats with sequences override this

    def __iter__(self) -> Iterator[Record]:
        return (self._record(i) for i in range(len(self)))


class DataError(ValueError):
    """A data file that cannot be used; the text names it, what was expected and what came."""


class MissingData(FileNotFoundError):
    """A file the user has to fetch; the text says what it is and whom it comes from."""


def require(path: Path, what: str, source: str) -> Path:
    """`path` if it exists, else a one-line MissingData."""
    if not path.exists():
        raise MissingData(f"{path}: not there; it should be {what}. {source}")
    return path


def plain_data(read: Callable, *args: Any) -> Any:
    """What `read` (of io/safe_pickle.py) returns; a refused or damaged file is a DataError like any other bad data."""
    try:
        return read(*args)
    except (pickle.UnpicklingError, zipfile.BadZipFile) as e:
        raise DataError(f"{args[0]}: {e}" if isinstance(args[0], Path) else str(e)) from None


def stored_image(path: Path) -> Callable[[], np.ndarray]:
    """Opener of an image on disk as it is stored: data sets annotate the pixels, whatever their EXIF flag says."""
    return partial(read_image, path, upright=False)


def float_array(value: Any, shape: tuple[int | None, ...], what: str) -> np.ndarray:
    """float32 array of a wanted shape (None = any length), or a DataError that says what came."""
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise DataError(f"{what}: expected numbers {_shape(shape)}, got {type(value).__name__}") from None
    if array.ndim != len(shape) or any(w is not None and w != g for w, g in zip(shape, array.shape)):
        raise DataError(f"{what}: expected {_shape(shape)}, got {list(array.shape)}")
    return array


def _shape(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("any" if s is None else str(s) for s in shape) + "]"


def gender_name(value: Any) -> str:
    """neutral | male | female from what files hold ('m', b'female', '', 'none', 0-d arrays)."""
    if isinstance(value, np.ndarray):
        value = value.item() if value.size == 1 else ""
    if isinstance(value, bytes):
        value = value.decode("latin1")
    first = str(value).strip().lower()[:1]
    return {"m": "male", "f": "female"}.get(first, "neutral")
