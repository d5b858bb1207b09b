"""CTM: tokens are convolved, scored, clustered and merged (TCFormer section 3.2).

In: `Tokens` of a stage; out: the merged tokens (a quarter of them) and the original ones with their scores, which the
block after the CTM takes as queries and keys. Clusters come from ops/dpc_knn_cluster_merge over the whole image, from
ops/dpc_knn_cluster part by part, or around the best-scored tokens (ablation); `ConvDownsample` is the strided
convolution of "w/o CTM".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops.cluster_merge import cluster_merge, cluster_merge_tokens
from ..ops.dpc_knn_cluster import dpc_knn_cluster
from ..ops.dpc_knn_cluster_merge import dpc_knn_cluster_merge
from ..ops.token_map import token_csr
from ._tokens import Tokens
from .token_conv import TokenConv, tokens_to_map

CLUSTERINGS = ("dpc", "topk")


def halved(map_size: tuple[int, int]) -> tuple[int, int]:
    return (map_size[0] + 1) // 2, (map_size[1] + 1) // 2


class CTM(nn.Module):
    """Clustering-based token merge.

    Args:
        dim_in, dim_out: channels before and after.
        sample_ratio: share of tokens kept, M = ceil(N * sample_ratio).
        k: neighbours of the density, the token itself included.
        clustering: "dpc" (DPC-kNN), or "topk": centres are the M tokens with the highest learned score (ablation).
        part_levels: for part-wise clustering, (rows, columns) of the parts of this CTM and of the following ones,
            coarsest first, this CTM's own last; () clusters over the whole image.
        knn_form: "released", or "printed" (equations 1 and 2 as the paper prints them), see ops/dpc_knn_cluster.py.
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        sample_ratio: float = 0.25,
        k: int = 5,
        clustering: str = "dpc",
        part_levels: tuple[tuple[int, int], ...] = (),
        knn_form: str = "released",
    ):
        super().__init__()
        self.knn_form = knn_form
        if clustering not in CLUSTERINGS:
            raise ValueError(f"CTM: clustering must be one of {CLUSTERINGS}, got {clustering!r}")
        self.sample_ratio, self.k, self.clustering = sample_ratio, k, clustering
        self.part_levels = tuple((rows, cols) for rows, cols in part_levels)
        self.conv = TokenConv(dim_in, dim_out, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(dim_out)
        self.score = nn.Linear(dim_out, 1)

    def forward(self, tokens: Tokens) -> tuple[Tokens, Tokens]:
        """(merged tokens, original tokens with features after the norm and their score)."""
        y = self.norm(self.conv(tokens))
        score = self.score(y)  # [B, N, 1]
        weight = score[..., 0].float().exp()
        # the first CTM's tokens are the cells themselves: their clusters and shares are those of the cells
        cells = tokens.is_grid and tokens.map_size == tokens.init_grid
        merged: Any
        dictionary: Any = () if cells else (tokens.idx_token, tokens.agg_weight)
        if self.clustering == "dpc" and self.num_parts == 1:
            num_clusters, parts = self.num_clusters(y.shape[1]), 1
            idx_token, agg_weight = dictionary or (None, None)
            merged = dpc_knn_cluster_merge(
                y, num_clusters, self.neighbors(y.shape[1]), weight, idx_token, agg_weight, form=self.knn_form
            )
            cluster = merged.cluster
        else:
            cluster, num_clusters, parts = self.clusters(y.detach(), score.detach()[..., 0], tokens)
            merge: Any = cluster_merge if cells else cluster_merge_tokens
            merged = merge(y, cluster, num_clusters, weight, *dictionary)
        idx_token, agg_weight = (cluster, merged.norm_weight) if cells else (merged.idx_token, merged.agg_weight)
        csr = token_csr(idx_token, num_clusters)
        out = Tokens(
            merged.merged, halved(tokens.map_size), tokens.init_grid, idx_token, agg_weight, csr=csr, parts=parts
        )
        return out, tokens._replace(x=y, score=score)

    def num_clusters(self, num_tokens: int) -> int:
        """M = max(ceil(N * sample_ratio), 1)."""
        if self.sample_ratio == 0.25:
            return max((num_tokens + 3) // 4, 1)  # also for symbolic sizes
        return max(-int(-num_tokens * self.sample_ratio // 1), 1)

    def neighbors(self, num_tokens: int) -> int:
        """k, or what there is: the printed form counts other tokens only."""
        return min(self.k, max(num_tokens - (self.knn_form == "printed"), 1))

    @property
    def num_parts(self) -> int:
        return self.part_levels[-1][0] * self.part_levels[-1][1] if self.part_levels else 1

    def clusters(self, y: Tensor, score: Tensor, tokens: Tokens) -> tuple[Tensor, int, int]:
        """For "topk" and part by part: each token's cluster [B, N] int64, number of clusters, number of contiguous part
        runs."""
        num = self.num_clusters(y.shape[1])
        if self.clustering == "topk":
            return topk_clusters(y, score, num), num, 1
        parts = self.num_parts
        per_part = max(round(num / parts), 1)
        if tokens.is_grid:
            check_parts(tokens.map_size, self.part_levels[-1], per_part)
            order, position = part_order(tokens.map_size, self.part_levels, y.device)
            real = order >= 0
            y = y.index_select(1, order.clamp(min=0))
            mask = real.expand(y.shape[0], -1) if order.shape[0] != position.shape[0] else None
        else:
            if tokens.parts % parts:
                raise ValueError(f"CTM: {parts} parts need tokens in a multiple of {parts} runs, got {tokens.parts}")
            position, mask = None, None
        k = self.neighbors(y.shape[1] // parts)
        cluster = dpc_knn_cluster(y, per_part * parts, k, mask, parts=parts, form=self.knn_form).cluster
        if position is not None:
            cluster = cluster.index_select(1, position)
        return cluster, per_part * parts, parts


def check_parts(map_size: tuple[int, int], parts: tuple[int, int], per_part: int) -> None:
    """ValueError if a border part has fewer real cells than centres (its clusters would be empty tokens)."""
    cells = 1
    for size, n in zip(map_size, parts):
        pad = -size % n
        cells *= max((size + pad) // n - (pad + 1) // 2, 0)
    if cells < per_part:
        raise ValueError(
            f"CTM: a map {map_size} is too small for {parts[0]}x{parts[1]} parts: a border part has {cells} cells "
            f"for {per_part} clusters; use a larger image or fewer parts"
        )


def part_order(
    map_size: tuple[int, int],
    part_levels: tuple[tuple[int, int], ...],  # (rows, columns) of parts, coarsest level first
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Raster cells sorted part by part (coarsest part first), the map padded symmetrically to whole parts.

    Returns:
        order: [P] int64, the raster cell at each place, -1 for padding; P = padded cells.
        position: [H*W] int64, the place of each raster cell.
    """
    h, w = map_size
    rows, cols = part_levels[-1]
    pad_h, pad_w = -h % rows, -w % cols
    r = torch.arange(h + pad_h, device=device)
    c = torch.arange(w + pad_w, device=device)
    key = torch.zeros(h + pad_h, w + pad_w, dtype=torch.int64, device=device)
    for nh, nw in part_levels:
        if rows % nh or cols % nw:
            raise ValueError(f"part_order: parts {rows}x{cols} do not divide into the coarser parts {nh}x{nw}")
        key = key * (nh * nw) + ((r * nh) // r.shape[0])[:, None] * nw + (c * nw) // c.shape[0]
    places = torch.argsort(key.flatten(), stable=True)
    row, col = places // c.shape[0] - pad_h // 2, places % c.shape[0] - pad_w // 2
    real = (row >= 0) & (row < h) & (col >= 0) & (col < w)
    order = torch.where(real, row * w + col, -1)
    position = torch.argsort(torch.where(real, order, h * w), stable=True)[: h * w]
    return order, position


def topk_clusters(y: Tensor, score: Tensor, num_clusters: int) -> Tensor:
    """Each token joins the nearest of the `num_clusters` best-scored tokens; ties go to the lower index. [B, N]
    int64."""
    centers = torch.sort(score, dim=1, descending=True, stable=True).indices[:, :num_clusters].sort(1).values
    with torch.autocast(y.device.type, enabled=False):
        y = y.float()
        chosen = y.gather(1, centers[..., None].expand(-1, -1, y.shape[2]))
        half_norm = 0.5 * (chosen * chosen).sum(2)
        cluster = (torch.baddbmm(half_norm[:, None], y, chosen.transpose(1, 2), alpha=-1)).argmin(2)
    rank = torch.arange(num_clusters, device=y.device).expand_as(centers)
    return cluster.scatter(1, centers, rank)


class ConvDownsample(nn.Module):
    """Strided convolution + LayerNorm on the grid in the place of a CTM ("w/o CTM" ablation, as in PVTv2)."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim_out, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(dim_out)

    def forward(self, tokens: Tokens) -> tuple[Tokens, Tokens]:
        """(tokens of the half-size grid, the same tokens)."""
        x = self.norm(self.conv(tokens_to_map(tokens)).flatten(2).transpose(1, 2))
        size, (h0, w0) = halved(tokens.map_size), tokens.init_grid
        rows = torch.arange(h0, device=x.device) * size[0] // h0
        cols = torch.arange(w0, device=x.device) * size[1] // w0
        idx_token = (rows[:, None] * size[1] + cols).flatten()
        cells = torch.zeros(x.shape[1], device=x.device).index_add(0, idx_token, torch.ones_like(idx_token).float())
        agg = (1 / cells)[idx_token]
        b = x.shape[0]
        out = Tokens(x, size, tokens.init_grid, idx_token.expand(b, -1), agg.expand(b, -1), is_grid=True)
        return out, out
