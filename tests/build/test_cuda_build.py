"""Checks of the CUDA kernels that need no GPU: they compile for sm_90, without spills, inside a resource budget.

With tore_fast._C_cuda built, its machine code is read (cuobjdump of the triton wheel); else nvcc compiles every source.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CSRC = Path(__file__).resolve().parent.parent.parent / "csrc" / "cuda"
MODULE = importlib.util.find_spec("tore_fast._C_cuda")
HOME = os.environ.get("CUDA_HOME")
NVCC = shutil.which(os.path.join(HOME, "bin", "nvcc") if HOME else "nvcc")
STACK_LIMIT = 32  # bytes: registers the compiler keeps for calls, not spilled data
STATIC_SHARED_LIMIT = 48 * 1024


def cuobjdump(*args: str) -> str:
    pytest.importorskip("triton", reason="cuobjdump comes with the triton wheel")
    import triton.backends.nvidia as nv

    exe = Path(nv.__file__).parent / "bin" / "cuobjdump"
    return subprocess.run([exe, *args, MODULE.origin], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(MODULE is None, reason="tore_fast._C_cuda is not built")
def test_every_symbol_resolves(tmp_path):
    """A CUDA build of torch loads the module without a driver; a CPU build lacks libtorch_cuda and binds lazily."""
    code = (
        "import os, sys, torch; sys.setdlopenflags(os.RTLD_NOW if torch.version.cuda else os.RTLD_LAZY); import tore_fast.ops; "
        "import tore_fast._C_cuda; has = torch._C._dispatch_has_kernel_for_dispatch_key; "
        "missing = [op for op in ('mesh_upsample', 'mesh_attention_fwd', 'mesh_attention_bwd', 'bipartite_match', 'bipartite_merge') "
        "if not has('tore_fast::' + op, 'CUDA')]; assert not missing, missing"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.skipif(MODULE is None, reason="tore_fast._C_cuda is not built")
def test_resources_of_the_module():
    archs = set(re.findall(r"sm_\w+(?=\.cubin)", cuobjdump("--list-elf")))
    assert archs
    rows = re.findall(r"Function (\S+?):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", cuobjdump("--dump-resource-usage"))
    assert rows
    for name, _, stack, shared, local in rows:
        assert int(local) == 0 and int(stack) <= STACK_LIMIT and int(shared) <= STATIC_SHARED_LIMIT, (name, stack, shared, local)


@pytest.mark.skipif(MODULE is not None, reason="the built module is checked instead")
@pytest.mark.skipif(NVCC is None, reason="no nvcc on PATH or in CUDA_HOME")
@pytest.mark.parametrize("source", sorted(CSRC.glob("*.cu")), ids=lambda p: p.stem)
def test_compiles_without_spills(source, tmp_path):
    run = subprocess.run(
        [NVCC, "-std=c++17", "-O3", "-arch=sm_90", "-Xptxas=-v", "-cubin", "-o", tmp_path / "out.cubin", source], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", run.stderr)
    assert frames
    assert all(int(stack) <= STACK_LIMIT and int(spill) <= STACK_LIMIT for stack, spill in frames), frames
    shared = [int(n) for n in re.findall(r"(\d+) bytes smem", run.stderr)]
    assert all(n <= STATIC_SHARED_LIMIT for n in shared)


def test_torch_without_cuda_says_why():
    from tore_fast import _ext

    if _ext.cuda_module is None:
        assert _ext.cuda_reason
    else:
        assert torch.version.cuda
