"""TPC, token pruning cluster: chooses which frames of a clip the deeper blocks still see.

In: one pooled token per frame [B, F, C]. Out: ascending frame indices [B, f] and the clustering statistics. Frames
are dropped, never merged. The clustering is ops/dpc_knn_cluster; the hosts in models/ call `FrameSelector`, then
`gather_frames`. Source: HoT, CVPR 2024, section 3.2; the alternatives are those of its tables 4 and 5.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from ..ops.dpc_knn_cluster import dpc_knn_cluster

Pruning = Literal["tpc", "uniform", "attention", "motion"]


class FrameSelection(NamedTuple):
    """Kept frames and, for TPC, the statistics of all F frames (None for the other rules)."""

    index: Tensor  # type: ignore[assignment]  # hides tuple.index; [B, f] int64, ascending
    density: Tensor | None  # [B, F] float32, with the additive noise
    delta: Tensor | None  # [B, F] float32
    score: Tensor | None  # [B, F] float32, what the top f are chosen by


def tpc_select(
    pooled: Tensor,  # [B, F, C]
    keep: int,
    k: int = 2,
    center: int | None = None,
    tie: Literal["index", "strict", "noise"] = "index",
    noise: Tensor | None = None,  # [B, F], added to the density
    form: str = "released",
    impl: str = "auto",
) -> FrameSelection:
    """The `keep` density peaks of a clip, ascending: rho = exp(-mean d_k^2 / C), delta = distance to a denser frame.

    Args:
        pooled: frame tokens; no gradient flows through the choice.
        keep: frames to keep, f.
        k: neighbours in the density, the frame itself included (the released code uses 2).
        center: a frame that is always kept (seq2frame); the other f - 1 are chosen without it.
        tie: how equal densities are ordered. "index": the lower frame counts as denser, deterministic. With k = 2 every
            pair of mutual nearest neighbours has equal density, so this decides on most real clips.
        noise: additive density term, for parity with code that draws it at random.
        form: "released", or "printed" (equations 1 and 2 as the paper prints them; k counts other frames), see
            ops/dpc_knn_cluster.py.

    Example:
        >>> tpc_select(torch.randn(1, 27, 8), keep=9).index.shape
        torch.Size([1, 9])
    """
    frames = pooled.shape[1]
    if not 1 <= keep <= frames:
        raise ValueError(f"tpc_select: keep must be in 1..{frames} (frames of pooled), got {keep}")
    pooled = pooled.detach()
    if center is None:
        found = dpc_knn_cluster(pooled, keep, k, tie=tie, noise=noise, form=form, impl=impl)
        return FrameSelection(found.centers.sort(dim=1).values, found.rho, found.delta, found.score)
    if not 0 <= center < frames:
        raise ValueError(f"tpc_select: center must be in 0..{frames - 1}, got {center}")
    fixed = torch.full((pooled.shape[0], 1), center, dtype=torch.int64, device=pooled.device)
    if keep == 1:
        return FrameSelection(fixed, None, None, None)
    found = dpc_knn_cluster(pooled, keep - 1, k, exclude=center, tie=tie, noise=noise, form=form, impl=impl)
    index = torch.cat([found.centers, fixed], dim=1).sort(dim=1).values
    return FrameSelection(index, found.rho, found.delta, found.score)


def uniform_select(frames: int, keep: int, center: int | None = None) -> list[int]:
    """Fixed interval: frame floor((i + 1/2) F / f) of i = 0..f-1; the one nearest to `center` is moved onto it.

    243 frames, 81 kept: 1, 4, 7, ..., which contains the centre 121. (The offset is not stated in the paper.)
    """
    index = [(2 * i + 1) * frames // (2 * keep) for i in range(keep)]
    if center is not None and center not in index:
        nearest = min(range(keep), key=lambda i: (abs(index[i] - center), i))
        index[nearest] = center
    return index


def top_select(score: Tensor, keep: int, center: int | None = None) -> Tensor:
    """Ascending indices [B, keep] of the largest scores [B, F]; equal scores keep the lower frame first."""
    if center is not None:
        score = score.clone()
        score[:, center] = float("inf")
    order = torch.sort(score, dim=1, descending=True, stable=True).indices
    return order[:, :keep].sort(dim=1).values


def motion_score(keypoints: Tensor) -> Tensor:
    """[B, F] mean over joints of the 2D displacement (first two channels) to the previous frame; frame 0 takes frame
    1's."""
    if keypoints.shape[1] < 2:
        return keypoints.new_zeros(keypoints.shape[:2], dtype=torch.float32)
    step = (keypoints[:, 1:, :, :2] - keypoints[:, :-1, :, :2]).float().norm(dim=-1).mean(dim=-1)
    return torch.cat([step[:, :1], step], dim=1)


def gather_frames(x: Tensor, index: Tensor) -> Tensor:
    """x[b, index[b, i]] for x [B, F, ...] and index [B, f]; whole rows are copied, the gradient is a scatter."""
    b, frames = x.shape[:2]
    flat = index + frames * torch.arange(b, device=index.device)[:, None]
    return x.reshape(b * frames, *x.shape[2:]).index_select(0, flat.reshape(-1)).reshape(*index.shape, *x.shape[2:])


class FrameSelector(nn.Module):
    """Picks `keep` of `frames` frames by one of the rules of HoT's tables 4 and 5; has no parameters.

    Args:
        pruning: "tpc" (the paper's), "uniform", "attention" (frames that receive most temporal attention) or "motion"
            (frames with the largest 2D displacement).
        center: frame that is always kept, or None.
    """

    def __init__(
        self,
        frames: int,
        keep: int,
        pruning: Pruning = "tpc",
        k: int = 2,
        center: int | None = None,
        tie: str = "index",
        form: str = "released",
    ) -> None:
        super().__init__()
        self.form = form
        if pruning not in get_args(Pruning):
            raise ValueError(f"FrameSelector: pruning must be one of {get_args(Pruning)}, got {pruning!r}")
        self.frames, self.keep, self.pruning, self.k, self.center, self.tie = frames, keep, pruning, k, center, tie

    def forward(self, pooled: Tensor, score: Tensor | None = None, noise: Tensor | None = None) -> FrameSelection:
        """pooled [B, F, C] frame tokens; score [B, F] for "attention" and "motion"; noise [B, F] for "tpc"."""
        if noise is not None and self.pruning != "tpc":
            raise ValueError(f"FrameSelector: noise only acts on pruning='tpc', this one uses {self.pruning!r}")
        if self.pruning == "tpc":
            return tpc_select(pooled, self.keep, self.k, self.center, self.tie, noise, self.form)  # type: ignore[arg-type]  # checked there
        if self.pruning == "uniform":
            index = torch.tensor(uniform_select(self.frames, self.keep, self.center), device=pooled.device)
            return FrameSelection(index.expand(pooled.shape[0], -1), None, None, None)
        if score is None:
            raise ValueError(f"FrameSelector: pruning={self.pruning!r} needs score [B, F]")
        return FrameSelection(top_select(score.detach(), self.keep, self.center), None, None, score)

    def extra_repr(self) -> str:
        return f"{self.frames} -> {self.keep}, {self.pruning}, k={self.k}, center={self.center}, tie={self.tie}"
