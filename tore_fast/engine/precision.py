"""The compute type of an engine: which one a device is faster in, weights in it once, and what stays in float32.

Matrix products and convolutions run in the compute type, under autocast with weights that already have it. Layer norms,
the sums of residual connections and everything the models compute outside autocast (coordinates, cameras, rotations,
statistics of the clustering) stay in float32. What that is is not written down here a second time: a product that ran
outside autocast in one watched pass keeps its float32 weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

WORDS = ("auto", "fp32", "tf32", "bf16", "fp16")
TYPES = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)


class Choice(NamedTuple):
    word: str  # fp32, tf32, bf16 or fp16
    reason: str

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the products; None: float32."""
        return TYPES[self.word]


# Time of float32 / time of bfloat16 of whole engine calls, by the processor's unit for it and the family; the smallest
# of the family's models that were timed, and a family is missing where none was. One thread of a Xeon with AMX,
# batches of 8 (METRO, motion: 4), best of 8 in alternation, on a machine that was busy: good for the choice, not for
# quoting as speeds. fasthmr covers hmr2_vits 2.9 and the motion decoder 2.4, tcformer its classifier 1.0 and PPT 1.7.
MEASURED: dict[str, dict[str, float]] = {
    "amx": {
        "fastmetro": 3.5,
        "tore": 1.2,
        "metro": 2.2,
        "fasthmr": 2.4,
        "tcformer": 1.0,
        "mixste": 2.0,
        "motionbert": 5.5,
        "mhformer": 1.7,
        "motionagformer": 1.4,
        "blazepose": 1.15,
    },
    "avx512_bf16": {},
}
MIN_GAIN = 1.2  # less is within what a busy machine blurs


def cpu_unit() -> str | None:
    """The fastest unit for bfloat16 products of this processor: "amx", "avx512_bf16", or None."""
    cpu = torch.cpu
    if getattr(cpu, "_is_amx_tile_supported", bool)():
        return "amx"
    return "avx512_bf16" if getattr(cpu, "_is_avx512_bf16_supported", bool)() else None


def choose_precision(word: str, device: torch.device, family: str | None = None) -> Choice:
    """The compute type on a device and why.

    Args:
        word: "auto", or the type itself. family: of the model (its facts), for the table of measured gains.

    Raises:
        ValueError: an unknown word; tf32 where there is no GPU.
    """
    if word not in WORDS:
        raise ValueError(f"precision must be one of {', '.join(WORDS)}, got {word!r}")
    if word == "tf32" and device.type != "cuda":
        raise ValueError(f"precision 'tf32' is a mode of NVIDIA GPUs; the device is {device}")
    if word != "auto":
        return Choice(word, "asked for")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Choice("bf16", "this GPU multiplies bfloat16 natively")
        return Choice("fp32", "this GPU has no bfloat16 units")
    if device.type != "cpu":
        return Choice("fp32", f"nothing was measured on {device.type}")
    unit = cpu_unit()
    if unit is None:
        return Choice("fp32", "this processor has neither AMX nor AVX512-BF16")
    gain = MEASURED[unit].get(family or "")
    if gain is None:
        return Choice("fp32", f"bfloat16 on {unit} was not measured for the family {family}")
    if gain < MIN_GAIN:
        return Choice("fp32", f"bfloat16 on {unit} was measured {gain:.2f} times as fast for the family {family}")
    return Choice("bf16", f"measured {gain:.2f} times as fast as float32 on {unit} for the family {family}")


def cast_products(model: nn.Module, dtype: torch.dtype, device_type: str, run: Callable[[], Any]) -> tuple[int, int]:
    """Weights of products in the compute type, in place; returns how many modules have it and how many stay in float32.

    Args:
        run: a call of the model with any input; made here under autocast, in float32 weights.
    """
    inside: set[nn.Module] = set()
    outside: set[nn.Module] = set()

    def note(module: nn.Module, _args: Any) -> None:
        (inside if torch.is_autocast_enabled(device_type) else outside).add(module)

    hooks = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, PRODUCTS)]
    try:
        with torch.inference_mode(), autocast(device_type, dtype):
            run()
    finally:
        for hook in hooks:
            hook.remove()
    kept = {id(p) for m in model.modules() if m not in inside or m in outside for p in m.parameters(recurse=False)}
    cast = 0
    for module in inside - outside:
        if any(id(p) in kept for p in module.parameters(recurse=False)):
            continue
        for p in module.parameters(recurse=False):
            p.data = p.data.to(dtype)
        cast += 1
    return cast, len(inside | outside) - cast


def autocast(device_type: str, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast without its cache of cast weights: they are cast already, and a CUDA graph must not hold the cache's."""
    return torch.autocast(device_type, dtype=dtype, enabled=dtype is not None, cache_enabled=False)


class Tf32:
    """Context: TF32 in products and convolutions of float32 on (or off) and as it was afterwards."""

    def __init__(self, on: bool) -> None:
        self.on = on

    def __enter__(self) -> None:
        self.before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.on

    def __exit__(self, *_: object) -> None:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self.before
