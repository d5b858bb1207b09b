"""Builds and calls tests/cuda_emulator, the CUDA sources compiled by g++ (no test in here)."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent.parent / "cuda_emulator"
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # the enum of csrc/cuda/common.h
SHARED_LIMIT = 227 * 1024  # bytes of shared memory an sm_90 block may ask for
missing = shutil.which("g++") is None or not (HERE.parent.parent / "csrc" / "cuda").is_dir()


def build(source: str, folder: Path) -> ctypes.CDLL:
    """The emulated launchers of cuda_emulator/<source>.cpp; TORE_FAST_EMULATOR_FLAGS adds flags (tools/sanitize_cpu.sh)."""
    path = folder / "libemulated.so"
    flags = [
        "-std=c++17",
        "-O1",
        "-fno-strict-aliasing",
        "-shared",
        "-fPIC",
        "-Wno-unknown-pragmas",
        "-U_FORTIFY_SOURCE",
    ]
    # _FORTIFY_SOURCE takes the emulator's jumps between stacks for an attack
    flags += os.environ.get("TORE_FAST_EMULATOR_FLAGS", "").split()
    subprocess.run(["g++", *flags, f"-I{HERE}", HERE / f"{source}.cpp", "-o", path], check=True)
    lib = ctypes.CDLL(str(path))
    setup(lib)
    return lib


def setup(lib: ctypes.CDLL, seed: int = 1, shared_limit: int = SHARED_LIMIT) -> None:
    """Order in which the emulator resumes threads, and the shared memory its device reports."""
    lib.emulator_setup(ctypes.c_uint(seed), ctypes.c_int64(shared_limit))


def call(function, *args) -> None:
    """Tensors by address, int as int64, float as double, dtypes as the enum of csrc/cuda/common.h."""
    values = []
    for a in args:
        if isinstance(a, torch.Tensor):
            assert a.is_contiguous()
            values.append(ctypes.c_void_p(a.data_ptr()))
        elif isinstance(a, torch.dtype):
            values.append(ctypes.c_int(DTYPES[a]))
        elif isinstance(a, float):
            values.append(ctypes.c_double(a))
        else:
            values.append(ctypes.c_void_p(None) if a is None else ctypes.c_int64(int(a)))
    assert function(*values) == 0


def nan(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full(shape, float("nan"), dtype=dtype)
