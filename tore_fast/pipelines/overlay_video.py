"""An .mp4 of the input video with the bodies drawn over it, from the track files of video_to_mesh.py.

In: frames and `track_*.npz`; out: overlay.mp4 (H.264). Needs the extra `video` (imageio, imageio-ffmpeg). Poses are read
from disk in pieces and frames one at a time, so memory does not grow with the video.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from ..body import Body
from ..data.video import VideoSource
from ..vis.overlay import PALETTE, PerspectiveCamera, draw_people
from .track_store import NpzRows

PIECE = 64  # frames of a track read at once


def why_no_mp4() -> str | None:
    """Reason why mp4 files cannot be written here, None when they can."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as e:
        return f"mp4 needs imageio and imageio-ffmpeg: pip install tore_fast[video] ({e})"
    return None


class _Track:
    """One file's vertices by frame, frames asked for in rising order."""

    def __init__(self, path: Path, body: Body):
        self.rows, self.body = NpzRows(path), body
        ends = self.rows.rows("frame_ids", 0, 1)
        self.first = int(ends[0]) if len(ends) else 0
        self.per_frame_betas = self.rows.array("betas").ndim == 2
        self.focal, self.centre = float(self.rows.array("cam_K")[0, 0]), self.rows.array("cam_K")[:2, 2]
        self.number = int(self.rows.array("track_id"))
        self._start, self._vertices = -PIECE, np.zeros((0, 0, 3), np.float32)

    @torch.inference_mode()
    def at(self, frame: int) -> np.ndarray | None:  # [V, 3]
        row = frame - self.first
        if row < 0:
            return None
        if not self._start <= row < self._start + PIECE:
            self._start = row - row % PIECE
            a, b = self._start, self._start + PIECE
            device = self.body.template.device
            poses, trans = (torch.from_numpy(self.rows.rows(k, a, b).copy()).to(device) for k in ("poses", "trans"))
            betas = self.rows.rows("betas", a, b) if self.per_frame_betas else self.rows.array("betas")[None]
            betas = torch.from_numpy(betas.copy()).to(device)[:, : self.body.num_betas]
            if len(poses):
                posed = self.body(poses, betas.expand(len(poses), -1), trans)
                self._vertices = posed.vertices.cpu().numpy()
            else:
                self._vertices = np.zeros((0, 0, 3), np.float32)
        return self._vertices[row - self._start] if row - self._start < len(self._vertices) else None


def overlay_frames(
    frames: Iterator[tuple[int, np.ndarray]], tracks: Sequence[Path], body: Body
) -> Iterator[tuple[int, np.ndarray]]:
    """Frames with every track's body drawn where its camera saw it; colours follow the track number."""
    opened = [_Track(p, body) for p in tracks]
    try:
        for index, frame in frames:
            shown = [(t, v) for t in opened if (v := t.at(index)) is not None]
            yield index, draw_people(
                frame, [v for _, v in shown], body.faces(0),
                [PerspectiveCamera(t.focal, (0.0, 0.0, 0.0), tuple(t.centre)) for t, _ in shown],
                colours=[PALETTE[t.number % len(PALETTE)] for t, _ in shown] or PALETTE,
            )  # fmt: skip
    finally:
        for t in opened:
            t.rows.close()


def write_overlay(
    source: VideoSource, tracks: Sequence[Path], body: Body, path: str | Path, limit: int | None = None,
    on_frame: Callable[[int], None] | None = None,
) -> Path:  # fmt: skip
    """PATH (.mp4) of the whole video; it appears when finished.

    Raises:
        ValueError: imageio-ffmpeg is missing.
    """
    reason = why_no_mp4()
    if reason:
        raise ValueError(reason)
    import imageio.v2 as imageio

    path = Path(path)
    hidden = path.with_name(f".{path.stem}.part.mp4")
    writer = imageio.get_writer(hidden, format="ffmpeg", fps=source.fps, codec="libx264", quality=7, macro_block_size=1,
                                ffmpeg_log_level="error")  # fmt: skip
    try:
        with writer:
            for index, frame in overlay_frames(source.frames(), tracks, body):
                if limit is not None and index >= limit:
                    break
                h, w = frame.shape[:2]
                writer.append_data(np.pad(frame, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge"))  # H.264 wants even sides
                if on_frame is not None:
                    on_frame(index)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise
    hidden.replace(path)
    return path
