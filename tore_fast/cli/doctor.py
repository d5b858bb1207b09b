"""`tore-fast doctor`: what `info` says, and whether this machine does it right: ops, disk, memory, video."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import FAILED

EXTRAS = {  # what is installed beside the base: module -> extra
    "accelerate": "train",
    "skimage": "train",
    "imageio_ffmpeg": "video",
    "matplotlib": "viz",
    "viser": "viewer",
    "torchvision": "detect",
    "tflite": "convert",
    "smplx": "smpl",
    "ray": "scale",
}
LITTLE_DISK, LITTLE_MEMORY = 2e9, 2e9  # bytes


@dataclass
class Args:
    """What `tore-fast info` says, then a self-test of some seconds: each compiled op against its plain reference,
    free disk
    and memory, threads, video files, extras. Exit code 1 if something is wrong."""

    json: bool = False
    """Print the report as JSON."""


def free_memory() -> int | None:
    """Bytes of memory that new programs can have, or None where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def video_problem() -> str | None:
    """Why a short H.264 film cannot be written and read back, or None."""
    import numpy as np

    from ..io.video import open_video, why_no_mp4, write_mp4

    if reason := why_no_mp4():
        return reason
    frames = [np.full((64, 64, 3), 40 * k, np.uint8) for k in range(4)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        try:
            write_mp4(path, frames, 10.0)
            back = [frame for _, frame in open_video(path).frames()]
        except (OSError, ValueError, RuntimeError) as e:
            return f"{type(e).__name__}: {e}"
    if len(back) != 4 or abs(float(back[3].mean()) - 120) > 20:
        return f"a film of 4 frames came back as {len(back)} or with other colours"
    return None


def report() -> dict[str, Any]:
    """The facts of `doctor`; `problems` lists what is wrong, `notes` what is merely missing."""
    import importlib.util

    import torch

    from ..ops._self_test import self_test
    from . import info

    problems, notes = [], []
    facts: dict[str, Any] = {"info": info.report()}
    start = time.perf_counter()
    outcomes = [o for d in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])) for o in self_test(d)]
    facts["self_test"] = [o._asdict() for o in outcomes]
    facts["seconds"] = round(time.perf_counter() - start, 2)
    problems += [f"{o.op} ({o.backend}): {o.said}" for o in outcomes if not o.ok]
    if (reason := facts["info"]["backends"]["cpu"]) != "ready":
        problems.append(reason)
    disk = {"here": os.getcwd(), "temporary files": tempfile.gettempdir()}
    facts["disk_free"] = {p: shutil.disk_usage(p).free for p in dict.fromkeys(disk.values())}
    problems += [f"{p}: only {b / 1e9:.1f} GB free" for p, b in facts["disk_free"].items() if b < LITTLE_DISK]
    facts["memory_free"] = free_memory()
    if facts["memory_free"] is not None and facts["memory_free"] < LITTLE_MEMORY:
        problems.append(f"only {facts['memory_free'] / 1e9:.1f} GB of memory are free")
    if torch.cuda.is_available():
        facts["gpu_memory_free"] = [torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())]
    facts["video"] = video_problem() or "ready"
    if facts["video"] != "ready":
        notes.append(f"video: {facts['video']}")
    missing = sorted({e for m, e in EXTRAS.items() if importlib.util.find_spec(m) is None})
    facts["extras_missing"] = missing
    if missing:
        notes.append(f"extras not installed: {', '.join(missing)} (pip install '.[{','.join(missing)}]')")
    return {**facts, "problems": problems, "notes": notes}


def run(args: Args) -> int:
    from . import info

    facts = report()
    if args.json:
        print(json.dumps(facts, indent=2))
        return FAILED if facts["problems"] else 0
    info.run(info.Args())
    print(f"\nself-test  {len(facts['self_test'])} ops against their references in {facts['seconds']:.1f} s")
    for o in facts["self_test"]:
        print(f"  {'ok  ' if o['ok'] else 'FAIL'} {o['op']:18} {o['backend']:9} {o['said']}")
    for path, free in facts["disk_free"].items():
        print(f"disk       {free / 1e9:.1f} GB free in {path}")
    memory = facts["memory_free"]
    print(f"memory     {'unknown' if memory is None else f'{memory / 1e9:.1f} GB free'}")
    for number, free in enumerate(facts.get("gpu_memory_free", [])):
        print(f"gpu {number}      {free / 1e9:.1f} GB free")
    print(f"video      {facts['video']}")
    for note in facts["notes"]:
        print(f"note: {note}")
    for problem in facts["problems"]:
        print(f"PROBLEM: {problem}")
    print("all is well" if not facts["problems"] else f"{len(facts['problems'])} problems")
    return FAILED if facts["problems"] else 0
