"""Checks of the CUDA kernels that need no GPU: they compile for sm_80, sm_90, sm_120 and PTX inside a resource budget.

With tore_fast._C_cuda built, its machine code is read (cuobjdump of the triton wheel); nvcc compiles every source for
the architectures that are not in it.
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
REGISTER_LIMIT = 128
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
        "import os, sys, torch; sys.setdlopenflags(os.RTLD_NOW if torch.version.cuda else os.RTLD_LAZY); "
        "import tore_fast.ops; import tore_fast._C_cuda; has = torch._C._dispatch_has_kernel_for_dispatch_key; "
        "missing = [op for op in ('mesh_upsample', 'dpc_knn_cluster_merge', 'mesh_attention_fwd', "
"'mesh_attention_bwd', 'bipartite_match', 'bipartite_merge') "
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
    for name, registers, stack, shared, local in rows:
        assert int(registers) <= REGISTER_LIMIT and int(local) == 0 and int(stack) <= STACK_LIMIT and int(shared) <= STATIC_SHARED_LIMIT, (name, stack, shared, local)


def architectures_left() -> tuple[str, ...]:
    """Of sm_80, sm_90 and sm_120 (with its PTX) those that the built module, which is checked above, does not hold."""
    built = set()
    if MODULE is not None and importlib.util.find_spec("triton") is not None:
        built = set(re.findall(r"sm_\w+(?=\.cubin)", cuobjdump("--list-elf")))
    return tuple(a for a in ("80", "90", "120") if f"sm_{a}" not in built)


@pytest.mark.skipif(NVCC is None, reason="no nvcc on PATH or in CUDA_HOME")
@pytest.mark.parametrize("source", sorted(CSRC.glob("*.cu")), ids=lambda p: p.stem)
def test_compiles_inside_the_budget(source, tmp_path):
    """Registers, stack, spills and static shared memory of every kernel on the architectures the module lacks.

    mesh_attention.cu (54 kernels, 18 s of nvcc per architecture) is compiled for the newest only.
    """
    archs = architectures_left()
    if source.stem == "mesh_attention":
        archs = archs[-1:]
    if not archs:
        pytest.skip("the built module holds every architecture and is checked instead")
    codes = [f"-gencode=arch=compute_{a},code=[sm_{a}{',compute_120' if a == '120' else ''}]" for a in archs]
    run = subprocess.run(
        [NVCC, "-std=c++17", "-O3", *codes, "-Xptxas=-v", "-c", "-o", tmp_path / "out.o", source], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    kernels = re.findall(
        r"entry function '(\S+)' for '(sm_\d+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores.*?Used (\d+) registers([^\n]*)",
        run.stderr, re.S,
    )
    assert {arch for _, arch, *_ in kernels} == {f"sm_{a}" for a in archs}
    for name, arch, stack, spill, registers, rest in kernels:
        shared = int((re.findall(r"(\d+) bytes smem", rest) or [0])[0])
        found = f"{name} on {arch}: stack {stack}, spilled {spill}, {registers} registers, shared {shared}"
        assert int(stack) <= STACK_LIMIT and int(spill) <= STACK_LIMIT, found
        assert int(registers) <= REGISTER_LIMIT and shared <= STATIC_SHARED_LIMIT, found


def test_torch_without_cuda_says_why():
    from tore_fast import _ext

    if _ext.cuda_module is None:
        assert _ext.cuda_reason
    else:
        assert torch.version.cuda
