"""Reading images of every kind, and the one-line errors for bad ones."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from tore_fast.data.boxes import BoxFileError, boxes_of, read_boxes
from tore_fast.io.image import ImageError, check_box, find_images, read_image


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "mode,suffix",
    [
        ("RGB", "png"),
        ("L", "png"),
        ("RGBA", "png"),
        ("P", "gif"),
        ("CMYK", "jpg"),
        ("1", "png"),
        ("LA", "png"),
        ("I;16", "png"),
        ("F", "tiff"),
    ],
)
def test_modes(tmp_path, image, mode, suffix):
    path = tmp_path / f"a.{suffix}"
    if mode == "I;16":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path)
    else:
        image.convert(mode).save(path)
    pixels = read_image(path)
    assert pixels.shape == (20, 30, 3) and pixels.dtype == np.uint8
    if mode in ("L", "I;16", "F"):
        want = np.asarray(image.convert("L"), int)
        assert np.abs(pixels[:, :, 0].astype(int) - want).max() <= 1


def test_exif_rotation(tmp_path, image):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), np.rot90(np.asarray(image), -1))


def test_transparency_is_white(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == 255).all()


def test_bad_files(tmp_path, image):
    image.resize((400, 400)).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.png").touch()
    for name, words in [
        ("cut.jpg", "truncated"),
        ("text.jpg", "not an image"),
        ("empty.png", "empty"),
        ("gone.jpg", "no such file"),
        (".", "folder"),
    ]:
        with pytest.raises(ImageError, match=words) as e:
            read_image(tmp_path / name)
        assert "\n" not in str(e.value)


def test_large_photographs_do_not_warn(tmp_path, image, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's limit: a warning above, an error above twice that
    image.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == (20, 30, 3) and Image.MAX_IMAGE_PIXELS == 100
    assert not [w for w in recwarn if "Decompression" in w.category.__name__]
    monkeypatch.setattr("tore_fast.io.image.MAX_PIXELS", 599)
    with pytest.raises(ImageError, match=r"a.png: 30x20 pixels; at most 599 are read"):
        read_image(tmp_path / "a.png")


def test_heic_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    assert find_images([tmp_path]) == ([tmp_path / "IMG_1.HEIC"], [])  # not passed over in silence
    with pytest.raises(ImageError, match=r"IMG_1.HEIC: a HEIC image; `pip install pillow-heif`"):
        read_image(tmp_path / "IMG_1.HEIC")


def test_bytes_of_a_file(tmp_path, image):
    image.save(tmp_path / "a.png")
    assert np.array_equal(read_image((tmp_path / "a.png").read_bytes()), read_image(tmp_path / "a.png"))
    with pytest.raises(ImageError, match="^tar:a.png: the file is empty"):
        read_image(b"", "tar:a.png")


def test_arrays(image):
    a = np.asarray(image)
    assert np.array_equal(read_image(a), a)
    assert np.array_equal(read_image(a[:, :, 0])[:, :, 2], a[:, :, 0])
    assert np.abs(read_image(a / 255.0).astype(int) - a).max() == 0
    for bad in (np.zeros((3, 4, 5), np.uint8), np.full((4, 4, 3), np.nan), np.zeros((4, 4, 3), np.int64)):
        with pytest.raises(ImageError):
            read_image(bad)


def test_find_images(tmp_path, image):
    for n in ("b.png", "a.jpg", "c.txt"):
        image.save(tmp_path / n, format="PNG")
    (tmp_path / "none").mkdir()
    (tmp_path / "folder.jpg").mkdir()
    paths, errors = find_images([tmp_path, str(tmp_path / "*.png"), tmp_path / "none", str(tmp_path / "*.xyz")])
    assert [p.name for p in paths] == ["a.jpg", "b.png"]
    assert len(errors) == 2 and "holds no image" in errors[0] and "no file matches" in errors[1]


def test_boxes(tmp_path):
    (tmp_path / "b.json").write_text('{"x/a.jpg": [[1, 2, 30, 40]], "b.jpg": [1, 2, 3, 40]}')
    table = read_boxes(tmp_path / "b.json")
    assert boxes_of(table, "x/a.jpg") == [(1, 2, 30, 40)] and boxes_of(table, "q/b.jpg") == [(1, 2, 3, 40)]
    assert boxes_of(table, "c.jpg") is None
    (tmp_path / "b.csv").write_text("image,x0,y0,x1,y1\na.jpg,1,2,3,4\na.jpg,5,6,7,8\n")
    assert read_boxes(tmp_path / "b.csv") == {"a.jpg": [(1, 2, 3, 4), (5, 6, 7, 8)]}
    (tmp_path / "c.csv").write_text("a.jpg,1,2,3\n")
    with pytest.raises(BoxFileError, match="line 1"):
        read_boxes(tmp_path / "c.csv")
    for bad in ([0, 0, 1], [5, 5, 1, 1], [float("nan"), 0, 5, 5], [100, 100, 120, 120]):
        with pytest.raises(ImageError, match="a.jpg"):
            check_box(bad, 50, 50, "a.jpg")
