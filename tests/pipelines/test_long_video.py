"""A thousand frames of two people: flat memory, overlay, detector instead of boxes, the command killed and resumed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tore_fast.body import load_body
from tore_fast.cli import UsageError
from tore_fast.cli import predict as predict_cli
from tore_fast.data.synth.scene import Scene, write_scene
from tore_fast.io.image import read_image
from tore_fast.io.video import TrackBoxes, open_video
from tore_fast.models import create_model, save
from tore_fast.pipelines import overlay_video
from tore_fast.pipelines.options import VideoOptions
from tore_fast.pipelines.track_store import NpzRows
from tore_fast.pipelines.video import VideoPipeline

HOST = dict(
    img_size=(64, 48),
    embed_dim=32,
    depth=2,
    num_heads=2,
    decoder_depth=1,
    decoder_heads=2,
    decoder_dim=24,
    merge_r=(4,),
)
MOTION = dict(
    frames=27,
    condition_dim=24,
    latent_tokens=2,
    latent_dim=16,
    ff_size=16,
    heads=2,
    denoiser_layers=1,
    decoder_layers=1,
)


def networks():
    torch.manual_seed(0)
    return create_model("hmr2_vitt", **HOST).eval(), create_model("fasthmr_motion", **MOTION).eval()


class Loop:
    """A video of `count` frames that repeats a few; stands in for io/video.py:VideoSource."""

    path, fps = Path("loop"), 30.0

    def __init__(self, scene: Scene, count: int, distinct: int = 12):
        self.made, self.count = [scene.frame(5 * i) for i in range(distinct)], count

    def at(self, index: int):
        return self.made[index % len(self.made)]

    def frames(self, start: int = 0):
        for i in range(start, self.count):
            yield i, self.at(i).image


def memory_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.fixture(scope="module")
def scene():
    return Scene(load_body("free"), size=(160, 120), focal_px=170.0, level=2)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the resident memory from /proc")
def test_a_thousand_frames_of_two_people_in_flat_memory(scene, tmp_path):
    source = Loop(scene, 1000)
    host, motion = networks()
    pipe = VideoPipeline(host, load_body("free"), motion, VideoOptions(batch_size=32, chunk_frames=64))
    used = {}

    def note(frame: int) -> None:
        if frame in (300, 999):
            used[frame] = memory_mb()

    store = pipe.encode_video(
        source, tmp_path / "w", lambda i, f: source.at(i).boxes, lambda i, f, b: source.at(i).masks, on_frame=note
    )
    before = memory_mb()
    paths = [p for t in store.tracks for p in pipe.decode_track(store, t, tmp_path, 30.0, ("npz", "bvh", "glb"))]
    growth, decoding = used[999] - used[300], memory_mb() - before
    assert len(paths) == 6 and pipe.timing.people == 2000
    assert [len(np.load(p)["poses"]) for p in paths if p.suffix == ".npz"] == [1000, 1000]
    # 700 more frames in memory would be 40 MB of images or 170 MB of crops
    assert growth < 20 and decoding < 60, (growth, decoding)
    rows = NpzRows(paths[0])
    np.testing.assert_array_equal(rows.rows("poses", 990, 1010), np.load(paths[0])["poses"][990:])
    rows.close()


@pytest.fixture(scope="module")
def folders(scene, tmp_path_factory):
    out = tmp_path_factory.mktemp("scene")
    write_scene(scene, out, 14)
    host, motion = networks()
    save(host, out / "host", "hmr2_vitt")
    save(motion, out / "motion", "fasthmr_motion")
    return out


def predict(video, **change) -> int:
    """`tore-fast predict FOLDER --video.folders ...`; results in OUT/NAME."""
    own = {k: change.pop(k) for k in [*change] if k in predict_cli.VideoArgs.__dataclass_fields__}
    change = {k: Path(v) if k == "out" else v for k, v in change.items()}
    args = predict_cli.Args(inputs=[str(video)], video=predict_cli.VideoArgs(folders=True, **own), quiet=True, **change)
    return predict_cli.run(args)


def halves(frame: np.ndarray):
    """A detector: one person in each half of the image."""
    h, w = frame.shape[:2]
    return [[5, 5, w // 2 - 5, h - 5, 0.9], [w // 2 + 5, 5, w - 5, h - 5, 0.8]]


def test_scene_is_what_the_readers_expect(folders, scene):
    boxes = TrackBoxes.read(folders / "boxes.csv")
    image = read_image(folders / "frames" / "000003.png")
    made = scene.frame(3)
    assert np.array_equal(image, made.image) and boxes.tracks == [0, 1]
    x0, y0, x1, y1 = (int(v) for v in boxes.at(3)[1])
    assert made.masks[1][y0:y1, x0:x1].sum() == made.masks[1].sum() > 64


def test_command_with_masks_and_overlay(folders, tmp_path, capsys):
    pytest.importorskip("imageio_ffmpeg")
    import imageio.v2 as imageio

    common = dict(model=str(folders / "host"), boxes=str(folders / "boxes.csv"), out=tmp_path)
    masks = str(folders / "masks")
    camera = dict(principal=(70.0, 55.0), focal=170.0)
    assert predict(folders / "frames", **common, masks=masks, format="mp4,bvh", **camera) == 0
    out = tmp_path / "frames"
    text = capsys.readouterr().out
    assert "overlay" in text and (out / "track_001.bvh").exists()
    assert np.load(out / "track_000.npz")["principal_px"][0].tolist() == [70, 55]
    frames = imageio.mimread(out / "overlay.mp4", format="ffmpeg")
    assert len(frames) == 14 and frames[0].shape == (120, 160, 3)
    drawn = dict(
        overlay_video.overlay_frames(
            iter([(3, read_image(folders / "frames" / "000003.png"))]), [out / "track_000.npz"], load_body("free")
        )
    )
    assert (drawn[3] != read_image(folders / "frames" / "000003.png")).any()


def around(index: int, frame: np.ndarray, boxes: dict) -> dict:
    """A mask source: everything but the box."""
    masks = {}
    for track, (x0, y0, x1, y1) in boxes.items():
        masks[track] = np.ones(frame.shape[:2], bool)
        masks[track][int(y0) : int(y1), int(x0) : int(x1)] = False
    return masks


def test_command_takes_masks_from_a_folder_a_function_or_nowhere(folders, tmp_path):
    common = dict(model=str(folders / "host"), boxes=str(folders / "boxes.csv"), limit=3, format="npz")
    sources = {
        "none": {},
        "folder": {"masks": str(folders / "masks")},
        "function": {"masks": f"{__name__}:around"},
        "ellipse": {"masks": "ellipse"},
        "ignored": {"masks": "none"},
    }
    poses = {}
    for name, change in sources.items():
        assert predict(folders / "frames", **common, out=tmp_path / name, **change) == 0
        poses[name] = np.concatenate(
            [np.load(tmp_path / name / "frames" / f"track_00{t}.npz")["poses"] for t in (0, 1)]
        )
    assert np.array_equal(poses.pop("ignored"), poses["none"])
    assert len({p.tobytes() for p in poses.values()}) == 4
    for wrong, message in (
        (f"{__name__}:nothing", "--masks .*no attribute 'nothing'"),
        ("nowhere", "no such mask folder"),
    ):
        with pytest.raises(UsageError, match=message):
            predict(folders / "frames", **common, out=tmp_path / "x", masks=wrong)


def test_a_killed_overlay_goes_on_and_is_the_same(folders, tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    import imageio.v2 as imageio

    common = dict(model=str(folders / "host"), boxes=str(folders / "boxes.csv"), format="npz")
    assert predict(folders / "frames", **common, out=tmp_path) == 0
    tmp_path = tmp_path / "frames"
    source, body, tracks = open_video(folders / "frames"), load_body("free"), sorted(tmp_path.glob("track_*.npz"))

    def movie(name: str, stop_at: int = -1, **options) -> tuple[list[int], list]:
        seen = []

        def note(frame: int) -> None:
            seen.append(frame)
            if frame == stop_at:
                raise KeyboardInterrupt

        try:
            overlay_video.write_overlay(source, tracks, body, tmp_path / name, on_frame=note, **options)
        except KeyboardInterrupt:
            assert not (tmp_path / name).exists()
            return seen, []
        return seen, imageio.mimread(tmp_path / name, format="ffmpeg")

    whole, pieces = movie("whole.mp4")[1], movie("pieces.mp4", segment=4)[1]
    assert len(whole) == len(pieces) == 14
    steps = [min(range(14), key=lambda k, p=piece: float(np.abs(whole[k].astype(int) - p).mean())) for piece in pieces]
    assert steps == list(range(14))  # joined in order, no frame lost or doubled at a seam
    assert movie("cut.mp4", stop_at=9, segment=4)[0] == list(range(10))
    (tmp_path / ".cut_pieces" / ".00002.mp4").write_bytes(b"half a piece")
    seen, resumed = movie("cut.mp4", segment=4)
    assert seen == list(range(8, 14)) and all(np.array_equal(a, b) for a, b in zip(resumed, pieces, strict=True))
    movie("other.mp4", stop_at=9, segment=4)
    tracks.pop()  # other tracks: what was drawn is of no use
    assert movie("other.mp4", segment=4)[0] == list(range(14)) and not list(tmp_path.glob(".*pieces"))


def test_command_with_a_detector_that_is_killed_goes_on(folders, tmp_path, monkeypatch, capsys):
    calls = []

    def counted(frame):
        calls.append(len(calls))
        if len(calls) == 9:
            raise KeyboardInterrupt
        return halves(frame)

    monkeypatch.setattr(sys.modules[__name__], "detector", counted, raising=False)
    common = dict(model=str(folders / "host"), chunk_frames=4, batch_size=2, format="npz", out=tmp_path)
    run = lambda **change: predict(
        folders / "frames",
        **{**common, "detector": f"{__name__}:detector", "motion": str(folders / "motion"), **change},
    )
    out = tmp_path / "frames"
    with pytest.raises(KeyboardInterrupt):
        run()
    assert run() == 0
    assert 9 + 6 <= len(calls) <= 9 + 10  # frames 0-3 were committed, and 4-7 where their writing had begun
    looked = len(calls)
    tracks = [np.load(out / f"track_00{t}.npz") for t in (0, 1)]
    assert all(t["frame"].tolist() == list(range(14)) for t in tracks)
    assert tracks[0]["box"][0, 0] == 5 and tracks[1]["box"][13, 0] == 85
    before = (out / "track_000.npz").stat().st_mtime_ns
    assert run() == 0 and (out / "track_000.npz").stat().st_mtime_ns == before
    assert run(motion=None) == 0  # other poses wanted: not the old file
    assert len(calls) == looked and not np.allclose(np.load(out / "track_000.npz")["poses"], tracks[0]["poses"])


def test_reasons_for_no_mp4_and_no_detector(folders, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    common = dict(model=str(folders / "host"), out=tmp_path)
    for wrong, message in (
        ({"format": "npz,mp4"}, r"pip install imageio imageio-ffmpeg"),
        ({"detector": "nothing"}, "MODULE:CALLABLE"),
        ({"detector": "math:sqrt", "boxes": str(folders / "boxes.csv")}, "not both"),
    ):
        with pytest.raises(UsageError, match=message):
            predict(folders / "frames", **common, **wrong)
    assert not list(tmp_path.iterdir())
