"""Clips of any length -> windows of F frames, and back: edge replication, overlap blending, flips.

In: sequence lengths or arrays [T, ...]. Out: frame indices [W, F] (clamped into the sequence, so the first and last frame
repeat), or one sequence blended from overlapping windows. Used by data/h36m.py, train/lifting.py and pipelines/lift.py.
"""

from __future__ import annotations

import numpy as np

H36M_JOINTS = (
    "pelvis",
    "r_hip",
    "r_knee",
    "r_ankle",
    "l_hip",
    "l_knee",
    "l_ankle",
    "spine",
    "thorax",
    "neck",
    "head",
    "l_shoulder",
    "l_elbow",
    "l_wrist",
    "r_shoulder",
    "r_elbow",
    "r_wrist",
)
H36M_PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15)
LEFT, RIGHT = (4, 5, 6, 11, 12, 13), (1, 2, 3, 14, 15, 16)  # H36M order
FLIP_ORDER = (0, 4, 5, 6, 1, 2, 3, 7, 8, 9, 10, 14, 15, 16, 11, 12, 13)


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


def flip_pose(x):
    """Mirror image of poses or keypoints [..., 17, C] (numpy or torch): x negated, left and right swapped."""
    flipped = x[..., list(FLIP_ORDER), :]
    flipped = flipped.clone() if hasattr(flipped, "clone") else flipped.copy()
    flipped[..., 0] *= -1
    return flipped
