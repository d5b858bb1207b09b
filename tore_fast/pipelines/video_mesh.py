"""Videos through a model of task mesh, frame by frame: meshes and joints per track, and the overlay.

In: frames (io/video.py) and the boxes of tracked people; out: track_NNN.npz (keys: results.py) and overlay.mp4, written
while frames are read, so memory does not grow with length. Models of SMPL parameters go through video.py, which also
smooths motion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ..io.image import ImageError
from ..io.video import VideoSource, write_mp4
from .images import ImagePipeline, ImageResult
from .photographs import PhotographPipeline
from .results import draw, people_arrays
from .track_store import NpzStream
from .video import Tracker

FORMATS = ("npz", "mp4")
_ROWS = ("box", "focal_px", "principal_px", "trans", "joints_3d", "vertices", "poses", "rotations", "betas")


def predict_video(
    pipeline: ImagePipeline,
    source: VideoSource,
    folder: str | Path,
    tracker: Tracker | None = None,
    formats: Sequence[str] = ("npz",),
    limit: int | None = None,
    on_frame: Callable[[int], None] | None = None,
) -> tuple[list[Path], str | None]:
    """Files of one video.

    Args:
        tracker: (frame number, frame) -> {track: box}; None: the pipeline's own way to find boxes, one track for each
            rank.
        formats: npz, mp4. limit: stop after this many frames.

    Returns:
        Paths, and the error that ended the video early (what was read is done), or None.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    streams: dict[int, NpzStream] = {}
    failed: list[str] = []

    def rows() -> Iterator[tuple[int, ImageResult]]:
        for index, tracks, result in _results(pipeline, source, tracker, limit, failed):
            for track, person in zip(tracks or range(len(result.people)), result.people):
                stream = streams.get(track)
                if stream is None:
                    stream = streams[track] = NpzStream(folder / f"track_{track:03d}.npz")
                    _put_facts(stream, pipeline, source, result, track)
                stream.append("frame", np.array([index], np.int64))
                stream.append("time", np.array([source.time_of(index)]))
                stream.append("detected", np.array([True]))
                for key, array in people_arrays([person], _ROWS).items():
                    stream.append(key, array)
            if on_frame is not None:
                on_frame(index)
            yield index, result

    try:
        if "mp4" in formats:
            write_mp4(folder / "overlay.mp4", (draw(r, pipeline) for _, r in rows()), source.fps)
        else:
            for _ in rows():
                pass
        if "npz" in formats:
            for stream in streams.values():
                stream.close()
    finally:
        for stream in streams.values():
            stream.discard()
    paths = [s.path for _, s in sorted(streams.items())] if "npz" in formats else []
    failed = [*source.problems, *failed]
    return [*paths, *([folder / "overlay.mp4"] if "mp4" in formats else [])], failed[0] if failed else None


def _put_facts(
    stream: NpzStream, pipeline: ImagePipeline, source: VideoSource, result: ImageResult, track: int
) -> None:
    facts = {
        "source": str(source.path),
        "image_size": np.array(result.size, np.int32),
        "track": track,
        "mocap_framerate": float(source.fps),
        "joint_names": np.array(pipeline.joint_names),
        "faces": np.asarray(pipeline.topology.hierarchy.faces[0], np.int32),
    }
    for key, value in facts.items():
        stream.put(key, value)


def _results(
    pipeline: ImagePipeline, source: VideoSource, tracker: Tracker | None, limit: int | None, failed: list[str]
) -> Iterator[tuple[int, list[int], ImageResult]]:
    """(frame number, its tracks, its people) of every frame."""
    numbers: list[int] = []
    tracks: list[list[int]] = []
    boxes: list[object] = []

    def frames() -> Iterator[np.ndarray]:
        try:
            for index, frame in source.frames():
                if limit is not None and index >= limit:
                    return
                found = None if tracker is None else tracker(index, frame)
                numbers.append(index)
                tracks.append([] if found is None else sorted(found))
                boxes.append(None if found is None else [found[t] for t in sorted(found)])
                yield frame
        except ImageError as e:
            failed.append(str(e))

    if tracker is None and isinstance(pipeline, PhotographPipeline):
        for people, result in pipeline.track(frames(), source.fps):
            yield numbers[-1], people, result
        return
    for position, result in enumerate(pipeline.stream(frames(), boxes)):
        if result.error is not None:
            failed.append(f"{source.path}: frame {numbers[position]}: {result.error}")
        failed.extend(f"frame {numbers[position]}: {line}" for line in result.refused)
        yield numbers[position], tracks[position], result
