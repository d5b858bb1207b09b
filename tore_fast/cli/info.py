"""`tore-fast info`: versions, device, which kernels are built, and why others are not."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import platform
from dataclasses import dataclass
from typing import Any


@dataclass
class Args:
    """Prints versions, device, what is built, what is not and why."""

    json: bool = False
    """Machine-readable output."""


def report() -> dict:
    import torch

    from .. import __version__, _ext, _threads
    from ..ops import _dispatch, op_backends

    def version(name: str) -> str | None:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    packages = ("torch", "triton", "timm", "numpy", "scipy", "safetensors", "trimesh", "smplx", "accelerate")
    device: dict[str, Any] = {"cuda_available": torch.cuda.is_available(), "cpu_threads": torch.get_num_threads()}
    device |= {"cpus": _threads.available_cpus(), "waiting_threads": _threads.state}
    if torch.cuda.is_available():
        device["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    kinds = dict.fromkeys(["cpu", "cuda", "triton", *(b for names in op_backends().values() for b in names)])
    backends = {b: _dispatch.backend_reason(b) or "ready" for b in kinds}
    return {
        "tore_fast": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {p: version(p) for p in packages},
        "torch_cuda": torch.version.cuda,
        "device": device,
        "build": _ext.build_info(),
        "backends": backends,
        "ops": {
            op: next((b for b in names if backends[b] == "ready"), "reference") for op, names in op_backends().items()
        },
    }


def run(args: Args) -> int:
    info = report()
    if args.json:
        print(json.dumps(info, indent=2))
        return 0
    print(f"tore_fast {info['tore_fast']}   python {info['python']}   {info['platform']}")
    print("packages   " + "  ".join(f"{k} {v or '-'}" for k, v in info["packages"].items()))
    gpus = ", ".join(info["device"].get("gpus", [])) or "no GPU"
    print(f"device     {gpus}; {info['device']['cpu_threads']} CPU threads; torch CUDA {info['torch_cuda'] or 'none'}")
    print(
        f"threads    {info['device']['cpus']} CPUs by affinity and quota; waiting: {info['device']['waiting_threads']}"
    )
    build = info["build"]
    print("build      " + ("; ".join(f"{k} {v}" for k, v in build.items() if v) or "nothing compiled"))
    for name, state in info["backends"].items():
        print(f"{name:10} {state}")
    print("reference  ready (plain torch, any device)")
    print("ops        " + "  ".join(f"{op}: {b}" for op, b in info["ops"].items()))
    return 0
