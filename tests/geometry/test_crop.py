"""Crops: box rules, the affine map, and every filter against an independent one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from tore_fast.geometry.crop import Crop, centre_crop, crop_of_box, spin_pixels, whole_crop
from tore_fast.geometry.warp import letterbox, mask_crop, model_input, normalise_image, person_crops, warp, warp_tensor

RNG = np.random.default_rng(0)


def test_box_rules():
    assert crop_of_box((10, 20, 110, 220)) == Crop((60.0, 120.0), (240.0, 240.0))  # spin: the longer side and a fifth
    assert crop_of_box((10, 10, 30, 110), "hmr2").side == 100  # tall: the height
    assert crop_of_box((0, 0, 150, 100), "hmr2").side == 200  # wide: grown to 192:256
    assert crop_of_box((0, 0, 150, 100), "tight").side == 150
    assert crop_of_box((0, 0, 30, 100), "topdown", 1.0, (256, 192)).size == (75.0, 100.0)
    assert crop_of_box((0, 0, 300, 100), "topdown", size=(256, 192)).size == (375.0, 500.0)
    assert centre_crop(40, 30) == Crop.square(20, 15, 30) and whole_crop(40, 30) == Crop.square(20, 15, 40)
    with pytest.raises(ValueError, match="x0 < x1"):
        crop_of_box((5, 5, 5, 9))
    with pytest.raises(ValueError, match="rule must be"):
        crop_of_box((0, 0, 1, 1), "other")


def test_matrix():
    crop = Crop.of_scale((60, 120), 1.2)
    np.testing.assert_allclose(crop.to_crop(np.array([60 - 120.0, 120 - 120]), 224), 0, atol=1e-9)
    np.testing.assert_allclose(Crop.of_scale((60, 120), 1.2, 90).to_crop(np.array([60.0, 120]), 224), 112)
    tall = Crop((50.0, 80.0), (75.0, 100.0), 30.0)
    np.testing.assert_allclose(tall.to_crop(np.array([50.0, 80.0]), (256, 192)), [96, 128])
    points = RNG.uniform(-1, 1, (5, 2))
    np.testing.assert_allclose(crop.to_crop(crop.to_image(points), 224), (points + 1) * 112)
    with pytest.raises(ValueError, match="unrotated square"):
        tall.to_image(points)


def test_the_crop_of_the_whole_image_is_the_image():
    pixels = RNG.integers(0, 256, (80, 80, 3)).astype(np.uint8)
    whole = whole_crop(80, 80)
    for name in ("spin", "pillow", "affine"):
        np.testing.assert_allclose(warp(pixels, whole, 80, name), pixels)
        assert (warp(pixels, Crop.square(-500, 40, 80), 40, name) == 0).all()
    halved = warp(pixels, whole, 40, "spin")
    np.testing.assert_allclose(halved, pixels.reshape(40, 2, 40, 2, 3).mean((1, 3)))
    resized = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(warp(pixels, whole, 32, "pillow"), np.asarray(resized))


@pytest.mark.parametrize("name", ["spin", "affine"])
@pytest.mark.parametrize("rotation", [30, -75, 180])
def test_rotation_moves_pixels_and_points_alike(name, rotation):
    pixels = np.zeros((201, 201, 3), np.uint8)
    pixels[60:64, 130:134] = 255
    crop = Crop.square(100, 100, 160, rotation)
    image = warp(pixels, crop, 160, name)[..., 0]
    y, x = np.unravel_index(image.argmax(), image.shape)
    point = spin_pixels(np.array([[132.0, 62.0]]), crop, 160)[0]
    assert np.abs(point - [x, y]).max() <= 4


def test_model_input_is_normalised():
    pixels = np.full((40, 40, 3), 255, np.uint8)
    for name in ("spin", "hmr2", "pillow", "affine"):
        got = model_input(pixels, crop_of_box((20, 20, 60, 60), margin=1.0), 8, name)
        assert got.dtype == torch.float32 and got.shape == (3, 8, 8)
        np.testing.assert_allclose(got[0, 6:, 6:], (0 - 0.485) / 0.229, atol=1e-5)
        assert float(got[0, 1, 1]) == pytest.approx((1 - 0.485) / 0.229, abs=1e-5)


def test_bad_input():
    square = Crop.square(0, 0, 200)
    with pytest.raises(ValueError, match=r"image must be \[H, W, 3\]"):
        warp(np.zeros((4, 4)), square, 8, "spin")
    with pytest.raises(ValueError, match="no pixels"):
        warp(np.zeros((4, 4, 3)), Crop.square(0, 0, 0.02), 8, "spin")
    with pytest.raises(ValueError, match="filter must be one of"):
        warp(np.zeros((4, 4, 3)), square, 8, "best")
    with pytest.raises(ValueError, match="squares of squares"):
        warp(np.zeros((4, 4, 3)), Crop((0, 0), (20, 30)), 8, "pillow")
    with pytest.raises(ValueError, match="does not turn"):
        warp(np.zeros((4, 4, 3), np.uint8), Crop.square(0, 0, 20, 5.0), 8, "hmr2")


def scipy_crop(image: np.ndarray, square: Crop, size: int = 256) -> np.ndarray:
    """Blur the WHOLE image, then sample it: what upstream does."""
    scale = square.side / size
    image = image.astype(np.float64)
    if scale / 2 > 1.1:
        sigma = (scale / 2 - 1) / 2
        image = ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="reflect", truncate=4.0)
    at = (np.arange(size) - size / 2) * scale
    ys, xs = np.meshgrid(at + square.center[1], at + square.center[0], indexing="ij")
    return np.stack([ndimage.map_coordinates(image[..., c], (ys, xs), order=1, mode="constant") for c in range(3)])


def image(h: int, w: int) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (h, w, 3), np.uint8)


@pytest.mark.parametrize(
    "square",
    [
        Crop.square(150.0, 110.0, 120.0),
        Crop.square(150.3, 110.7, 256.0),
        Crop.square(300.0, 200.0, 900.0),
        Crop.square(5.0, 3.0, 700.0),
        Crop.square(390.5, 299.0, 1500.0),
    ],
)
def test_crops_are_those_of_blurring_and_sampling_the_whole_image(square):
    img = image(300, 400)
    got = warp_tensor(torch.from_numpy(img), square, 256).numpy()
    want = scipy_crop(img, square)
    # a window that reaches beyond the image blends into black over less than a pixel, where the two libraries differ
    inside = np.abs(want) > 0
    difference = np.abs(got - want)
    assert difference[inside].mean() < 0.05 and np.quantile(difference, 0.98) < 0.1


def test_crop_far_outside_is_black():
    assert (
        warp_tensor(torch.full((20, 20, 3), 255, dtype=torch.uint8), Crop.square(900.0, 900.0, 50.0), 256).abs().sum()
        == 0
    )


def test_identity_crop_and_normalisation():
    img = torch.from_numpy(image(256, 256))
    got = warp_tensor(img, Crop.square(128.0, 128.0, 256.0), 256)
    torch.testing.assert_close(got, img.permute(2, 0, 1).float(), atol=2e-2, rtol=0)
    grey = normalise_image(torch.full((1, 3, 2, 2), 0.5 * 255))
    want = (0.5 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(grey[0, :, 0, 0], want, atol=1e-6, rtol=1e-5)
    assert person_crops(img, [], 256).shape == (0, 3, 256, 256)


def test_masks_follow_the_crop():
    mask = torch.zeros(300, 400, dtype=torch.bool)
    mask[100:200, 150:250] = True
    got = mask_crop(mask, Crop.square(200.0, 150.0, 200.0), 256)
    assert got.shape == (256, 256) and 0 <= got.min() and got.max() <= 1
    assert got.mean() == pytest.approx(0.25, abs=0.01)
    assert got[128, 128] == 1 and got[20, 20] == 0


def test_letterbox_is_centred_on_white():
    box = normalise_image(letterbox(torch.zeros(100, 400, 3, dtype=torch.uint8), 256))
    white = normalise_image(torch.full((3, 1, 1), 255.0))[:, 0, 0]
    torch.testing.assert_close(box[:, 10, 128], white)
    black = normalise_image(torch.zeros(3, 1, 1))[:, 0, 0]
    torch.testing.assert_close(box[:, 128, 128], black)
    assert int((box[0, :, 128] < 0).sum()) == 64
