"""The FastHMR pipeline: two people with gaps, interruption and resume, file formats, single images, commands."""

from __future__ import annotations

import json
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from tore_fast.body import load_body
from tore_fast.cli import UsageError
from tore_fast.cli import accelerate as accelerate_cli
from tore_fast.cli import predict as predict_cli
from tore_fast.geometry.rotation import axis_angle_to_matrix
from tore_fast.io.bvh import euler_zxy
from tore_fast.io.video import TrackBoxes, open_video
from tore_fast.layers.mask_tome import MergeConfig
from tore_fast.models import create_model, load, save
from tore_fast.pipelines.hosts import RestSkeleton, leaf_vertices
from tore_fast.pipelines.options import VideoOptions
from tore_fast.pipelines.results import keys_of
from tore_fast.pipelines.track_files import FORMATS
from tore_fast.pipelines.track_store import NpzStream, TrackStore
from tore_fast.pipelines.video import VideoPipeline

HOST = dict(
    embed_dim=32,
    depth=2,
    num_heads=2,
    decoder_depth=1,
    decoder_heads=2,
    decoder_dim_head=8,
    decoder_mlp_dim=16,
    decoder_dim=24,
    merge_r=(60, 42),
)
MOTION = dict(
    frames=12,
    condition_dim=24,
    latent_tokens=2,
    latent_dim=16,
    ff_size=16,
    heads=2,
    denoiser_layers=1,
    decoder_layers=1,
)
FRAMES = 30


