"""`train lifting`, `eval` and `lift` as commands: a kill in the middle, pose sets, tables, start weights, output
names."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from tore_fast.cli import main
from tore_fast.cli.eval import looks_like_motion
from tore_fast.data.pose_sets import kind_of, read_pose_set
from tore_fast.geometry.windows import at_times
from tore_fast.models import create_model, save
from tore_fast.pipelines.lift import lift_at_rate, lift_clip
from tore_fast.pipelines.results import keys_of
from tore_fast.train.lifting import frame_waves, spread_embeddings
from tore_fast.train.start import take_weights

TINY = dict(frames=9, channels=16, depth=2, heads=2, mlp_hidden=16)
FIELDS = "frames 9 channels 16 depth 2 heads 2 mlp_hidden 16 prune_block 1 keep_frames 3".split()


def call(capsys, *words) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(w) for w in words])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


@pytest.fixture
def mocap(tmp_path):
    """Four swinging stick figures: a, b to train on, c for validation (the shortest), d for the test."""
    rng = np.random.default_rng(0)
    clips, rows = {}, []
    for subject, frames in (("a", 80), ("b", 80), ("c", 40), ("d", 60)):
        t = np.arange(frames)[:, None, None] / 8
        rest, phase = rng.normal(0, 0.3, (17, 3)) + [0, 0, 1], rng.uniform(0, 6, (17, 3))
        clips[subject] = (rest + 0.05 * np.sin(t + phase)).astype(np.float32)
        rows.append(
            {
                "id": subject,
                "subject": subject,
                "description": f"move {subject}",
                "fps": 50.0,
                "split": "test" if subject == "d" else "train",
            }
        )
    folder = tmp_path / "mocap"
    folder.mkdir()
    np.savez(folder / "clips.npz", **clips)
    (folder / "index.json").write_text(json.dumps({"clips": rows}))
    return folder


def curve(out) -> dict[int, float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: r["loss"] for r in rows if "loss" in r}


def test_a_killed_process_resumes_on_the_same_curve(mocap, tmp_path, capsys):
    pytest.importorskip("accelerate")
    options = [
        "train",
        "lifting",
        "--data",
        str(mocap),
        "--train.steps",
        "8",
        "--train.batch-size",
        "2",
        "--train.log-every",
        "1",
        "--train.eval-every",
        "4",
        "--train.checkpoint-minutes",
        "0",
        "--threads",
        "1",
        "--set",
        *FIELDS,
    ]
    where = lambda name: ["--train.out", str(tmp_path / name)]
    # workers=0 batches are slowed by nothing, so the victim is stopped as soon as it wrote its third step
    victim = subprocess.Popen(
        [sys.executable, "-m", "tore_fast", *options, *where("killed")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    log, deadline = tmp_path / "killed" / "metrics.jsonl", time.monotonic() + 120
    while (
        (not log.is_file() or log.read_text().count("\n") < 3) and victim.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert (tmp_path / "killed" / "last.pt").is_file()
    reached = max(curve(tmp_path / "killed"))
    code, out, _ = call(capsys, *options, *where("killed"))
    assert code == 0 and "resumed" in out and reached >= 2
    code, _, _ = call(capsys, *options, *where("whole"))
    assert code == 0 and len(curve(tmp_path / "whole")) == 8
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    a, b = (torch.load(tmp_path / n / "last.pt", weights_only=True)["model"] for n in ("killed", "whole"))
    assert all(torch.equal(a[k], b[k]) for k in b)


def test_train_test_export_eval_lift(mocap, tmp_path, capsys):
    pytest.importorskip("accelerate")
    code, out, _ = call(
        capsys,
        "train",
        "lifting",
        "--data",
        mocap,
        "--train.out",
        tmp_path / "run",
        "--train.steps",
        2,
        "--train.batch-size",
        2,
        "--train.eval-every",
        2,
        "--windows.zoom",
        2,
        "--windows.shift",
        0.3,
        "--threads",
        1,
        "--test",
        "--export",
        tmp_path / "model",
        "--set",
        *FIELDS,
    )
    assert code == 0 and "clips: train 2  validation 1  test 1" in out
    measured = json.loads((tmp_path / "run" / "test.json").read_text())["metrics"]
    card = json.loads((tmp_path / "model" / "config.json").read_text())
    assert card["selection"] == "lowest mpjpe on training subjects that are held out (step 2)"
    assert card["metrics"] == measured and card["validation"]["mpjpe"] > 0 and card["fps"] == 50
    code, out, _ = call(capsys, "eval", "--data", mocap, "--model", tmp_path / "model", "--json", tmp_path / "e.json")
    got = json.loads((tmp_path / "e.json").read_text())
    assert code == 0 and set(got["per_action"]) == {"move d"} and set(got["per_subject"]) == {"d"} and got["clips"] == 1
    assert got["mpjpe"] == pytest.approx(measured["mpjpe"], rel=0.01)  # the export is rounded to 16 bit
    assert (
        {"mpjpe", "p_mpjpe", "n_mpjpe", "mpjve", "pck150", "auc"} <= got.keys()
        and "p_mpjpe" in out
        and "move d" in out
        and "mpjve [mm/frame]" in out
    )
    code, _, err = call(capsys, "eval", "--data", mocap, "--model", tmp_path / "model", "--colour", "red")
    assert code == 2 and "Unrecognized options: --colour" in err
    code, _, err = call(capsys, "eval", "--data", mocap, "--model", tmp_path / "model", "--subjects", "z")
    assert code == 2 and "no test clips of z" in err
    np.savez(tmp_path / "k.npz", keypoints=np.random.rand(20, 17, 2) * 500, order="h36m", fps=25.0)
    code, out, _ = call(
        capsys, "lift", tmp_path / "k.npz", "--model", tmp_path / "model", "--out", tmp_path, "--format", "npz"
    )
    assert (
        code == 0
        and "lifted at 50 frames/s" in out
        and np.load(tmp_path / "k_npz.npz")["joints_3d"].shape == (20, 17, 3)
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (["--set", "colour", "red"], "--set colour: MixsteConfig has no such field; expected one of prune_block"),
        (["--set", "frames", "nine"], "--set frames: expected a whole number, got 'nine'"),
        (["--set", "recover_frames", "28"], "more poses (28) than the window has frames (27)"),
        (["--set", "prune_block", "0"], "prune_block must be in 1..7"),
        (["--windows.zoom", "0.5"], "zoom must be at least 1"),
        (["--model", "fastmetro_s_r50"], "not made for seq2seq or seq2frame"),
    ],
)
def test_bad_settings_are_one_line(mocap, tmp_path, capsys, change, message):
    code, _, err = call(capsys, "train", "lifting", "--data", mocap, "--train.out", tmp_path / "x", *change)
    assert code == 2 and message in err and err.count("\n") == 1 and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "pair, message",
    [
        (["--stride", "-3"], "--stride: expected a whole number from 0 on, got -3"),
        (["--limit", "1.5"], "--limit"),
        (["--views", "0"], "--views: expected a whole number from 1 on"),
        (["--fps", "-1"], "--fps: expected a number from 0 on"),
        (["--noise-px", "much"], "--noise-px"),
        (["--split", "dev"], "--split"),
        (["--model", "nowhere/"], "--model nowhere/: no such folder or file, and no registered model"),
    ],
)
def test_bad_evaluation_options_are_one_line(mocap, capsys, pair, message):
    code, _, err = call(capsys, "eval", "--data", mocap, *pair)
    assert code == 2 and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "words, message",
    [
        (["--overlap", "1"], "--overlap: expected a share"),
        (["--fps", "0"], "--fps: expected a positive number, got 0"),
        (["--width", "-3"], "--width: expected a positive number"),
        (["--model", "tore_default", "--checkpoint", "w.pth"], "tore_default: not a video pose model"),
        (["--checkpoint", "w.pth"], "say with --model which registered model"),
        (["--model", "mixste_243"], "give --checkpoint"),
    ],
)
def test_bad_lift_options_are_one_line(tmp_path, capsys, words, message):
    np.savez(tmp_path / "k.npz", keypoints=np.zeros((3, 17, 2)), order="h36m")
    code, _, err = call(capsys, "lift", tmp_path / "k.npz", "--out", tmp_path / "out", *words)
    assert code == 2 and message in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_folder_of_motion_files_is_motion(tmp_path):
    assert not looks_like_motion(tmp_path)
    (tmp_path / "05").mkdir()
    (tmp_path / "05" / "05_01.bvh").write_text("")
    assert looks_like_motion(tmp_path)


def test_eval_uses_every_clip_of_files_without_split(tmp_path):
    np.savez(tmp_path / "clips.npz", a=np.zeros((5, 17, 3), np.float32))
    (tmp_path / "index.json").write_text(json.dumps({"clips": [{"id": "a", "subject": "a", "fps": 60}]}))
    found = read_pose_set(tmp_path, splits=("test",))
    assert found.kind == "mocap" and len(found.items["test"]) == 1
    with pytest.raises(ValueError, match="split must be one of"):
        read_pose_set(tmp_path, splits=("dev",))
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        kind_of(tmp_path / "absent")


def test_motionbert_clips_are_split_without_subjects(tmp_path):
    import pickle

    for split, count in (("train", 21), ("test", 2)):
        folder = tmp_path / "H36M-SH" / split
        folder.mkdir(parents=True)
        for i in range(count):
            clip = {"data_input": np.zeros((4, 17, 3), np.float32), "data_label": np.zeros((4, 17, 3), np.float32)}
            (folder / f"{i:08d}.pkl").write_bytes(pickle.dumps(clip))
    found = read_pose_set(tmp_path)
    assert found.kind == "motionbert" and [len(found.items[s]) for s in ("train", "validation", "test")] == [20, 1, 2]


def test_start_weights(tmp_path):
    torch.manual_seed(0)
    base = create_model("mixste_27", **{**TINY, "frames": 3})
    save(base, tmp_path / "base", "mixste_27")
    model = create_model("hot_mixste_27", **TINY, prune_block=1, keep_frames=3)
    spread_embeddings(model, 0.5)
    text = take_weights(model, tmp_path / "base")
    assert "59 of 70 tensors taken; Temporal_pos_embed, pos_embed_token, x_token, cross_attention" in text
    torch.testing.assert_close(model.STEblocks[1].attn.qkv.weight, base.STEblocks[1].attn.qkv.weight)
    torch.testing.assert_close(model.x_token[0], 0.5 * frame_waves(9, 16))
    assert model.pos_embed_token.abs().max() == 0
    other = create_model("mixste_27", **{**TINY, "channels": 8, "mlp_hidden": 8, "frames": 5})
    with pytest.raises(ValueError, match="of its .* tensors fit the model"):
        save(
            create_model("motionbert_lite_27", channels=4, depth=1, heads=1, mlp_hidden=4, rep_channels=4),
            tmp_path / "o",
            "motionbert_lite_27",
        )
        take_weights(other, tmp_path / "o")


def test_frame_waves_tell_neighbours_from_the_rest():
    waves = frame_waves(27, 32)
    similar = waves @ waves.T
    assert waves.shape == (27, 32) and (similar.argmax(1) == torch.arange(27)).all()
    assert all(similar[13, 13 + d] > similar[13, 13 + d + 1] for d in range(2))


def test_lifting_at_another_rate():
    torch.manual_seed(0)
    model = create_model("hot_mixste_27", **TINY, prune_block=1, keep_frames=3).eval()
    x = np.random.default_rng(0).normal(size=(31, 17, 2)).astype(np.float32)
    same = lift_at_rate(model, x, 50.0, 50.0)
    np.testing.assert_array_equal(same.pose, lift_clip(model, x).pose)
    double = lift_at_rate(model, x, 25.0, 50.0)
    fine = lift_clip(model, at_times(x, np.arange(61) / 2))
    np.testing.assert_allclose(double.pose, fine.pose[::2], atol=1e-6)
    assert double.kept.sum() == fine.kept.sum()
    assert lift_at_rate(model, x[:1], 10.0, 50.0).pose.shape == (1, 17, 3)
    with pytest.raises(ValueError, match="must be positive"):
        lift_at_rate(model, x, 0.0, 50.0)


def test_outputs_never_hit_an_input_or_each_other(tmp_path, capsys):
    for name in ("a.json", "a.csv", "b.npz"):
        keypoints = np.random.default_rng(0).uniform(100, 400, (6, 17, 2))
        if name.endswith("json"):
            (tmp_path / name).write_text(json.dumps({"keypoints": keypoints.tolist(), "order": "h36m"}))
        elif name.endswith("csv"):
            np.savetxt(tmp_path / name, keypoints.reshape(6, 34), delimiter=",")
        else:
            np.savez(tmp_path / name, keypoints=keypoints, order="h36m")
    inputs = [tmp_path / n for n in ("a.json", "a.csv", "b.npz")]
    before = (tmp_path / "b.npz").read_bytes()
    code, out, _ = call(capsys, "lift", *inputs, "--order", "h36m", "--out", tmp_path, "--format", "npz", "--json")
    assert code == 0 and [e["files"] for e in json.loads(out)["items"]] == [["a.npz"], ["a_csv.npz"], ["b_npz.npz"]]
    assert (tmp_path / "b.npz").read_bytes() == before
    with np.load(tmp_path / "a_csv.npz") as data:
        assert set(data.files) == set(keys_of("l")) and str(data["source"]).endswith("a.csv")


def test_lifting_needs_nothing_but_keypoints(tmp_path, capsys):
    """The built-in weights, on a person standing before the camera: upright, metric, symmetric enough to be one."""
    from tore_fast.data.cameras import look_at

    body = np.zeros((17, 3))  # x across, z up, metres
    body[:, 2] = [0.95, 0.95, 0.5, 0.08, 0.95, 0.5, 0.08, 1.2, 1.4, 1.55, 1.7, 1.4, 1.15, 0.95, 1.4, 1.15, 0.95]
    body[:, 0] = [0, 0.13, 0.13, 0.13, -0.13, -0.13, -0.13, 0, 0, 0, 0, -0.18, -0.25, -0.28, 0.18, 0.25, 0.28]
    camera = look_at(np.array([0.5, 4.5, 1.5]), np.array([0.0, 0.0, 0.95]), 2.29)
    seen = camera.to_camera(body)
    pixels = camera.project(seen) * 960 + [960, 540]
    clip = np.broadcast_to(pixels, (40, 17, 2)).tolist()
    (tmp_path / "k.json").write_text(
        json.dumps({"keypoints": clip, "order": "h36m", "width": 1920, "height": 1080, "fps": 50})
    )
    code, out, _ = call(capsys, "lift", tmp_path / "k.json", "--out", tmp_path, "--format", "npz")
    assert code == 0 and "normalisation image" in out
    error = np.linalg.norm(np.load(tmp_path / "k.npz")["joints_3d"] - (seen - seen[:1]), axis=-1).mean()
    assert error < 0.1, f"{1000 * error:.0f} mm"
