"""Per-frame predictions of every track on disk, so that videos of any length fit in memory and interrupted runs go on.

In: rows of pipelines/video.py, appended in order of frames; out: memory-mapped rows per track. Also the
streaming .npz writer. Folder: `track_NNN.rows` (fixed-size records) and `progress.json` (written atomically, last).
"""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ..io.atomic import replacing, write_json


def row_dtype(token_dim: int) -> np.dtype:
    """One person in one frame."""
    return np.dtype(
        [
            ("frame", "i4"),
            ("box", "f4", (4,)),  # px
            ("square", "f4", (3,)),  # centre x, y, side px
            ("image", "f4", (2,)),  # W, H px
            ("focal", "f4"),
            ("cam", "f4", (3,)),
            ("betas", "f4", (10,)),
            ("rotations", "f4", (24, 3, 3)),
            ("token", "f4", (token_dim,)),
        ]
    )


class TrackStore:
    """Append-only rows per track.

    Args:
        folder: working folder; an existing one with the same `settings` is continued, with others refused.
        token_dim: width of the per-frame feature. settings: JSON-able facts that the rows depend on.
    """

    def __init__(self, folder: str | Path, token_dim: int, settings: dict):
        self.folder, self.dtype, self.settings = Path(folder), row_dtype(token_dim), settings
        self.folder.mkdir(parents=True, exist_ok=True)
        self.counts: dict[int, int] = {}
        self.facts: dict = {}
        self.next_frame, self.finished = 0, False
        self._pending: dict[int, list[np.ndarray]] = {}
        if self._progress.exists():
            self._resume()
        else:
            for stale in self.folder.glob("track_*.rows"):
                stale.unlink()

    @property
    def _progress(self) -> Path:
        return self.folder / "progress.json"

    def _path(self, track: int) -> Path:
        return self.folder / f"track_{track:03d}.rows"

    def _resume(self) -> None:
        data = json.loads(self._progress.read_text())
        if data["settings"] != self.settings:
            changed = sorted(k for k in self.settings if data["settings"].get(k) != self.settings[k])
            raise ValueError(
                f"{self.folder}: holds an unfinished or finished run with other settings "
                f"({', '.join(changed) or 'keys'}); "
                "choose another output folder or delete this one"
            )
        self.counts = {int(k): v for k, v in data["counts"].items()}
        self.next_frame, self.finished, self.facts = data["next_frame"], data["finished"], data["facts"]
        for path in self.folder.glob("track_*.rows"):
            keep = self.counts.get(int(path.stem.split("_")[1]), 0) * self.dtype.itemsize
            if path.stat().st_size < keep:
                raise ValueError(f"{path}: shorter than the run's own notes; delete {self.folder} and start again")
            with open(path, "r+b") as f:
                f.truncate(keep)  # rows of an unfinished chunk

    def append(self, track: int, rows: np.ndarray) -> None:
        """Rows of one track, frames rising; on disk after the next `commit`."""
        self._pending.setdefault(track, []).append(np.asarray(rows, self.dtype).reshape(-1))

    def commit(self, next_frame: int, finished: bool = False) -> None:
        """Everything before `next_frame` is done: rows to disk, then the note of it."""
        for track, parts in self._pending.items():
            with open(self._path(track), "ab") as f:
                for part in parts:
                    f.write(part.tobytes())
                f.flush()
                os.fsync(f.fileno())
            self.counts[track] = self.counts.get(track, 0) + sum(map(len, parts))
        self._pending = {}
        self.next_frame, self.finished = next_frame, finished
        note = {
            "settings": self.settings,
            "next_frame": next_frame,
            "finished": finished,
            "facts": self.facts,
            "counts": {str(k): v for k, v in self.counts.items()},
        }
        write_json(self._progress, note, indent=None)

    @property
    def tracks(self) -> list[int]:
        return sorted(t for t, n in self.counts.items() if n)

    def rows(self, track: int) -> np.ndarray:
        """All rows of a track, memory-mapped."""
        return np.memmap(self._path(track), self.dtype, "r", shape=(self.counts[track],))


class NpzStream:
    """An .npz whose long arrays arrive in pieces; the file appears whole, at `close`.

    Args:
        path: the .npz. length: rows of every streamed array; None: not known before, only the same for all.
    """

    def __init__(self, path: str | Path, length: int | None = None):
        self.path, self.length = Path(path), length
        self._parts: dict[str, tuple[Path, np.dtype, tuple[int, ...], int]] = {}
        self._whole: dict[str, np.ndarray] = {}

    def put(self, key: str, value: Any) -> None:
        """A short array or number."""
        self._whole[key] = np.asarray(value)

    def append(self, key: str, rows: np.ndarray) -> None:
        """The next rows of a long array."""
        rows = np.ascontiguousarray(rows)
        file = self.path.with_name(f".{self.path.stem}.{key}.tmp")
        count = self._parts[key][3] if key in self._parts else 0
        with open(file, "ab" if count else "wb") as f:
            f.write(rows.tobytes())
        self._parts[key] = (file, rows.dtype, rows.shape[1:], count + len(rows))

    def close(self) -> None:
        expected = self.length if self.length is not None else max((p[3] for p in self._parts.values()), default=0)
        with replacing(self.path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for key, value in self._whole.items():
                with archive.open(f"{key}.npy", "w") as f:
                    np.lib.format.write_array(f, value, allow_pickle=False)
            for key, (file, dtype, shape, count) in self._parts.items():
                if count != expected:
                    raise ValueError(f"{self.path.name}: {key} has {count} rows, expected {expected}")
                header = {
                    "descr": np.lib.format.dtype_to_descr(dtype),
                    "fortran_order": False,
                    "shape": (count, *shape),
                }
                with archive.open(f"{key}.npy", "w", force_zip64=True) as f, open(file, "rb") as source:
                    np.lib.format.write_array_header_1_0(f, header)
                    while block := source.read(1 << 20):
                        f.write(block)
        self.discard()

    def discard(self) -> None:
        """Removes the temporary files."""
        for file, *_ in self._parts.values():
            file.unlink(missing_ok=True)


class NpzRows:
    """Pieces of the long arrays of a file that NpzStream wrote, read from disk when asked for."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._archive = zipfile.ZipFile(self.path)
        self._open: dict[str, tuple] = {}

    def array(self, key: str) -> np.ndarray:
        """A short array, whole."""
        with self._archive.open(f"{key}.npy") as f:
            return np.lib.format.read_array(f, allow_pickle=False)

    def rows(self, key: str, first: int, last: int) -> np.ndarray:
        """Rows first..last-1 (cut to what is there)."""
        if key not in self._open:
            f = self._archive.open(f"{key}.npy")
            np.lib.format.read_magic(f)
            shape, _, dtype = np.lib.format.read_array_header_1_0(f)
            self._open[key] = (f, f.tell(), shape, dtype)
        f, start, shape, dtype = self._open[key]
        first, last = max(0, first), min(last, shape[0])
        size = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
        f.seek(start + first * size)
        return np.frombuffer(f.read(max(0, last - first) * size), dtype).reshape(-1, *shape[1:])

    def close(self) -> None:
        for f, *_ in self._open.values():
            f.close()
        self._archive.close()
