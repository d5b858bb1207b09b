"""strassen_linear: the linear layers of the hosts at their sizes, against F.linear (MKL) and oneDNN with packed weights."""

from __future__ import annotations

import torch

from tore_fast.ops import strassen_linear, strassen_pack
from tore_fast.ops.reference.strassen_linear import strassen_linear_reference

from ..harness import Case, Contender

SHAPES = (  # name, rows, in, out, activation
    ("MixSTE fc1", 4131, 512, 1024, "gelu"),
    ("MixSTE fc2", 4131, 1024, 512, "none"),
    ("MixSTE projection", 4131, 512, 512, "none"),
    ("MotionBERT fc1", 4131, 256, 1024, "gelu"),
    ("METRO fc1, batch 8", 3560, 1024, 4096, "gelu"),
    ("ViT-S qkv, batch 16", 3072, 384, 1152, "none"),
    ("ViT-H fc1, batch 1", 192, 1280, 5120, "gelu"),
)


def _onednn(weight: torch.Tensor, rows: int, act: str):
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda x, bias: torch.ops.mkldnn._linear_pointwise(x, packed, bias, act, [], "none" if act == "gelu" else "")


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
                lambda x, b, w=weight, act=act: strassen_linear_reference(x, w, b, None, act),
                note="MKL in torch's wheels",
            )
        ]
        if torch.backends.mkldnn.is_available():
            contenders.append(Contender("oneDNN, packed", _onednn(weight, rows, act)))
        for level in (2, 1, 0):
            packed = strassen_pack(weight, level)
            label = "tore_fast" if level == 2 else f"tore_fast, level {level}"
            contenders.append(
                Contender(
                    label,
                    lambda x, b, w=packed, act=act: strassen_linear(x, w, b, None, act),
                    ours=True,
                    headline=level == 2,
                )
            )
        out.append(
            Case(
                "strassen_linear",
                f"{name} {rows}x{k}x{n}",
                make,
                contenders,
                lambda x, b, w=weight, act=act: strassen_linear_reference(x, w.to(x.dtype), b, None, act),
                False,
                device,
                dtype,
                bytes=4 * (rows * (k + n) + k * n),
                macs=rows * k * n,
                items=rows,
            )
        )
    return out
