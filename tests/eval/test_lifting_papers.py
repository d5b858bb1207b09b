"""HoT's ways to measure: seq2frame of every host, errors by kind of frame, fewer recovered frames, files, subjects."""

from __future__ import annotations

import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch

from tore_fast.data.h36m import CAMERA_IDS, read_motionbert_file
from tore_fast.data.pose_clip import PoseClip
from tore_fast.data.pose_sets import read_pose_set
from tore_fast.eval.lifting import FrameErrors, Lifted, evaluate_clips, lifted_pairs
from tore_fast.eval.pose import PoseMeter
from tore_fast.models import create_model
from tore_fast.models.lifting._base import lift_windows, pose_frames
from tore_fast.train.config import TrainConfig
from tore_fast.train.lifting import PoseDataConfig, PoseLifting, lifting_loss
from tore_fast.train.optim import make_optimiser
from tore_fast.train.pose_losses import mixste_loss

SMALL = dict(frames=9, channels=16, depth=2, heads=2, mlp_hidden=16)
HOT = dict(**SMALL, prune_block=1, keep_frames=3, recovery="tra")


def clip(length: int = 14, action: str = "walk", **more) -> PoseClip:
    rng = np.random.default_rng(length)
    pose = rng.normal(size=(length, 17, 3)).astype(np.float32)
    return PoseClip("S9", action, "", rng.normal(size=(length, 17, 2)).astype(np.float32), pose - pose[:, :1], **more)


@pytest.mark.parametrize("name, fields", [("mixste_27", SMALL), ("hot_mixste_27", HOT)])
def test_seq2frame_of_models_for_all_frames_is_the_middle_of_each_window(name, fields):
    torch.manual_seed(0)
    model, data = create_model(name, **fields).eval(), clip()
    (got,) = lifted_pairs(model, [data], flip=False, stride=1, pipeline="seq2frame")
    assert len(got.pose) == len(data) and got.kept is None
    t = 7
    window = np.clip(np.arange(t - 4, t + 5), 0, len(data) - 1)
    want = lift_windows(model, torch.from_numpy(data.keypoints[window])[None], False).pose[0, 4]
    torch.testing.assert_close(got.pose[t], want, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="middle frame of a window"):
        evaluate_clips(create_model("tpc_mixste_27", **SMALL, prune_block=1, keep_frames=3), [data], pipeline="seq2seq")


def test_errors_of_kept_and_pruned_frames():
    truth = torch.zeros(4, 17, 3)
    pose = truth.clone()
    pose[:, 1:, 0] = torch.tensor([0.01, 0.02, 0.03, 0.04])[:, None]  # metres, 16 of 17 joints
    meter = FrameErrors()
    meter.add(Lifted(clip(4), pose, truth, torch.tensor([True, False, False, True])))
    got = {k: v * 17 / 16 for k, v in meter.result().items()}
    assert got == pytest.approx({"all": 25.0, "pruned": 25.0, "selected": 25.0, "delta": 0.0}, abs=1e-4)
    meter = FrameErrors()
    meter.add(Lifted(clip(4), pose, truth, torch.tensor([True, True, False, False])))
    assert meter.result()["delta"] * 17 / 16 == pytest.approx(20.0, abs=1e-4)


def test_kept_frames_are_those_of_the_model():
    torch.manual_seed(0)
    model, data = create_model("hot_mixste_27", **HOT).eval(), clip(9)
    (got,) = lifted_pairs(model, [data], flip=False)
    index = model(torch.from_numpy(data.keypoints)[None]).index[0]
    assert got.kept.nonzero()[:, 0].tolist() == index.tolist()


def test_fewer_recovered_frames_are_trained_and_measured_on_their_own_frames():
    torch.manual_seed(0)
    model = create_model("hot_mixste_27", **HOT, recover_frames=3).eval()
    assert pose_frames(model.config).tolist() == [1, 4, 7]
    data = clip(9)
    (got,) = lifted_pairs(model, [data], flip=False)
    np.testing.assert_array_equal(got.truth, data.pose[[1, 4, 7]])
    seen = []
    x, y = (torch.from_numpy(v)[None] for v in (data.keypoints, data.pose))
    lifting_loss(model, x, y, lambda pose, target: seen.append(target) or mixste_loss(pose, target))
    torch.testing.assert_close(seen[0], y[:, [1, 4, 7]])
    with pytest.raises(ValueError, match="recovers fewer frames"):
        evaluate_clips(model, [data], pipeline="seq2frame")


def test_without_validation_the_last_weights_are_exported():
    task = PoseLifting(create_model("hot_mixste_27", **HOT), [clip(20)], [], PoseDataConfig())
    assert task.validation == "" and task.evaluate(task.model) == {}


