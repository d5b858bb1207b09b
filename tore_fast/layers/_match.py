"""Stand-in for ops.bipartite_soft_matching / merge until they land (same signatures)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class MatchPlan(NamedTuple):
    unm_idx: Tensor
    src_idx: Tensor
    dst_idx: Tensor
    num_tokens: int
    src: str
    distill_token: bool


def bipartite_soft_matching(metric, r, protected=None, coverage=None, protect="forced", class_token=False,
                            distill_token=False, order="tome", src="even"):
    b, t, _ = metric.shape
    m = F.normalize(metric.float(), dim=-1, eps=1e-12)
    first, second = (0, 1) if src == "even" else (1, 0)
    a, bb = m[:, first::2], m[:, second::2]
    s = a @ bb.mT
    if protected is not None:
        p = protected[:, first::2, None] | protected[:, None, second::2]
        c = 0 if coverage is None else torch.maximum(coverage[:, first::2, None], coverage[:, None, second::2])
        s = s - p * 4 * (1 + c)
    if class_token:
        if src == "even":
            s[:, 0] = -torch.inf
        else:
            s[:, :, 0] = -torch.inf
    if distill_token:
        s[:, :, 0] = -torch.inf
    best, dst = s.max(-1)
    rank = best.argsort(dim=-1, descending=True, stable=True)
    src_idx, unm = rank[:, :r], rank[:, r:]
    if order == "index" or class_token:
        unm = unm.sort(-1).values
    return MatchPlan(unm, src_idx, dst.gather(1, src_idx), t, src, distill_token)


def merge(plan, x, mode="mean", size=None):
    first, second = (0, 1) if plan.src == "even" else (1, 0)
    c = x.shape[-1]
    if mode == "wavg":
        s = size[..., None].to(torch.float32)
        total = merge(plan, x.float() * s, "sum")
        return (total / merge(plan, s, "sum")).to(x.dtype)
    a, b = x[:, first::2], x[:, second::2]
    ex = lambda i: i[..., None].expand(-1, -1, c)
    unm, srcs = a.gather(1, ex(plan.unm_idx)), a.gather(1, ex(plan.src_idx))
    b = b.scatter_reduce(1, ex(plan.dst_idx), srcs, reduce=mode)
    return torch.cat((unm, b), 1)
