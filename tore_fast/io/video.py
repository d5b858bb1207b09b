"""Frames of a video file or of a folder of images, one at a time; boxes and masks of the people in them.

In: clip.mp4 (needs the extra `video`: imageio, imageio-ffmpeg) or frames/; out: (index, [H, W, 3] uint8 RGB) in order,
never the whole video in memory. Next on the way: geometry/warp.py, pipelines/video.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import ffmpeg
from .atomic import replacing
from .boxes import Box, BoxFileError, read_box_rows
from .image import EXTENSIONS, ImageError, read_image, read_labels
from .natural import natural_sorted

VIDEO_EXTENSIONS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


@dataclass(frozen=True)
class VideoSource:
    """A video as a sequence of frames, each decoded as it is stored: none twice, none left out."""

    path: Path
    fps: float  # of a folder 30 unless given; of a variable rate the mean
    is_folder: bool
    times: np.ndarray | None = None  # [N] seconds of each frame from the first on, where the file says them
    variable: bool = False  # whether the time between frames varies
    missing_s: float = 0.0  # by which the file is shorter than it says
    problems: list[str] = field(default_factory=list, compare=False)  # a line for each frame left out

    def frames(self, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """(index, RGB frame) from frame `start` on. Images of a folder that cannot be read are left out; `problems`
        names them.

        Raises:
            ImageError: a damaged video, after the frames before the damage.
        """
        if self.is_folder:
            for i, path in enumerate(folder_frames(self.path)):
                if i < start:
                    continue
                try:
                    frame = read_image(path)
                except ImageError as e:
                    self.problems.append(str(e))
                    continue
                yield i, frame
            return
        for i, frame in enumerate(ffmpeg.decode(self.path)):
            if i >= start:
                yield i, frame
        if self.missing_s:
            raise ImageError(
                f"{self.path}: cut off: it is {self.missing_s:.1f} s shorter than it says; the rest was read"
            )

    def time_of(self, frame: int) -> float:
        """Seconds from the first frame to frame number `frame`."""
        if self.times is None or not len(self.times):
            return frame / self.fps
        last = len(self.times) - 1
        return float(self.times[min(frame, last)]) + max(0, frame - last) / self.fps


def folder_frames(folder: Path) -> list[Path]:
    """Images of a folder in the natural order of their names."""
    return natural_sorted(p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS)


def _imageio() -> Any:  # its readers and writers have no usable types
    import imageio.v2

    return imageio.v2


def why_no_mp4() -> str | None:
    """Reason why mp4 files cannot be written here, None when they can."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as e:
        return f"mp4 needs imageio and imageio-ffmpeg: pip install imageio imageio-ffmpeg ({e})"
    return None


