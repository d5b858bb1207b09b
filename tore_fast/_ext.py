"""Loads the compiled modules and keeps the reason where one is missing.

`tore_fast._C` brings the CPU kernels, `tore_fast._C_cuda` the CUDA kernels; importing either registers its kernels
under the schemas of ops/_schema.py, so ops/__init__.py imports that table first and this file second.
"""

from __future__ import annotations

import importlib
import importlib.util
import json

import torch  # its libraries must be loaded before ours


def _load(name: str) -> tuple[object | None, str | None]:
    if importlib.util.find_spec(f"tore_fast.{name}") is None:
        tool = "nvcc (CUDA_HOME or PATH)" if name == "_C_cuda" else "a C++ compiler (CXX)"
        return None, f"tore_fast.{name} was not built: {tool} was not there at install time, or switched off"
    try:
        return importlib.import_module(f"tore_fast.{name}"), None
    except ImportError as e:  # a binary that does not fit this torch: say so, run on the references
        return None, f"tore_fast.{name} is there but does not load into torch {torch.__version__}: {e}"


cpu_module, cpu_reason = _load("_C")
if torch.version.cuda is None:
    cuda_module, cuda_reason = None, f"this torch ({torch.__version__}) is built without CUDA"
else:
    cuda_module, cuda_reason = _load("_C_cuda")


def build_info() -> dict:
    """Facts of the installed binary: torch headers, compilers, CUDA architectures; {} when nothing is built."""
    return {} if cpu_module is None else json.loads(cpu_module.build_info())


_HAS_TRITON = importlib.util.find_spec("triton") is not None  # once: torch.compile cannot trace find_spec


def triton_reason() -> str | None:
    """Why the Triton kernels cannot run, or None."""
    if not _HAS_TRITON:
        return "triton is not installed"
    if not torch.cuda.is_available():
        return "no CUDA device is visible"
    return None
