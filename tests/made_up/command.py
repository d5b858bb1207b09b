"""`tore-fast` called inside the test's process."""

from __future__ import annotations

import pytest

from tore_fast.cli import main


def command(*argv) -> int:
    """Exit code of `tore-fast ARGV...`."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in argv])
    return stop.value.code or 0
