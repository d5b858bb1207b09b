"""Long and short videos as clips of fixed length, and back.

In: per-frame features of one track; out: clips for models/motion/fasthmr.py and results for every frame. A video of n >= F
frames is cut into clips of F, the last one ending at the last frame; a shorter one is resampled to F and back.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Clip(NamedTuple):
    """Frames start..start+length-1 of the track; `new` is the first that no earlier clip covers."""

    start: int
    length: int
    new: int


def split_clips(num_frames: int, frames: int = 243, overlap: int = 0) -> list[Clip]:
    """Clips that cover 0..num_frames-1.

    Args:
        overlap: frames shared by neighbours (cross-faded by `join_clips`); the last clip shares what it must.

    Example:
        >>> split_clips(500, 243)
        [Clip(start=0, length=243, new=0), Clip(start=243, length=243, new=243), Clip(start=257, length=243, new=486)]
    """
    if num_frames < 1:
        return []
    if not 0 <= overlap < frames:
        raise ValueError(f"split_clips: overlap must be 0..{frames - 1}, got {overlap}")
    if num_frames <= frames:
        return [Clip(0, num_frames, 0)]
    clips, covered = [], 0
    start = 0
    while covered < num_frames:
        start = min(start, num_frames - frames)
        clips.append(Clip(start, frames, covered))
        covered = start + frames
        start = covered - overlap
    return clips


def resample(x: Tensor, length: int) -> Tensor:  # [n, ...] -> [length, ...]
    """Linear interpolation along time at linspace(0, n - 1, length); first and last frame stay."""
    n = x.shape[0]
    if n == length:
        return x
    if n == 1:
        return x.expand(length, *x.shape[1:])
    at = torch.linspace(0, n - 1, length, dtype=torch.float64, device=x.device)
    low = at.floor().long().clamp(max=n - 2)
    w = (at - low).to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
    return x[low] * (1 - w) + x[low + 1] * w


def fade_weight(clip: Clip, overlap: int) -> Tensor:
    """Share of this clip in each of its frames where an earlier clip has spoken: 0 -> 1 over the last `overlap` of them."""
    shared = clip.new - clip.start
    weight = torch.ones(clip.length)
    if shared > 0:
        weight[:shared] = 0
        if overlap > 0:
            n = min(overlap, shared)
            weight[shared - n : shared] = (torch.arange(n) + 1.0) / (n + 1)
    return weight


class Span(NamedTuple):
    """A stretch of consecutive frames first..last (inclusive) of one track."""

    first: int
    last: int


def track_spans(frame_ids: Tensor, max_gap: int = 15) -> list[Span]:
    """Cuts a track where more than `max_gap` frames are missing; frame_ids [n] rising."""
    ids = frame_ids.tolist()
    if not ids:
        return []
    spans, first = [], ids[0]
    for before, after in zip(ids, ids[1:]):
        if after <= before:
            raise ValueError(f"track_spans: frame ids must rise, got {before} then {after}")
        if after - before - 1 > max_gap:
            spans.append(Span(first, before))
            first = after
    return [*spans, Span(first, ids[-1])]


def fill_gaps(values: Tensor, frame_ids: Tensor, first: int, last: int) -> Tensor:
    """Values [n, ...] known at rising frame_ids [n] -> every frame first..last, linear in between, constant outside."""
    want = torch.arange(first, last + 1, device=values.device)
    if values.shape[0] == 1:
        return values.expand(len(want), *values.shape[1:])
    ids = frame_ids.to(values.device)
    right = torch.searchsorted(ids, want).clamp(1, len(ids) - 1)
    left = right - 1
    span = (ids[right] - ids[left]).to(torch.float64)
    w = ((want - ids[left]).to(torch.float64) / span).clamp(0, 1).to(values.dtype)
    w = w.reshape(-1, *[1] * (values.dim() - 1))
    return values[left] * (1 - w) + values[right] * w
