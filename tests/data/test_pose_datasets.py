"""Human3.6M, MotionBERT and 3DHP readers on made-up files; windows, blending, flips."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tore_fast.data.h36m import (
    CAMERA_IDS,
    H36M_32_TO_17,
    HP3D_PCK_JOINTS,
    HP3D_TO_H36M,
    read_3dhp,
    read_cameras,
    read_h36m,
    read_motionbert_clips,
)
from tore_fast.geometry.skeleton import H36M17, mirror_points
from tore_fast.geometry.windows import blend_windows, covering_indices, window_bounds, window_indices


@pytest.fixture
def h36m(tmp_path):
    rng = np.random.default_rng(0)
    world = {"S9": {"Walking 1": rng.normal(size=(12, 32, 3)).astype(np.float32)}}
    points = {"S9": {"Walking 1": [rng.uniform(0, 1000, (13, 17, 2)).astype(np.float32) for _ in range(4)]}}
    np.savez_compressed(tmp_path / "data_3d_h36m.npz", positions_3d=world)
    np.savez_compressed(
        tmp_path / "data_2d_h36m_gt.npz", positions_2d=points, metadata={"keypoints_symmetry": [[4], [1]]}
    )
    q = rng.normal(size=(4, 4))
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    rig = [{"orientation": list(q[i]), "translation": [1.0, 2.0, 3.0 + i]} for i in range(4)]
    (tmp_path / "cameras.json").write_text(json.dumps({"S9": rig}))
    matrices = {}
    for camera, row in zip(CAMERA_IDS, rig):  # the other layout of the same cameras: x_cam = R x + t, millimetres
        r = Rotation.from_quat(row["orientation"], scalar_first=True).as_matrix().T
        matrices[camera] = {"R": r.tolist(), "t": (-1000 * r @ np.array(row["translation"])).reshape(3, 1).tolist()}
    (tmp_path / "camera-parameters.json").write_text(json.dumps({"extrinsics": {"S9": matrices}, "intrinsics": {}}))
    return tmp_path, world, points, rig


@pytest.mark.parametrize("cameras", ["cameras.json", "camera-parameters.json"])
def test_h36m(h36m, cameras):
    folder, world, points, rig = h36m
    clips = read_h36m(folder / "data_3d_h36m.npz", folder / "data_2d_h36m_gt.npz", folder / cameras, ["S9"])
    assert [c.camera for c in clips] == list(CAMERA_IDS) and {c.action for c in clips} == {"Walking"}
    for i, clip in enumerate(clips):
        assert len(clip) == 12  # the longer 2D is cut
        inverse = Rotation.from_quat(rig[i]["orientation"], scalar_first=True).inv()
        joints = world["S9"]["Walking 1"][:, list(H36M_32_TO_17)].astype(float) - rig[i]["translation"]
        seen = inverse.apply(joints.reshape(-1, 3)).reshape(joints.shape)
        np.testing.assert_allclose(clip.pose, seen - seen[:, :1], atol=1e-5)
        pixels = points["S9"]["Walking 1"][i][:12]
        np.testing.assert_allclose(clip.keypoints[..., 0], pixels[..., 0] / 500 - 1, atol=1e-5)
        height = (1.002, 1.0, 1.0, 1.002)[i]
        np.testing.assert_allclose(clip.keypoints[..., 1], pixels[..., 1] / 500 - height, atol=1e-5)


def test_h36m_errors(h36m):
    folder, *_ = h36m
    files = folder / "data_3d_h36m.npz", folder / "data_2d_h36m_gt.npz"
    with pytest.raises(ValueError, match="subject S1 has no 3D poses"):
        read_h36m(*files, folder / "cameras.json", ["S1"])
    with pytest.raises(ValueError, match="cannot be read"):
        read_h36m(files[1], files[0], folder / "cameras.json", ["S9"])
    with pytest.raises(FileNotFoundError, match="no such camera file"):
        read_h36m(*files, folder / "none.json", ["S9"])
    (folder / "broken.json").write_text('{"S9": [{"orientation": [1, 0], "translation": [0, 0, 0]}]}')
    with pytest.raises(ValueError, match="not a camera file"):
        read_cameras(folder / "broken.json")


def test_code_in_a_data_file_is_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return (print, ("ran",))

    np.savez(tmp_path / "data_3d_h36m.npz", positions_3d={"S9": Attack()})
    with pytest.raises(ValueError, match="refused to load"):
        read_h36m(tmp_path / "data_3d_h36m.npz", tmp_path / "x.npz", tmp_path / "c.json", ["S9"])


def test_motionbert_clips(tmp_path):
    folder = tmp_path / "H36M-SH" / "train"
    folder.mkdir(parents=True)
    clip = {"data_input": np.random.rand(243, 17, 3), "data_label": np.random.rand(243, 17, 3)}
    (folder / "00000001.pkl").write_bytes(pickle.dumps(clip))
    (got,) = read_motionbert_clips(tmp_path)
    np.testing.assert_allclose(got.pose, clip["data_label"] - clip["data_label"][:, :1], atol=1e-6)
    assert got.keypoints.shape == (243, 17, 3)
    (folder / "00000002.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match="00000002.pkl: expected a dictionary"):
        read_motionbert_clips(tmp_path)
    with pytest.raises(FileNotFoundError, match="no .pkl clips"):
        read_motionbert_clips(tmp_path / "H36M-SH", split="test")


def test_3dhp(tmp_path):
    rng = np.random.default_rng(0)
    view = lambda: {"data_3d": rng.normal(size=(6, 17, 3)) * 1000, "data_2d": rng.uniform(0, 2048, (6, 17, 2))}
    train = {"S1 Seq1": [{"0": view(), "8": view()}]}
    np.savez(tmp_path / "data_train_3dhp.npz", data=train)
    clips = read_3dhp(tmp_path / "data_train_3dhp.npz", "train")
    assert [(c.subject, c.action, c.camera) for c in clips] == [("S1", "Seq1", "0"), ("S1", "Seq1", "8")]
    source = train["S1 Seq1"][0]["0"]
    want = (source["data_3d"] - source["data_3d"][:, 14:15])[:, list(HP3D_TO_H36M)] / 1000
    np.testing.assert_allclose(clips[0].pose, want, atol=1e-5)
    assert sorted(HP3D_TO_H36M) == list(range(17)) and [HP3D_TO_H36M[j] for j in HP3D_PCK_JOINTS] == list(range(14))
    test = {n: {**view(), "valid": np.array([1, 0, 1, 1, 1, 0])} for n in ("TS1", "TS5")}
    np.savez(tmp_path / "data_test_3dhp.npz", data=test)
    first, fifth = read_3dhp(tmp_path / "data_test_3dhp.npz", "test")
    assert first.valid.tolist() == [True, False, True, True, True, False]
    root = test["TS5"]["data_2d"][:, 14]
    np.testing.assert_allclose(fifth.keypoints[:, 0], root / 960 - [1, 1080 / 1920], atol=1e-5)
    with pytest.raises(ValueError, match="does not look like train data"):
        read_3dhp(_as_train(tmp_path), "train")


def _as_train(folder):
    np.savez(folder / "odd.npz", data={"S1 Seq1": [np.zeros(3)]})
    return folder / "odd.npz"


@pytest.mark.parametrize("length", [1, 2, 5, 8, 9, 10, 13, 40])
@pytest.mark.parametrize("overlap", [0, 4, 8])
def test_windows_cover_and_blending_restores(length, overlap):
    slots = covering_indices(length, 9, overlap)
    assert set(slots.ravel()) == set(range(length)) and slots.shape[1] == 9
    if length > 9:
        starts = slots[:, 0]
        assert (np.diff(slots, axis=1) == 1).all() and np.diff(starts).max() <= 9 - overlap
    sequence = np.random.default_rng(0).normal(size=(length, 17, 3))
    np.testing.assert_allclose(blend_windows(sequence[slots], slots, length), sequence, atol=1e-12)


def test_padding_slots_do_not_leak_into_the_first_frame():
    slots = covering_indices(3, 9, 0)
    windows = np.zeros((1, 9, 1))
    windows[0, :3] = 100.0  # what the model says about repeated padding
    windows[0, -3:] = 100.0
    assert np.array_equal(blend_windows(windows, slots, 3), np.zeros((3, 1)))


def test_short_sequences_give_no_window_as_in_the_official_code():
    assert window_bounds(18, 27, 9) == [] and window_indices(18, 27, 9).shape == (0, 27)
    assert len(window_bounds(19, 27, 9)) == 1
    with pytest.raises(ValueError, match="stride >= 1"):
        window_bounds(10, 9, 0)


def test_flip():
    pose = np.random.default_rng(0).normal(size=(4, 17, 3))
    flipped = mirror_points(pose, H36M17)
    assert np.array_equal(mirror_points(flipped, H36M17), pose) and not np.array_equal(flipped, pose)
    np.testing.assert_allclose(flipped[:, 4], pose[:, 1] * [-1, 1, 1])
    assert sorted(H36M17.mirror) == list(range(17))
