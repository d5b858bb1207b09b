"""Files that appear whole or not at all: written under another name in the same folder, synced, then renamed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yields a path to write to; `path` gets the content at the end, or stays as it was where the block fails.

    The temporary name is unique, so that two processes cannot write into each other's file, and keeps the suffix, by which
    writers choose the format.

    Example:
        >>> with whole_file("numbers.txt") as part:  # doctest: +SKIP
        ...     part.write_text("1 2 3")
    """
    path = Path(path)
    part = path.with_name(f".{uuid.uuid4().hex[:12]}.part{path.suffix}")
    try:
        yield part
        with open(part, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(part, path)
    except OSError as e:
        part.unlink(missing_ok=True)
        if e.filename in (part, str(part), None):  # the message names the file that the user knows
            raise type(e)(e.errno or 0, e.strerror or str(e), str(path)) from e
        raise
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_whole(path: str | Path, data: bytes) -> None:
    """`data` as the content of `path`; a reader (or a kill) never sees half a file."""
    with whole_file(path) as part:
        part.write_bytes(data)
