"""knn_density: the first half of DPC-kNN, against the official cdist and top-k and a tuned batched product."""

from __future__ import annotations

import torch
from torch import Tensor

from tore_fast.ops import knn_density
from tore_fast.ops.reference.knn_density import knn_density_reference

from ..harness import Case, Contender
from .dpc_knn_cluster import QUICK, SHAPES, K


def official(x: Tensor) -> Tensor:
    d = torch.cdist(x.float(), x.float()) / x.shape[-1] ** 0.5
    return (-d.topk(K, dim=-1, largest=False).values.square().mean(-1)).exp()


def squared_distances(x: Tensor) -> Tensor:
    """[B, N, N] over C, by one batched product of centred tokens."""
    f = x.float() - x.float().mean(1, keepdim=True)
    norm = f.square().sum(-1)
    d2 = torch.baddbmm(norm[:, :, None] + norm[:, None, :], f, f.mT, alpha=-2).clamp_min_(0)
    d2.diagonal(dim1=1, dim2=2).zero_()
    return d2.mul_(1 / x.shape[-1])


def one_product(x: Tensor) -> Tensor:
    return (-squared_distances(x).topk(K, dim=-1, largest=False).values.mean(-1)).exp()


def cases(device: str, dtype: torch.dtype, quick: bool) -> list[Case]:
    out = []
    size = torch.empty((), dtype=dtype).element_size()
    for batch, tokens, channels in QUICK if quick else SHAPES[device]:

        def make(generator, shape=(batch, tokens, channels)):
            return [torch.randn(shape, device=device, generator=generator).to(dtype)]

        reason = "needs N x N matrices of more than 8 GB" if batch * tokens**2 * 4 > 8e9 else None
        out.append(
            Case(
                "knn_density",
                f"B{batch} N{tokens} C{channels}",
                make,
                [
                    Contender("tore_fast", lambda x: knn_density(x, K), ours=True),
                    Contender("official sequence", official, note="cdist, top-k", why_not=reason),
                    Contender("one product", one_product, note="baddbmm distances, top-k", why_not=reason),
                ],
                lambda x: knn_density_reference(x, K),
                False,
                device,
                dtype,
                bytes=batch * tokens * (channels * size + 4),
                macs=batch * tokens**2 * channels,
                items=batch,
            )
        )
    return out
