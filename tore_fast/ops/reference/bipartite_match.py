"""Plain torch bipartite matching of ToMe / Mask-ToMe, and the segment reductions of `merge`. Any device and dtype."""

from __future__ import annotations

import torch
from torch import Tensor

NEVER, FORCED = 0, 1  # what a protected token means: never merged | merged last


def bipartite_match_reference(
    metric: Tensor,  # [B, T, C]
    protected: Tensor | None,  # [B, T] bool
    coverage: Tensor | None,  # [B, T] in [0, 1]
    r: int,
    source_parity: int,  # 0: even positions merge into odd ones, 1: the other way round
    class_token: bool,
    distill_token: bool,
    protect: int,
    sort_by_index: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(unm_idx [B, A - r], src_idx [B, r], dst_idx [B, r], best [B, A]); indices count inside A and B, int32.

    `best` is the score of each A token's partner (-inf: none may be merged), for the callers that ask how many pairs
    exist.
    """
    acc = torch.promote_types(metric.dtype, torch.float32)
    batch, tokens, _ = metric.shape
    device = metric.device
    with torch.no_grad(), torch.autocast(device.type if device.type != "meta" else "cpu", enabled=False):
        m = metric.detach().to(acc)
        m = m / m.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        a, b = m[:, source_parity::2], m[:, 1 - source_parity :: 2]
        num_a, num_b = a.shape[1], b.shape[1]
        if num_b == 0:
            unm = torch.arange(num_a, device=device, dtype=torch.int32).expand(batch, num_a)
            none = torch.zeros(batch, 0, device=device, dtype=torch.int32)
            return unm, none, none, torch.full((batch, num_a), float("-inf"), device=device, dtype=acc)
        scores = a @ b.transpose(1, 2)
        scores = torch.where(scores.isnan(), torch.full_like(scores, float("-inf")), scores)
        if protected is not None:
            p = protected.bool()
            pair = p[:, source_parity::2, None] | p[:, None, 1 - source_parity :: 2]
            if protect == NEVER:
                scores = scores.masked_fill(pair, float("-inf"))
            else:
                penalty = torch.full_like(scores, 4.0)
                if coverage is not None:
                    c = coverage.to(acc)
                    penalty = 4.0 + 4.0 * torch.maximum(
                        c[:, source_parity::2, None], c[:, None, 1 - source_parity :: 2]
                    )
                scores = torch.where(pair, scores - penalty, scores)
        for position, used in ((0, class_token), (1, distill_token)):
            if used and position < tokens:
                if position % 2 == source_parity:
                    scores[:, position // 2] = float("-inf")
                else:
                    scores[:, :, position // 2] = float("-inf")
        best = scores.amax(-1)
        column = torch.arange(num_b, device=device)
        dst = torch.where(scores == best[..., None], column, num_b - 1).amin(-1)  # lowest index wins
        ranking = best.sort(dim=1, descending=True, stable=True).indices
        src, unm = ranking[:, :r], ranking[:, r:]
        if sort_by_index:
            unm = unm.sort(1).values
        return unm.int(), src.int(), dst.gather(1, src).int(), best


def segment_merge_reference(
    x: Tensor,  # [B, T, C]
    owner: Tensor,  # [B, T] which output row a token goes to
    num_out: int,
    mode: str,  # "sum", "mean", "amax" or "wavg"
    weight: Tensor | None,  # [B, T], for "wavg"
) -> Tensor:  # [B, num_out, C]
    acc = torch.promote_types(x.dtype, torch.float32)
    batch, tokens, channels = x.shape
    index = owner.long()[..., None].expand(-1, -1, channels)
    values = x.to(acc)
    if mode == "amax":
        out = values.new_zeros(batch, num_out, channels)
        return out.scatter_reduce(1, index, values, "amax", include_self=False).to(x.dtype)
    share = values.new_ones(batch, tokens) if weight is None else weight.to(acc)
    if mode in ("mean", "wavg"):
        total = values.new_zeros(batch, num_out).scatter_add(1, owner.long(), share)
        share = share / total.gather(1, owner.long())
    out = values.new_zeros(batch, num_out, channels)
    return out.scatter_add(1, index, values * share[..., None]).to(x.dtype)
