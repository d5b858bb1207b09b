"""Any image a user has, as one [H, W, 3] uint8 RGB array, upright; bad files end in one clear ImageError.
from .natural import natural_sorted


In: a path, a PIL image or an array. Out: pixels for geometry/warp.py. Handles EXIF rotation, grey, palettes, transparency
(over white), CMYK and 16-bit files.
"""

from __future__ import annotations

import glob
import io
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .natural import natural_sorted

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".avif", ".heic", ".heif")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")  # bytes 8..12 of a HEIF file
MAX_PIXELS = 200_000_000  # more is taken for a mistake or a decompression bomb


class ImageError(ValueError):
    """An image that cannot be used; the text names it and says why."""


_opening = threading.Lock()


def read_image(
    source: str | Path | bytes | Image.Image | np.ndarray, name: str = "image", upright: bool = True
) -> np.ndarray:
    """RGB pixels of an image.

    Args:
        source: path, bytes of a file, PIL image, or array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]; uint8, uint16 or float
            in 0..1.
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
        with _open(data) as image:
            values = np.asarray(image)
    except (OSError, SyntaxError, ValueError, EOFError) as e:
        raise ImageError(f"{path}: not a readable mask ({e})") from None
    return values[..., 0] if values.ndim == 3 else values


def _bytes_of(path: Path) -> bytes:
    if not path.exists():
        raise ImageError(f"{path}: no such file")
    if path.is_dir():
        raise ImageError(f"{path}: is a folder, expected an image file")
    try:
        return path.read_bytes()
    except OSError as e:  # unreadable: no permission, a broken disk
        raise ImageError(f"{path}: cannot be read ({e.strerror or e})") from None


def _decoded(data: bytes, name: str, upright: bool) -> np.ndarray:
    if not data:
        raise ImageError(f"{name}: the file is empty")
    try:
        with _open(data) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"{name}: {image.width}x{image.height} pixels; at most {MAX_PIXELS:,} are read")
            image.load()
            return _from_pil(image, name, upright)
    except UnidentifiedImageError:
        if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
            raise ImageError(
                f"{name}: a HEIC image; `pip install pillow-heif` makes them readable, or save it as JPEG"
            ) from None
        raise ImageError(f"{name}: not an image that Pillow can read") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as e:
        if isinstance(e, ImageError):
            raise
        raise ImageError(f"{name}: damaged or truncated image ({e})") from None


def _open(data: bytes) -> Image.Image:
    """Image.open under our own limit of pixels: Pillow's warns at half of what it refuses, and refuses 180-megapixel photographs."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        try:
            import pillow_heif
        except ImportError:
            pass
        else:
            pillow_heif.register_heif_opener()
    with _opening:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(data))
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
        if path.is_dir():
            inside = natural_sorted(p for p in path.iterdir() if p.suffix.lower() in EXTENSIONS and not p.is_dir())
            if not inside:
                errors.append(f"{path}: the folder holds no image ({', '.join(EXTENSIONS)})")
            found.update(dict.fromkeys(inside))
        elif any(c in str(source) for c in "*?[") and not path.exists():
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
    if x1 - x0 < 2 or y1 - y0 < 2:
        raise ImageError(f"{what}: the box {values} needs x0 < x1 and y0 < y1 (at least 2 pixels)")
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise ImageError(f"{what}: the box {values} lies outside the {width}x{height} image")
    return x0, y0, x1, y1
