"""Smoothing of motions over time: a Gaussian for recordings, the one-euro filter for streams and recordings alike.

In and out: [T, ...] positions, or rotation matrices by `smooth_rotations`. Off by default everywhere: it lowers the
jitter, and the error only where the jitter is most of it.
"""

from __future__ import annotations

import math

import numpy as np

SMOOTHERS = ("none", "one-euro", "gaussian")
SIGMA_S = 0.04  # seconds
MIN_CUTOFF_HZ, SPEED_HZ = 4.0, 8.0  # cut-off at rest, and what each metre per second adds


def smooth(x: np.ndarray, fps: float, how: str) -> np.ndarray:
    """`x` [T, ...] smoothed along its first axis; "none" gives it back as it is.

    Raises:
        ValueError: no such smoother, or no frame rate.
    """
    if how not in SMOOTHERS:
        raise ValueError(f"smooth: expected one of {', '.join(SMOOTHERS)}, got {how!r}")
    if how == "none" or len(x) < 2:
        return x
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"smooth: the frame rate must be positive, got {fps}")
    return gaussian(x, fps) if how == "gaussian" else one_euro(x, fps)


def gaussian(x: np.ndarray, fps: float, sigma_s: float = SIGMA_S) -> np.ndarray:
    """Mean weighted by a normal distribution in time; the ends are reflected about the end points, so that lines stay
    lines."""
    from scipy.ndimage import correlate1d

    sigma = sigma_s * fps
    radius = min(int(4 * sigma + 0.5), len(x) - 1)
    if radius < 1:
        return x
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    before, after = 2 * flat[:1] - flat[radius:0:-1], 2 * flat[-1:] - flat[-2 : -2 - radius : -1]
    long = np.concatenate([before, flat, after])
    return correlate1d(long, weights / weights.sum(), axis=0)[radius:-radius].reshape(x.shape).astype(x.dtype)


class OneEuro:
    """The one-euro filter (Casiez, Roussel, Vogel, CHI 2012): a low-pass whose cut-off rises with the speed of each
    point.

    `push` gives the smoothed frame at once, so it goes with PoseStream. Points are the last axis: their speed is common
    to its coordinates, so the result does not depend on the axes.

    Args:
        fps: frames per second. min_cutoff: Hz, for points at rest. beta: Hz that each unit per second adds.
            speed_cutoff: Hz, of the low-pass on the speed.

    Example:
        >>> f = OneEuro(fps=25)
        >>> [round(float(f.push(np.array([v]))[0]), 2) for v in (0.0, 1.0, 1.0)]
        [0.0, 0.92, 0.99]
    """

    def __init__(
        self, fps: float, min_cutoff: float = MIN_CUTOFF_HZ, beta: float = SPEED_HZ, speed_cutoff: float = 1.0
    ):
        if not 0 < fps < math.inf:
            raise ValueError(f"OneEuro: fps must be positive, got {fps}")
        self.fps, self.min_cutoff, self.beta, self.speed_cutoff = fps, min_cutoff, beta, speed_cutoff
        self._value: np.ndarray | None = None
        self._speed: np.ndarray | None = None

    def push(self, x: np.ndarray) -> np.ndarray:
        """[..., D] -> the same, smoothed."""
        x = np.asarray(x, np.float64)
        if self._value is None or self._speed is None:
            self._value, self._speed = x, np.zeros_like(x)
            return x
        share = self._share(np.asarray(self.speed_cutoff, np.float64))
        self._speed = self._speed + share * ((x - self._value) * self.fps - self._speed)
        speed = np.linalg.norm(self._speed, axis=-1, keepdims=True)
        self._value = self._value + self._share(self.min_cutoff + self.beta * speed) * (x - self._value)
        return self._value

    def _share(self, cutoff: np.ndarray) -> np.ndarray:
        """Weight of the newest value in a low-pass of this cut-off frequency (Hz)."""
        turn = 2 * math.pi * cutoff / self.fps
        return turn / (turn + 1)


def one_euro(
    x: np.ndarray, fps: float, min_cutoff: float = MIN_CUTOFF_HZ, beta: float = SPEED_HZ
) -> np.ndarray:  # [T, ..., D]
    """The filter over a recording; as in a stream, it looks back only and lags."""
    step = OneEuro(fps, min_cutoff, beta)
    return np.stack([step.push(frame) for frame in x]).astype(x.dtype)


def smooth_rotations(rotations: np.ndarray, fps: float, how: str) -> np.ndarray:  # [T, ..., 3, 3]
    """Rotation matrices, smoothed through their first two columns (6D), which are made orthonormal again."""
    if how == "none" or len(rotations) < 2:
        return rotations
    import torch

    from .rotation import matrix_to_rot6d, rot6d_to_matrix

    six = matrix_to_rot6d(torch.from_numpy(np.ascontiguousarray(rotations))).numpy()
    return rot6d_to_matrix(torch.from_numpy(smooth(six, fps, how))).numpy()
