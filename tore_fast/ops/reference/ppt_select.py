"""Plain torch ppt_select: the `keep` largest scores of each row, ties to the lower index, NaN last."""

from __future__ import annotations

import torch
from torch import Tensor


def ppt_select_reference(score: Tensor, keep: int, sort_by_position: bool) -> Tensor:  # [B, P] -> [B, keep] int32
    s = score.detach()
    s = torch.where(s.isnan(), torch.full_like(s, float("-inf")), s)
    idx = s.sort(dim=1, descending=True, stable=True).indices[:, :keep]
    return (idx.sort(1).values if sort_by_position else idx).int()
