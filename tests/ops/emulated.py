"""The CUDA bindings and kernels on CPU tensors: csrc/torch_cuda and csrc/cuda compiled by g++ against
tests/cuda_emulator, the Triton kernels in Triton's interpreter (no test in here).

`pytest tests/ops --emulated` runs every test of this folder on them instead of the CPU kernels: inside `active()` a CPU
tensor is what "cuda" and "triton" take and "cpu" takes nothing, and the ops' CPU entries are those of the library.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
EMULATOR = ROOT / "tests" / "cuda_emulator"
SHARED_LIMIT = 227 * 1024  # bytes of shared memory an sm_90 block may ask for
NAMESPACE = "tore_fast_emulated"
TORCH_TARGET = "0x020b000000000000"  # as setup.py: torch 2.11
NEEDS = "needs g++ and csrc/cuda"
missing = shutil.which("g++") is None or not (ROOT / "csrc" / "cuda").is_dir()

_loaded: ctypes.CDLL | None = None
_libraries: list[torch.library.Library] = []  # dropped registrations would go back


def folder() -> Path:
    """Where objects and the library are kept: build/ of the checkout if it can be written."""
    build = ROOT / "build"
    base = build if os.access(build if build.is_dir() else ROOT, os.W_OK) else Path(tempfile.gettempdir()) / "tore_fast"
    flags = "_".join(re.findall(r"[\w=]+", os.environ.get("TORE_FAST_EMULATOR_FLAGS", "")))
    path = base / f"emulator{'_' + flags if flags else ''}"
    path.mkdir(parents=True, exist_ok=True)
    return path


def library() -> Path:
    """Builds what is out of date (ninja), one process at a time; returns the shared object.

    TORE_FAST_EMULATOR_FLAGS adds compiler flags, e.g. -fsanitize=address (tools/sanitize_cpu.sh).
    """
    import ninja

    out, extra = folder(), os.environ.get("TORE_FAST_EMULATOR_FLAGS", "")
    torch_dir = Path(torch.__file__).parent
    # _FORTIFY_SOURCE takes the emulator's jumps between stacks for an attack
    flags = "-std=c++17 -O1 -fno-strict-aliasing -fPIC -fvisibility=hidden -Wall -Wno-unknown-pragmas -U_FORTIFY_SOURCE"
    kernels = "-fsanitize=alignment -fno-sanitize-recover=alignment"  # a misaligned vector access ends the process
    bindings = (
        f"-include {EMULATOR / 'cuda_runtime_api.h'} -isystem {torch_dir / 'include'} "
        f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"
    )
    csrc = ROOT / "csrc"
    sources = [EMULATOR / "library.cpp", csrc / "cpu" / "block_cache.cpp"]
    sources += sorted((csrc / "cuda").glob("*.cu")) + sorted((csrc / "torch_cuda").glob("*.cpp"))
    lines = [
        f"rule cxx\n  command = g++ -x c++ -MMD -MF $out.d {flags} -I{EMULATOR} {extra} $more -c $in -o $out",
        "  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = g++ -shared -o $out $in {extra} -lubsan -ldl -L{torch_dir / 'lib'} "
        "-Wl,--no-as-needed -ltorch -ltorch_cpu",
    ]
    objects = []
    for source in sources:
        objects.append(out / f"{source.parent.name}_{source.stem}.o")
        more = {"torch_cuda": bindings, "cuda": kernels}.get(source.parent.name, "")
        lines.append(f"build {objects[-1]}: cxx {source}\n  more = {more}")
    lines.append(f"build {out / 'libemulated.so'}: link {' '.join(map(str, objects))}\n")
    with open(out / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (out / "build.ninja").write_text("\n".join(lines))
        command = [os.path.join(ninja.BIN_DIR, "ninja"), "-C", str(out), "-j", os.environ.get("MAX_JOBS", "2")]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"the emulated CUDA library does not build:\n{run.stdout[-6000:]}{run.stderr}")
    return out / "libemulated.so"


def kernel_names() -> list[str]:
    """Ops that csrc/torch_cuda registers."""
    text = "".join(p.read_text() for p in (ROOT / "csrc" / "torch_cuda").glob("*.cpp"))
    return re.findall(r'm\.impl\("(\w+)"', text)


def load() -> ctypes.CDLL:
    """Loads the library once; its kernels are torch.ops.tore_fast_emulated.*, for CPU tensors."""
    global _loaded
    if _loaded is None:
        path = library()
        from tore_fast._schema import SCHEMAS

        names = set(kernel_names())
        definitions = torch.library.Library(NAMESPACE, "DEF")
        for schema in SCHEMAS:
            if schema.split("(")[0] in names:
                definitions.define(schema)
        _libraries.append(definitions)
        torch.ops.load_library(str(path))
        _loaded = ctypes.CDLL(str(path))
        setup()
    return _loaded


def setup(seed: int = 1, shared_limit: int = SHARED_LIMIT) -> None:
    """Order in which the emulator runs threads and blocks, and the shared memory its device reports."""
    load().emulator_setup(ctypes.c_uint(seed), ctypes.c_int64(shared_limit))


def kernels():
    """torch.ops.tore_fast_emulated: the CUDA ops of the library, whatever `active()` says."""
    load()
    return getattr(torch.ops, NAMESPACE)


def launches() -> int:
    """Kernels launched since the last setup()."""
    return load().emulator_launches()


@contextmanager
def active() -> Iterator[None]:
    """Inside, torch.ops.tore_fast.* on CPU tensors are the CUDA kernels (emulated) and the Triton kernels
    (interpreted).

    The environment must hold TRITON_INTERPRET=1 before triton is first imported.
    """
    from tore_fast import _ext
    from tore_fast.ops import _dispatch

    override = torch.library.Library("tore_fast", "IMPL")
    for name in kernel_names():
        override.impl(name, getattr(kernels(), name).default, "CPU", allow_override=True)
    attention = importlib.import_module("tore_fast.ops.pruned_attention")
    select = importlib.import_module("tore_fast.ops.ppt_select")
    override.impl("pruned_attention_fwd", attention._triton_fwd, "CPU", allow_override=True)
    override.impl("pruned_attention_bwd", attention._triton_bwd, "CPU", allow_override=True)
    override.impl("ppt_select", select._triton_select, "CPU", allow_override=True)
    saved = dict(_dispatch.DEVICE_TYPES), _ext.gpu_reason, _ext.triton_reason
    _dispatch.DEVICE_TYPES.update(cpu="no", strassen="no", onednn="no", sdpa="no", cuda="cpu", triton="cpu")
    _ext.gpu_reason = _ext.triton_reason = lambda: None
    try:
        yield
    finally:
        _dispatch.DEVICE_TYPES.update(saved[0])
        _ext.gpu_reason, _ext.triton_reason = saved[1:]
        override._destroy()