def write_mp4(path: str | Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """H.264 video of RGB frames [H, W, 3] uint8, the size of the first; odd sides are padded by repeating their last
    line.

    Whole or not at all.

    Raises:
        ValueError: imageio or imageio-ffmpeg is missing.
    """
    if reason := why_no_mp4():
        raise ValueError(f"{path}: {reason}")
    imageio = _imageio()
    # B-frames shift a file's first time stamp, which doubles a frame where files are joined
    options = {"quality": 7, "macro_block_size": 1, "ffmpeg_log_level": "error", "output_params": ["-bf", "0"]}
    size: tuple[int, int] | None = None
    with replacing(path) as part, imageio.get_writer(part, format="ffmpeg", fps=fps, codec="libx264", **options) as out:
        for frame in frames:
            size = size or (frame.shape[0], frame.shape[1])
            h, w = size
            if frame.shape[:2] != size:
                frame = _fitted(frame, size)
            out.append_data(np.pad(frame, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge"))


def _fitted(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A frame of another size in the middle of a black one of `size` (H, W)."""
    h, w = size
    scale = min(h / frame.shape[0], w / frame.shape[1])
    inner = max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale))
    out = np.zeros((h, w, 3), np.uint8)
    y, x = (h - inner[1]) // 2, (w - inner[0]) // 2
    out[y : y + inner[1], x : x + inner[0]] = np.asarray(Image.fromarray(frame).resize(inner))
    return out


def open_video(path: str | Path, fps: float | None = None) -> VideoSource:
    """A video file or a folder of frames.

    Raises:
        ImageError: missing, empty, unreadable; or imageio is not installed.
    """
    path = Path(path)
    if fps is not None and not 0 < fps < 1e6:
        raise ImageError(f"{path}: the frame rate must be positive, got {fps:g}")
    if os.path.isdir(path):
        if not folder_frames(path):
            raise ImageError(f"{path}: the folder holds no frame ({', '.join(EXTENSIONS)})")
        return VideoSource(path, fps or 30.0, True)
    try:
        facts = ffmpeg.probe(path)
    except ImportError:
        raise ImageError(
            f"{path}: reading videos needs imageio-ffmpeg; pip install imageio-ffmpeg, or give a folder of frames"
        ) from None
    return VideoSource(
        path, fps or facts.fps, False, facts.times if fps is None else None, facts.variable and fps is None
    )


class TrackBoxes:
    """Boxes of tracked people: `at(frame)` -> {track id: box}.

    File forms (io/boxes.py): CSV rows `frame,track,x0,y0,x1,y1`, or columns as a header names them; MOT; COCO with
    images that are frames; JSON {"track": [[frame, x0, y0, x1, y1], ...]}. `tracked` is False where the file has no
    track numbers: those of `at` are then ranks within the frame.
    """

    def __init__(self, table: dict[int, dict[int, Box]], tracked: bool = True):
        self._table, self.tracked = table, tracked

    def at(self, frame: int) -> dict[int, Box]:
        return self._table.get(frame, {})

    @property
    def frames(self) -> list[int]:
        return sorted(self._table)

    @property
    def tracks(self) -> list[int]:
        return sorted({t for row in self._table.values() for t in row})

    @classmethod
    def read(cls, path: str | Path) -> TrackBoxes:
        """Boxes of a file; ImageError, one line, for what is wrong in it."""
        try:
            rows = read_box_rows(path, videos=True)
        except BoxFileError as e:
            raise ImageError(str(e)) from None
        tracked = any(row.track is not None for row in rows)
        table: dict[int, dict[int, Box]] = {}
        for row in rows:
            x0, y0, x1, y1 = row.box
            if not np.isfinite(row.box).all() or x1 - x0 < 2 or y1 - y0 < 2:
                raise ImageError(
                    f"{path}: {row.where}: a box needs x0 < x1 and y0 < y1 (at least 2 pixels), got {row.box}"
                )
            frame, track = row.frame if row.frame is not None else 0, row.track
            if tracked and track is None:
                raise ImageError(f"{path}: {row.where}: no track, but others have one")
            there = table.setdefault(frame, {})
            track = len(there) if track is None else track
            if frame < 0 or track < 0:
                raise ImageError(f"{path}: {row.where}: frame and track count from 0, got {frame} and {track}")
            if track in there:
                raise ImageError(f"{path}: {row.where}: track {track} has two boxes in frame {frame}")
            there[track] = row.box
        if not table:
            raise ImageError(f"{path}: holds no box; expected rows frame,track,x0,y0,x1,y1")
        return cls(table, tracked)


class MaskFolder:
    """Person masks on disk: DIR/TRACK/FRAME.png (any value > 0 is the person) or DIR/FRAME.png (value = track + 1;
    with a single value > 0 in the image and a single track, that is the person). FRAME is the frame's number."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ImageError(f"{folder}: no such mask folder")
        self._files: dict[tuple[int | None, int], Path] = {}
        for path in sorted(self.folder.rglob("*.png")):
            inner = path.relative_to(self.folder).parts
            if not path.stem.isdigit() or len(inner) > 2 or (len(inner) == 2 and not inner[0].isdigit()):
                raise ImageError(f"{path}: masks are named FRAME.png or TRACK/FRAME.png with numbers")
            self._files[int(inner[0]) if len(inner) == 2 else None, int(path.stem)] = path
        if not self._files:
            raise ImageError(f"{folder}: no mask; expected FRAME.png or TRACK/FRAME.png")

    def at(self, frame: int, track: int, only_track: bool, shape: tuple[int, int]) -> np.ndarray | None:
        """Mask [H, W] bool of a person, None where there is no file; ImageError if its size is not the frame's."""
        path = self._files.get((track, frame))
        own = path is not None
        path = path or self._files.get((None, frame))
        if path is None:
            return None
        values = read_labels(path)
        if values.shape != shape:
            raise ImageError(
                f"{path}: the mask is {values.shape[1]}x{values.shape[0]}, the frame {shape[1]}x{shape[0]}"
            )
        if own or (only_track and len(np.unique(values[values > 0])) <= 1):
            return values > 0
        return values == track + 1
