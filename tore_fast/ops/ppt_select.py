"""ppt_select: which patch tokens PPT keeps, by the attention they get from the key-point tokens.

In: importance [B, P] (pruned_attention's `importance`), out: kept positions [B, K]; gather_tokens takes the rows.
Kernel: triton_kernels/ppt_select.py. None for the CPU: there the reference is the choice, 23 us at [1, 256] and 47 us
at [8, 256] (one thread, Zen 4), of which an op call alone is 10; a model calls it three times in some 50 ms.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._schema import LIBRARY
from ._dispatch import backend_reason, check_device, choose, tensor_reason
from .reference.ppt_select import ppt_select_reference

BACKENDS = ("triton",)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_TOKENS = 4096


def why_not(backend: str, score: Tensor) -> str | None:
    """Why `backend` cannot select from `score`, or None."""
    reason = backend_reason(backend) or tensor_reason(backend, score, _DTYPES)
    if reason is None and score.shape[1] > MAX_TOKENS:
        reason = f"it takes up to {MAX_TOKENS} tokens, got {score.shape[1]}"
    return reason


def ppt_select(
    attn_sum: Tensor,  # [B, P]
    keep: int | float,
    sort_by_position: bool = False,
    *,
    impl: str = "auto",
) -> Tensor:  # [B, K] int64
    """Positions of the K largest scores of each row, in descending order; equal scores: lower position first.

    Args:
        attn_sum: [B, P] attention each patch receives; NaN counts as the smallest score.
        keep: K itself (int), or a ratio in (0, 1] (float): K = ceil(P * keep).
        sort_by_position: ascending positions instead of descending scores.
        impl: "auto", "reference" or "triton".

    Returns:
        [B, K] int64. No gradient.

    Raises:
        ValueError: wrong shape, or K outside 0..P. BackendUnavailable: an explicit `impl` cannot run.

    Example:
        >>> ppt_select(torch.tensor([[0.1, 0.7, 0.2]]), 0.5)
        tensor([[1, 2]])

    Source: PPT (Ma et al., ECCV 2022) section 3.2, human token identification.
    """
    if attn_sum.dim() != 2:
        raise ValueError(f"ppt_select: attn_sum must be [B, P], got {list(attn_sum.shape)}")
    tokens = attn_sum.shape[1]
    count = math.ceil(tokens * keep) if isinstance(keep, float) else keep
    if not 0 <= count <= tokens:
        raise ValueError(f"ppt_select: keep must select 0..{tokens} tokens (int) or be a ratio in (0, 1], got {keep}")
    backend = choose("ppt_select", impl, BACKENDS, why_not, attn_sum)
    if backend == "reference":
        return ppt_select_reference(attn_sum, count, sort_by_position).long()
    return torch.ops.tore_fast.ppt_select(attn_sum.detach(), count, sort_by_position).long()


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x [B, P, C] at index [B, K] (unique per item) -> [B, K, C]; the gradient puts them back."""
    if x.dim() != 3 or index.dim() != 2 or x.shape[0] != index.shape[0]:
        raise ValueError(
            f"gather_tokens: want x [B, P, C] and index [B, K], got {list(x.shape)} and {list(index.shape)}"
        )
    check_device("gather_tokens", "x", x, index=index)
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


@torch.library.register_fake("tore_fast::ppt_select")
def _fake(score: Tensor, keep: int, sort_by_position: bool) -> Tensor:
    return score.new_empty(score.shape[0], keep, dtype=torch.int32)


def _triton_select(*args: Any) -> Any:
    from ..triton_kernels import ppt_select as kernels  # imports triton: only when a CUDA tensor arrives

    return kernels.select(*args)


LIBRARY.impl("ppt_select", _triton_select, "CUDA")
