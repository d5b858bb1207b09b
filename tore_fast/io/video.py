"""Frames of a video file or of a folder of images, one at a time; boxes and masks of the people in them.

In: clip.mp4 (needs the extra `video`: imageio, imageio-ffmpeg) or frames/; out: (index, [H, W, 3] uint8 RGB) in order,
never the whole video in memory. Next on the way: geometry/warp.py, pipelines/video.py.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .atomic import replacing
from .image import EXTENSIONS, ImageError, read_image, read_labels
from .natural import natural_sorted

VIDEO_EXTENSIONS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class VideoSource:
    """A video as a sequence of frames. `fps` is 30 for folders unless given."""

    path: Path
    fps: float
    is_folder: bool

    def frames(self, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """(index, RGB frame) from frame `start` on."""
        if self.is_folder:
            for i, path in enumerate(folder_frames(self.path)):
                if i >= start:
                    yield i, read_image(path)
            return
        imageio = _imageio()
        try:
            with imageio.get_reader(self.path, format="ffmpeg") as reader:
                for i, frame in enumerate(reader):
                    if i >= start:
                        yield i, np.ascontiguousarray(frame[..., :3])
        except (OSError, RuntimeError, ValueError, SyntaxError) as e:
            raise ImageError(f"{self.path}: damaged video ({e})") from None


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
    """H.264 video of RGB frames [H, W, 3] uint8; odd sides are padded by repeating their last line. Whole or not at all.

    Raises:
        ValueError: imageio or imageio-ffmpeg is missing.
    """
    if reason := why_no_mp4():
        raise ValueError(f"{path}: {reason}")
    imageio = _imageio()
    # B-frames shift a file's first time stamp, which doubles a frame where files are joined
    options = {"quality": 7, "macro_block_size": 1, "ffmpeg_log_level": "error", "output_params": ["-bf", "0"]}
    with replacing(path) as part, imageio.get_writer(part, format="ffmpeg", fps=fps, codec="libx264", **options) as out:
        for frame in frames:
            h, w = frame.shape[:2]
            out.append_data(np.pad(frame, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge"))


def open_video(path: str | Path, fps: float | None = None) -> VideoSource:
    """A video file or a folder of frames.

    Raises:
        ImageError: missing, empty, unreadable; or imageio is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise ImageError(f"{path}: no such video or folder")
    if path.is_dir():
        if not folder_frames(path):
            raise ImageError(f"{path}: the folder holds no frame ({', '.join(EXTENSIONS)})")
        return VideoSource(path, fps or 30.0, True)
    if path.stat().st_size == 0:
        raise ImageError(f"{path}: the file is empty")
    try:
        imageio = _imageio()
    except ImportError:
        raise ImageError(
            f"{path}: reading videos needs imageio; pip install imageio imageio-ffmpeg, or give a folder of frames"
        ) from None
    try:
        with imageio.get_reader(path, format="ffmpeg") as reader:
            rate = float(reader.get_meta_data().get("fps") or 30.0)
    except ImportError:
        raise ImageError(f"{path}: reading videos needs imageio-ffmpeg; pip install imageio-ffmpeg") from None
    except (OSError, RuntimeError, ValueError, SyntaxError, KeyError) as e:
        raise ImageError(
            f"{path}: not a video that ffmpeg can read ({str(e).splitlines()[0] if str(e) else e})"
        ) from None
    return VideoSource(path, fps or rate, False)


class TrackBoxes:
    """Boxes of tracked people: `at(frame)` -> {track id: box}.

    File forms: CSV rows `frame,track,x0,y0,x1,y1` (header optional); JSON {"track": [[frame, x0, y0, x1, y1], ...]}.
    """

    def __init__(self, table: dict[int, dict[int, Box]]):
        self._table = table

    def at(self, frame: int) -> dict[int, Box]:
        return self._table.get(frame, {})

    @property
    def tracks(self) -> list[int]:
        return sorted({t for row in self._table.values() for t in row})

    @classmethod
    def read(cls, path: str | Path) -> TrackBoxes:
        path = Path(path)
        if not path.is_file():
            raise ImageError(f"{path}: no such box file")
        text = path.read_text(encoding="utf-8-sig")
        rows = _json_rows(path, text) if path.suffix.lower() == ".json" else _csv_rows(path, text)
        table: dict[int, dict[int, Box]] = {}
        for where, frame, track, box in rows:
            x0, y0, x1, y1 = box
            if not np.isfinite(box).all() or x1 - x0 < 2 or y1 - y0 < 2:
                raise ImageError(f"{path}: {where}: a box needs x0 < x1 and y0 < y1 (at least 2 pixels), got {box}")
            if frame < 0 or track < 0:
                raise ImageError(f"{path}: {where}: frame and track count from 0, got {frame} and {track}")
            if track in table.setdefault(frame, {}):
                raise ImageError(f"{path}: {where}: track {track} has two boxes in frame {frame}")
            table[frame][track] = box
        if not table:
            raise ImageError(f"{path}: holds no box; expected rows frame,track,x0,y0,x1,y1")
        return cls(table)


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, int, int, Box]]:
    for number, row in enumerate(csv.reader(text.splitlines()), start=1):
        if not row or row[0].startswith("#"):
            continue
        try:
            frame, track, *box = (float(v) for v in row)
        except ValueError:
            if number == 1:  # a header
                continue
            frame, track, box = 0.0, 0.0, []
        if len(box) != 4 or frame != int(frame) or track != int(track):
            raise ImageError(f"{path}: line {number}: expected frame,track,x0,y0,x1,y1, got {','.join(row)!r}")
        yield f"line {number}", int(frame), int(track), (box[0], box[1], box[2], box[3])


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, int, int, Box]]:
    form = '{"0": [[frame, x0, y0, x1, y1], ...]}'
    try:
        data = json.loads(text)
    except json.JSONDecodeError as e:
        raise ImageError(f"{path}: not JSON (line {e.lineno}: {e.msg})") from None
    if not isinstance(data, dict):
        raise ImageError(f"{path}: expected {form}, got {type(data).__name__}")
    for track, rows in data.items():
        for row in rows if isinstance(rows, list) else [rows]:
            ok = isinstance(row, list) and len(row) == 5 and all(isinstance(v, (int, float)) for v in row)
            if not ok or not str(track).isdigit():
                raise ImageError(f"{path}: track {track!r}: expected {form}, got {row!r}")
            yield f"track {track}", int(row[0]), int(track), (row[1], row[2], row[3], row[4])


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
