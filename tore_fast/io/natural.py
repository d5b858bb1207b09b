"""The order in which people number files: frame2 before frame10."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

Name = TypeVar("Name", str, Path)
_DIGITS = re.compile(r"(\d+)")


def natural_key(name: str | Path) -> tuple:
    """Sorting key of a name or path: folder by folder, runs of digits as numbers, equal ones by spelling.

    Example:
        >>> sorted(["f10.png", "f2.png", "f02.png"], key=natural_key)
        ['f02.png', 'f2.png', 'f10.png']
    """
    parts = str(name).split(os.sep)
    # split gives text, digits, text, ...: the same kind at the same place of every name
    return tuple(tuple(int(s) if i % 2 else s for i, s in enumerate(_DIGITS.split(p))) for p in parts), str(name)


def natural_sorted(names: Iterable[Name]) -> list[Name]:
    """Names or paths in natural order."""
    return sorted(names, key=natural_key)
