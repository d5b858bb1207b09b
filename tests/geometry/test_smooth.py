"""Smoothing over time: what is steady stays, jitter falls, streams and recordings agree."""

from __future__ import annotations

import numpy as np
import pytest

from tore_fast.geometry.smooth import OneEuro, smooth, smooth_rotations


@pytest.mark.parametrize("how", ["gaussian", "one-euro"])
def test_jitter_falls_and_motion_stays(how):
    rng = np.random.default_rng(0)
    time = np.arange(100) / 50
    clean = np.stack([np.sin(2 * time), np.cos(3 * time), time], -1)[:, None] * np.ones((1, 4, 1))
    noisy = clean + rng.normal(0, 0.01, clean.shape)
    got = smooth(noisy, 50, how)
    jitter = lambda x: np.abs(np.diff(x - clean, n=2, axis=0)).mean()
    assert got.shape == noisy.shape and jitter(got) < (0.5 if how == "gaussian" else 0.7) * jitter(noisy)
    assert np.abs(got - clean).mean() < (0.008 if how == "gaussian" else 0.06)  # the one-euro filter lags
    assert smooth(noisy, 50, "none") is noisy
    steady = np.ones((9, 2, 3), np.float32)
    np.testing.assert_allclose(smooth(steady, 30, how), steady, rtol=1e-6)
    for few in (1, 2, 3):
        assert np.isfinite(smooth(noisy[:few], 50, how)).all()


def test_a_gaussian_keeps_lines_to_their_ends():
    line = np.linspace(0, 5, 30)[:, None] * np.ones((1, 3))
    np.testing.assert_allclose(smooth(line, 25, "gaussian"), line, atol=1e-12)


def test_a_stream_gives_the_recordings_values():
    x = np.random.default_rng(1).normal(size=(20, 17, 3))
    stream = OneEuro(30)
    np.testing.assert_allclose(np.stack([stream.push(f) for f in x]), smooth(x, 30, "one-euro"))


def test_rotations_stay_rotations():
    from scipy.spatial.transform import Rotation

    r = Rotation.from_rotvec(np.random.default_rng(2).normal(0, 0.4, (40, 3))).as_matrix().reshape(10, 4, 3, 3)
    got = smooth_rotations(r.astype(np.float32), 30, "gaussian")
    np.testing.assert_allclose(got @ got.swapaxes(-1, -2), np.broadcast_to(np.eye(3), got.shape), atol=1e-5)


def test_bad_arguments():
    with pytest.raises(ValueError, match="expected one of none"):
        smooth(np.zeros((3, 3)), 30, "kalman")
    with pytest.raises(ValueError, match="frame rate must be positive"):
        smooth(np.zeros((3, 3)), 0, "gaussian")
