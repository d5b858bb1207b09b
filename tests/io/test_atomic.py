"""Whole files: errors leave the old file, two processes leave one of their files, messages name the file."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tore_fast.io import atomic

WRITER = """
import sys
from tore_fast.io.atomic import replacing
path, letter = sys.argv[1:]
for _ in range(30):
    with replacing(path) as part, open(part, "w") as f:
        for _ in range(50):
            f.write(letter * 2000)
            f.flush()
"""


def test_two_processes_leave_a_whole_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a" * 100_000)
    workers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), letter]) for letter in "ab"]
    seen = 0
    while any(w.poll() is None for w in workers):
        text = path.read_text()
        assert text in ("a" * 100_000, "b" * 100_000)
        seen += 1
    assert seen and [w.wait() for w in workers] == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    atomic.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not mine"), atomic.replacing(path) as part:
        part.write_text("half")
        raise ValueError("not mine")
    with pytest.raises(ValueError, match="JSON"):
        atomic.write_json(path, float("nan"))
    assert path.read_text() == '{\n "a": 1\n}\n' and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_one_message_with_the_files_name(tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: .*/w.npz'"):
        with atomic.replacing(tmp_path / "w.npz") as part:
            part.write_bytes(b"half")
            full()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_torch_on_a_full_disk(tmp_path):
    with pytest.raises(OSError, match=r"cannot be written .*/w.pt'"):
        with atomic.replacing(tmp_path / "w.pt") as part:
            part.symlink_to("/dev/full")
            torch.save({"a": torch.zeros(1000)}, part)


def test_other_peoples_errors_pass(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.txt"), atomic.replacing(tmp_path / "a.txt"):
        (tmp_path / "gone.txt").read_text()
    with pytest.raises(FileNotFoundError, match="the folder .*none does not exist"):
        atomic.write_text(tmp_path / "none" / "a.txt", "")
    with pytest.raises(IsADirectoryError, match="got a folder"):
        atomic.write_text(tmp_path, "")


def test_links_and_devices_stay(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    atomic.write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real.txt").read_text() == "new"
    atomic.write_text("/dev/null", "nothing")
    assert not os.path.isfile("/dev/null")


def test_arrays(tmp_path):
    for compressed in (False, True):
        atomic.write_arrays(tmp_path / "a.part", {"x": np.arange(3)}, compressed)
        with np.load(tmp_path / "a.part") as got:
            assert got["x"].tolist() == [0, 1, 2]


def test_new_files_follow_the_umask(tmp_path):
    atomic.write_text(tmp_path / "a", "")
    (tmp_path / "b").write_text("")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
