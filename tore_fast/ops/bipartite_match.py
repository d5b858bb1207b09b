"""bipartite_match: which tokens merge (ToMe, Mask-ToMe), and the merging itself.

In: a metric [B, T, C] (mean attention key per token) -> MatchPlan; merge(plan, x) -> [B, T - r, C]; unmerge copies
back.
Kernels: csrc/cpu/bipartite_match.cpp, csrc/cuda/bipartite_match.cu. Next on the way: layers/ (ToMe and Mask-ToMe
blocks).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from ._dispatch import backend_reason, check_device, choose, tensor_reason
from .reference.bipartite_match import FORCED, NEVER, bipartite_match_reference, segment_merge_reference

BACKENDS = ("cuda", "cpu")
_DTYPES = {"cuda": (torch.float32, torch.float16, torch.bfloat16), "cpu": (torch.float32,)}
MAX_TOKENS = 4096
MODES = ("sum", "mean", "amax", "wavg")


class MatchPlan(NamedTuple):
    """Who merges into whom. Set A holds the sources (even positions unless src="odd"), set B the destinations."""

    unm_idx: Tensor  # [B, |A| - r] int64, A tokens that stay
    src_idx: Tensor  # [B, r] int64, A tokens that merge, most similar first
    dst_idx: Tensor  # [B, r] int64, the B token each of them joins
    owner: Tensor  # [B, T] int64, the output row every input token ends in
    num_out: int  # rows of a merged tensor
    lengths: Tensor | None  # [B] int64, rows in use when ragged, else None


class MergedTokens(NamedTuple):
    """Size-weighted average and the sizes that go with it."""

    x: Tensor  # [B, num_out, C]
    size: Tensor  # [B, num_out] float32 (or [B, num_out, 1] when the given sizes were [B, T, 1])


def why_not(backend: str, x: Tensor) -> str | None:
    """Why `backend` cannot match or merge tokens like `x`, or None."""
    reason = backend_reason(backend) or tensor_reason(backend, x, _DTYPES[backend])
    if reason is None and x.shape[1] > MAX_TOKENS:
        reason = f"it takes up to {MAX_TOKENS} tokens, got {x.shape[1]}"
    return reason


def bipartite_soft_matching(
    metric: Tensor,  # [B, T, C]
    r: int,
    protected: Tensor | None = None,  # [B, T] bool
    coverage: Tensor | None = None,  # [B, T]
    protect: str = "forced",
    class_token: bool = False,
    distill_token: bool = False,
    order: str = "tome",
    src: str = "even",
    *,
    ragged: bool = False,
    keep_order: bool = False,
    impl: str = "auto",
) -> MatchPlan:
    """Joins the r most similar pairs between the even (A) and the odd (B) tokens: each A token to its best B token.

    Similarity is the cosine (norms clamped at 1e-12, so a zero vector has similarity 0). Ties: lower index first.

    Args:
        metric: [B, T, C]; computed in float32 (float64 stays), under autocast too.
        r: pairs to merge; clamped to (T - class - distill) // 2.
        protected: [B, T] tokens that should not merge (Mask-ToMe's person tokens).
        coverage: [B, T] in [0, 1], how much of each token is protected area; orders forced merges.
        protect: "forced" merges exactly r pairs, those with a protected token last, by
            sim - 4 (1 + max coverage). "never" merges no protected token: r falls to the batch minimum of available
            pairs (a host read), or per item with ragged=True.
        class_token, distill_token: position 0 / position 1 takes no part; with both the output starts with them.
        order: "tome": unmerged A tokens by descending similarity (ascending position if there is a class token);
            "index": always by position. Then all B tokens.
        src: "even": even positions merge into odd ones; "odd": the other way round.
        ragged: with protect="never", every item merges what it can, up to r; outputs keep T rows, `lengths` tells how
            many are in use.
        keep_order: the merged sequence is in the order of the original positions instead.
        impl: "auto", "reference", "cpu" or "cuda".

    Returns:
        MatchPlan for merge and unmerge. No gradient passes through it.

    Raises:
        ValueError: wrong shape or option. BackendUnavailable: an explicit `impl` cannot run.

    Example:
        >>> plan = bipartite_soft_matching(torch.rand(2, 196, 64), 13)
        >>> merge(plan, torch.rand(2, 196, 128)).shape
        torch.Size([2, 183, 128])

    Source: ToMe (Bolya et al., ICLR 2023) section 3; FastHMR section 3.2 (Mask-ToMe).
    """
    _check_match(metric, r, protected, coverage, protect, order, src, ragged)
    batch, tokens, _ = metric.shape
    parity = 0 if src == "even" else 1
    r = max(0, min(r, (tokens - class_token - distill_token) // 2))
    by_index = order == "index" or class_token
    metric = metric.detach()
    if protected is None:
        coverage = None
    elif coverage is not None:
        coverage = coverage.detach().to(torch.promote_types(metric.dtype, torch.float32))
    backend = choose("bipartite_soft_matching", impl, BACKENDS, why_not, metric)
    run = bipartite_match_reference if backend == "reference" else torch.ops.tore_fast.bipartite_match
    flag = None if protected is None else protected.bool()
    mode = FORCED if protect == "forced" else NEVER
    unm, src_idx, dst_idx, best = run(metric, flag, coverage, r, parity, class_token, distill_token, mode, by_index)
    lengths = None
    if flag is not None and protect == "never":
        available = (best > float("-inf")).sum(1).clamp(max=r)
        if ragged:
            return _ragged_plan(unm, src_idx, dst_idx, available, tokens, parity, by_index, distill_token, keep_order)
        fewest = int(available.min()) if batch else r
        if fewest < r:  # the ranking is the same for every r: move the surplus back
            unm = torch.cat([src_idx[:, fewest:], unm], 1)
            unm = unm.sort(1).values if by_index else unm
            src_idx, dst_idx = src_idx[:, :fewest], dst_idx[:, :fewest]
    unm, src_idx, dst_idx = unm.long(), src_idx.long(), dst_idx.long()
    owner = _owners(unm, src_idx, dst_idx, tokens, parity, distill_token)
    num_out = tokens - src_idx.shape[1]
    if keep_order:
        owner = _by_position(owner, num_out, unm, tokens, parity)
    return MatchPlan(unm, src_idx, dst_idx, owner, num_out, lengths)


def _owners(unm: Tensor, src: Tensor, dst: Tensor, tokens: int, parity: int, distill_token: bool) -> Tensor:
    """[B, T]: output row of every token for the layout [unmerged A, B], or [class, distill, rest of A, rest of B]."""
    kept, num_b = unm.shape[1], tokens // 2 if parity == 0 else tokens - tokens // 2
    row_a = torch.arange(kept, device=unm.device)
    row_b = torch.arange(kept, kept + num_b, device=unm.device)
    if distill_token and kept > 0 and num_b > 0:
        first = row_a if parity == 0 else row_b  # the set of position 0, which stays in front
        if parity == 0:
            row_a = torch.where(row_a > 0, row_a + 1, first)
            row_b = torch.where(row_b == kept, torch.ones_like(row_b), row_b)
        else:
            row_a = torch.where(row_a == 0, torch.ones_like(row_a), row_a + 1)
            row_b = torch.where(row_b == kept, torch.zeros_like(row_b), row_b)
    batch = unm.shape[0]
    owner_b = row_b.expand(batch, num_b)
    owner_a = torch.empty(batch, tokens - num_b, dtype=torch.int64, device=unm.device)
    owner_a = owner_a.scatter(1, unm, row_a.expand(batch, kept))
    owner_a = owner_a.scatter(1, src, owner_b.gather(1, dst) if num_b else src)
    owner = torch.empty(batch, tokens, dtype=torch.int64, device=unm.device)
    owner[:, parity::2] = owner_a
    owner[:, 1 - parity :: 2] = owner_b
    return owner


def _by_position(owner: Tensor, num_out: int, unm: Tensor, tokens: int, parity: int) -> Tensor:
    """Renumbers the output rows by the position of their head token (unmerged A token or B token)."""
    head = torch.zeros(owner.shape, dtype=torch.bool, device=owner.device)
    head[:, 1 - parity :: 2] = True
    head.scatter_(1, unm * 2 + parity, True)
    rank_at_head = head.long().cumsum(1) - 1
    # every output row has exactly one head: rows of non-heads are written to a spare column
    target = torch.where(head, owner, torch.full_like(owner, num_out))
    new_row = torch.zeros(owner.shape[0], num_out + 1, dtype=torch.int64, device=owner.device)
    new_row = new_row.scatter(1, target, rank_at_head)
    return new_row.gather(1, owner)


def _ragged_plan(
    unm: Tensor,
    src: Tensor,
    dst: Tensor,
    available: Any,
    tokens: Any,
    parity: Any,
    by_index: bool,
    distill_token: Any,
    keep_order: Any,
) -> MatchPlan:
    """Item b merges its first available[b] pairs; output rows are numbered densely, `lengths` of them are in use."""
    unm, src, dst = unm.long(), src.long(), dst.long()
    batch, r = src.shape
    num_a, device = unm.shape[1] + r, unm.device
    merged = torch.arange(r, device=device) < available[:, None]
    stays = torch.ones(batch, num_a, dtype=torch.bool, device=device).scatter(1, src, ~merged)
    ranking = torch.cat([src, unm], 1)
    if by_index or keep_order:
        ranking = torch.arange(num_a, device=device).expand(batch, num_a)
    row = stays.gather(1, ranking).long().cumsum(1) - 1
    row_a = torch.empty(batch, num_a, dtype=torch.int64, device=device).scatter(1, ranking, row)
    kept = (num_a - available)[:, None]
    num_b = tokens - num_a
    row_b = kept + torch.arange(num_b, device=device)
    if distill_token:
        raise ValueError("bipartite_soft_matching: ragged=True does not support a distillation token")
    owner_a = torch.where(stays, row_a, row_a.new_zeros(()))
    if r:
        into = row_b.gather(1, dst)
        owner_a = owner_a.scatter(1, src, torch.where(merged, into, owner_a.gather(1, src)))
    owner = torch.empty(batch, tokens, dtype=torch.int64, device=device)
    owner[:, parity::2] = owner_a
    owner[:, 1 - parity :: 2] = row_b
    if keep_order:
        head = torch.ones(batch, tokens, dtype=torch.bool, device=device)
        head[:, parity::2] = stays
        rank = head.long().cumsum(1) - 1
        target = torch.where(head, owner, torch.full_like(owner, tokens))
        new_row = torch.zeros(batch, tokens + 1, dtype=torch.int64, device=device).scatter(1, target, rank)
        owner = new_row.gather(1, owner)
    return MatchPlan(unm, src, dst, owner, tokens, tokens - available)


@overload
def merge(
    plan: MatchPlan,
    x: Tensor,
    mode: Literal["mean", "sum", "amax"] = "mean",
    size: Tensor | None = None,
    *,
    impl: str = "auto",
) -> Tensor: ...
@overload
def merge(plan: MatchPlan, x: Tensor, mode: str, size: Tensor | None = None, *, impl: str = "auto") -> Any: ...
def merge(
    plan: MatchPlan,
    x: Tensor,  # [B, T, C]
    mode: str = "mean",
    size: Tensor | None = None,  # [B, T] or [B, T, 1]
    *,
    impl: str = "auto",
) -> Tensor | MergedTokens:
    """Reduces the tokens of each group of the plan to one row.

    Args:
        plan: from bipartite_soft_matching for T tokens.
        x: [B, T, C], any floating dtype; sums in float32.
        mode: "mean" (of the group, the destination included), "sum", "amax", or "wavg": sum s x / sum s, which also
            adds up the sizes.
        size: tokens each row stands for, with "wavg"; default 1 each.
        impl: "auto", "reference", "cpu" or "cuda" ("amax" always takes the reference).

    Returns:
        [B, num_out, C]; MergedTokens(x, size) with "wavg". Differentiable with respect to x. Unused rows of a ragged
        plan are 0.

    Raises:
        ValueError: wrong shape or mode. BackendUnavailable: an explicit `impl` cannot run.

    Example:
        >>> plan = bipartite_soft_matching(torch.rand(1, 10, 4), 3)
        >>> y, size = merge(plan, torch.rand(1, 10, 8), mode="wavg")
        >>> size.sum()
        tensor(10.)
    """
    if mode not in MODES:
        raise ValueError(f"merge: mode must be one of {MODES}, got {mode!r}")
    if x.dim() != 3 or x.shape[:2] != plan.owner.shape:
        raise ValueError(f"merge: x must be {list(plan.owner.shape)} + [C] for this plan, got {list(x.shape)}")
    check_device("merge", "x", x, size=size, **{"plan.owner": plan.owner})
    if size is not None and (mode != "wavg" or size.shape not in (x.shape[:2], (*x.shape[:2], 1))):
        raise ValueError(
            f"merge: size goes with mode='wavg' and must be {list(x.shape[:2])}, got {list(size.shape)} and "
            f"mode {mode!r}"
        )
    weight = None
    if mode == "wavg":
        acc = torch.promote_types(x.dtype, torch.float32)
        weight = (
            torch.ones(x.shape[:2], device=x.device, dtype=acc)
            if size is None
            else size.detach().reshape(x.shape[:2]).to(acc)
        )
    y = _segment_merge(x, plan, mode, weight, impl)
    if mode != "wavg":
        return y
    assert weight is not None
    total = _segment_merge(weight[..., None], plan, "sum", None, impl)
    return MergedTokens(y, total if size is not None and size.dim() == 3 else total[..., 0])


def _segment_merge(x: Tensor, plan: MatchPlan, mode: str, weight: Tensor | None, impl: str) -> Tensor:
    backend = "reference" if mode == "amax" and impl == "auto" else choose("merge", impl, BACKENDS, why_not, x)
    if backend == "reference" or mode == "amax":
        return segment_merge_reference(x, plan.owner, plan.num_out, mode, weight)
    return torch.ops.tore_fast.bipartite_merge(x, plan.owner, plan.num_out, mode != "sum", weight)


def unmerge(plan: MatchPlan, y: Tensor) -> Tensor:
    """Copies every merged row y [B, num_out, C] back to the tokens it came from -> [B, T, C]."""
    if y.dim() != 3 or y.shape[:2] != (plan.owner.shape[0], plan.num_out):
        raise ValueError(
            f"unmerge: y must be [{plan.owner.shape[0]}, {plan.num_out}, C] for this plan, got {list(y.shape)}"
        )
    check_device("unmerge", "y", y, **{"plan.owner": plan.owner})
    return y.gather(1, plan.owner[..., None].expand(-1, -1, y.shape[2]))


def _check_match(
    metric: Tensor, r: Any, protected: Any, coverage: Any, protect: Any, order: str, src: str, ragged: bool
) -> None:
    op = "bipartite_soft_matching"
    if metric.dim() != 3 or not metric.is_floating_point():
        raise ValueError(f"{op}: metric must be [B, T, C] floating point, got {list(metric.shape)} {metric.dtype}")
    if r < 0:
        raise ValueError(f"{op}: r must be >= 0, got {r}")
    for name, value, choices in (
        ("protect", protect, ("forced", "never")),
        ("order", order, ("tome", "index")),
        ("src", src, ("even", "odd")),
    ):
        if value not in choices:
            raise ValueError(f"{op}: {name} must be one of {choices}, got {value!r}")
    for name, t in (("protected", protected), ("coverage", coverage)):
        if t is not None and (t.shape != metric.shape[:2] or t.device != metric.device):
            raise ValueError(
                f"{op}: {name} must be {list(metric.shape[:2])} on {metric.device}, got {list(t.shape)} on {t.device}"
            )
    if ragged and (protected is None or protect != "never"):
        raise ValueError(f"{op}: ragged=True goes with protected tokens and protect='never'")


@torch.library.register_fake("tore_fast::bipartite_match")
def _match_fake(
    metric: Tensor,
    protected: Any,
    coverage: Any,
    r: Any,
    source_parity: Any,
    class_token: Any,
    distill_token: Any,
    protect: Any,
    sort_by_index: Any,
) -> Any:
    batch, tokens, _ = metric.shape
    num_a = tokens // 2 if source_parity else tokens - tokens // 2
    index = [metric.new_empty(batch, n, dtype=torch.int32) for n in (num_a - r, r, r)]
    return *index, metric.new_empty(batch, num_a, dtype=torch.float32)


@torch.library.register_fake("tore_fast::bipartite_merge")
def _merge_fake(x: Tensor, owner: Tensor, num_out: int, average: bool, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], num_out, x.shape[2])


def _merge_setup(ctx: Any, inputs: Any, output: Any) -> None:
    _, owner, ctx.num_out, ctx.average, weight = inputs
    ctx.save_for_backward(owner, weight)


def _merge_backward(ctx: Any, grad: Tensor) -> Any:
    owner, weight = ctx.saved_tensors
    index = owner[..., None]
    if ctx.average:
        share = owner.new_ones(owner.shape, dtype=torch.float32) if weight is None else weight
        total = torch.ops.tore_fast.bipartite_merge(share[..., None].float(), owner, ctx.num_out, False, None)
        grad_x = (share[..., None] / total.gather(1, index)) * grad.gather(1, index.expand(-1, -1, grad.shape[2]))
    else:
        grad_x = grad.gather(1, index.expand(-1, -1, grad.shape[2]))
        if weight is not None:
            grad_x = grad_x * weight[..., None]
    return grad_x.to(grad.dtype), None, None, None, None


torch.library.register_autograd("tore_fast::bipartite_merge", _merge_backward, setup_context=_merge_setup)