def test_mpjpe_over_frames_beside_the_mean_over_actions():
    """600 frames of 47.1 mm and 300 of 94.1 mm."""
    meter = PoseMeter()
    for action, frames, mm in (("a", 6, 47.1), ("b", 3, 94.1)):
        pose = torch.zeros(frames, 17, 3)
        pose[:, 1:, 0] = mm / 1000 * 17 / 16
        meter.add(action, pose, torch.zeros_like(pose))
    got = meter.result()
    assert got["mpjpe"] == pytest.approx(70.6, abs=1e-3) and got["mpjpe_frames"] == pytest.approx(62.7667, abs=1e-3)


def test_amsgrad():
    model = torch.nn.Linear(2, 2)
    group = make_optimiser(model, TrainConfig(optimiser="amsgrad"))
    assert isinstance(group, torch.optim.Adam) and group.defaults["amsgrad"]
    assert not make_optimiser(model, TrainConfig(optimiser="adam")).defaults["amsgrad"]


def test_choice_of_points_and_of_held_out_subjects(tmp_path):
    rng = np.random.default_rng(0)
    subjects = ("S1", "S5", "S6", "S7", "S8")
    world = {s: {"Walking 1": rng.normal(size=(6, 17, 3))} for s in subjects}
    np.savez(tmp_path / "data_3d_h36m.npz", positions_3d=world)
    for name, x in (("cpn_ft_h36m_dbb", 100.0), ("gt", 200.0)):
        points = {s: {"Walking 1": [np.full((6, 17, 2), x, np.float32)] * 4} for s in subjects}
        np.savez(tmp_path / f"data_2d_h36m_{name}.npz", positions_2d=points)
    rig = {s: [{"orientation": [1.0, 0, 0, 0], "translation": [0, 0, 5.0]}] * 4 for s in subjects}
    cameras = tmp_path / "cameras.json"
    cameras.write_text(json.dumps(rig))
    for name, x in (("", 100), ("cpn", 100), ("gt", 200), (str(tmp_path / "data_2d_h36m_gt.npz"), 200)):
        items = read_pose_set(tmp_path, cameras, ("train", "validation"), name).items
        assert items["train"][0].keypoints[0, 0, 0] == pytest.approx(x / 500 - 1)
        assert {c.subject for c in items["train"]} == {*subjects[:4]} and {c.subject for c in items["validation"]} == {
            "S8"
        }
    items = read_pose_set(tmp_path, cameras, ("train", "validation"), val_subjects="none").items
    assert {c.subject for c in items["train"]} == {*subjects} and not items["validation"]
    with pytest.raises(FileNotFoundError, match="--keypoints-2d sh: no file"):
        read_pose_set(tmp_path, cameras, ("train",), "sh")
    with pytest.raises(ValueError, match="--val-subjects: expected none"):
        read_pose_set(tmp_path, cameras, ("train",), val_subjects="S9")


def test_motionbert_file_is_measured_in_millimetres(tmp_path):
    """Poses in pixels, 4 mm a pixel, a camera of 1000 pixels: one network unit is 2 m."""
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 1000, (12, 17, 3)).astype(np.float32)
    part = {
        "joint_2d": image[..., :2],
        "joint3d_image": image,
        "confidence": np.ones((12, 17, 1), np.float32),
        "camera_name": np.array([CAMERA_IDS[1]] * 12),
        "source": np.array(["s_09_act_02_subact_01_ca_02"] * 7 + ["s_11_act_03_subact_01_ca_02"] * 5),
        "action": np.array(["Walking"] * 12),
        "2.5d_factor": np.full(12, 4.0, np.float32),
        "joints_2.5d_image": image * 4.0,
    }
    path = tmp_path / "h36m_sh_conf_cam_source_final.pkl"
    path.write_bytes(pickle.dumps({"train": part, "test": part}))
    clips = read_motionbert_file(path, "test")
    assert [(c.subject, len(c), c.action) for c in clips] == [("S9", 7, "Walking"), ("S11", 5, "Walking")]
    np.testing.assert_allclose(clips[0].metres, 2.0)
    np.testing.assert_allclose(clips[0].pose * 2.0 * 1000, (image[:7] - image[:7, :1]) * 4.0, rtol=1e-4, atol=1e-2)
    assert read_pose_set(path, splits=("test",)).kind == "motionbert"

    torch.manual_seed(0)
    model = create_model("motionbert_lite_27", frames=7, max_frames=7, depth=1, channels=16, heads=2).eval()
    (got, *_) = lifted_pairs(model, clips[:1], flip=False)
    (plain, *_) = lifted_pairs(model, [dataclasses.replace(clips[0], metres=None)], flip=False)
    torch.testing.assert_close(got.pose, plain.pose * 2.0)
    torch.testing.assert_close(got.truth, plain.truth * 2.0)
