"""TRA, token recovering attention, and the parameter-free recoveries: from f kept frames back to all F.

In: tokens of the kept frames [B, f, J, C]. Out: tokens of all frames [B, F, J, C]. Source: HoT, CVPR 2024, section
3.3; nearest and linear recovery are those of its table 5. Called by the HoT variants of models/ after their last block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import plain_attention
from .linear import Linear
from .prepared import Prepared
from .tpc import gather_frames


class CrossAttention(nn.Module):
    """Multi-head attention with separate linear_q, linear_k, linear_v and proj over [B, N, C] tokens."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool = True, proj_drop: float = 0.0) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{type(self).__name__}: dim {dim} is not divisible by heads {heads}")
        self.heads = heads
        self.linear_q = Linear(dim, dim, bias=qkv_bias)
        self.linear_k = Linear(dim, dim, bias=qkv_bias)
        self.linear_v = Linear(dim, dim, bias=qkv_bias)
        self.proj = Linear(dim, dim, drop=proj_drop)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, N, C], k and v [B, M, C] -> [B, N, C]."""
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in (self.linear_q(q), self.linear_k(k), self.linear_v(v))
        )
        out = plain_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))


class TokenRecovery(Prepared, CrossAttention):
    """TRA: x_token + proj(attention(q = x_token, k = v = kept frames of the same joint)).

    The projected query is the same for every clip and joint: it is computed once per call on [1, F, C] (the official
    code does so B * J times), and once for all in a prepared layer.
    """

    def _queries(self, x_token: Tensor, joints: int) -> Tensor:
        q = self.linear_q(x_token)[:, :, None]  # [1, F, 1, C]
        return q.expand(-1, -1, joints, -1).reshape(1, x_token.shape[1], joints * self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, x_token: Tensor) -> Tensor:  # type: ignore[override]
        """x [B, f, J, C], x_token [1, F, C] -> [B, F, J, C]."""
        b, _, joints, c = x.shape
        weights = (x_token, *self.linear_q.parameters())
        q = self.kept(("queries", joints), weights, lambda: self._queries(x_token, joints))
        k, v = (
            t.reshape(b, t.shape[1], joints * self.heads, c // self.heads).transpose(1, 2)
            for t in (self.linear_k(x), self.linear_v(x))
        )
        out = plain_attention(q.expand(b, -1, -1, -1), k, v)
        out = out.transpose(1, 2).reshape(b, x_token.shape[1], joints, c)
        return x_token[:, :, None] + self.proj(out)


def interpolate_frames(
    x: Tensor,  # [B, f, ...]
    index: Tensor,  # [B, f] ascending
    frames: int,
    mode: str = "linear",
) -> Tensor:  # [B, frames, ...]
    """Tokens of all frames from those kept at `index`: the nearest kept frame, or linear between the two around it.

    Before the first and after the last kept frame the value is clamped; "nearest" takes the earlier frame of a tie.
    """
    if mode not in ("nearest", "linear"):
        raise ValueError(f"interpolate_frames: mode must be 'nearest' or 'linear', got {mode!r}")
    kept = x.shape[1]
    time = torch.arange(frames, device=index.device).expand(index.shape[0], -1).contiguous()
    right = torch.searchsorted(index.contiguous(), time)  # first kept frame >= t
    left = (right - 1).clamp(0, kept - 1)
    right = right.clamp(0, kept - 1)
    t_left, t_right = index.gather(1, left), index.gather(1, right)
    if mode == "nearest":
        take_left = (time - t_left).abs() <= (t_right - time).abs()
        return gather_frames(x, torch.where(take_left, left, right))
    exact = torch.promote_types(x.dtype, torch.float32)
    gap = (t_right - t_left).clamp(min=1).to(exact)
    share = ((time - t_left).clamp(min=0).to(exact) / gap).clamp(max=1.0).to(x.dtype)
    share = share.reshape(*share.shape, *[1] * (x.ndim - 2))
    return torch.lerp(gather_frames(x, left), gather_frames(x, right), share)
