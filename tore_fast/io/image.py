"""Any image a user has, as one [H, W, 3] uint8 RGB array, upright; bad files end in one clear ImageError.

In: a path, a PIL image or an array. Out: pixels for geometry/warp.py. Handles EXIF rotation, grey, palettes,
transparency (over white), CMYK and 16-bit files.
"""

from __future__ import annotations

import glob
import io
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .natural import natural_sorted
from .open_file import read_regular

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".avif", ".heic", ".heif")
# What a file is, is told by its content among these alone: Pillow's other decoders are less used, and some start
# programs (EPS)
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "HEIF")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")  # bytes 8..12 of a HEIF file
_OTHERS = {b"%!PS": "a PostScript file", b"\xc5\xd0\xd3\xc6": "a PostScript file", b"%PDF": "a PDF file"}
_OTHERS |= {
    b"8BPS": "a Photoshop file",
    b"DDS ": "a DDS texture",
    b"BLP": "a BLP texture",
    b"PK\x03\x04": "a zip archive",
}
_OTHERS |= {b"<svg": "an SVG drawing", b"<?xml": "an XML file", b"<!DOC": "a web page", b"<html": "a web page"}
MAX_COORDINATE = 1e6  # of a box, pixels
MAX_BYTES = 2 << 30  # of an image file
MAX_PIXELS = 200_000_000  # more is taken for a mistake or a decompression bomb


class ImageError(ValueError):
    """An image that cannot be used; the text names it and says why."""


_opening = threading.Lock()


def read_image(
    source: str | Path | bytes | Image.Image | np.ndarray, name: str = "image", upright: bool = True
) -> np.ndarray:
    """RGB pixels of an image.

    Args:
        source: path, bytes of a file, PIL image, or array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]; uint8, uint16 or
            float in 0..1.
        name: of what has no path, for messages.
        upright: turned as the EXIF flag says; False gives the pixels as stored, which data sets annotate.

    Returns:
        [H, W, 3] uint8, contiguous.

    Raises:
        ImageError: missing, empty, truncated, not an image, or an array of another form.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _from_pil(source, name, upright)
    if isinstance(source, bytes):
        return _decoded(source, name, upright)
    path = Path(source)
    return _decoded(_bytes_of(path), str(path), upright)


def read_labels(path: str | Path) -> np.ndarray:  # [H, W]
    """Stored values of a label image (a mask, palette indices): no colours, no turning; the first channel of several.

    Raises:
        ImageError: as `read_image`.
    """
    data = _bytes_of(Path(path))
    try:
        with open_image(data) as image:
            _check_pixels(image, str(path))
            values = np.asarray(image)
    except ImageError:
        raise
    except Exception as e:  # noqa: BLE001 (decoders raise anything on damaged files)
        raise ImageError(f"{path}: not a readable mask ({_said(e)})") from None
    return values[..., 0] if values.ndim == 3 else values


def _bytes_of(path: Path) -> bytes:
    try:
        return read_regular(path, MAX_BYTES, "image file")
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except (OSError, ValueError) as e:  # a folder, a pipe, a device, no permission, a broken disk
        raise ImageError(str(e)) from None


def _decoded(data: bytes, name: str, upright: bool) -> np.ndarray:
    if not data:
        raise ImageError(f"{name}: the file is empty")
    try:
        with open_image(data) as image:
            _check_pixels(image, name)
            image.load()
            return _from_pil(image, name, upright)
    except ImageError:
        raise
    except UnidentifiedImageError:
        if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
            raise ImageError(
                f"{name}: a HEIC image; `pip install pillow-heif` makes them readable, or save it as JPEG"
            ) from None
        other = next((text for start, text in _OTHERS.items() if data.lstrip()[:8].startswith(start)), None)
        readable = "JPEG, PNG, WebP, TIFF, BMP, GIF, PPM, AVIF or HEIC"
        raise ImageError(
            f"{name}: not an image file that is read here ({other or 'unknown'}); expected {readable}"
        ) from None
    except Exception as e:  # noqa: BLE001 (decoders raise anything on damaged files: KeyError, struct.error, MemoryError ...)
        raise ImageError(f"{name}: damaged or truncated image ({_said(e)})") from None


def _said(error: BaseException) -> str:
    """An error's first line, with its class where the text alone says nothing."""
    text = (str(error).splitlines() or [""])[0][:160]
    return text if isinstance(error, (OSError, SyntaxError)) and text else f"{type(error).__name__}: {text}"


