"""density_delta: distance to the nearest denser token, against the official comparison over the whole distance
matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from tore_fast.ops import density_delta
from tore_fast.ops.reference.density_delta import density_delta_reference

from ..harness import Case, Contender
from .dpc_knn_cluster import QUICK, SHAPES
from .knn_density import squared_distances


def _from_distances(d: Tensor, rho: Tensor) -> Tensor:
    denser = (rho[:, None, :] > rho[:, :, None]).to(d.dtype)
    largest = d.flatten(1).max(-1).values[:, None, None]
    return (d * denser + largest * (1 - denser)).min(-1).values


def official(x: Tensor, rho: Tensor) -> Tensor:
    return _from_distances(torch.cdist(x.float(), x.float()) / x.shape[-1] ** 0.5, rho)


def one_product(x: Tensor, rho: Tensor) -> Tensor:
    return _from_distances(squared_distances(x).sqrt_(), rho)


def cases(device: str, dtype: torch.dtype, quick: bool) -> list[Case]:
    out = []
    size = torch.empty((), dtype=dtype).element_size()
    for batch, tokens, channels in QUICK if quick else SHAPES[device]:

        def make(generator, shape=(batch, tokens, channels)):
            x = torch.randn(shape, device=device, generator=generator).to(dtype)
            # any order of the tokens does: all densities differ, so that tie rules play no part
            rank = torch.rand(shape[:2], device=device, generator=generator).argsort(-1).argsort(-1)
            return [x, (rank + 1).float() / shape[1]]

        reason = "needs N x N matrices of more than 8 GB" if batch * tokens**2 * 4 > 8e9 else None
        out.append(
            Case(
                "density_delta",
                f"B{batch} N{tokens} C{channels}",
                make,
                [
                    Contender("tore_fast", lambda x, rho: density_delta(x, rho).delta, ours=True),
                    Contender("official sequence", official, note="cdist, compare, min", why_not=reason),
                    Contender("one product", one_product, note="baddbmm distances, compare, min", why_not=reason),
                ],
                lambda x, rho: density_delta_reference(x, rho)[0],
                False,
                device,
                dtype,
                bytes=batch * tokens * (channels * size + 12),
                macs=batch * tokens**2 * channels,
                items=batch,
            )
        )
    return out
