"""HMR2.0 crops against scipy; box rule, masks, letterbox; video sources and their errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from tore_fast.data.hmr2_crop import Square, letterbox, mask_crop, normalise, person_crops, square_of_box, warp_square
from tore_fast.io.image import ImageError
from tore_fast.io.video import MaskFolder, TrackBoxes, open_video


def scipy_crop(image: np.ndarray, square: Square, size: int = 256) -> np.ndarray:
    """Blur the WHOLE image, then sample it: what upstream does."""
    scale = square.side / size
    image = image.astype(np.float64)
    if scale / 2 > 1.1:
        sigma = (scale / 2 - 1) / 2
        image = ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="reflect", truncate=4.0)
    at = (np.arange(size) - size / 2) * scale
    ys, xs = np.meshgrid(at + square.y, at + square.x, indexing="ij")
    return np.stack([ndimage.map_coordinates(image[..., c], (ys, xs), order=1, mode="constant") for c in range(3)])


def image(h: int, w: int) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (h, w, 3), np.uint8)


@pytest.mark.parametrize(
    "square",
    [
        Square(150.0, 110.0, 120.0),
        Square(150.3, 110.7, 256.0),
        Square(300.0, 200.0, 900.0),
        Square(5.0, 3.0, 700.0),
        Square(390.5, 299.0, 1500.0),
    ],
)
def test_crops_are_those_of_blurring_and_sampling_the_whole_image(square):
    img = image(300, 400)
    got = warp_square(torch.from_numpy(img), square).numpy()
    want = scipy_crop(img, square)
    # a window that reaches beyond the image blends into black over less than a pixel, where the two libraries differ
    inside = np.abs(want) > 0
    difference = np.abs(got - want)
    assert difference[inside].mean() < 0.05 and np.quantile(difference, 0.98) < 0.1


def test_crop_far_outside_is_black():
    assert warp_square(torch.full((20, 20, 3), 255, dtype=torch.uint8), Square(900.0, 900.0, 50.0)).abs().sum() == 0


def test_identity_crop_and_normalisation():
    img = torch.from_numpy(image(256, 256))
    got = warp_square(img, Square(128.0, 128.0, 256.0))
    torch.testing.assert_close(got, img.permute(2, 0, 1).float(), atol=2e-2, rtol=0)
    grey = normalise(torch.full((1, 3, 2, 2), 0.5 * 255))
    want = (0.5 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(grey[0, :, 0, 0], want, atol=1e-6, rtol=1e-5)
    assert person_crops(img, []).shape == (0, 3, 256, 256)


def test_box_rules():
    assert square_of_box((10, 10, 30, 110)).side == 100  # tall: the height
    assert square_of_box((0, 0, 150, 100)).side == 200  # wide: grown to 192:256
    assert square_of_box((0, 0, 150, 100), "tight").side == 150
    with pytest.raises(ValueError, match="x0 < x1"):
        square_of_box((5, 5, 5, 9))
    with pytest.raises(ValueError, match="rule must be"):
        square_of_box((0, 0, 1, 1), "other")


def test_masks_follow_the_crop():
    mask = torch.zeros(300, 400, dtype=torch.bool)
    mask[100:200, 150:250] = True
    got = mask_crop(mask, Square(200.0, 150.0, 200.0))
    assert got.shape == (256, 256) and 0 <= got.min() and got.max() <= 1
    assert got.mean() == pytest.approx(0.25, abs=0.01)
    assert got[128, 128] == 1 and got[20, 20] == 0


def test_letterbox_is_centred_on_white():
    box = letterbox(torch.zeros(100, 400, 3, dtype=torch.uint8))
    white = normalise(torch.full((3, 1, 1), 255.0))[:, 0, 0]
    torch.testing.assert_close(box[:, 10, 128], white)
    black = normalise(torch.zeros(3, 1, 1))[:, 0, 0]
    torch.testing.assert_close(box[:, 128, 128], black)
    assert int((box[0, :, 128] < 0).sum()) == 64


def test_box_files(tmp_path):
    csv = tmp_path / "b.csv"
    csv.write_text("frame,track,x0,y0,x1,y1\n0,2,1,2,30,40\n# note\n5,0,1,2,30,40\n")
    boxes = TrackBoxes.read(csv)
    assert boxes.at(0) == {2: (1.0, 2.0, 30.0, 40.0)} and boxes.tracks == [0, 2] and boxes.at(3) == {}
    js = tmp_path / "b.json"
    js.write_text('{"1": [[0, 1, 2, 30, 40], [1, 1, 2, 30, 40]]}')
    assert TrackBoxes.read(js).at(1) == {1: (1, 2, 30, 40)}
    for text, message in (
        ("0,0,1,2,30", "line 1: expected frame"),
        ("0,0,5,2,3,40\n", "x0 < x1"),
        ("", "holds no box"),
        ("0,0,1,2,30,40\n0,0,1,2,30,40", "two boxes"),
        ("0,0,nan,2,30,40", "x0 < x1"),
        ("-1,0,1,2,30,40", "count from 0"),
    ):
        csv.write_text(text)
        with pytest.raises(ImageError, match=message):
            TrackBoxes.read(csv)
    js.write_text('{"a": [[0, 1, 2, 30, 40]]}')
    with pytest.raises(ImageError, match="track 'a'"):
        TrackBoxes.read(js)


def test_mask_folders(tmp_path):
    values = np.zeros((20, 30), np.uint8)
    values[5:10, 5:10], values[12:15, 12:15] = 1, 2
    Image.fromarray(values).save(tmp_path / "000000.png")
    (tmp_path / "7").mkdir()
    Image.fromarray((values > 0).astype(np.uint8) * 255).save(tmp_path / "7" / "1.png")
    masks = MaskFolder(tmp_path)
    assert masks.at(0, 0, False, (20, 30)).sum() == 25 and masks.at(0, 1, False, (20, 30)).sum() == 9
    assert masks.at(1, 7, False, (20, 30)).sum() == 34 and masks.at(1, 3, False, (20, 30)) is None
    with pytest.raises(ImageError, match="30x20, the frame 40x30"):
        masks.at(0, 0, False, (30, 40))
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(ImageError, match="named FRAME.png"):
        MaskFolder(tmp_path)


def test_video_sources(tmp_path):
    with pytest.raises(ImageError, match="no such video"):
        open_video(tmp_path / "none.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="holds no frame"):
        open_video(tmp_path / "empty")
    (tmp_path / "zero.mp4").write_bytes(b"")
    with pytest.raises(ImageError, match="the file is empty"):
        open_video(tmp_path / "zero.mp4")
    for i in range(3):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / "empty" / f"{i:03d}.png")
    source = open_video(tmp_path / "empty", fps=12.5)
    assert source.fps == 12.5 and [i for i, _ in source.frames(1)] == [1, 2]


def test_video_file(tmp_path):
    imageio = pytest.importorskip("imageio.v2", reason="needs the extra tore_fast[video]")
    pytest.importorskip("imageio_ffmpeg", reason="needs the extra tore_fast[video]")
    with imageio.get_writer(tmp_path / "v.mp4", fps=10, macro_block_size=8) as writer:
        for i in range(12):
            writer.append_data(np.full((64, 64, 3), 20 * i, np.uint8))
    source = open_video(tmp_path / "v.mp4")
    frames = list(source.frames(4))
    assert source.fps == 10 and [i for i, _ in frames] == list(range(4, 12))
    assert abs(float(frames[0][1].mean()) - 80) < 6 and frames[0][1].shape == (64, 64, 3)
    (tmp_path / "bad.mp4").write_bytes(b"not a video" * 50)
    with pytest.raises(ImageError, match="bad.mp4"):
        list(open_video(tmp_path / "bad.mp4").frames())
