"""Numbers per item on disk, so that a killed evaluation goes on where it was and any number of processes add up
exactly. from ..io.atomic import write_arrays, write_json


A folder holds `run.json` (what is being evaluated), `part-*.npz` (rows of some items, each file whole or not there) and
`failed-*.json`. Items are known by their index in the reader; the means are taken over the union of all parts.
"""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path

import numpy as np
import torch

from ..io.atomic import write_arrays, write_bytes, write_json


class RowStore:
    """Rows of one evaluation.

    Args:
        folder: made if needed.
        identity: JSON-able facts that decide the numbers (weights, data, protocol); parts of another run are refused.
        rank: of this process; each writes its own files.
        flush_items, flush_s: a part is written after so many items or seconds.
    """

    def __init__(self, folder: Path, identity: dict, rank: int = 0, flush_items: int = 512, flush_s: float = 60.0):
        self.folder, self.rank = folder, rank
        self.flush_items, self.flush_s = flush_items, flush_s
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "run.json"
        text = json.dumps(identity, indent=2, sort_keys=True)
        if not path.is_file():
            write_bytes(path, text.encode())  # every process writes the same
        else:
            there = json.loads(path.read_text())
            other = [k for k in {*there, *identity} if there.get(k) != json.loads(text).get(k)]
            if other:
                key = sorted(other)[0]
                raise ValueError(
                    f"{folder}: holds the rows of another evaluation ({key} was {there.get(key)!r}, is "
                    f"{identity.get(key)!r}); give another folder or delete this one"
                )
        self._pending: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
        self._waiting, self._since = 0, time.monotonic()
        self._failed: dict[int, str] = {}
        (folder / f"failed-{rank}.json").unlink(missing_ok=True)  # failed items are tried again

    def done(self) -> set[int]:
        """Indices of all items with a row, of any process and any earlier run."""
        out: set[int] = set()
        for path in self._parts():
            with np.load(path) as part:
                out.update(part["index"].tolist())
        return out

    def add(self, index: np.ndarray, rows: dict[str, torch.Tensor]) -> None:
        """Rows of a batch of items."""
        self._pending.append((np.asarray(index), {k: v.detach().float().cpu().numpy() for k, v in rows.items()}))
        self._waiting += len(index)
        if self._waiting >= self.flush_items or time.monotonic() - self._since > self.flush_s:
            self.flush()

    def fail(self, index: int, reason: str) -> None:
        """An item that cannot be evaluated."""
        self._failed[int(index)] = reason
        write_json(self.folder / f"failed-{self.rank}.json", self._failed)

    def flush(self) -> None:
        if self._pending:
            arrays = {k: np.concatenate([rows[k] for _, rows in self._pending]) for k in self._pending[0][1]}
            arrays["index"] = np.concatenate([index for index, _ in self._pending])
            write_arrays(self.folder / f"part-{self.rank}-{uuid.uuid4().hex[:12]}.npz", arrays)
        self._pending, self._waiting, self._since = [], 0, time.monotonic()

    def merged(self) -> dict[str, np.ndarray]:
        """All rows ordered by index, each item once."""
        parts = []
        for path in self._parts():
            with np.load(path) as part:
                parts.append({k: part[k] for k in part.files})
        return _merge(parts)

    def failures(self) -> dict[int, str]:
        out: dict[int, str] = {}
        for path in sorted(self.folder.glob("failed-*.json")):
            out.update({int(k): v for k, v in json.loads(path.read_text()).items()})
        return out

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.npz"))


class MemoryRows:
    """The same for one process and one go, nothing on disk: validation while training."""

    def __init__(self) -> None:
        self._parts: list[dict[str, np.ndarray]] = []
        self._failed: dict[int, str] = {}

    def add(self, index: np.ndarray, rows: dict[str, torch.Tensor]) -> None:
        arrays = {k: v.detach().float().cpu().numpy() for k, v in rows.items()}
        self._parts.append({**arrays, "index": np.asarray(index)})

    def fail(self, index: int, reason: str) -> None:
        self._failed[int(index)] = reason

    def flush(self) -> None:
        pass

    def merged(self) -> dict[str, np.ndarray]:
        return _merge(self._parts)

    def failures(self) -> dict[int, str]:
        return self._failed


def _merge(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    if not parts:
        return {"index": np.zeros(0, np.int64)}
    arrays = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    _, first = np.unique(arrays["index"], return_index=True)
    return {k: v[first] for k, v in arrays.items()}
