"""lift: keypoint files of every kind, clips of any length, streaming, the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from made_up.command import command

from tore_fast.data.keypoints import COUNTS, KeypointError, read_keypoints, to_h36m
from tore_fast.io.bvh import read_bvh
from tore_fast.models import create_model, save
from tore_fast.pipelines.lift import PoseStream, lift_clip, normalise_keypoints

SMALL = dict(frames=9, channels=16, depth=2, heads=2, mlp_hidden=16)
PRUNED = dict(prune_block=1, keep_frames=4)


def lifter(kind: str):
    torch.manual_seed(0)
    if kind == "base":
        return create_model("mixste_9", **SMALL).eval()
    if kind == "confidence":
        return create_model("motionbert_lite_27", **SMALL, rep_channels=20).eval()
    name = {"hot": "hot_mixste_27", "tpc": "tpc_mixste_27"}[kind]
    return create_model(name, **SMALL, **PRUNED).eval()


def walk(frames: int, joints: int = 17) -> np.ndarray:
    rng = np.random.default_rng(1)
    xy = rng.uniform(300, 700, (1, joints, 2)) + 20 * np.sin(
        np.arange(frames)[:, None, None] / 5 + rng.uniform(0, 6, (joints, 2))
    )
    return np.concatenate([xy, rng.uniform(0.5, 1, (frames, joints, 1))], axis=-1)


@pytest.mark.parametrize("kind", ["base", "hot", "tpc", "confidence"])
@pytest.mark.parametrize("frames", [1, 4, 9, 10, 31])
def test_clips_of_any_length(kind, frames):
    x = normalise_keypoints(walk(frames), "image", 1000, 1000)
    got = lift_clip(lifter(kind), x)
    assert got.pose.shape == (frames, 17, 3) and np.isfinite(got.pose).all() and (got.pose[:, 0] == 0).all()
    assert (got.kept > 0).any() == (kind in ("hot", "tpc"))
    again = lift_clip(lifter(kind), x, batch_size=3)
    np.testing.assert_allclose(again.pose, got.pose, atol=1e-5)


def test_one_window_is_the_model_itself():
    model, x = lifter("base"), normalise_keypoints(walk(9), "image", 1000, 1000)
    with torch.no_grad():
        want = model(torch.from_numpy(x[..., :2])[None]).pose[0]
    np.testing.assert_allclose(lift_clip(model, x, flip=False).pose, (want - want[:, :1]).numpy(), atol=1e-5)


def test_bad_clips_are_refused():
    model = lifter("base")
    with pytest.raises(ValueError, match=r"must be \[T, 17, 2 or 3\]"):
        lift_clip(model, np.zeros((0, 17, 2), np.float32))
    with pytest.raises(ValueError, match="NaN"):
        lift_clip(model, np.full((3, 17, 2), np.nan, np.float32))
    with pytest.raises(ValueError, match="overlap"):
        lift_clip(model, np.zeros((3, 17, 2), np.float32), overlap=1.0)
    with pytest.raises(ValueError, match="needs the image's width"):
        normalise_keypoints(walk(2), "image")


@pytest.mark.parametrize("kind, latency", [("base", 0), ("base", 3), ("hot", 8), ("tpc", 0), ("tpc", 4)])
def test_stream_gives_every_frame_once_after_its_latency(kind, latency):
    model, frames = lifter(kind), walk(14)
    stream = PoseStream(model, latency, width=1000, height=1000)
    got = [stream.push(f) for f in frames]
    assert [g is None for g in got] == [i < latency for i in range(14)]
    poses = [g for g in got if g is not None] + stream.flush()
    assert len(poses) == 14
    x = normalise_keypoints(frames, "image", 1000, 1000)[..., :2]
    with torch.no_grad():  # frame 11 - latency when frame 11 is the newest
        if kind == "tpc":
            slots = np.clip(np.arange(9) + 11 - latency - 4, 0, 11)
            lifted = model(torch.from_numpy(x[slots])[None])
            want = lifted.pose[0, int((lifted.index[0] == 4).nonzero()[0, 0])]
        else:
            want = model(torch.from_numpy(x[3:12])[None]).pose[0, 8 - latency]
    np.testing.assert_allclose(poses[11 - latency], (want - want[:1]).numpy(), atol=1e-5)


def test_full_latency_stream_equals_the_clip():
    model, frames = lifter("tpc"), walk(14)
    stream = PoseStream(model, 4, width=1000, height=1000)
    poses = [p for f in frames if (p := stream.push(f)) is not None] + stream.flush()
    clip = lift_clip(model, normalise_keypoints(frames, "image", 1000, 1000), flip=False)
    np.testing.assert_allclose(np.stack(poses), clip.pose, atol=1e-5)


def test_stream_refuses():
    with pytest.raises(ValueError, match="latency must be in 0..8"):
        PoseStream(lifter("base"), 9, width=10, height=10)
    with pytest.raises(ValueError, match="needs the whole clip"):
        PoseStream(lifter("base"), 0, "crop")
    with pytest.raises(ValueError, match=r"keypoints must be \[17"):
        PoseStream(lifter("base"), 0, width=10, height=10).push(np.zeros((26, 3)))


# ---- keypoint files


def test_orders_agree_where_they_name_the_same_joints():
    body = {
        name: np.array([[10.0 * i, 5.0 * i + 1, 0.9]])
        for i, name in enumerate(
            [
                "nose",
                "leye",
                "reye",
                "lear",
                "rear",
                "lsho",
                "rsho",
                "lelb",
                "relb",
                "lwri",
                "rwri",
                "lhip",
                "rhip",
                "lkne",
                "rkne",
                "lank",
                "rank",
            ]
        )
    }
    coco = np.stack(list(body.values()), axis=1)
    mid = lambda a, b: (body[a] + body[b]) / 2
    op18 = np.stack(
        [
            body["nose"],
            mid("lsho", "rsho"),
            body["rsho"],
            body["relb"],
            body["rwri"],
            body["lsho"],
            body["lelb"],
            body["lwri"],
            body["rhip"],
            body["rkne"],
            body["rank"],
            body["lhip"],
            body["lkne"],
            body["lank"],
            body["reye"],
            body["leye"],
            body["rear"],
            body["lear"],
        ],
        axis=1,
    )
    op25 = np.concatenate([op18[:, :8], mid("lhip", "rhip")[:, None], op18[:, 8:], np.zeros((1, 6, 3))], axis=1)
    halpe = np.concatenate(
        [coco, body["nose"][:, None], mid("lsho", "rsho")[:, None], mid("lhip", "rhip")[:, None], np.zeros((1, 6, 3))],
        axis=1,
    )
    want = to_h36m(coco, "coco")
    for name, points in (("openpose18", op18), ("openpose25", op25), ("halpe", halpe)):
        got = to_h36m(points, name)
        joints = [j for j in range(17) if not (name == "halpe" and j == 10)]  # Halpe detects the head top itself
        np.testing.assert_allclose(got[:, joints], want[:, joints], atol=1e-4, err_msg=name)
    np.testing.assert_allclose(want[0, 0], mid("lhip", "rhip")[0])
    np.testing.assert_allclose(want[0, 7, :2], (mid("lhip", "rhip") + mid("lsho", "rsho"))[0, :2] / 2)
    face = (body["leye"] + body["reye"] + body["lear"] + body["rear"])[0, :2] / 4
    np.testing.assert_allclose(want[0, 10, :2], face + 0.4 * (face - mid("lsho", "rsho")[0, :2]), atol=1e-4)


def write(path, points, form):
    rows = points.tolist()
    if form == "plain":
        path.write_text(json.dumps({"keypoints": rows, "order": "h36m", "width": 1000, "height": 800, "fps": 30}))
    elif form == "coco":
        flat = points.reshape(len(points), -1).tolist()
        path.write_text(
            json.dumps(
                [{"image_id": f"{i:06d}.jpg", "category_id": 1, "keypoints": k, "score": 1} for i, k in enumerate(flat)]
            )
        )
    elif form == "npz":
        np.savez(path, keypoints=points, order="h36m", fps=25.0)
    elif form == "csv":
        head = ",".join(f"{c}{j}" for j in range(points.shape[1]) for c in "xyc")
        np.savetxt(path, points.reshape(len(points), -1), delimiter=",", header=head, comments="")
    elif form == "openpose":
        path.mkdir()
        for i, k in enumerate(points):
            (path / f"v_{i:012d}_keypoints.json").write_text(
                json.dumps({"people": [{"pose_keypoints_2d": k.ravel().tolist()}]})
            )
    return path


@pytest.mark.parametrize(
    "form, name, joints, order",
    [
        ("plain", "a.json", 17, "h36m"),
        ("coco", "a.json", 17, "coco"),
        ("coco", "a.json", 26, "halpe"),
        ("npz", "a.npz", 17, "h36m"),
        ("csv", "a.csv", 26, "halpe"),
        ("openpose", "folder", 25, "openpose25"),
        ("openpose", "folder", 18, "openpose18"),
    ],
)
def test_file_forms(tmp_path, form, name, joints, order):
    points = walk(6, joints)
    clip = read_keypoints(write(tmp_path / name, points, form))
    assert clip.order == order and clip.filled == 0
    np.testing.assert_allclose(clip.keypoints, to_h36m(points, order), rtol=1e-5)
    if form == "plain":
        assert (clip.width, clip.height, clip.fps) == (1000, 800, 30)


def test_gaps_are_filled_and_counted(tmp_path):
    points = walk(5)
    points[2, 3] = 0  # not detected
    clip = read_keypoints(write(tmp_path / "a.npz", points, "npz"))
    assert clip.filled == 1 and clip.keypoints[2, 3, 2] == 0
    np.testing.assert_allclose(clip.keypoints[2, 3, :2], (points[1, 3, :2] + points[3, 3, :2]) / 2, rtol=1e-5)
    points[:, 6] = np.nan
    clip = read_keypoints(write(tmp_path / "b.npz", points, "npz"))
    assert clip.assumed == ("L_Ankle",) and clip.filled == 1 and any("L_Ankle: never seen" in n for n in clip.notes)
    assert (clip.keypoints[:, 6, 2] == 0).all() and np.isfinite(clip.keypoints).all()


def test_people_are_followed(tmp_path):
    a, b = walk(5), walk(5) + [100, 0, 0]
    rows = [
        {"image_id": i, "category_id": 1, "idx": t, "keypoints": p[i].ravel().tolist()}
        for i in range(5)
        for t, p in ((3, a), (8, b))
        if not (t == 8 and i == 2)
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    np.testing.assert_allclose(read_keypoints(tmp_path / "a.json").keypoints, to_h36m(a, "coco"), rtol=1e-5)
    other = read_keypoints(tmp_path / "a.json", person=8)
    assert len(other.keypoints) == 5 and other.filled == 17  # the missing frame is bridged
    with pytest.raises(KeypointError, match="no person 4; track ids: 3, 8"):
        read_keypoints(tmp_path / "a.json", person=4)


def test_a_person_that_is_not_there(tmp_path):
    seen = lambda p, score: {
        "person_id": [-1],
        "pose_keypoints_2d": np.concatenate([p, np.full((25, 1), score)], 1).ravel().tolist(),
    }
    far, near = (np.arange(50.0).reshape(25, 2) + start for start in (5, 900))
    (tmp_path / "f.json").write_text(json.dumps([{"people": [seen(far, 0.3), seen(near, 0.9)]}] * 3))
    clip = read_keypoints(tmp_path / "f.json")  # OpenPose's -1 is no track: ours, and it is said
    assert any("2 people (0, 1): 0, in most frames" in n for n in clip.notes) and clip.keypoints[0, 0, 0] > 900
    assert read_keypoints(tmp_path / "f.json", person=1).keypoints[0, 0, 0] < 60
    with pytest.raises(KeypointError, match="no person 7; track ids: 0, 1"):
        read_keypoints(tmp_path / "f.json", person=7)
    np.savez(tmp_path / "one.npz", keypoints=np.arange(68.0).reshape(2, 17, 2) + 1, order="h36m")
    assert len(read_keypoints(tmp_path / "one.npz", person=0).keypoints) == 2
    (tmp_path / "one.csv").write_text(",".join(map(str, range(1, 53))) + "\n")
    for name in ("one.npz", "one.csv"):
        with pytest.raises(KeypointError, match="one person without a track id, there is no person 3"):
            read_keypoints(tmp_path / name, order="h36m", person=3)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.json", "{", "not a readable key-point file"),
        ("a.json", "[]", "nobody was detected .an empty list.; expected COCO results"),
        ("a.json", '{"frames": 3}', r"a.json: expected COCO results, .* got an object with \['frames'\]"),
        ("a.json", "3", "a.json: expected COCO results, .* got int"),
        ("a.json", json.dumps({"keypoints": [[[8, 9]] * 17] * 3}), "coco or h36m order"),
        ("a.json", json.dumps({"keypoints": [[[1, 2]] * 9] * 3}), "9 joints per person"),
        ("a.csv", "1,2,3\n", "3 columns do not make"),
        ("a.txt", "", "expected .json, .npz, .npy, .csv"),
        ("a.npz", "nonsense", "not a readable key-point file"),
    ],
)
def test_bad_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(KeypointError, match=message):
        read_keypoints(tmp_path / name)
    with pytest.raises(KeypointError, match="no such file"):
        read_keypoints(tmp_path / "absent.json")
    assert set(COUNTS) == {*"h36m coco halpe openpose25 openpose18 mediapipe wholebody smpl".split()}


# ---- the command


def test_lift_command(tmp_path, capsys):
    save(lifter("hot"), tmp_path / "model", "hot_mixste_27")
    write(tmp_path / "a.json", walk(20), "plain")
    code = command(
        "lift",
        tmp_path / "a.json",
        "--model",
        tmp_path / "model",
        "--out",
        tmp_path / "out",
        "--format",
        "npz,bvh,html,gif",
    )
    text = capsys.readouterr().out
    assert code == 0 and "order h36m, normalisation image (1000 x 800)" in text
    with np.load(tmp_path / "out" / "a.npz") as data:
        assert (
            data["joints_3d"].shape == (20, 17, 3)
            and str(data["normalisation"]) == "image"
            and data["mocap_framerate"] == 30
        )
        pose = data["joints_3d"]
    motion = read_bvh(tmp_path / "out" / "a.bvh")
    assert len(motion.values) == 20 and motion.fps == pytest.approx(30, rel=1e-4)
    page = (tmp_path / "out" / "a.html").read_text()
    shown = json.loads(page.split("const P=")[1].split(", B=")[0])
    np.testing.assert_allclose(np.array(shown).reshape(20, 17, 3), pose, atol=6e-4)
    assert (tmp_path / "out" / "a.gif").read_bytes()[:3] == b"GIF"


def test_trained_facts_come_from_where_the_weights_do(tmp_path, capsys):
    facts = dict(fps=60.0, normalise="image", windows={"zoom": 1.0})
    save(lifter("hot"), tmp_path / "model", "hot_mixste_27", **facts)
    write(tmp_path / "a.json", walk(20), "plain")  # 1000 x 800 at 30 frames/s
    write(tmp_path / "b.csv", walk(20, 26), "csv")
    out = "--out", tmp_path / "out", "--format", "npz"
    for given in (("--model", tmp_path / "model"), ("--model", "hot_mixste_27", "--checkpoint", tmp_path / "model")):
        assert command("lift", tmp_path / "a.json", *given, *out) == 0
        text = capsys.readouterr().out
        assert "lifted at 60 frames/s" in text and "give better poses" not in text
    assert command("lift", tmp_path / "b.csv", "--model", tmp_path / "model", *out) == 0
    assert "--width and --height give better poses" in capsys.readouterr().out
    assert command("lift", tmp_path / "b.csv", *out) == 0  # the built-in weights were trained with zoom
    assert "give better poses" not in capsys.readouterr().out


def test_lift_command_failures(tmp_path, capsys):
    save(lifter("tpc"), tmp_path / "model", "tpc_mixste_27")
    write(tmp_path / "a.csv", walk(5, 26), "csv")
    args = "--model", tmp_path / "model", "--out", tmp_path / "out"
    assert command("lift", tmp_path / "a.csv", tmp_path / "none.json", *args) == 1
    got = capsys.readouterr()
    assert "normalisation crop" in got.out and "none.json: no such file" in got.err
    assert command("lift", tmp_path / "none.json", *args) == 2
    assert command("lift", tmp_path / "a.csv", *args, "--format", "avi") == 2
    assert command("lift", tmp_path / "a.csv", "--model", "mixste_27", "--out", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert "--format: expected some of" in err and "give --checkpoint" in err


def test_lift_with_an_official_checkpoint(tmp_path):
    model = lifter("base")
    torch.save({f"module.{k}": v for k, v in model.state_dict().items()}, tmp_path / "w.pth")
    write(tmp_path / "a.json", walk(12), "plain")
    from tore_fast.pipelines.lift import load_lifter

    loaded = load_lifter("mixste_9", tmp_path / "w.pth", heads=2)
    x = normalise_keypoints(walk(12), "image", 1000, 800)
    np.testing.assert_allclose(lift_clip(loaded, x).pose, lift_clip(model, x).pose, atol=1e-6)
    with pytest.raises(ValueError, match="does not fit|no known video pose host|expected a state dict"):
        torch.save({"a": torch.zeros(1)}, tmp_path / "bad.pth")
        load_lifter("mixste_9", tmp_path / "bad.pth")


def test_a_checkpoint_is_of_the_named_host_and_window(tmp_path):
    from tore_fast.models import create_model
    from tore_fast.pipelines.lift import load_lifter

    small = dict(channels=16, depth=2, heads=2, mlp_hidden=24, rep_channels=16)
    torch.manual_seed(0)
    bert = create_model("motionbert_lite_27", **small).eval()  # 243 embeddings, of which 27 are used
    torch.save({"model_pos": bert.state_dict()}, tmp_path / "bert.bin")
    pruned = dict(depth=2, heads=2)
    base, tpc = (
        load_lifter("motionbert_lite_27", tmp_path / "bert.bin", **pruned),
        load_lifter("tpc_motionbert_27", tmp_path / "bert.bin", **pruned),
    )
    x = torch.randn(1, 27, 17, 3)
    with torch.inference_mode():
        assert torch.equal(base(x).pose, bert(x).pose)
        assert tpc(x).pose.shape == (1, 9, 17, 3) and tpc.config.keep_center
    assert (
        load_lifter("tpc_motionbert_27", tmp_path / "bert.bin", **pruned, pruning="uniform").config.pruning == "uniform"
    )
    with pytest.raises(ValueError, match="holds weights of motionbert, --model mixste_27 is mixste"):
        load_lifter("mixste_27", tmp_path / "bert.bin")
    mixste = lifter("base")
    torch.save(mixste.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="holds weights for 9 frames, --model mixste_27 has 27"):
        load_lifter("mixste_27", tmp_path / "w.pth")
    save(mixste, tmp_path / "folder", "mixste_9")
    assert load_lifter("mixste_9", tmp_path / "folder").config == mixste.config
    with pytest.raises(ValueError, match="holds weights of mixste for 9 frames, --model is mixste_27"):
        load_lifter("mixste_27", tmp_path / "folder")
    with pytest.raises(ValueError, match="holds weights of mixste for 9 frames, --model is mhformer_9"):
        load_lifter("mhformer_9", tmp_path / "folder")
    afterwards = load_lifter(
        "tpc_mixste_9_n1f4", tmp_path / "folder"
    ).config  # the base's weights, pruned as the name says
    assert (afterwards.prune_block, afterwards.keep_frames, afterwards.keep_center) == (1, 4, True)
    save(lifter("hot"), tmp_path / "kept4", "hot_mixste_27")
    with pytest.raises(ValueError, match="does not fit hot_mixste_27: 1 keys of another shape, first: pos_embed_token"):
        load_lifter("hot_mixste_9_n1f3", tmp_path / "kept4")
    with pytest.raises(ValueError, match="a folder with weights of its own"):
        load_lifter(tmp_path / "folder", tmp_path / "w.pth")


def test_films_run_at_the_clip_speed(tmp_path):
    from PIL import Image

    from tore_fast.vis.stick_figure import write_gif, write_mp4

    poses = np.random.default_rng(0).normal(0, 0.5, (45, 17, 3))
    with Image.open(write_gif(tmp_path / "a.gif", poses, 30.0, size=32)) as gif:
        assert gif.n_frames * gif.info["duration"] == pytest.approx(1500, abs=40)
    pytest.importorskip("imageio_ffmpeg")
    import imageio.v2 as imageio

    with imageio.get_reader(write_mp4(tmp_path / "a.mp4", poses, 30.0, size=64), format="ffmpeg") as film:
        facts = film.get_meta_data()
        assert facts["fps"] == 30 and facts["duration"] == pytest.approx(1.5, abs=0.05) and facts["size"] == (128, 64)
