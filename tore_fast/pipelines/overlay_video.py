"""An .mp4 of the input video with the bodies drawn over it, from the track files of video.py.

In: frames and `track_*.npz`; out: overlay.mp4 (H.264). Needs the extra `video` (imageio, imageio-ffmpeg). Poses are
read from disk in pieces and frames one at a time, so memory does not grow with the video.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from ..body import Body
from ..io.atomic import PendingFile
from ..io.video import VideoSource, why_no_mp4, write_mp4
from ..vis.overlay import PALETTE, PerspectiveCamera, draw_people
from .track_store import NpzRows

PIECE = 64  # frames of a track read at once
SEGMENT = 240  # frames of the video that a kill can cost


class _TrackFile:
    """One file's vertices by frame, frames asked for in rising order."""

    def __init__(self, path: Path, body: Body):
        self.rows, self.body = NpzRows(path), body
        ends = self.rows.rows("frame", 0, 1)
        self.first = int(ends[0]) if len(ends) else 0
        self.per_frame_betas = self.rows.array("betas").ndim == 2
        self.number = int(self.rows.array("track"))
        self._start, self._vertices = -PIECE, np.zeros((0, 0, 3), np.float32)
        self._cameras: list[PerspectiveCamera] = []

    @torch.inference_mode()
    def at(self, frame: int) -> tuple[np.ndarray, PerspectiveCamera] | None:
        """Vertices [V, 3] around the body's origin, and the camera that sees them; None where the track is not
        there."""
        row = frame - self.first
        if row < 0:
            return None
        if not self._start <= row < self._start + PIECE:
            self._start = row - row % PIECE
            a, b = self._start, self._start + PIECE
            device = self.body.template.device
            poses = torch.from_numpy(self.rows.rows("poses", a, b).copy()).to(device)
            shape = self.rows.rows("betas", a, b) if self.per_frame_betas else self.rows.array("betas")[None]
            betas = torch.from_numpy(shape.copy()).to(device)[:, : self.body.num_betas]
            if len(poses):
                self._vertices = self.body(poses, betas.expand(len(poses), -1)).vertices.cpu().numpy()
            else:
                self._vertices = np.zeros((0, 0, 3), np.float32)
            numbers = (self.rows.rows(k, a, b) for k in ("focal_px", "trans", "principal_px"))
            self._cameras = [PerspectiveCamera(float(f), tuple(t), tuple(c)) for f, t, c in zip(*numbers)]
        k = row - self._start
        return (self._vertices[k], self._cameras[k]) if k < len(self._vertices) else None


def overlay_frames(
    frames: Iterator[tuple[int, np.ndarray]], tracks: Sequence[Path], body: Body
) -> Iterator[tuple[int, np.ndarray]]:
    """Frames with every track's body drawn where its camera saw it; colours follow the track number."""
    opened = [_TrackFile(p, body) for p in tracks]
    try:
        for index, frame in frames:
            shown = [(t, v) for t in opened if (v := t.at(index)) is not None]
            yield (
                index,
                draw_people(
                    frame,
                    [v for _, (v, _) in shown],
                    body.faces(0),
                    [c for _, (_, c) in shown],
                    colours=[PALETTE[t.number % len(PALETTE)] for t, _ in shown] or PALETTE,
                ),
            )
    finally:
        for t in opened:
            t.rows.close()


def write_overlay(
    source: VideoSource,
    tracks: Sequence[Path],
    body: Body,
    path: str | Path,
    limit: int | None = None,
    on_frame: Callable[[int], None] | None = None,
    segment: int = SEGMENT,
) -> Path:
    """PATH (.mp4) of the whole video; it appears when finished.

    Frames go to a hidden folder beside it in pieces of `segment` frames, joined at the end without encoding again. A
    killed run started again keeps the whole pieces, if video, tracks and limit are the same.

    Raises:
        ValueError: imageio-ffmpeg is missing.
    """
    if reason := why_no_mp4():
        raise ValueError(reason)
    path = Path(path)
    folder = path.with_name(f".{path.stem}_pieces")
    done = _whole_pieces(folder, source, tracks, limit, segment)
    frames = source.frames(done * segment)
    if limit is not None:
        frames = itertools.takewhile(lambda item: item[0] < limit, frames)
    drawn = overlay_frames(frames, tracks, body)
    for first in drawn:
        piece = itertools.chain((first,), itertools.islice(drawn, segment - 1))
        write_mp4(folder / f"{done:05d}.mp4", _counted(piece, on_frame), source.fps)
        done += 1
    if not done:
        raise ValueError(f"write_overlay: {source.path} gave no frame")
    _join(sorted(folder.glob("[0-9]*.mp4")), path)
    shutil.rmtree(folder)
    return path


def _whole_pieces(folder: Path, source: VideoSource, tracks: Sequence[Path], limit: int | None, segment: int) -> int:
    """How many pieces an earlier run of the same work left; anything else in the folder is removed."""
    files = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in tracks]
    work = json.dumps(
        {"video": str(source.path), "fps": source.fps, "limit": limit, "frames": segment, "tracks": files}
    )
    note = folder / "work.json"
    if not note.exists() or note.read_text() != work:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        note.write_text(work)
    for part in folder.glob(".*.mp4"):
        part.unlink()
    return len(list(folder.glob("[0-9]*.mp4")))


def _counted(frames: Iterable[tuple[int, np.ndarray]], on_frame: Callable[[int], None] | None) -> Iterator[np.ndarray]:
    for index, frame in frames:
        yield frame
        if on_frame is not None:
            on_frame(index)


def _join(pieces: Sequence[Path], path: Path) -> None:
    """One video from pieces of the same encoder settings."""
    if len(pieces) == 1:
        pieces[0].replace(path)
        return
    from imageio_ffmpeg import get_ffmpeg_exe

    names, pending = pieces[0].with_name("pieces.txt"), PendingFile(path)
    names.write_text("".join(f"file '{p.name}'\n" for p in pieces))
    command = [get_ffmpeg_exe(), "-y", "-v", "error", "-f", "concat", "-i", str(names), "-c", "copy", str(pending.part)]
    made = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if made.returncode:
        pending.discard()
        raise RuntimeError(f"{path}: ffmpeg could not join the pieces: {made.stderr.strip()}")
    pending.commit()
