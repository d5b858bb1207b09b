"""Opens a file that a user named: a regular file or one line that says what it is instead.

Next on the way: weights.py, safe_pickle.py and every other reader that must not hang on a pipe or read a device for ever.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: str | Path, what: str = "file") -> BinaryIO:
    """`path` opened for reading in binary; symbolic links are followed, what they lead to must be a regular file.

    Args:
        what: the expected kind of content, for messages ("weight file").

    Raises:
        FileNotFoundError: nothing there. ValueError: a folder, pipe, socket or device, a name that no file can have, or a
        file that may not be read.
    """
    shown = str(path) if len(str(path)) <= 120 else f"{str(path)[:57]}...{str(path)[-60:]}"
    try:
        # a pipe without a writer blocks a plain open for ever; the flag is unknown to Windows, which has no such pipes
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise FileNotFoundError(f"{shown}: no such {what}") from None
    except IsADirectoryError:
        raise ValueError(f"{shown}: expected a {what}, got a folder") from None
    except (OSError, ValueError) as e:  # ValueError: a zero byte in the name
        reason = "the name is too long" if getattr(e, "errno", 0) == errno.ENAMETOOLONG else str(e).partition(": ")[0]
        raise ValueError(f"{shown}: cannot open the {what} ({reason})") from None
    mode = os.fstat(file).st_mode
    if not stat.S_ISREG(mode):
        os.close(file)
        kind = next((text for test, text in _KINDS if test(mode)), "a special file")
        raise ValueError(f"{shown}: expected a {what}, got {kind}")
    return os.fdopen(file, "rb")


def read_regular(path: str | Path, limit: int, what: str = "file") -> bytes:
    """Whole content of a regular file of at most `limit` bytes; errors as `open_regular`, ValueError for a larger one."""
    with open_regular(path, what) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path}: expected a {what} of at most {limit:,} bytes")
    return data
