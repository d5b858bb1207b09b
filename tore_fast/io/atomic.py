"""Files that appear whole or not at all: every file this package leaves behind is written here.

Bytes go to a name of their own in the same folder, to the disk, and only then get the file's name. A reader, a kill or
a second process that writes the same file never sees half a file.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np


class PendingFile:
    """A file under construction: write to `part`, then `commit`, or `discard` what there is.

    Args:
        path: of the finished file. What stands there and is no regular file (a pipe, /dev/stdout) is written directly.

    Raises:
        OSError: the folder does not exist, or `path` is a folder.
    """

    def __init__(self, path: str | Path):
        self.path = Path(os.path.realpath(path))  # a symbolic link stays one
        if self.path.is_dir():
            raise IsADirectoryError(f"{path}: expected a file to write, got a folder")
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"{path}: the folder {self.path.parent} does not exist")
        special = self.path.exists() and not self.path.is_file()
        # the suffix stays: writers choose their format by it
        hidden = f".{self.path.stem[:100]}.{uuid.uuid4().hex[:12]}.part{self.path.suffix}"
        self.part = self.path if special else self.path.with_name(hidden)

    def commit(self) -> None:
        """Gives the file its name."""
        if self.part == self.path:
            return
        try:
            with open(self.part, "rb+") as f:
                os.fsync(f.fileno())  # without it a power cut can leave the name with no content
            os.replace(self.part, self.path)
        except OSError as e:
            self.discard()
            raise _not_written(self.path, e) from e

    def discard(self) -> None:
        """Removes what was written."""
        if self.part != self.path:
            self.part.unlink(missing_ok=True)


# how torch.save and safetensors report a full disk
_FAILED_WRITES = ("PytorchStreamWriter", "inline_container", "iostream error", "I/O error")


def _not_written(path: Path, error: BaseException) -> OSError:
    """The error with the file's own name in place of its hidden one."""
    if isinstance(error, OSError) and error.errno:
        return OSError(error.errno, error.strerror, str(path))
    return OSError(errno.EIO, f"cannot be written ({str(error).splitlines()[0]})", str(path))


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path to write to (same folder and suffix) whose file takes the name `path` when the block ends without an
    error.

    Raises:
        OSError: the disk is full, the folder is missing or not writable; the message names `path`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(Path(folder) / "a.txt") as part:
        ...         _ = part.write_text("whole")
        ...     (Path(folder) / "a.txt").read_text()
        'whole'
    """
    pending = PendingFile(path)
    try:
        yield pending.part
    except BaseException as e:
        with contextlib.suppress(OSError):
            pending.discard()
        own = isinstance(e, OSError) and (e.filename is None or str(e.filename) == str(pending.part))
        if own or any(text in str(e) for text in _FAILED_WRITES):
            raise _not_written(pending.path, e) from e
        raise
    pending.commit()


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes a file; errors as `replacing`."""
    with replacing(path) as part:
        part.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 file; errors as `replacing`."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any, indent: int | None = 1) -> None:
    """Writes strict JSON with a line end (ValueError for NaN and infinity); errors as `replacing`."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def write_arrays(path: str | Path, arrays: Mapping[str, Any], compressed: bool = False) -> None:
    """Writes an .npz; errors as `replacing`."""
    with replacing(path) as part, open(part, "wb") as f:  # a file, not a name: NumPy adds a suffix to names
        (np.savez_compressed if compressed else np.savez)(f, **arrays)
