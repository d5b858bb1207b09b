"""Files made to hurt: a few seconds of seeded mutations of every kind (tools/hostile.py runs longer), and what is no
file at all."""

from __future__ import annotations

import sys

import pytest

from tools import hostile

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork, limits and /proc")
SECONDS = {"images": 5, "weights": 5, "pickles": 4, "keypoints": 5, "boxes": 3, "videos": 8}


@pytest.mark.parametrize("kind", hostile.KINDS)
def test_mutations_are_read_or_refused_in_one_line(kind, tmp_path):
    if not (files := hostile.FILES[kind]()):
        pytest.skip("needs imageio-ffmpeg")
    found = hostile.fuzz(kind, SECONDS[kind], seed=1, keep=tmp_path)
    assert found["failed"] == []
    assert found["cases"] >= len(files) and found["read"] > 0 and found["refused"] > 0


@pytest.mark.parametrize("kind, suffix", zip(hostile.KINDS, (".png", ".pt", ".pkl", ".json", ".csv", ".mp4")))
def test_what_is_no_file_is_refused(kind, suffix, tmp_path):
    for path in hostile.doors(tmp_path, suffix):
        with pytest.raises((ValueError, OSError)) as e:
            hostile.read(kind, path)
        hostile._check_line(e.value)


def test_the_harness_sees_failures(tmp_path, monkeypatch):
    """A reader that crashes, hangs the process or runs a program is reported."""
    import os

    monkeypatch.setitem(
        hostile.FILES, "boxes", lambda: {"good.csv": b"1", "crash.csv": b"2", "kill.csv": b"3", "run.csv": b"4"}
    )

    def read(kind: str, path: str) -> None:
        content = open(path, "rb").read()[:1]
        if content == b"2":
            raise KeyError("crash")
        if content == b"3" and os.getppid() and hostile_started:
            os.kill(os.getpid(), 9)
        if content == b"4" and hostile_started:
            os.system("true")

    hostile_started: list[int] = []
    real = sys.addaudithook
    monkeypatch.setattr(sys, "addaudithook", lambda hook: (real(hook), hostile_started.append(1)))
    monkeypatch.setattr(hostile, "read", read)
    found = hostile.fuzz("boxes", 0.1)
    whys = " ".join(case["why"] for case in found["failed"])
    assert "KeyError" in whys and "ended with status 9" in whys
