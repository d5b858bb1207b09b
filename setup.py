"""Builds tore_fast's two extension modules; everything else is in pyproject.toml.

tore_fast._C       CPU kernels and the pybind11 host module: when a C++ compiler is found
tore_fast._C_cuda  CUDA kernels: when nvcc is found too (TORE_FAST_CUDA=0: never, =1: or fail)

Without a compiler the package installs all the same and runs on its plain torch references;
`tore-fast info` says so. A compiler that is there and fails is an error.
Respected: CXX, CUDA_HOME, TORCH_CUDA_ARCH_LIST, MAX_JOBS, TORE_FAST_NVCC_FLAGS, TORE_FAST_CXX_FLAGS.

The torch found at build time lends only its stable-ABI headers, so one build runs with every
torch >= 2.11, with or without CUDA. The host module is of one Python version, as pybind11 has no
limited API: one wheel a Python.
"""

import ast
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TORCH_TARGET = "0x020b000000000000"  # torch 2.11
DEFAULT_ARCHS = "8.0;9.0+PTX"  # newer GPUs compile the PTX at first use


MAC = sys.platform == "darwin"
CXX = os.environ.get("CXX", "clang++" if MAC else "g++")
# sources of x86 only and what they are compiled for; csrc/cpu/simd.h asks the processor before it calls them
SIMD = {"_avx2.cpp": " -mavx2 -mfma", "_avx512.cpp": " -mavx512f -mavx2 -mfma"}


