"""ToMe and Mask-ToMe inside a ViT block: merge similar tokens, background first.

In: tokens [B, N, C] after a block's attention residual and its keys; out: fewer tokens for the block's MLP. Who calls
it: models/backbones/vit.py (built in) and accelerate/ (models of others). The matching itself is
ops.bipartite_soft_matching.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import MatchPlan, bipartite_soft_matching, merge

ORDERS = ("position", "index", "tome")
ROUNDS = ("capped", "paper")


@dataclass(frozen=True)
class MergeConfig:
    """How tokens are merged. `MergeConfig.paper(...)` is the schedule and order that FastHMR and ToMe print.

    Args:
        keep: tokens left at the end (M'), class and register tokens included; None with `r`.
        per_block: most tokens merged in one block (n_l).
        r: explicit numbers per block; overrides keep, per_block and rounds (shorter lists continue with 0).
        prop_attn: add log(size) to the key logits, so that merging equal tokens changes nothing.
        order: where merged tokens stand, which decides who may merge with whom in the next block (even with odd
            places). "position": at the place of the token they merged into, so neighbours stay in different halves;
            tokens of the person count behind the background, so that half of the background can be a source. "index"
            (the paper's: unmerged A by position, then B) and "tome" (unmerged A by falling similarity, then B) put
            former neighbours into the same half from the second block on.
        rounds: "capped" takes no more in one block than half of what is left beside a person of `person_share` * keep
            tokens, so that no token of such a person merges, in one or two blocks more; "paper" takes per_block.
        person_share: part of `keep` that a person may cover, below 1; for rounds="capped".
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
    order: str = "position"
    rounds: str = "capped"
    person_share: float = 0.85
    src: str = "even"
    avg: str = "size"
    person_threshold: float = 0.1
    class_token: bool = False
    distill_token: bool = False
    track_source: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (
            ("order", ORDERS),
            ("rounds", ROUNDS),
            ("src", ("even", "odd")),
            ("avg", ("size", "mean")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"MergeConfig: {name} must be one of {allowed}, got {getattr(self, name)!r}")
        if self.r is None and self.keep is None:
            raise ValueError("MergeConfig: give keep (tokens left) or r (merges per block)")
        if not 0 <= self.person_share < 1:
            raise ValueError(f"MergeConfig: person_share must be in [0, 1), got {self.person_share}")
        if self.r is not None:
            object.__setattr__(self, "r", tuple(int(n) for n in self.r))
        elif self.keep is not None and (self.keep < 1 or self.per_block < 1):
            raise ValueError(f"MergeConfig: keep and per_block must be positive, got {self.keep} and {self.per_block}")

    @classmethod
    def paper(cls, **fields: Any) -> MergeConfig:
        """Order and rounds as printed in FastHMR section 3.2; other fields as given."""
        return cls(**{"order": "index", "rounds": "paper", **fields})

    def schedule(self, num_tokens: int, depth: int, prefix: int = 0) -> tuple[int, ...]:
        """Merges per block: r_i = min(n_l, N_i - M', N_i // 2) while N_i > M', with rounds="capped" at most
        (N_i - floor(person_share M')) // 2 too.

        Args:
            num_tokens: N_0, with the tokens that never merge. depth: number of blocks.
            prefix: tokens that never merge (class, registers), if class_token and distill_token do not say so.

        Example:
            >>> MergeConfig.paper(keep=90, per_block=40).schedule(192, 5)
            (40, 40, 22, 0, 0)
            >>> MergeConfig(keep=90, per_block=40).schedule(192, 5)
            (40, 38, 19, 5, 0)
        """
        extra = max(prefix, int(self.class_token) + int(self.distill_token))
        counts, n = [], num_tokens - extra
        keep = 0 if self.keep is None else max(self.keep - extra, 0)
        person = min(int(self.person_share * keep), keep - 1)
        for i in range(depth):
            if self.r is not None:
                take = min(self.r[i] if i < len(self.r) else 0, n // 2)
            else:
                take = max(0, min(self.per_block, n - keep, n // 2))
                if self.rounds == "capped":
                    take = min(take, max(0, n - person) // 2)
            counts.append(take)
            n -= take
        if self.r is None and n > max(keep, 1):
            warnings.warn(
                f"MergeConfig: {depth} blocks merging {self.per_block} tokens each leave {n + extra} of {num_tokens}, "
                f"more than keep={self.keep}"
            )
        return tuple(counts)

    def person_limit(self, num_tokens: int, depth: int, prefix: int = 0) -> int:
        """Most tokens that a person may cover without a forced merge: the least of N_i - 2 r_i (exact for
        "position")."""
        limit = n = num_tokens - max(prefix, int(self.class_token) + int(self.distill_token))
        for r in self.schedule(num_tokens, depth, prefix):
            limit = min(limit, n - 2 * r) if r else limit
            n -= r
        return limit


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


def match_tokens(
    metric: Tensor,  # [B, N, d] mean over heads of the keys
    r: int,
    coverage: Tensor | None,  # [B, N]
    cfg: MergeConfig,
    prefix: int = 0,
) -> MatchPlan:
    """Which r pairs of tokens merge; the first `prefix` tokens take no part and stay in front.

    Without coverage this is ToMe; with it Mask-ToMe: person tokens (coverage > threshold) merge only when nothing else
    is left, the least covered first. With order "position" nothing else is left after (N - prefix - person) // 2 pairs.

    Source: ToMe appendix D; FastHMR section 3.2.
    """
    if cfg.order == "position":
        prefix = max(prefix, int(cfg.class_token) + int(cfg.distill_token))
    if prefix:
        metric, coverage = metric[:, prefix:], None if coverage is None else coverage[:, prefix:]
    person = None if coverage is None else coverage > cfg.person_threshold
    if cfg.order == "position":
        plan = _match_in_place(metric, r, person, coverage, cfg.src)
    else:
        plan = bipartite_soft_matching(
            metric,
            r,
            protected=person,
            coverage=coverage,
            protect="forced",
            class_token=cfg.class_token and not prefix,
            distill_token=cfg.distill_token and not prefix,
            order=cfg.order,
            src=cfg.src,
        )
    if not prefix:
        return plan
    front = torch.arange(prefix, device=plan.owner.device).expand(plan.owner.shape[0], -1)
    return plan._replace(owner=torch.cat((front, plan.owner + prefix), 1), num_out=plan.num_out + prefix)


def _match_in_place(metric: Tensor, r: int, person: Tensor | None, coverage: Tensor | None, src: str) -> MatchPlan:
    """Matching whose output stays in the order of positions. With a person, background takes the front places of the
    even-odd division: half of it are then sources, whatever the shape of the person."""
    if person is None:
        return bipartite_soft_matching(metric, r, order="index", src=src, keep_order=True)
    assert coverage is not None
    places = person.long().argsort(dim=1, stable=True)
    inverse = places.argsort(dim=1)
    moved = metric.gather(1, places[..., None].expand_as(metric))
    plan = bipartite_soft_matching(
        moved, r, person.gather(1, places), coverage.gather(1, places), order="index", src=src
    )
    owner = plan.owner.gather(1, inverse)
    batch, tokens = owner.shape
    # rows are numbered by the place of the token that the others joined
    head = torch.zeros(batch, tokens, dtype=torch.bool, device=owner.device)
    parity = 0 if src == "even" else 1
    head[:, 1 - parity :: 2] = True
    head = head.scatter(1, plan.unm_idx * 2 + parity, True).gather(1, inverse)
    rank = head.long().cumsum(1) - 1
    row = torch.where(head, owner, torch.full_like(owner, plan.num_out))
    number = torch.zeros(batch, plan.num_out + 1, dtype=torch.int64, device=owner.device).scatter(1, row, rank)
    return plan._replace(owner=number.gather(1, owner))


def merge_tokens(
    x: Tensor,  # [B, N, C]
    metric: Tensor,  # [B, N, d] mean over heads of the keys
    r: int,
    state: TokenState,
    cfg: MergeConfig,
    prefix: int = 0,
) -> Tensor:  # [B, N - r, C]
    """Merges r tokens of x and updates `state` (size, coverage, source); pairs as in `match_tokens`.

    Merged coverage is the maximum, so the person flag is inherited.
    """
    if r <= 0:
        return x
    return merge_by_plan(match_tokens(metric, r, state.coverage, cfg, prefix), x, state, cfg)


def merge_by_plan(plan: MatchPlan, x: Tensor, state: TokenState, cfg: MergeConfig) -> Tensor:
    """Merges x [B, N, C] and what travels with it (size, coverage, source of `state`) by a plan -> [B, num_out, C]."""
    b, n = x.shape[:2]
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


def warn_if_over_budget(coverage: Tensor, merging: MergeConfig, depth: int) -> bool:
    """Warns once when a person covers more tokens [B, N] than `depth` blocks can spare; a host sync, so not in
    forward."""
    most = int((coverage > merging.person_threshold).sum(1).max()) if coverage.numel() else 0
    limit = merging.person_limit(coverage.shape[1], depth)
    if most > limit:
        warnings.warn(
            f"Mask-ToMe: a person covers {most} of {coverage.shape[1]} tokens; with keep={merging.keep} more "
            f"than {limit} means that some of the person merges too"
        )
    return most > limit
