"""dpc_knn_cluster + cluster_merge (what a CTM does), against the official operator sequence and a tuned tensor
version."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tore_fast.ops import cluster_merge, dpc_knn_cluster

from ..harness import Case, Contender, relative_error

SHAPES = {  # batch, tokens, channels: CTM stages of TCFormer at 224, HoT's frames
    "cpu": ((1, 3136, 64), (8, 196, 128), (1, 784, 128), (4, 784, 320), (8, 49, 512), (1, 243, 512), (1, 81, 512)),
    "cuda": (
        (64, 3136, 64),
        (64, 784, 320),
        (64, 196, 512),
        (256, 49, 512),
        (1, 3136, 64),
        (1, 243, 512),
        (32, 12544, 64),
    ),
}
QUICK = ((1, 784, 128), (8, 196, 128))
K, RATIO = 5, 0.25


def cluster_from_distances(x: Tensor, d: Tensor, count: int) -> tuple[Tensor, ...]:
    """The official code's steps after its distance matrix (density noise left out, so that results can be compared)."""
    nearest = d.topk(K, dim=-1, largest=False).values
    rho = (-nearest.square().mean(-1)).exp()
    denser = (rho[:, None, :] > rho[:, :, None]).to(x.dtype)
    largest = d.flatten(1).max(-1).values[:, None, None]
    delta = (d * denser + largest * (1 - denser)).min(-1).values
    centers = (rho * delta).topk(count, dim=-1).indices.sort(-1).values
    cluster = d.gather(1, centers[:, :, None].expand(-1, -1, x.shape[1])).argmin(1)
    cluster.scatter_(1, centers, torch.arange(count, device=x.device).expand_as(centers))
    return rho, delta, centers, cluster


def index_add_merge(x: Tensor, cluster: Tensor, count: int) -> Tensor:
    batch, tokens, channels = x.shape
    row = (cluster + count * torch.arange(batch, device=x.device)[:, None]).flatten()
    total = x.new_zeros(batch * count).index_add_(0, row, x.new_ones(batch * tokens)) + 1e-6
    share = 1 / total[row]
    merged = x.new_zeros(batch * count, channels).index_add_(0, row, x.reshape(-1, channels) * share[:, None])
    return merged.view(batch, count, channels)


def official(x: Tensor) -> tuple[Tensor, ...]:
    count = token_count(x)
    f = x.float()
    rho, delta, centers, cluster = cluster_from_distances(f, torch.cdist(f, f) / x.shape[-1] ** 0.5, count)
    return rho, delta, index_add_merge(f, cluster, count).to(x.dtype), centers, cluster


def one_product(x: Tensor) -> tuple[Tensor, ...]:
    """Distances by one batched product of centred tokens, merge by a one-hot product."""
    count = token_count(x)
    f = x.float() - x.float().mean(1, keepdim=True)
    norm = f.square().sum(-1)
    d2 = torch.baddbmm(norm[:, :, None] + norm[:, None, :], f, f.mT, alpha=-2).clamp_min_(0)
    d2.diagonal(dim1=1, dim2=2).zero_()
    rho, delta, centers, cluster = cluster_from_distances(f, d2.mul_(1 / x.shape[-1]).sqrt_(), count)
    one_hot = (cluster[:, None, :] == torch.arange(count, device=x.device)[:, None]).to(x.dtype)
    merged = one_hot @ x / (one_hot.float().sum(-1, keepdim=True) + 1e-6).to(x.dtype)
    return rho, delta, merged, centers, cluster


def ours(x: Tensor, impl: str = "auto") -> tuple[Tensor, ...]:
    count = token_count(x)
    out = dpc_knn_cluster(x, count, K, impl=impl)
    merged = cluster_merge(x, out.cluster, count, impl=impl).merged
    return out.rho, out.delta, merged, out.centers, out.cluster


def token_count(x: Tensor) -> int:
    return -(-x.shape[1] // int(1 / RATIO))


def check(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> float:
    """Error of density and delta; at least 97 % of the clusters must agree, merged tokens wherever all of them do."""
    error = relative_error(got[:2], want[:2])
    if not all(bool(torch.isfinite(t).all()) for t in got[:3]):
        return float("inf")
    same_center = got[3].gather(1, got[4]) == want[3].gather(1, want[4])
    if same_center.float().mean() < 0.97:
        return float("inf")
    whole = same_center.all(1) & (got[3] == want[3]).all(1)
    return max(error, relative_error(got[2][whole], want[2][whole])) if bool(whole.any()) else error


def cases(device: str, dtype: torch.dtype, quick: bool) -> list[Case]:
    shapes = QUICK if quick else SHAPES[device]
    return clustering_cases("dpc_knn_cluster", [Contender("tore_fast", ours, ours=True)], shapes, device, dtype)


def clustering_cases(
    op: str, mine: list[Contender], shapes: Sequence[tuple[int, int, int]], device: str, dtype: torch.dtype
) -> list[Case]:
    """Cases of an op that clusters and merges: our contenders `mine` against the tensor versions of this file."""
    out = []
    size = torch.empty((), dtype=dtype).element_size()
    for batch, tokens, channels in shapes:

        def make(generator, shape=(batch, tokens, channels)):
            return [torch.randn(shape, device=device, generator=generator).to(dtype)]

        big = batch * tokens**2 * 4 > 8e9  # the matrices of the tensor versions alone
        reason = "needs several N x N matrices of more than 8 GB" if big else None
        contenders = [
            *mine,
            Contender("official sequence", official, note="cdist, top-k, compare, gather, index_add", why_not=reason),
            Contender("one product", one_product, note="baddbmm distances, one-hot merge", why_not=reason),
            Contender("compile(one product)", torch.compile(one_product, fullgraph=True), heavy=True, why_not=reason),
        ]
        macs = batch * tokens**2 * channels * (2 + RATIO)
        traffic = batch * tokens * channels * size * (2 + RATIO) + batch * tokens * 32
        out.append(
            Case(
                op,
                f"B{batch} N{tokens} C{channels}",
                make,
                contenders,
                None if big else lambda x: ours(x, "reference"),
                False,
                device,
                dtype,
                bytes=traffic,
                macs=macs,
                items=batch,
                error_limit=2e-4 if dtype == torch.float32 else 2e-2,
                check=check,
                params={"k": K, "ratio": RATIO},
            )
        )
    return out
