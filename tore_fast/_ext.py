"""Loads the compiled modules and keeps the reason where one is missing.

`tore_fast._C` brings the CPU kernels, `tore_fast._C_cuda` the CUDA kernels; importing either registers its kernels
under the schemas of _schema.py, so ops/__init__.py imports that table first and this file second.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch  # its libraries must be loaded before ours

from ._schema import SCHEMAS

# Fingerprint of the op table; setup.py computes the same from the same text and writes it into the binaries.
SCHEMAS_ID = hashlib.sha256("\n".join(SCHEMAS).encode()).hexdigest()[:12]
REBUILD = "pip install --no-build-isolation --no-deps . (in a checkout: python setup.py build_ext --inplace)"


def _facts(module: Any) -> dict:
    """Build facts of either binary: `_C` has a function, `_C_cuda` (no pybind11) carries them in its docstring."""
    text = module.build_info() if hasattr(module, "build_info") else (module.__doc__ or "").partition("\n")[2]
    return json.loads(text or "{}")


def stale_reason(name: str, facts: dict) -> str | None:
    """Why a binary with these build facts does not fit these sources, or None. (None too for binaries without the
    fact.)"""
    found = facts.get("schemas", SCHEMAS_ID)
    if found == SCHEMAS_ID:
        return None
    return (
        f"tore_fast.{name} was built from other sources (op table {found}, these sources have {SCHEMAS_ID}); "
        f"rebuild: {REBUILD}"
    )


def installed_copy(package: Path) -> Path | None:
    """Folder of another tore_fast on sys.path that has compiled modules, or None."""
    for entry in sys.path:
        other = Path(entry or ".") / package.name
        if any(other.glob("_C.*")) and other.resolve() != package.resolve():
            return other.resolve()
    return None


def unbuilt_checkout(package: Path) -> str | None:
    """What to say where Python took the unbuilt package of the sources (it was started there), or None elsewhere."""
    if (
        any(package.glob("_C.*"))
        or not (package.parent / "setup.py").is_file()
        or not (package.parent / "csrc").is_dir()
    ):
        return None
    other = installed_copy(package)
    way = "python setup.py build_ext --inplace"
    if other is None:
        way = f"{way}, or pip install . and start Python in another folder"
    else:
        way = f"start Python in another folder to use the built copy in {other}, or {way}"
    what = f"this is the checkout in {package.parent}, whose compiled modules are not built, so the slow references run"
    return f"{what}: {way}"


def _load(name: str) -> tuple[Any, str | None]:
    if importlib.util.find_spec(f"tore_fast.{name}") is None:
        if checkout_reason is not None:
            return None, f"tore_fast.{name} was not built: {checkout_reason}"
        tool = "nvcc (CUDA_HOME or PATH)" if name == "_C_cuda" else "a C++ compiler (CXX)"
        return None, f"tore_fast.{name} was not built: {tool} was not there at install time, or switched off"
    try:
        module = importlib.import_module(f"tore_fast.{name}")
    except ImportError as e:  # a binary that does not fit this torch: say so, run on the references
        return None, f"tore_fast.{name} is there but does not load into torch {torch.__version__}: {e}"
    reason = stale_reason(name, _facts(module))
    if reason is not None:  # its kernels would be called with arguments they do not know
        warnings.warn(reason, RuntimeWarning, stacklevel=2)
        return None, reason
    return module, None


cpu_module: Any  # None where there is none, with the reason
cuda_module: Any
cpu_reason: str | None
cuda_reason: str | None
checkout_reason = unbuilt_checkout(Path(__file__).parent)
if checkout_reason is not None:
    warnings.warn(f"tore_fast: {checkout_reason}", RuntimeWarning, stacklevel=2)
cpu_module, cpu_reason = _load("_C")
if torch.version.cuda is None:
    cuda_module, cuda_reason = None, f"this torch ({torch.__version__}) is built without CUDA"
else:
    cuda_module, cuda_reason = _load("_C_cuda")


def build_info() -> dict:
    """Facts of the installed binary: torch headers, compilers, CUDA architectures; {} when nothing is built."""
    return {} if cpu_module is None else _facts(cpu_module)


def gpu_reason() -> str | None:
    """Why the CUDA kernels cannot run, or None."""
    return cuda_reason or (None if torch.cuda.is_available() else "no CUDA device is visible")


_triton_installed = importlib.util.find_spec("triton") is not None  # here: torch.compile cannot trace find_spec


def triton_reason() -> str | None:
    """Why the Triton kernels cannot run, or None."""
    if not _triton_installed:
        return "triton is not installed"
    if not torch.cuda.is_available():
        return "no CUDA device is visible"
    return None
