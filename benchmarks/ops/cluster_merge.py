"""cluster_merge: weighted mean per cluster, forward and backward, against index_add, a one-hot product,
segment_reduce."""

from __future__ import annotations

import torch
from torch import Tensor

from tore_fast.ops import cluster_merge
from tore_fast.ops.reference.cluster_merge import cluster_merge_reference

from ..harness import Case, Contender

SHAPES = {  # batch, tokens, channels
    "cpu": ((1, 3136, 128), (4, 784, 320), (8, 196, 512), (8, 49, 512)),
    "cuda": ((64, 3136, 128), (64, 784, 320), (64, 196, 512), (256, 49, 512), (1, 3136, 128)),
}


def one_hot(x: Tensor, cluster: Tensor, weight: Tensor) -> Tensor:
    count = -(-x.shape[1] // 4)
    member = (cluster[:, None, :] == torch.arange(count, device=x.device)[:, None]) * weight[:, None, :]
    return ((member / (member.sum(-1, keepdim=True) + 1e-6)).to(x.dtype)) @ x


def segments(x: Tensor, cluster: Tensor, weight: Tensor) -> Tensor:
    """Sort by cluster, then torch.segment_reduce."""
    batch, tokens, channels = x.shape
    count = -(-tokens // 4)
    row = (cluster + count * torch.arange(batch, device=x.device)[:, None]).flatten()
    order = row.argsort(stable=True)
    lengths = torch.bincount(row, minlength=batch * count)
    w = weight.flatten()[order]
    total = torch.segment_reduce(w, "sum", lengths=lengths) + 1e-6
    rows = x.reshape(-1, channels)[order].float() * w[:, None]
    return (
        (torch.segment_reduce(rows, "sum", lengths=lengths) / total[:, None]).to(x.dtype).view(batch, count, channels)
    )


def cases(device: str, dtype: torch.dtype, quick: bool) -> list[Case]:
    out = []
    size = torch.empty((), dtype=dtype).element_size()
    for batch, tokens, channels in SHAPES[device][2:3] if quick else SHAPES[device]:
        count = -(-tokens // 4)

        def make(generator, batch=batch, tokens=tokens, channels=channels, count=count):
            x = torch.randn(batch, tokens, channels, device=device, generator=generator).to(dtype)
            cluster = torch.randint(0, count, (batch, tokens), device=device, generator=generator)
            weight = torch.rand(batch, tokens, device=device, generator=generator) + 0.1
            return [x, cluster, weight]

        contenders = [
            Contender("tore_fast", lambda x, c, w, m=count: cluster_merge(x, c, m, w).merged, ours=True),
            Contender(
                "index_add",
                lambda x, c, w, m=count: cluster_merge_reference(x, c, m, w)[0],
                note="the official code's way",
            ),
            Contender("one-hot product", one_hot),
            Contender("sort + segment_reduce", segments),
        ]
        for backward in (False, True):
            traffic = batch * ((tokens + count) * channels * size + tokens * 16)
            out.append(
                Case(
                    "cluster_merge",
                    f"B{batch} N{tokens} C{channels}",
                    make,
                    contenders,
                    lambda x, c, w, m=count: cluster_merge_reference(x, c, m, w)[0],
                    backward,
                    device,
                    dtype,
                    bytes=traffic * (3 if backward else 1),
                    macs=batch * tokens * channels * (3 if backward else 1),
                    items=batch,
                )
            )
    return out
