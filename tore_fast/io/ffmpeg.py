"""Frames and time stamps of a video file by the ffmpeg program (extra `video`), one frame at a time.

The file is opened as a plain local file of one of FORMATS: a playlist that calls itself clip.mp4 leads nowhere else.
"""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

import numpy as np

from .image import MAX_PIXELS, ImageError
from .open_file import open_regular

FORMATS = "mov,mp4,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,gif,m4v,h264,hevc"
_VARIABLE = 0.2  # share of the usual time between frames by which another one differs in a video of variable rate
_HARMLESS = "monotonically increasing dts to muxer"  # two frames of one time stamp; both are written


class VideoFacts(NamedTuple):
    """What a file says of its frames."""

    fps: float  # frames per second; of a variable rate the mean
    times: np.ndarray  # [N] seconds from the first frame on, rising
    variable: bool
    missing_s: float = 0.0  # by which the file is shorter than it says


def _command(path: Path, *options: str, level: str = "error") -> list[str]:
    from imageio_ffmpeg import get_ffmpeg_exe

    source = ["-protocol_whitelist", "file", "-format_whitelist", FORMATS, "-max_pixels", str(MAX_PIXELS)]
    program = [get_ffmpeg_exe(), "-v", level, "-hide_banner", "-nostdin", *source, "-i", f"file:{path}"]
    return [*program, "-map", "0:v:0", *options, "-"]


def _checked(path: Path) -> None:
    try:
        with open_regular(path, "video or folder") as f:
            if not f.read(1):
                raise ImageError(f"{path}: the file is empty")
    except (OSError, ValueError) as e:
        raise ImageError(str(e)) from None


def probe(path: Path) -> VideoFacts:
    """Frame rate and time stamps, without decoding.

    Raises:
        ImageError: no video that ffmpeg reads. ImportError: no imageio-ffmpeg.
    """
    _checked(path)
    made = subprocess.run(
        _command(path, "-c", "copy", "-f", "framecrc", level="info"),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    unit, stamps = 0.0, []
    for line in made.stdout.splitlines():
        if found := re.match(r"#tb 0: (\d+)/(\d+)", line):
            unit = int(found[1]) / max(1, int(found[2]))
        elif found := re.match(r"0,\s*-?\d+,\s*(-?\d+),", line):
            stamps.append(int(found[1]))
    if not stamps:
        raise ImageError(f"{path}: not a video that ffmpeg can read ({_reason(_errors(path), path)})")
    times = np.sort(np.array(stamps, np.float64)) * unit
    times -= times[0]
    gaps = np.diff(times)
    if not len(gaps) or times[-1] <= 0:
        return VideoFacts(30.0, np.zeros(len(times)) if len(times) == 1 else np.arange(len(times)) / 30, False)
    usual = float(np.median(gaps))
    variable = bool((np.abs(gaps - usual) > max(_VARIABLE * usual, 1.5 * unit)).any())
    missing = _duration(made.stderr) - float(times[-1]) - usual
    missing = missing if missing > max(0.5, 0.1 * float(times[-1]), 3 * float(gaps.max())) else 0.0
    rate = round(len(gaps) / float(times[-1]), 3)
    stated = re.search(r"Video: .* (\d+(?:\.\d+)?) fps", made.stderr)
    if stated and not variable and abs(float(stated[1]) / rate - 1) < 0.03:  # stamps are rounded in some containers
        rate = float(stated[1])
    return VideoFacts(rate, times, variable, missing)


def _duration(said: str) -> float:
    """Seconds of the whole file by its header, 0 where it says nothing."""
    found = re.search(r"Duration: (\d+):(\d+):(\d+(?:\.\d+)?)", said)
    return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3]) if found else 0.0


def _errors(path: Path) -> str:
    """What ffmpeg has against a file."""
    command = _command(path, "-c", "copy", "-f", "null")
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stderr


def decode(path: Path) -> Iterator[np.ndarray]:
    """RGB frames [H, W, 3] uint8 as they are stored.

    Raises:
        ImageError: after the last whole frame of a file that is damaged or cut off.
    """
    _checked(path)
    command = _command(path, *_as_stored(), "-f", "image2pipe", "-c:v", "ppm")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert process.stdout is not None and process.stderr is not None
    said = bytearray()

    def listen(stream: BinaryIO) -> None:
        while text := stream.read(4096):
            said.extend(text[: max(0, 65536 - len(said))])

    listener = threading.Thread(target=listen, args=(process.stderr,), daemon=True)
    listener.start()
    count = 0
    try:
        while (frame := _frame(process.stdout)) is not None:
            count += 1
            yield frame
        process.wait()
        listener.join()
        errors = [line for line in said.decode(errors="replace").splitlines() if line.strip() and _HARMLESS not in line]
        if process.returncode or errors:
            text = _reason("\n".join(errors), path)
            if count == 0:
                raise ImageError(f"{path}: not a video that ffmpeg can read ({text})")
            raise ImageError(f"{path}: damaged or cut off; {count} frames were read ({text})")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        listener.join()
        process.stderr.close()


def _as_stored() -> list[str]:
    """Options that neither repeat nor drop frames."""
    from imageio_ffmpeg import get_ffmpeg_version

    number = re.match(r"n?(\d+)\.(\d+)", get_ffmpeg_version() or "")
    old = number is not None and (int(number[1]), int(number[2])) < (5, 1)
    return ["-vsync", "passthrough"] if old else ["-fps_mode", "passthrough"]


def _frame(stream: IO[bytes]) -> np.ndarray | None:
    """The next PPM of a stream, None at its end."""
    if stream.readline(16).strip() != b"P6":
        return None
    width, height = (int(v) for v in stream.readline(32).split())
    stream.readline(16)
    data = stream.read(width * height * 3)
    if len(data) < width * height * 3:
        return None
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def _reason(text: str, path: Path) -> str:
    """ffmpeg's first words, without its internal names."""
    lines = [re.sub(r"^\[[^\]]*\]\s*", "", line).strip() for line in text.splitlines() if line.strip()]
    reason = lines[0] if lines else "it ends too early"
    return reason.replace(f"file:{path}", "").strip(": .")[:120] or "no reason given"
