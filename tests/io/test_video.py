"""Frames, boxes and masks of videos, and their errors."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tore_fast.io.image import ImageError
from tore_fast.io.video import MaskFolder, TrackBoxes, open_video


def test_box_files(tmp_path):
    csv = tmp_path / "b.csv"
    csv.write_text("frame,track,x0,y0,x1,y1\n0,2,1,2,30,40\n# note\n5,0,1,2,30,40\n")
    boxes = TrackBoxes.read(csv)
    assert boxes.at(0) == {2: (1.0, 2.0, 30.0, 40.0)} and boxes.tracks == [0, 2] and boxes.at(3) == {}
    js = tmp_path / "b.json"
    js.write_text('{"1": [[0, 1, 2, 30, 40], [1, 1, 2, 30, 40]]}')
    assert TrackBoxes.read(js).at(1) == {1: (1, 2, 30, 40)}
    for text, message in (
        ("0,0,1,2,30", "line 1: expected frame"),
        ("0,0,5,2,3,40\n", "x0 < x1"),
        ("", "holds no box"),
        ("0,0,1,2,30,40\n0,0,1,2,30,40", "two boxes"),
        ("0,0,nan,2,30,40", "x0 < x1"),
        ("-1,0,1,2,30,40", "count from 0"),
    ):
        csv.write_text(text)
        with pytest.raises(ImageError, match=message):
            TrackBoxes.read(csv)
    js.write_text('{"a": [[0, 1, 2, 30, 40]]}')
    with pytest.raises(ImageError, match="track 'a'"):
        TrackBoxes.read(js)


def test_mask_folders(tmp_path):
    values = np.zeros((20, 30), np.uint8)
    values[5:10, 5:10], values[12:15, 12:15] = 1, 2
    Image.fromarray(values).save(tmp_path / "000000.png")
    (tmp_path / "7").mkdir()
    Image.fromarray((values > 0).astype(np.uint8) * 255).save(tmp_path / "7" / "1.png")
    masks = MaskFolder(tmp_path)
    assert masks.at(0, 0, False, (20, 30)).sum() == 25 and masks.at(0, 1, False, (20, 30)).sum() == 9
    assert masks.at(1, 7, False, (20, 30)).sum() == 34 and masks.at(1, 3, False, (20, 30)) is None
    with pytest.raises(ImageError, match="30x20, the frame 40x30"):
        masks.at(0, 0, False, (30, 40))
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(ImageError, match="named FRAME.png"):
        MaskFolder(tmp_path)


def test_video_sources(tmp_path):
    with pytest.raises(ImageError, match="no such video"):
        open_video(tmp_path / "none.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="holds no frame"):
        open_video(tmp_path / "empty")
    (tmp_path / "zero.mp4").write_bytes(b"")
    with pytest.raises(ImageError, match="the file is empty"):
        open_video(tmp_path / "zero.mp4")
    for i in range(3):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / "empty" / f"{i:03d}.png")
    source = open_video(tmp_path / "empty", fps=12.5)
    assert source.fps == 12.5 and [i for i, _ in source.frames(1)] == [1, 2]


def test_video_file(tmp_path):
    imageio = pytest.importorskip("imageio.v2", reason="needs the extra tore_fast[video]")
    pytest.importorskip("imageio_ffmpeg", reason="needs the extra tore_fast[video]")
    with imageio.get_writer(tmp_path / "v.mp4", fps=10, macro_block_size=8) as writer:
        for i in range(12):
            writer.append_data(np.full((64, 64, 3), 20 * i, np.uint8))
    source = open_video(tmp_path / "v.mp4")
    frames = list(source.frames(4))
    assert source.fps == 10 and [i for i, _ in frames] == list(range(4, 12))
    assert abs(float(frames[0][1].mean()) - 80) < 6 and frames[0][1].shape == (64, 64, 3)
    (tmp_path / "bad.mp4").write_bytes(b"not a video" * 50)
    with pytest.raises(ImageError, match="bad.mp4"):
        list(open_video(tmp_path / "bad.mp4").frames())


def ffmpeg(*words) -> None:
    import subprocess

    exe = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    subprocess.run([exe, "-v", "error", "-y", *map(str, words)], check=True)


def varying(tmp_path):
    """40 frames of rising brightness, 20 at 15 and 20 at 30 a second."""
    stamps = "setpts='if(lt(N,20),N/15,20/15+(N-20)/30)/TB'"
    source = "color=black:s=64x48:r=30:d=1.34,geq=lum='16+N*5':cb=128:cr=128," + stamps
    ffmpeg(
        "-f", "lavfi", "-i", source, "-frames:v", 40, "-fps_mode", "vfr", "-enc_time_base", "1/30", tmp_path / "vfr.mp4"
    )
    return tmp_path / "vfr.mp4"


def test_frames_of_a_variable_rate_are_decoded_as_stored(tmp_path):
    video = open_video(varying(tmp_path))
    frames = [int(f.mean()) for _, f in video.frames()]
    assert len(frames) == len(set(frames)) == len(video.times) == 40 and video.variable
    assert video.time_of(0) == 0 and video.time_of(20) == pytest.approx(20 / 15, abs=0.01)
    assert video.time_of(39) == pytest.approx(20 / 15 + 19 / 30, abs=0.01) and video.fps == pytest.approx(
        39 / 1.967, rel=0.01
    )
    assert not open_video(video.path, fps=20).variable


def test_a_cut_video_gives_its_frames_and_a_line(tmp_path):
    whole = varying(tmp_path)
    ffmpeg("-i", whole, "-c", "copy", "-movflags", "faststart", tmp_path / "whole.mp4")
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 8 // 10])
    seen = []
    with pytest.raises(ImageError, match="cut.mp4: damaged or cut off") as e:
        seen += [i for i, _ in open_video(tmp_path / "cut.mp4").frames() if not seen.append(i)]
    assert 0 < len(seen) < 40 and "\n" not in str(e.value)


def test_what_only_calls_itself_a_video_leads_nowhere(tmp_path):
    import os

    secret = tmp_path / "secret.mkv"
    ffmpeg("-f", "lavfi", "-i", "testsrc=d=0.2:s=64x48", secret)
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{secret}'\n")
    (tmp_path / "hls.mp4").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n"
    )
    (tmp_path / "noise.mp4").write_bytes(os.urandom(5000))
    os.mkfifo(tmp_path / "pipe.mp4")
    os.symlink("/dev/zero", tmp_path / "zero.mp4")
    for name in ("list.mp4", "hls.mp4", "noise.mp4", "pipe.mp4", "zero.mp4", "x" * 300 + ".mp4"):
        with pytest.raises(ImageError) as e:
            open_video(tmp_path / name)
        assert "\n" not in str(e.value) and len(str(e.value)) < 500, name


def test_a_bad_frame_of_a_folder_costs_itself(tmp_path):
    for i in range(4):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"nothing")
    video = open_video(tmp_path)
    assert [i for i, _ in video.frames()] == [0, 1, 3] and len(video.problems) == 1 and "2.png" in video.problems[0]
