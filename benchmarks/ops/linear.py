"""linear: the linear layers of the hosts at their sizes, against F.linear (MKL) and oneDNN with packed weights."""

from __future__ import annotations

import torch

from tore_fast.ops import PackedWeight, linear
from tore_fast.ops._strassen import strassen_multiply, strassen_pack
from tore_fast.ops.reference.linear import linear_reference

from ..harness import Case, Contender

SHAPES = (  # name, rows, in, out, activation
    ("MixSTE fc1", 4131, 512, 1024, "gelu"),
    ("MixSTE fc2", 4131, 1024, 512, None),
    ("MixSTE projection", 4131, 512, 512, None),
    ("MotionBERT fc1", 4131, 256, 1024, "gelu"),
    ("METRO fc1, batch 8", 3560, 1024, 4096, "gelu"),
    ("ViT-S qkv, batch 16", 3072, 384, 1152, None),
    ("ViT-H fc1, batch 1", 192, 1280, 5120, "gelu"),
)


def _onednn(weight: torch.Tensor, rows: int, act: str):
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda x, bias: torch.ops.mkldnn._linear_pointwise(
        x, packed, bias, act or "none", [], "none" if act == "gelu" else ""
    )


def cases(device: str, dtype: torch.dtype, quick: bool) -> list[Case]:
    """Products on the CPU in float32; elsewhere the op is F.linear."""
    if device != "cpu" or dtype != torch.float32:
        return []
    out = []
    for name, rows, k, n, act in SHAPES[2:3] if quick else SHAPES:
        weight = torch.randn(n, k, generator=torch.Generator().manual_seed(0)) / k**0.5

        def make(generator, rows=rows, k=k, n=n):
            return [torch.randn(rows, k, generator=generator), torch.randn(n, generator=generator)]

        contenders = [
            Contender(
                "F.linear",
                lambda x, b, w=weight, act=act: linear_reference(x, w, b, None, act),
                note="MKL in torch's wheels",
            )
        ]
        if torch.backends.mkldnn.is_available():
            contenders.append(Contender("oneDNN, packed", _onednn(weight, rows, act)))
        for level in (1, 0):  # what one halving gains, and what the kernel does without
            packed = strassen_pack(weight, level)
            contenders.append(
                Contender(
                    f"Strassen, level {level}",
                    lambda x, b, w=packed, act=act: strassen_multiply(x, w, b, None, act),
                    ours=True,
                )
            )
        kept = PackedWeight()
        contenders.append(
            Contender(
                "tore_fast",
                lambda x, b, w=weight, act=act, kept=kept: linear(x, w, b, act=act, packed=kept),
                ours=True,
                headline=True,
                note="auto: level 2 where the size allows",
            )
        )
        out.append(
            Case(
                "linear",
                f"{name} {rows}x{k}x{n}",
                make,
                contenders,
                lambda x, b, w=weight, act=act: linear_reference(x, w.to(x.dtype), b, None, act),
                False,
                device,
                dtype,
                bytes=4 * (rows * (k + n) + k * n),
                macs=rows * k * n,
                items=rows,
            )
        )
    return out
