"""Opens a file that a user named: a regular file or one line that says what it is instead.

Next on the way: weights.py, safe_pickle.py and every other reader that must not hang on a pipe or read a device for
ever.
"""

from __future__ import annotations

import codecs
import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

MAX_TEXT = 512 << 20  # bytes of a text file (JSON, CSV) that is read whole

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
        FileNotFoundError: nothing there. ValueError: a folder, pipe, socket or device, a name that no file can have, or
            a
        file that may not be read.
    """
    article = "an" if what[:1] in "aeio" else "a"
    shown = str(path) if len(str(path)) <= 120 else f"{str(path)[:57]}...{str(path)[-60:]}"
    try:
        # a pipe without a writer blocks a plain open for ever; the flag is unknown to Windows, which has no such pipes
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise FileNotFoundError(f"{shown}: no such {what}") from None
    except IsADirectoryError:
        raise ValueError(f"{shown}: expected {article} {what}, got a folder") from None
    except (OSError, ValueError) as e:  # ValueError: a zero byte in the name
        reason = "the name is too long" if getattr(e, "errno", 0) == errno.ENAMETOOLONG else str(e).partition(": ")[0]
        raise ValueError(f"{shown}: cannot open the {what} ({reason})") from None
    mode = os.fstat(file).st_mode
    if not stat.S_ISREG(mode):
        os.close(file)
        kind = next((text for test, text in _KINDS if test(mode)), "a special file")
        raise ValueError(f"{shown}: expected {article} {what}, got {kind}")
    return os.fdopen(file, "rb")


def read_regular(path: str | Path, limit: int, what: str = "file") -> bytes:
    """Whole content of a regular file of at most `limit` bytes; errors as `open_regular`, ValueError for a larger
    one."""
    with open_regular(path, what) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path}: expected at most {limit:,} bytes of a {what}")
    return data


def read_text(path: str | Path, what: str = "text file", limit: int = MAX_TEXT) -> str:
    """Text of a file in UTF-8, or in UTF-16 with its byte order mark, as Windows' shell writes it; errors as
    `read_regular`."""
    return as_text(read_regular(path, limit, what), str(path), what)


def as_text(data: bytes, name: str, what: str = "text file") -> str:
    """`read_text` of bytes that were read elsewhere; `name` is theirs, for messages."""
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as e:
        raise ValueError(f"{name}: not a {what} (no UTF-8 text: byte {e.start:,} is {data[e.start]:#04x})") from None


def read_json(path: str | Path, what: str = "JSON file", limit: int = MAX_TEXT) -> Any:
    """Value of a JSON file; NaN and Infinity, which detectors write, are numbers. Errors as `read_text`, ValueError for
    no JSON."""
    return as_json(read_text(path, what, limit), str(path))


def as_json(text: str, name: str) -> Any:
    """`read_json` of a text that was read elsewhere."""
    if not text.strip():
        raise ValueError(f"{name}: the file is empty")
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        raise ValueError(f"{name}: not JSON (line {e.lineno}: {e.msg})") from None
    except (RecursionError, ValueError) as e:  # nested without end; a number of more digits than Python reads
        raise ValueError(f"{name}: not readable as JSON ({str(e)[:80]})") from None
