"""Sequences of any length as windows of F frames, and back: edge replication, overlaps, gaps, other frame rates.

Lifting models take windows whose frames may repeat at the edges (`window_indices`, `covering_indices`, `blend_windows`;
NumPy). Motion models take clips that lie inside the track and are cross-faded (`split_clips`, `fade_weight`; torch).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


def window_bounds(length: int, frames: int, stride: int) -> list[tuple[int, int]]:
    """[start, end) of the windows of a sequence before clamping, as the official training data cuts them.

    stride 1 (seq2frame): one target frame [t, t + 1) per frame, whose window reaches (frames - 1) / 2 to both sides.
    stride > 1: ceil((length - frames) / stride + 1) windows, shifted so that the padding is centred. A sequence of
    length <= frames - stride gives none.
    """
    if length < 0 or frames < 1 or stride < 1:
        raise ValueError(
            f"window_bounds: expected length >= 0, frames >= 1, stride >= 1, got {length}, {frames}, {stride}"
        )
    if stride == 1:
        return [(t, t + 1) for t in range(length)]
    count = -((frames - length) // stride) + 1  # ceil((length - frames) / stride) + 1
    if count <= 0:
        return []
    shift = ((count - 1) * stride + frames - length) // 2
    return [(i * stride - shift, i * stride - shift + frames) for i in range(count)]


def window_indices(length: int, frames: int, stride: int) -> np.ndarray:
    """[W, frames] int64 source frame of every slot; frames outside the sequence repeat its first or last one."""
    bounds = window_bounds(length, frames, stride)
    pad = (frames - 1) // 2 if stride == 1 else 0
    starts = np.array([start - pad for start, _ in bounds], dtype=np.int64).reshape(-1, 1)
    return np.clip(starts + np.arange(frames), 0, max(length - 1, 0))


def covering_indices(length: int, frames: int, overlap: int) -> np.ndarray:
    """[W, frames] windows that cover a sequence of any length >= 1, neighbours sharing at least `overlap` frames.

    The windows are spread evenly and stay inside the sequence; a sequence shorter than a window gives one window with
    both edges repeated equally.
    """
    if length < 1:
        raise ValueError(f"covering_indices: expected a sequence of at least one frame, got {length}")
    if not 0 <= overlap < frames:
        raise ValueError(f"covering_indices: overlap must be in 0..{frames - 1} (frames - 1), got {overlap}")
    if length <= frames:
        first = -((frames - length) // 2)
        return np.clip(first + np.arange(frames), 0, length - 1)[None]
    step = frames - overlap
    count = -(-(length - frames) // step) + 1
    starts = np.linspace(0, length - frames, count).round().astype(np.int64)
    return starts[:, None] + np.arange(frames)


def blend_windows(windows: np.ndarray, indices: np.ndarray, length: int) -> np.ndarray:
    """One sequence [length, ...] from windows [W, F, ...] and their frames [W, F].

    Every frame is the mean of the slots that show it, weighted by a triangle over the window, so that a window counts
    least where it has least context. A frame repeated as padding takes its one true slot from the same window.
    """
    frames = indices.shape[1]
    triangle = (np.minimum(np.arange(frames), np.arange(frames)[::-1]) + 1.0) / frames
    total = np.zeros((length, *windows.shape[2:]), dtype=np.float64)
    weight = np.zeros(length)
    for values, frame in zip(windows, indices):
        # of repeated edge frames the slot next to the sequence is the frame itself; the others are padding
        real = np.ones(frames, dtype=bool)
        real[:-1] &= ~((frame[:-1] == 0) & (frame[1:] == 0))
        real[1:] &= ~((frame[1:] == length - 1) & (frame[:-1] == length - 1)) if length > 1 else True
        w = triangle * real
        np.add.at(total, frame, values * w.reshape(-1, *[1] * (values.ndim - 1)))
        np.add.at(weight, frame, w)
    return (total / weight.reshape(-1, *[1] * (total.ndim - 1))).astype(windows.dtype)


def at_times(sequence: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Values of sequence [T, ...] at the frame numbers `at` [N] (fractions allowed, clamped), linear between frames."""
    last = len(sequence) - 1
    at = np.clip(at, 0, last)
    low = np.minimum(at.astype(np.int64), max(last - 1, 0))
    share = (at - low).reshape(-1, *[1] * (sequence.ndim - 1))
    return ((1 - share) * sequence[low] + share * sequence[np.minimum(low + 1, last)]).astype(sequence.dtype)


class Clip(NamedTuple):
    """Frames start..start+length-1 of the track; `new` is the first that no earlier clip covers."""

    start: int
    length: int
    new: int


def split_clips(num_frames: int, frames: int = 243, overlap: int = 0) -> list[Clip]:
    """Clips that cover 0..num_frames-1.

    Args:
        overlap: frames shared by neighbours (cross-faded with `fade_weight`); the last clip shares what it must.

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
    """Share of this clip in each of its frames where an earlier clip has spoken: 0 -> 1 over the last `overlap` of
    them."""
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
