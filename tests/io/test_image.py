"""Reading images of every kind, and the one-line errors for bad ones."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from tore_fast.data.boxes import BoxFileError, boxes_of, read_boxes
from tore_fast.io.image import ImageError, check_box, find_images, read_image, read_labels


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


_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def test_only_image_formats_are_decoded(tmp_path, image, monkeypatch):
    """A file is what its content says among the formats that are read; none of them starts another program."""
    import subprocess

    def started(*command, **options):
        raise AssertionError(f"a program was started: {command}")

    monkeypatch.setattr(subprocess, "Popen", started)
    (tmp_path / "holiday.jpg").write_bytes(_EPS)
    with pytest.raises(ImageError, match="holiday.jpg: not an image file that is read here .a PostScript file") as e:
        read_image(tmp_path / "holiday.jpg")
    assert "\n" not in str(e.value)
    for kind in ("ICO", "TGA", "PCX", "SGI", "IM", "DDS"):
        image.save(tmp_path / "a.png", format=kind)
        with pytest.raises(ImageError, match="a.png: not an image file that is read here"):
            read_image(tmp_path / "a.png")
    image.save(tmp_path / "b.jpg", format="PNG")  # a wrong suffix alone does not matter
    assert np.array_equal(read_image(tmp_path / "b.jpg"), np.asarray(image))


def test_what_is_no_file_is_refused(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.png")
    os.symlink("/dev/zero", tmp_path / "zero.png")
    os.symlink("loop.png", tmp_path / "loop.png")
    for name, words in [
        ("pipe.png", "pipe"),
        ("zero.png", "device"),
        ("loop.png", "cannot open"),
        ("x" * 300 + ".png", "too long"),
        ("a\0.png", "cannot open"),
    ]:
        for reader in (read_image, read_labels):
            with pytest.raises(ImageError, match=words) as e:
                reader(str(tmp_path / name))
            assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF"])
def test_claims_of_pixels_are_refused_before_memory_is_taken(tmp_path, kind):
    """Headers that claim 60,000 x 60,000 pixels."""
    import io
    import struct
    import tracemalloc

    stream = io.BytesIO()
    Image.new("L", (60, 60)).save(stream, format=kind)
    data = bytearray(stream.getvalue())
    if kind == "PNG":
        import zlib

        data[16:24] = struct.pack(">II", 60_000, 60_000)
        data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", 60_000, 60_000)
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", 60_000, 60_000)
    else:
        at = struct.unpack("<I", data[4:8])[0]
        for k in range(struct.unpack("<H", data[at : at + 2])[0]):
            tag = at + 2 + 12 * k
            if struct.unpack("<H", data[tag : tag + 2])[0] in (256, 257):
                data[tag + 2 : tag + 12] = struct.pack("<HII", 4, 1, 60_000)
    tracemalloc.start()
    with pytest.raises(ImageError, match="60000x60000 pixels"):
        read_image(bytes(data))
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()
