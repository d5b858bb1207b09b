"""What a user names on the command line, by kind: images, videos, files of key points."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..io.image import EXTENSIONS, find_images
from ..io.natural import natural_sorted
from ..io.video import VIDEO_EXTENSIONS

KEYPOINT_EXTENSIONS = (".json", ".npz", ".csv")


class Inputs(NamedTuple):
    """Paths in order, each once."""

    images: list[Path]
    videos: list[Path]  # files, and folders of frames
    keypoints: list[Path]
    errors: list[str]  # a line for each input that gave nothing


def sort_inputs(sources: Iterable[str | Path], folders_are_videos: bool = False) -> Inputs:
    """Files, folders (not recursive) and glob patterns by kind. A file of no known suffix counts as an image.

    Args:
        folders_are_videos: a folder is the frames of one video, not separate photographs.
    """
    found: dict[Path, str] = {}
    errors: list[str] = []
    for source in sources:
        path = Path(source)
        if os.path.isdir(path) and folders_are_videos:
            found.setdefault(path, "video")
            continue
        if os.path.isdir(path):
            clips = natural_sorted(p for p in path.iterdir() if p.suffix.lower() in VIDEO_EXTENSIONS and not p.is_dir())
            photos, lines = find_images([path])
            found.update({p: kind_of(p) for p in (*photos, *clips) if p not in found})
            if not photos and not clips:
                errors += [f"{path}: the folder holds no image or video ({', '.join(EXTENSIONS + VIDEO_EXTENSIONS)})"]
            continue
        files, lines = find_images([source])
        errors += lines
        found.update({p: kind_of(p) for p in files if p not in found})
    by = {kind: [p for p, k in found.items() if k == kind] for kind in ("image", "video", "keypoints")}
    return Inputs(by["image"], by["video"], by["keypoints"], errors)


def kind_of(path: Path) -> str:
    """ "image", "video" or "keypoints" by the suffix."""
    suffix = path.suffix.lower()
    return "video" if suffix in VIDEO_EXTENSIONS else "keypoints" if suffix in KEYPOINT_EXTENSIONS else "image"