def package_dir(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise SystemExit(f"tore_fast: building needs {name!r}; with --no-build-isolation install it first")
    return Path(spec.submodule_search_locations[0])


def find_nvcc() -> str | None:
    want = os.environ.get("TORE_FAST_CUDA", "auto")
    if want == "0":
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = os.path.join(home, "bin", "nvcc") if home else shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if shutil.which(nvcc):
        return nvcc
    if want == "1":
        raise SystemExit("tore_fast: TORE_FAST_CUDA=1 but no nvcc on PATH or in CUDA_HOME")
    return None


def gencode(nvcc: str) -> list[str]:
    """-gencode flags from TORCH_CUDA_ARCH_LIST, else for the GPUs at hand, else DEFAULT_ARCHS."""
    archs = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if not archs and shutil.which("nvidia-smi"):
        smi = subprocess.run(
            ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"], capture_output=True, text=True
        )
        archs = ";".join(sorted(set(re.findall(r"^\d+\.\d+$", smi.stdout, re.M))))
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout.split()
    flags = []
    for arch in re.split(r"[;\s,]+", archs or DEFAULT_ARCHS):
        n = arch.removesuffix("+PTX").replace(".", "")
        if f"sm_{n.rstrip('af')}" in known:  # 9.0a is not listed, 9.0 is
            code = f"[sm_{n},compute_{n}]" if arch.endswith("+PTX") else f"sm_{n}"
            flags.append(f"-gencode=arch=compute_{n},code={code}")
    if not flags:
        raise SystemExit(f"tore_fast: {nvcc} knows none of the architectures {archs or DEFAULT_ARCHS!r}")
    return flags


class NinjaBuildExt(build_ext):
    """One build.ninja for both modules: parallel, incremental, all flags in one place.

    The folder of a source says which headers it may see (torch/include holds a pybind11 of
    torch's own, which refuses TORCH_TARGET_VERSION, so the first two must stay apart):
      csrc/python  Python.h and pybind11      csrc/torch, csrc/torch_cuda  torch's stable ABI
      csrc/cpu, csrc/cuda  neither: raw pointers
    """

    def build_extensions(self):
        out = Path(self.build_temp).resolve()
        out.mkdir(parents=True, exist_ok=True)
        torch, nvcc = package_dir("torch"), find_nvcc()
        common = "-std=c++17 -O3"
        write_build_facts(out / "build_facts.h", torch, nvcc)
        torch = stable_path(out, f"torch-{torch_version(torch)}", torch)
        pybind = stable_path(out, "pybind11", package_dir("pybind11"))
        extra = os.environ.get("TORE_FAST_CXX_FLAGS", "")
        host = f"-fPIC,-fvisibility=hidden,-Wall,-ffile-prefix-map={ROOT}/="
        torch_flags = f"-isystem {torch / 'include'} -DTORCH_TARGET_VERSION={TORCH_TARGET}"
        flags = {
            "cpu": "",
            "python": f"-I{out} -isystem {sysconfig.get_path('include')} -isystem {pybind / 'include'}",
            "torch": torch_flags,
            "torch_cuda": f"{torch_flags} -DUSE_CUDA",
            "cuda": "-lineinfo",
        }
        # libtorch.so needs libtorch_cpu.so and, in torch's CUDA builds, libtorch_cuda.so: naming it
        # alone resolves the symbols of both, and lets a CPU-only torch build the CUDA module
        libs = f"-L{torch / 'lib'} {'' if MAC else '-Xlinker --no-as-needed '}-ltorch -ltorch_cpu"
        shared = "-bundle -undefined dynamic_lookup" if MAC else "-shared"  # Python's own symbols come from Python
        deps = "\n  depfile = $out.d\n  deps = gcc"
        text = [
            f"rule cxx\n  command = {CXX} -MMD -MF $out.d {common} {host.replace(',', ' ')} {extra} $flags -c "
            f"$in -o $out{deps}",
            f"rule link\n  command = {CXX} {shared} -o $out $in {extra} {libs}",
        ]
        if nvcc:
            nv = " ".join(
                [nvcc, "--threads=2", *gencode(nvcc), f"-Xcompiler={host}", os.environ.get("TORE_FAST_NVCC_FLAGS", "")]
            )
            text += [
                f"rule nvcc\n  command = {nv} -MMD -MF $out.d {common} $flags -c $in -o $out{deps}",
                f"rule nvlink\n  command = {nvcc} -shared -cudart static -o $out $in {libs}",
            ]
        modules = []
        for ext in self.extensions:
            cuda, objs = ext.name.endswith("_cuda"), []
            for src in ext.sources:
                obj, kind = out / (src + ".o"), Path(src).parent.name
                simd = next((flags for end, flags in SIMD.items() if src.endswith(end)), "")
                rule = "nvcc" if kind in ("cuda", "torch_cuda") else "cxx"
                text.append(f"build {obj}: {rule} {ROOT / src}\n  flags = {flags[kind]}{simd}")
                objs.append(str(obj))
            so = Path(self.get_ext_fullpath(ext.name)).resolve()
            so.parent.mkdir(parents=True, exist_ok=True)
            text.append(f"build {so}: {'nvlink' if cuda else 'link'} {' '.join(objs)}")
            modules.append(str(so))
        (out / "build.ninja").write_text("\n".join(text) + "\n")
        jobs = os.environ.get("MAX_JOBS")
        subprocess.check_call([find_ninja(), "-C", str(out), *(["-j", jobs] if jobs else []), *modules])


def stable_path(folder: Path, name: str, target: Path) -> Path:
    """A link `folder`/`name` to a package, so that pip's next temporary environment gives ninja the same commands."""
    link = folder / name
    try:
        if link.is_symlink():
            link.unlink()
        link.symlink_to(target, target_is_directory=True)
    except OSError:  # no links here: everything compiles again, no more
        return target
    return link


def torch_version(torch: Path) -> str:
    found = re.search(r"__version__ = ['\"](.+?)['\"]", (torch / "version.py").read_text())
    return found.group(1) if found else "unknown"


def write_build_facts(path: Path, torch: Path, nvcc: str | None) -> None:
    """What `_C.build_info()` reports: which tools made the binaries, never where they lie."""

    def first_line(*cmd: str) -> str:
        return subprocess.run(cmd, capture_output=True, text=True).stdout.strip().splitlines()[0]

    def nvcc_release() -> str:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
        return re.search(r"release (\S+?),", text).group(1)

    facts = {
        "schemas": schemas_id(),
        "torch_headers": torch_version(torch),
        "torch_target": "2.11 (stable ABI)",
        "cxx": first_line(CXX, "--version"),
        "nvcc": nvcc_release() if nvcc else None,
        "cuda_arch_flags": gencode(nvcc) if nvcc else [],
    }
    text = f'#pragma once\n#define TORE_FAST_BUILD_FACTS R"json({json.dumps(facts)})json"\n'
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def schemas_id() -> str:
    """Fingerprint of the op table these kernels are written for; tore_fast/_ext.py compares it when it loads them."""
    tree = ast.parse((ROOT / "tore_fast" / "_schema.py").read_text())
    table = next(n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "SCHEMAS")
    return hashlib.sha256("\n".join(ast.literal_eval(table)).encode()).hexdigest()[:12]


def find_ninja() -> str:
    spec = importlib.util.find_spec("ninja")
    if spec is not None:
        import ninja

        return os.path.join(ninja.BIN_DIR, "ninja")
    return shutil.which("ninja") or "ninja"


def sources(folder: str, *patterns: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for pat in patterns for p in (ROOT / "csrc").glob(f"{folder}/{pat}"))


def extensions() -> list[Extension]:
    if shutil.which(CXX) is None:
        if os.environ.get("TORE_FAST_CUDA") == "1":
            raise SystemExit(f"tore_fast: TORE_FAST_CUDA=1 but there is no C++ compiler {CXX!r} (set CXX)")
        print(f"tore_fast: no C++ compiler {CXX!r} found (set CXX): installing without compiled kernels")
        return []
    x86 = platform.machine() in ("x86_64", "AMD64")
    headers = sources("*", "*.h", "*.cuh")  # as `depends` they get into an sdist
    cpu = [s for s in sources("cpu", "*.cpp") if x86 or not s.endswith(tuple(SIMD))]
    cpu = ["csrc/python/module.cpp", *sources("torch", "*.cpp"), *cpu]
    exts = [Extension("tore_fast._C", cpu, depends=headers)]
    if find_nvcc():
        cuda = [*sources("torch_cuda", "*.cpp"), *sources("cuda", "*.cu")]
        cuda = ["csrc/python/module_cuda.cpp", *cuda]
        exts.append(Extension("tore_fast._C_cuda", cuda, depends=headers))
    return exts


setup(
    packages=[
        *find_packages(include=["tore_fast*"]),
        "tore_fast.triton_kernels",
        *("tore_fast." + p for p in find_packages(include=["benchmarks", "benchmarks.*"])),
    ],
    ext_modules=extensions(),
    cmdclass={"build_ext": NinjaBuildExt},
)
