"""Images of tars, folders and files as places to read them from: a list that is small, ordered and can be stored.

In: names as a user types them; out: `Image` for each, read when its turn comes. Used by pipelines/batch.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..io.image import EXTENSIONS, MAX_BYTES, ImageError
from ..io.natural import natural_sorted
from ..io.open_file import MAX_TEXT, open_regular, read_regular
from .readers.hmr2_tar import expand_tars, tar_samples


class Image(NamedTuple):
    """One image of a unit: a file, or a byte range of a tar."""

    name: str
    path: str
    offset: int = -1  # -1: the whole file
    size: int = 0
    boxes_offset: int = -1  # byte range of its KEY.json in the tar, where there is one
    boxes_size: int = 0

    def read(self) -> bytes:
        return _range(self.path, self.offset, self.size)

    def sidecar(self) -> bytes | None:
        """KEY.json beside the image, or None."""
        if self.offset >= 0:
            return _range(self.path, self.boxes_offset, self.boxes_size) if self.boxes_offset >= 0 else None
        path = Path(self.path).with_suffix(".json")
        return read_regular(path, MAX_TEXT, "box file") if os.path.isfile(path) else None


def _range(path: str, offset: int, size: int) -> bytes:
    if offset < 0:
        return read_regular(path, MAX_BYTES, "image file")
    with open_regular(path, "tar") as f:
        f.seek(offset)
        return f.read(max(0, min(size, os.fstat(f.fileno()).st_size - offset)))  # a header may claim any size


def list_images(inputs: Iterable[str | Path]) -> list[Image]:
    """Images of tars, tar patterns, folders (with all below) and files, in a fixed order, each once.

    Raises:
        ImageError: an input that gives no image. MissingData, DataError: a tar that is not there or broken.
    """
    found: dict[str, Image] = {}
    known: set[tuple[str, int]] = set()  # file and place in it
    for source in inputs:
        images = _images_of(source)
        if not images:
            raise ImageError(f"{source}: no image in it")
        for image in images:
            if (image.path, image.offset) not in known:
                known.add((image.path, image.offset))
                name, copy = image.name, 1
                while name in found:  # a tar may hold a name twice
                    copy += 1
                    name = f"{image.name}#{copy}"
                found[name] = image._replace(name=name)
    if not found:
        raise ImageError("no input; expected tars, folders or images")
    return list(found.values())


def _images_of(source: str | Path) -> list[Image]:
    path = Path(source)
    if str(source).endswith(".tar"):
        return list(_tar_images(expand_tars(source)))
    if os.path.isdir(path):
        files = natural_sorted(p for p in path.rglob("*") if p.is_file())
        plain = [Image(p.as_posix(), str(p.resolve())) for p in files if p.suffix.lower() in EXTENSIONS]
        return [*plain, *_tar_images([p for p in files if p.suffix == ".tar"])]
    if os.path.isfile(path) and path.suffix.lower() in EXTENSIONS:
        return [Image(path.as_posix(), str(path.resolve()))]
    raise ImageError(f"{source}: expected a tar, a folder or an image ({', '.join(EXTENSIONS)})")


def _tar_images(tars: list[Path]) -> Iterator[Image]:
    for tar in tars:
        for key, members in tar_samples([tar]):
            boxes = members.get("json")
            beside = (boxes.offset, boxes.size) if boxes else (-1, 0)
            for extension, member in members.items():
                if f".{extension}" in EXTENSIONS:
                    name = f"{tar.as_posix()}:{key}.{extension}"
                    yield Image(name, str(tar.resolve()), member.offset, member.size, *beside)