def networks():
    torch.manual_seed(0)
    host, motion = create_model("hmr2_vits", **HOST), create_model("fasthmr_motion", **MOTION)
    for p in [*host.parameters(), *motion.parameters()]:
        torch.nn.init.normal_(p, std=0.5 * p.shape[-1] ** -0.5 if p.dim() > 1 else 0.1)
    motion.feature_std.fill_(0.3)
    return host.eval(), motion.eval()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Folder of frames, and boxes of two people: track 1 starts late and misses some frames."""
    folder = tmp_path_factory.mktemp("clip")
    base = np.random.RandomState(0).randint(0, 255, (96, 128, 3), np.uint8)
    rows = ["frame,track,x0,y0,x1,y1"]
    for i in range(FRAMES):
        Image.fromarray(np.roll(base, 2 * i, 1)).save(folder / f"{i:04d}.png")
        rows.append(f"{i},0,{5 + i},10,{45 + i},90")
        if i > 4 and i not in (9, 10, 20):
            rows.append(f"{i},1,70,{5 + i % 3},110,80")
    (folder / "boxes.csv").write_text("\n".join(rows))
    return folder


def pipeline(motion: bool = True, **options) -> VideoPipeline:
    host, decoder = networks()
    o = VideoOptions(batch_size=7, chunk_frames=4, masks="ellipse", **options)
    return VideoPipeline(host, load_body("free"), decoder if motion else None, o)


def run(pipe: VideoPipeline, clip, out, formats=FORMATS, on_frame=None):
    boxes = TrackBoxes.read(clip / "boxes.csv")
    store = pipe.encode_video(open_video(clip, 25), out / ".work", lambda i, f: boxes.at(i), on_frame=on_frame)
    return store, [p for t in store.tracks for p in pipe.decode_track(store, t, out, 25, formats)]


@pytest.fixture(scope="module")
def result(clip, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    store, paths = run(pipeline(), clip, out)
    return out, store, paths


def test_files_of_two_tracks(result, clip):
    out, _, paths = result
    assert sorted(p.name for p in paths) == sorted(f"track_00{t}.{f}" for t in (0, 1) for f in FORMATS)
    assert not list(out.glob(".*.tmp")) and not list(out.glob(".*part*"))
    first, second = (np.load(out / f"track_00{t}.npz") for t in (0, 1))
    assert first["poses"].shape == (FRAMES, 72) and second["frame"].tolist() == list(range(5, FRAMES))
    assert second["detected"].sum() == FRAMES - 5 - 3 and not second["detected"][9 - 5]
    assert first["betas"].shape == (10,) and float(first["mocap_framerate"]) == 25 and str(first["body"]) == "free"
    for z in (first, second):
        assert all(np.isfinite(z[k]).all() for k in ("poses", "trans", "joints_3d", "box"))
        assert set(z.files) == set(keys_of("v")) - {"vertices", "faces"}
        assert (z["principal_px"] == (64, 48)).all() and str(z["source"]) == str(clip)
    np.testing.assert_allclose(second["box"][9 - 5, 0], 70)  # interpolated between frames 8 and 11


def test_joints_are_the_posed_body(result):
    out, _, _ = result
    z = np.load(out / "track_000.npz")
    body = load_body("free")
    betas = torch.from_numpy(z["betas"])[None].expand(FRAMES, -1)
    posed = body(torch.from_numpy(z["poses"]), betas, torch.from_numpy(z["trans"]), level=2)
    np.testing.assert_allclose(posed.joints.numpy(), z["joints_3d"] + z["trans"][:, None], atol=2e-4)
    np.testing.assert_allclose(
        axis_angle_to_matrix(torch.from_numpy(z["poses"]).view(-1, 24, 3)).numpy(), z["rotations"], atol=2e-4
    )


def bvh_positions(path) -> tuple[np.ndarray, list[str]]:
    """A small reader: joint positions [F, J, 3] of a BVH file, by its own channel order."""
    hierarchy, motion = path.read_text().split("MOTION")
    names, offsets, parents, stack, inside_end = [], [], [], [], False
    for line in hierarchy.splitlines():
        word = line.split()
        if word and word[0] in ("ROOT", "JOINT"):
            names.append(word[1])
            parents.append(stack[-1] if stack else -1)
            stack.append(len(names) - 1)
        elif word[:2] == ["End", "Site"]:
            inside_end = True
            stack.append(-1)
        elif word and word[0] == "OFFSET" and not inside_end:
            offsets.append([float(v) for v in word[1:]])
        elif word == ["}"]:
            stack.pop()
            inside_end = False
    lines = motion.strip().splitlines()
    rows = np.array([[float(v) for v in line.split()] for line in lines[2:]])
    assert len(rows) == int(lines[0].split()[1])
    angles = rows[:, 3:].reshape(len(rows), len(names), 3)
    positions = np.zeros((len(rows), len(names), 3))
    turns = [None] * len(names)
    for i, parent in enumerate(parents):
        own = Rotation.from_euler("ZXY", angles[:, i], degrees=True)
        if parent < 0:
            positions[:, i], turns[i] = rows[:, :3] + offsets[i], own
        else:
            positions[:, i] = positions[:, parent] + turns[parent].apply(offsets[i])
            turns[i] = turns[parent] * own
    return positions, names


def test_bvh_moves_like_the_joints(result):
    out, _, _ = result
    z = np.load(out / "track_001.npz")
    positions, names = bvh_positions(out / "track_001.bvh")
    order = (
        [list(load_body("free").joint_names).index(n) for n in names]
        if set(names) == set(load_body("free").joint_names)
        else None
    )
    if order is None:
        from tore_fast.geometry.skeleton import SMPL24

        order = [SMPL24.index(n) for n in names]
    want = (z["joints_3d"] + z["trans"][:, None])[:, order] * np.array([1, -1, -1]) * 100
    np.testing.assert_allclose(positions, want, atol=0.05)


def test_euler_angles_multiply_back():
    m = Rotation.random(200, random_state=0).as_matrix()
    m = np.concatenate([m, Rotation.from_euler("ZXY", [[20, 90, 10], [5, -90, 3]], degrees=True).as_matrix()])
    again = Rotation.from_euler("ZXY", euler_zxy(m), degrees=True).as_matrix()
    np.testing.assert_allclose(again, m, atol=1e-7)


def test_glb_is_a_skinned_animation(result):
    out, _, _ = result
    data = (out / "track_000.glb").read_bytes()
    magic, version, total = struct.unpack("<4sII", data[:12])
    assert magic == b"glTF" and version == 2 and total == len(data)
    size = struct.unpack("<I", data[12:16])[0]
    scene = json.loads(data[20 : 20 + size])
    binary = data[28 + size :]
    z = np.load(out / "track_000.npz")

    def array(index: int) -> np.ndarray:
        a = scene["accessors"][index]
        view = scene["bufferViews"][a["bufferView"]]
        kind = {5126: "<f4", 5121: "u1", 5125: "<u4"}[a["componentType"]]
        width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4, "MAT4": 16}[a["type"]]
        return np.frombuffer(binary, kind, a["count"] * width, view["byteOffset"]).reshape(a["count"], width)

    times, places = array(6)[:, 0], array(7)
    np.testing.assert_allclose(times, np.arange(FRAMES) / 25, atol=1e-6)
    np.testing.assert_allclose(places, (z["joints_3d"][:, 0] + z["trans"]) * [1, -1, -1], atol=1e-4)
    # skin one frame by hand and compare with the body
    frame, body = 17, load_body("free")
    nodes = scene["nodes"]
    world = [np.eye(4)] * 24
    for i in range(24):
        local = np.eye(4)
        local[:3, :3] = Rotation.from_quat(array(8 + i)[frame]).as_matrix()
        local[:3, 3] = places[frame] if i == 0 else nodes[i]["translation"]
        world[i] = local if body.parents[i] < 0 else world[body.parents[i]] @ local
    binds = array(5).reshape(24, 4, 4).transpose(0, 2, 1)
    skin = np.stack([w @ b for w, b in zip(world, binds)])
    vertices, joints, weights = array(0), array(2).astype(int), array(3)
    homogeneous = np.concatenate([vertices, np.ones((len(vertices), 1))], 1)
    posed = np.einsum("vk,vkij,vj->vi", weights, skin[joints], homogeneous)[:, :3]
    betas = torch.from_numpy(z["betas"])[None]
    want = body(
        torch.from_numpy(z["poses"][frame : frame + 1]), betas, torch.from_numpy(z["trans"][frame : frame + 1])
    ).vertices
    want = want[0].numpy() * [1, -1, -1]
    assert (
        np.abs(posed - want).max() < 0.02 and np.abs(posed - want).mean() < 1e-3
    )  # the 4 largest weights of at most 6


def test_an_interrupted_run_goes_on_and_gives_the_same(clip, tmp_path, result):
    class Stop(Exception):
        pass

    def stop(frame: int) -> None:
        if frame == 14:
            raise Stop

    with pytest.raises(Stop):
        run(pipeline(), clip, tmp_path, on_frame=stop)
    seen = []
    store, _ = run(pipeline(), clip, tmp_path, on_frame=seen.append)
    assert 8 <= seen[0] <= 14 and seen[-1] == FRAMES - 1  # frames of finished chunks are not read again
    for t in (0, 1):
        want, got = np.load(result[0] / f"track_00{t}.npz"), np.load(tmp_path / f"track_00{t}.npz")
        for key in ("poses", "trans", "joints_3d", "frame", "box"):
            np.testing.assert_allclose(got[key], want[key], atol=1e-4)
    with pytest.raises(ValueError, match="other settings .box_rule"):
        run(pipeline(box_rule="tight"), clip, tmp_path)


def test_host_poses_without_motion_decoder(clip, tmp_path):
    pipe = pipeline(motion=False, betas_mode="per_frame", fov_deg=60.0)
    store, paths = run(pipe, clip, tmp_path, ("npz",))
    z, rows = np.load(paths[0]), store.rows(0)
    np.testing.assert_allclose(z["rotations"], rows["rotations"], atol=1e-5)
    np.testing.assert_allclose(z["betas"], rows["betas"], atol=1e-6)
    assert z["focal_px"][0] == pytest.approx(96 / (2 * np.tan(np.radians(30))), rel=1e-5)
    assert "encode" in pipe.timing.table() and pipe.timing.people == len(rows) + len(store.rows(1))


def test_long_gaps_cut_a_track(clip, tmp_path):
    boxes = {f: {0: (10.0, 10.0, 60.0, 90.0)} for f in range(FRAMES) if f < 5 or f > 24}
    pipe = pipeline(motion=False)
    store = pipe.encode_video(open_video(clip), tmp_path / "w", lambda i, f: boxes.get(i, {}))
    paths = pipe.decode_track(store, 0, tmp_path, 30)
    assert [p.name for p in paths] == ["track_000_0.npz", "track_000_1.npz"]
    assert [len(np.load(p)["poses"]) for p in paths] == [5, 5]


def test_pipeline_from_files(folders):
    pipe = VideoPipeline.from_checkpoint(
        str(folders / "host"),
        str(folders / "motion"),
        overrides={"merge_r": None, "keep_tokens": 120, "merge_per_block": 50, "merge_rounds": "paper"},
    )
    assert (
        pipe.name == "hmr2_vits" and pipe.host.backbone.merging.schedule(192, 2) == (50, 22) and pipe.motion is not None
    )


def test_body_leaves_are_the_tips():
    body = load_body("free")
    rest = RestSkeleton(body)(torch.zeros(1, 10))[0]
    head, left, right, left_toe, right_toe = rest[24:]
    assert head[1] > rest[15, 1] + 0.08 and left[0] > rest[22, 0] + 0.03 and right[0] < rest[23, 0] - 0.03
    assert left_toe[2] > rest[10, 2] and right_toe[2] > rest[11, 2] and left_toe[0] > 0 > right_toe[0]
    assert len(set(leaf_vertices(body))) == 5


def test_store_forgets_rows_of_an_unfinished_chunk(tmp_path):
    store = TrackStore(tmp_path, 4, {"a": 1})
    rows = np.zeros(3, store.dtype)
    rows["frame"] = [0, 1, 2]
    store.append(0, rows[:2])
    store.commit(2)
    with open(tmp_path / "track_000.rows", "ab") as f:
        f.write(rows[2:].tobytes() + b"half a row")
    again = TrackStore(tmp_path, 4, {"a": 1})
    assert again.next_frame == 2 and again.rows(0)["frame"].tolist() == [0, 1]
    again.append(0, rows[2:])
    again.commit(3, finished=True)
    assert TrackStore(tmp_path, 4, {"a": 1}).rows(0)["frame"].tolist() == [0, 1, 2]


def test_npz_stream_checks_lengths(tmp_path):
    stream = NpzStream(tmp_path / "x.npz", 4)
    stream.append("a", np.arange(6.0).reshape(3, 2))
    with pytest.raises(ValueError, match="a has 3 rows, expected 4"):
        stream.close()
    assert not (tmp_path / "x.npz").exists()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    out = tmp_path_factory.mktemp("models")
    host, motion = networks()
    save(host, out / "host", "hmr2_vits")
    save(motion, out / "motion", "fasthmr_motion")
    return out


def predict(video, **change) -> int:
    """`tore-fast predict FOLDER --video.folders ...`; results in OUT/NAME."""
    own = {k: change.pop(k) for k in [*change] if k in predict_cli.VideoArgs.__dataclass_fields__}
    change = {k: Path(v) if k == "out" else v for k, v in change.items()}
    args = predict_cli.Args(inputs=[str(video)], video=predict_cli.VideoArgs(folders=True, **own), quiet=True, **change)
    return predict_cli.run(args)


KEEP = {"merge_r": "none", "keep_tokens": "100"}


def test_command(clip, folders, tmp_path, capsys):
    common = dict(model=str(folders / "host"), out=tmp_path, boxes=str(clip / "boxes.csv"), limit=12)
    assert predict(clip, **common, motion=str(folders / "motion"), format="npz,bvh", set=KEEP) == 0
    text = capsys.readouterr().out
    assert "2 people in 1 inputs" in text and "encode" in text
    out = tmp_path / clip.name
    assert len(np.load(out / "track_000.npz")["poses"]) == 12 and (out / "track_001.bvh").is_file()
    (entry,) = json.loads((tmp_path / "results.json").read_text())["items"]
    assert entry["source"] == str(clip) and f"{clip.name}/track_001.npz" in entry["files"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "npz,fbx"}, "--format: expected some of npz, bvh, glb, mp4, got 'npz,fbx'"),
        ({"format": "png"}, "--format: expected some of npz, bvh, glb, mp4"),
        ({"video": "nowhere.mp4"}, "no image or video to work on"),
        ({"boxes": "nowhere.csv"}, "no such box file"),
        ({"masks": "nowhere"}, "no such mask folder"),
        ({"model": "default", "format": "bvh"}, "bvh of a video needs a model of SMPL parameters"),
        ({"model": "nothing"}, "no model 'nothing'"),
        ({"precision": "float8"}, "precision must be one of fp32, bf16, fp16, got 'float8'"),
        ({"box_rule": "wide"}, "box_rule must be one of hmr2, tight"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"overlap": 12, "motion": "MOTION"}, "overlap must be below the decoder's 12 frames"),
        ({"motion": "HOST"}, "not a motion decoder"),
        ({"model": "MOTION"}, "expected a model of task mesh or smpl"),
        ({"fov": 200.0}, "fov_deg must lie between 0 and 180"),
        ({"focal": -3.0}, "focal_px must be positive"),
        ({"focal": 100.0, "fov": 50.0}, "focal_px or fov_deg, not both"),
        ({"limit": 0}, "--limit: expected at least 1"),
        ({"set": {"keep_tokens": "few"}}, "--set keep_tokens: expected a whole number or none, got 'few'"),
        ({"fov_net": "nowhere.ckpt"}, "a field-of-view net belongs to CameraHMR models"),
    ],
)
def test_command_errors(change, message, clip, folders, tmp_path):
    change = {
        k: {"HOST": str(folders / "host"), "MOTION": str(folders / "motion")}.get(v, v) if isinstance(v, str) else v
        for k, v in change.items()
    }
    args = {"video": str(clip), "model": str(folders / "host"), "out": tmp_path, **change}
    with pytest.raises(UsageError, match=message):
        predict(**args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": "white"}, "noise must be one of seeded, zeros"),
        ({"betas_mode": "mean"}, "betas_mode must be one of median, per_frame"),
        ({"ik_mode": "best"}, "ik_mode must be one of adaptive, naive"),
        ({"chunk_frames": 0}, "chunk_frames must be at least 1"),
        ({"denoising_steps": 0}, "denoising_steps must be at least 1"),
        ({"masks": "user"}, "masks must be one of auto, ellipse, none"),
    ],
)
def test_options_check_themselves(change, message):
    with pytest.raises(ValueError, match=message):
        VideoOptions(**change)


def test_command_decodes_again_with_other_settings(clip, folders, tmp_path, capsys):
    """Settings of the second stage leave the encoded rows alone and make the files anew; the first stage's refuse."""
    common = dict(model=str(folders / "host"), out=tmp_path, boxes=str(clip / "boxes.csv"), format="npz")
    common |= dict(motion=str(folders / "motion"), set={**KEEP, "merge_per_block": "30"})
    out, got = tmp_path / clip.name, []
    for change in ({}, {"denoising_steps": 4}, {"ik_mode": "naive"}, {"max_gap": 1}, {"overlap": 3}, {}):
        assert predict(clip, **common, **change) == 0
        got.append(sorted(p.name for p in out.glob("*.npz")))
        got.append(np.load(out / "track_000.npz")["poses"])
    assert got[0] == ["track_000.npz", "track_001.npz"] and got[6] == [
        "track_000.npz",
        "track_001_0.npz",
        "track_001_1.npz",
    ]
    assert not np.allclose(got[3], got[1]) and not np.allclose(got[5], got[1]) and not np.allclose(got[9], got[1])
    np.testing.assert_array_equal(got[11], got[1])
    assert predict(clip, **{**common, "set": {**KEEP, "merge_per_block": "31"}}) == 1
    assert "other settings (set)" in capsys.readouterr().err


