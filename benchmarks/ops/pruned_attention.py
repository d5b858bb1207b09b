"""pruned_attention at the shapes that occur after token reduction, against SDPA (with an additive mask built once) and
others."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

from tore_fast.ops import pruned_attention
from tore_fast.ops.reference.pruned_attention import pruned_attention_reference

from ..harness import Case, Contender

SHAPES = (  # name, heads, queries, keys, head_dim, key bias
    ("TCFormer stage 1", 1, 3136, 49, 64, False),
    ("TCFormer stage 2", 2, 784, 49, 64, False),
    ("TCFormer stage 3", 5, 196, 49, 64, False),
    ("TCFormer CTM3", 8, 49, 196, 64, True),
    ("FastMETRO encoder", 8, 50, 50, 64, False),
    ("TORE encoder", 8, 40, 40, 16, False),
    ("TORE decoder", 8, 431, 14, 64, False),
    ("FastMETRO decoder", 8, 445, 49, 64, False),
    ("ViT-H after 3 merges", 16, 90, 90, 80, True),
    ("PPT-S", 8, 273, 273, 24, False),
    ("PPT-S pruned", 8, 143, 143, 24, False),
    ("HoT temporal", 8, 81, 81, 64, False),
)


def _varlen(device: str, heads: int, batch: int, queries: int, keys: int) -> Contender:
    """torch's ragged attention on equal lengths: what packing would use."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return Contender("varlen_attn", lambda *a: None, why_not="torch has no varlen_attn")
    if device != "cuda":
        return Contender("varlen_attn", lambda *a: None, why_not="varlen_attn runs on CUDA only")
    cu_q, cu_k = (torch.arange(batch + 1, device=device, dtype=torch.int32) * n for n in (queries, keys))

    def run(q, k, v, bias=None):
        packed = [t.transpose(1, 2).flatten(0, 1) for t in (q, k, v)]
        return varlen_attn(*packed, cu_q, cu_k, queries, keys).unflatten(0, (batch, queries)).transpose(1, 2)

    return Contender("varlen_attn", run)


def cases(device: str, dtype: torch.dtype, quick: bool) -> list[Case]:
    out = []
    batches = (8,) if device == "cpu" else (1, 8, 64)
    for name, heads, queries, keys, dim, with_bias in SHAPES[4:6] if quick else SHAPES:
        for batch in batches:

            def make(generator, shape=(batch, heads, dim), rows=(queries, keys, keys), with_bias=with_bias):
                b, h, d = shape
                qkv = [
                    torch.randn(b, n, h, d, device=device, generator=generator).to(dtype).transpose(1, 2) for n in rows
                ]
                return [*qkv, torch.randn(b, rows[1], device=device, generator=generator)] if with_bias else qkv

            def sdpa(q, k, v, bias=None):
                mask = None if bias is None else bias.to(q.dtype)[:, None, None]
                return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

            def eager(q, k, v, bias=None):
                s = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
                return (s if bias is None else s + bias.to(q.dtype)[:, None, None]).softmax(-1) @ v

            def reference(q, k, v, bias=None):
                return pruned_attention_reference(q, k, v, bias, None, None, q.shape[-1] ** -0.5)[0]

            contenders = [
                Contender("tore_fast", pruned_attention, ours=True, headline=True),
                Contender("SDPA", sdpa, way="sdpa"),
                Contender("eager softmax", eager),
                Contender("compile(eager)", torch.compile(eager, fullgraph=True), heavy=True),
            ]
            if device == "cuda":
                kernel = functools.partial(pruned_attention, impl="triton")
                contenders.insert(1, Contender("tore_fast triton", kernel, ours=True, way="triton"))
            if not with_bias:
                contenders.append(_varlen(device, heads, batch, queries, keys))
            size = torch.empty((), dtype=dtype).element_size()
            for backward in (False, True):
                out.append(
                    Case(
                        "pruned_attention",
                        f"{name} B{batch} H{heads} {queries}x{keys} D{dim}{' bias' if with_bias else ''}",
                        make,
                        contenders,
                        reference,
                        backward,
                        device,
                        dtype,
                        bytes=2 * (queries + keys) * batch * heads * dim * size * (3 if backward else 1),
                        macs=batch * heads * queries * keys * dim * (7 if backward else 2),
                        items=batch,
                        params={
                            "bias": with_bias,
                            "dim": dim,
                            "keys": keys,
                            "queries": queries,
                            "items": batch * heads,
                        },
                    )
                )
    return out