def _check_pixels(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{name}: {image.width}x{image.height} pixels; at most {MAX_PIXELS:,} are read")


def open_image(data: bytes) -> Image.Image:
    """Pillow's image of a file's bytes, one of FORMATS, pixels not read yet; errors are Pillow's own.

    Under our own limit of pixels: Pillow's warns at half of what it refuses, and refuses 180-megapixel photographs.
    """
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        try:
            import pillow_heif
        except ImportError:
            pass
        else:
            pillow_heif.register_heif_opener()
    Image.init()
    there = [f for f in FORMATS if f in Image.OPEN]  # AVIF and HEIF are not everywhere
    with _opening:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(data), formats=there)
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _from_pil(image: Image.Image, name: str, upright: bool) -> np.ndarray:
    if upright:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image, np.float64)
        if not np.isfinite(values).all():
            raise ImageError(f"{name}: has NaN or infinite pixels")
        # 32-bit containers are met with 8-bit, 16-bit or unit-range values: the maximum tells which
        top = 65535.0 if values.max() > 255 or image.mode.startswith("I;16") else 255.0 if values.max() > 1 else 1.0
        image = Image.fromarray(np.clip(values / top * 255.0 + 0.5, 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.new("RGBA", rgba.size, "white")
        image.alpha_composite(rgba)
    return np.ascontiguousarray(np.asarray(image.convert("RGB")))


def _from_array(a: np.ndarray) -> np.ndarray:
    if a.ndim == 2:
        a = a[:, :, None]
    if a.ndim != 3 or a.shape[2] not in (1, 3, 4) or 0 in a.shape:
        raise ImageError(f"image array must be [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], got {list(a.shape)}")
    if a.dtype == np.uint16:
        a = (a >> 8).astype(np.uint8)
    elif np.issubdtype(a.dtype, np.floating):
        if not np.isfinite(a).all():
            raise ImageError("image array has NaN or infinite values")
        if a.min() < 0 or a.max() > 1:
            raise ImageError(f"a float image array must lie in 0..1, got {a.min():.3g}..{a.max():.3g}")
        a = (a * 255.0 + 0.5).astype(np.uint8)
    elif a.dtype != np.uint8:
        raise ImageError(f"image array must be uint8, uint16 or float in 0..1, got {a.dtype}")
    if a.shape[2] == 4:
        return _from_pil(Image.fromarray(np.ascontiguousarray(a)), "image", False)
    return np.ascontiguousarray(np.repeat(a, 3, axis=2) if a.shape[2] == 1 else a)


def find_images(sources: Iterable[str | Path]) -> tuple[list[Path], list[str]]:
    """Expands files, folders (not recursive) and glob patterns.

    Returns:
        Paths in order, each once, and one error line per source that gave nothing.
    """
    found: dict[Path, None] = {}
    errors: list[str] = []
    for source in sources:
        path = Path(source)
        if os.path.isdir(path):  # not Path.is_dir: it raises for names that no file can have
            inside = natural_sorted(p for p in path.iterdir() if p.suffix.lower() in EXTENSIONS and not p.is_dir())
            if not inside:
                errors.append(f"{path}: the folder holds no image ({', '.join(EXTENSIONS)})")
            found.update(dict.fromkeys(inside))
        elif any(c in str(source) for c in "*?[") and not os.path.exists(path):
            matches = natural_sorted(Path(p) for p in glob.glob(str(source), recursive=True))
            matches = [p for p in matches if p.is_file()]
            if not matches:
                errors.append(f"{source}: no file matches")
            found.update(dict.fromkeys(matches))
        else:
            found[path] = None  # a missing file is reported when it is read, like any other bad file
    return list(found), errors


def check_box(box: Sequence[float], width: int, height: int, what: str) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) in pixels of a width x height image, or ImageError."""
    try:
        values = [float(v) for v in box]
    except (TypeError, ValueError):
        values = []
    if len(values) != 4:
        raise ImageError(f"{what}: a box is four numbers x0, y0, x1, y1 in pixels, got {box!r}")
    x0, y0, x1, y1 = values
    if not np.isfinite(values).all():
        raise ImageError(f"{what}: the box {values} has NaN or infinite numbers")
    if max(map(abs, values)) > MAX_COORDINATE:
        raise ImageError(f"{what}: the box {values} has numbers that are no pixels")
    if x1 - x0 < 2 or y1 - y0 < 2:
        raise ImageError(f"{what}: the box {values} needs x0 < x1 and y0 < y1 (at least 2 pixels)")
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise ImageError(f"{what}: the box {values} lies outside the {width}x{height} image")
    return x0, y0, x1, y1


def check_boxes(
    boxes: Iterable[Sequence[float]], width: int, height: int, what: str
) -> tuple[list[tuple[float, float, float, float]], list[str]]:
    """Usable boxes, and a line for each of the others: a bad box costs itself. ImageError where none is left of
    some."""
    good, bad = [], []
    for k, box in enumerate(boxes):
        try:
            good.append(check_box(box, width, height, f"{what}: box {k}"))
        except ImageError as e:
            bad.append(str(e))
    if bad and not good:
        raise ImageError(bad[0] + (f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""))
    return good, bad
