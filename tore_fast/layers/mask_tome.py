"""ToMe and Mask-ToMe inside a ViT block: merge similar tokens, background first.

In: tokens [B, N, C] after a block's attention residual and its keys; out: fewer tokens for the block's MLP. Who calls it:
models/backbones/vit.py (built in) and layers/tome.py (any timm ViT). The matching itself is ops.bipartite_soft_matching.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import bipartite_soft_matching, merge


@dataclass(frozen=True)
class MergeConfig:
    """How tokens are merged.

    Args:
        keep: tokens left at the end (M'); None with `r`.
        per_block: most tokens merged in one block (n_l).
        r: explicit numbers per block; overrides keep and per_block (shorter lists continue with 0).
        prop_attn: add log(size) to the key logits, so that merging equal tokens changes nothing.
        order: "index" (unmerged A by position, then B) or "tome" (unmerged A by falling similarity, then B).
        src: which positions may be merged away, "even" or "odd".
        avg: "size" weights by token size, "mean" is the plain mean of the group.
        person_threshold: a token whose person coverage exceeds this belongs to the person.
        class_token, distill_token: position 0 / 1 is never merged.
        track_source: keep the [B, N_out, N] membership of original tokens (for images).
    """

    keep: int | None = 90
    per_block: int = 40
    r: tuple[int, ...] | None = None
    prop_attn: bool = True
    order: str = "index"
    src: str = "even"
    avg: str = "size"
    person_threshold: float = 0.1
    class_token: bool = False
    distill_token: bool = False
    track_source: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("order", ("index", "tome")), ("src", ("even", "odd")), ("avg", ("size", "mean"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"MergeConfig: {name} must be one of {allowed}, got {getattr(self, name)!r}")
        if self.r is None and self.keep is None:
            raise ValueError("MergeConfig: give keep (tokens left) or r (merges per block)")
        if self.r is not None:
            object.__setattr__(self, "r", tuple(int(n) for n in self.r))
        elif self.keep < 1 or self.per_block < 1:
            raise ValueError(f"MergeConfig: keep and per_block must be positive, got {self.keep} and {self.per_block}")

    def schedule(self, num_tokens: int, depth: int) -> tuple[int, ...]:
        """Merges per block: r_i = min(n_l, N_i - M', N_i // 2) while N_i > M' (cut to what pairs allow).

        Example:
            >>> MergeConfig(keep=90, per_block=40).schedule(192, 5)
            (40, 40, 22, 0, 0)
        """
        extra = int(self.class_token) + int(self.distill_token)
        counts, n = [], num_tokens
        for i in range(depth):
            pairs = (n - extra) // 2
            if self.r is not None:
                take = min(self.r[i] if i < len(self.r) else 0, pairs)
            else:
                take = max(0, min(self.per_block, n - self.keep, pairs))
            counts.append(take)
            n -= take
        if self.r is None and n > max(self.keep, 1 + extra):
            warnings.warn(
                f"MergeConfig: {depth} blocks merging {self.per_block} tokens each leave {n} of {num_tokens}, "
                f"more than keep={self.keep}"
            )
        return tuple(counts)


class TokenState:
    """What travels with the tokens through the blocks of one forward pass (not a module; made anew per call)."""

    __slots__ = ("size", "coverage", "source")

    def __init__(self, coverage: Tensor | None = None):
        self.size: Tensor | None = None  # [B, N] float32, None while every token is 1
        self.coverage = coverage  # [B, N] in [0, 1]
        self.source: Tensor | None = None  # [B, N, N0] 0/1

    @property
    def log_size(self) -> Tensor | None:
        return None if self.size is None else self.size.log()


def merge_tokens(
    x: Tensor,  # [B, N, C]
    metric: Tensor,  # [B, N, d] mean over heads of the keys
    r: int,
    state: TokenState,
    cfg: MergeConfig,
    prefix: int = 0,
) -> Tensor:  # [B, N - r, C]
    """Merges r tokens of x and updates `state` (size, coverage, source). The first `prefix` tokens (registers) take no part.

    Without `state.coverage` this is ToMe; with it Mask-ToMe: person tokens (coverage > threshold) merge only when
    nothing else is left, the least covered first. Merged coverage is the maximum, so the person flag is inherited.

    Source: ToMe appendix D; FastHMR section 3.2.
    """
    if r <= 0:
        return x
    b, n = x.shape[:2]
    if prefix:
        return _merge_behind(x, metric, r, state, cfg, prefix)
    person = None if state.coverage is None else state.coverage > cfg.person_threshold
    plan = bipartite_soft_matching(
        metric,
        r,
        protected=person,
        coverage=state.coverage,
        protect="forced",
        class_token=cfg.class_token,
        distill_token=cfg.distill_token,
        order=cfg.order,
        src=cfg.src,
    )
    size = torch.ones(b, n, dtype=torch.float32, device=x.device) if state.size is None else state.size
    if cfg.avg == "mean":
        x = merge(plan, x, mode="mean")
        state.size = merge(plan, size[..., None], mode="sum")[..., 0]
    else:
        x, state.size = merge(plan, x, mode="wavg", size=size)
    if state.coverage is not None:
        state.coverage = merge(plan, state.coverage[..., None], mode="amax")[..., 0]
    if cfg.track_source:
        source = torch.eye(n, device=x.device).expand(b, n, n) if state.source is None else state.source
        state.source = merge(plan, source, mode="amax")
    return x


def _merge_behind(x: Tensor, metric: Tensor, r: int, state: TokenState, cfg: MergeConfig, prefix: int) -> Tensor:
    """merge_tokens for what follows the first `prefix` tokens, which stay as they are."""
    b, n = x.shape[:2]
    whole = {"size": state.size, "coverage": state.coverage, "source": state.source}
    if state.size is None:
        whole["size"] = torch.ones(b, n, dtype=torch.float32, device=x.device)
    if cfg.track_source and state.source is None:
        whole["source"] = torch.eye(n, device=x.device).expand(b, n, n)
    inner = TokenState()
    for name, value in whole.items():
        setattr(inner, name, None if value is None else value[:, prefix:])
    merged = merge_tokens(x[:, prefix:], metric[:, prefix:], r, inner, cfg)
    for name, value in whole.items():
        setattr(state, name, None if value is None else torch.cat((value[:, :prefix], getattr(inner, name)), 1))
    return torch.cat((x[:, :prefix], merged), 1)


def mask_coverage(
    mask: Tensor,  # [B, H, W] or [B, 1, H, W], bool or 0..1, of the network's input
    kernel: int = 16,
    stride: int = 16,
    padding: int = 2,
) -> Tensor:  # [B, rows * columns] float32
    """Share of each token's exact receptive window that the person mask covers (zeros outside the image).

    Args:
        mask: person mask warped like the crop and cut like the crop (256 x 192 for the hosts).
        kernel, stride, padding: those of the patch embedding (16, 16, 2 for ViTPose-H; 16, 16, 0 for timm).

    Example:
        >>> mask_coverage(torch.ones(1, 256, 192)).shape
        torch.Size([1, 192])
    """
    if mask.dim() == 3:
        mask = mask[:, None]
    if mask.dim() != 4 or mask.shape[1] != 1:
        raise ValueError(f"mask_coverage: mask must be [B, H, W] or [B, 1, H, W], got {list(mask.shape)}")
    pooled = F.avg_pool2d(mask.float(), kernel, stride, padding, count_include_pad=True)
    return pooled.flatten(1)


def ellipse_mask(
    batch: int, height: int, width: int, device: torch.device | str | None = None, axes: float = 0.5
) -> Tensor:
    """Ellipse in the middle of the crop with axes `axes` times its sides: the stand-in when no person mask is given."""
    y = (torch.arange(height, device=device) + 0.5) / height * 2 - 1
    x = (torch.arange(width, device=device) + 0.5) / width * 2 - 1
    inside = (y[:, None] ** 2 + x[None, :] ** 2) <= axes**2
    return inside.float().expand(batch, height, width)


def warn_if_over_budget(coverage: Tensor, keep: int, threshold: float) -> bool:
    """Warns once when a person covers more tokens than are kept (limbs then merge too); a host sync, so not in forward."""
    most = int((coverage > threshold).sum(1).max()) if coverage.numel() else 0
    if most > keep:
        warnings.warn(f"Mask-ToMe: a person covers {most} tokens, only {keep} are kept: some of the person merges too")
    return most > keep