def test_layer_search_command(clip, folders, tmp_path, capsys):
    args = dict(model=str(folders / "host"), data=[clip], out=tmp_path, tau=1e6, limit=4, batch_size=3)
    assert accelerate_cli.run(accelerate_cli.Args(search_layers=True, **args, cka=True, device="cpu")) == 0
    text = capsys.readouterr().out
    assert "2 -> 1 blocks" in text and (tmp_path / "cka.npy").exists() and (tmp_path / "model" / "config.json").exists()
    assert json.loads((tmp_path / "plan.json").read_text())["groups"] == [[0, 1]]
    with pytest.raises(UsageError, match="none"):
        accelerate_cli.run(accelerate_cli.Args(search_layers=True, **{**args, "data": [tmp_path / "none"]}))
    applied = dict(model=str(folders / "host"), layers=tmp_path / "plan.json", out=tmp_path / "again")
    assert accelerate_cli.run(accelerate_cli.Args(search_layers=True, **applied, json=True)) == 0
    assert json.loads(capsys.readouterr().out)["blocks"] == [2, 1]
    both = [load(tmp_path / name / "model") for name in (".", "again")]
    assert all(torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in both)))
    with pytest.raises(UsageError, match="give --data"):
        accelerate_cli.run(accelerate_cli.Args(search_layers=True, model=str(folders / "host")))


def test_focal_length_sources(clip):
    frame = next(open_video(clip).frames())[1]
    host = create_model("camerahmr_vits", **HOST)
    pipe = VideoPipeline(host, load_body("free"))
    assert pipe.focal(frame) == pytest.approx(5000 / 256 * 128)  # no net: HMR2.0's rule
    host.cam_model, host.estimate_fov = torch.nn.Identity(), lambda image: torch.full((len(image),), 1.0)
    assert pipe.focal(frame) == pytest.approx(96 / (2 * np.tan(0.5)))
    pipe.options.focal_px = 77.0
    assert pipe.focal(frame) == 77


def test_a_person_larger_than_the_budget_warns_once(clip):
    pipe = pipeline(motion=False)
    pipe.host.set_merging(MergeConfig.paper(keep=40, per_block=90))
    with pytest.warns(UserWarning, match="covers 192 of 192 tokens; with keep=40"):
        pipe._check_budget(torch.ones(1, 256, 256))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe._check_budget(torch.ones(1, 256, 256))
