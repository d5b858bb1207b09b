"""Rotated squares: the rule, the way there and back, what is cut out."""

from __future__ import annotations

import numpy as np
import pytest

from tore_fast.geometry.roi import Roi, cut_roi, roi_of_points


@pytest.mark.parametrize("degrees", [0, 30, 90, -120, 180])
def test_the_body_stands_upright_in_the_crop(degrees):
    """The point above the head lies straight above the centre, 1 / (2 * 1.25) of the side away."""
    turn, hips = np.deg2rad(degrees), np.array([300.0, 200.0])
    circle = hips + 80 * np.array([np.sin(turn), -np.cos(turn)])
    roi = roi_of_points(hips, circle)
    assert roi.side == pytest.approx(200) and -np.pi <= roi.angle <= np.pi
    np.testing.assert_allclose(roi.to_crop(np.stack([hips, circle])), [[0.5, 0.5], [0.5, 0.1]], atol=1e-9)
    points = np.random.default_rng(0).random((5, 2))
    np.testing.assert_allclose(roi.to_crop(roi.to_image(points)), points, atol=1e-9)
    np.testing.assert_allclose(roi.turn(np.array([0.0, -1, 7])), [np.sin(turn), -np.cos(turn), 7], atol=1e-9)


def test_cut_is_the_pixels_where_it_fits_the_grid():
    pixels = np.random.default_rng(1).integers(0, 255, (40, 50, 3), np.uint8)
    crop = cut_roi(pixels, Roi(20, 16, 16, 0.0), 16)
    np.testing.assert_allclose(crop, pixels[8:24, 12:28].transpose(2, 0, 1) / 255, atol=1e-5)
    quarter = cut_roi(pixels, Roi(20, 16, 16, np.pi / 2), 16)
    np.testing.assert_allclose(quarter, np.rot90(pixels[8:24, 12:28]).transpose(2, 0, 1) / 255, atol=1e-5)


def test_the_edge_goes_on_beyond_the_image():
    pixels = np.zeros((20, 20, 3), np.uint8)
    pixels[:, -1] = 200
    for roi in (Roi(40, 10, 16, 0.3), Roi(400, 10, 16, 0.0)):
        np.testing.assert_allclose(cut_roi(pixels, roi, 8), 200 / 255, atol=1e-5)


def test_a_large_square_is_made_smaller_without_aliasing():
    pixels = np.zeros((512, 512, 3), np.uint8)
    pixels[:, ::2] = 255  # stripes of one pixel: grey when seen from afar
    crop = cut_roi(pixels, Roi(256, 256, 400, 0.7), 32)
    np.testing.assert_allclose(crop, 0.5, atol=0.03)


def test_unusable_squares():
    assert Roi(0, 0, 10, 0).is_usable()
    assert not Roi(0, 0, 3, 0).is_usable() and not Roi(0, float("nan"), 10, 0).is_usable()
