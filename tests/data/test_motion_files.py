"""BVH and ASF/AMC readers and the BVH writer: forward kinematics, round trips, malformed files, synthetic cameras."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tore_fast.data.amc import read_amc, read_asf
from tore_fast.data.cameras import crop_scale_2d, detector_noise, normalise_2d, random_camera
from tore_fast.data.mocap import (
    Motion,
    read_amc_motion,
    read_bvh_motion,
    read_motions,
    seen_by_camera,
    split_subjects,
    with_thorax,
)
from tore_fast.geometry.skeleton import H36M17
from tore_fast.io.bvh import read_bvh, write_bvh

ROOT = Path(__file__).resolve().parent.parent.parent
MOCAP = Path(os.environ.get("TORE_FAST_MOCAP", ROOT.parent / "shared" / "data" / "mocap"))

BVH = """HIERARCHY
ROOT hip
{
  OFFSET 0 1 0
  CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation
  JOINT knee
  {
    OFFSET 0 -2 0
    CHANNELS 3 Zrotation Xrotation Yrotation
    End Site
    {
      OFFSET 0 -1 0
    }
  }
}
MOTION
Frames: 2
Frame Time: 0.02
1 2 3 0 0 0 0 0 0
0 0 0 90 0 0 0 90 0
"""

ASF = """:version 1.10
:units
  length 2.54
  angle deg
:root
  order TX TY TZ RX RY RZ
  axis XYZ
  position 0 0 0
  orientation 0 0 0
:bonedata
  begin
    name arm
    direction 1 0 0
    length 2
    axis 0 0 90 XYZ
    dof rx
  end
:hierarchy
  begin
    root arm
  end
"""


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_bvh_by_hand(tmp_path):
    motion = read_bvh(write(tmp_path, "a.bvh", BVH))
    assert (
        motion.names == ["hip", "knee", "End_knee"] and motion.parents == [-1, 0, 1] and motion.fps == pytest.approx(50)
    )
    got = motion.positions()
    np.testing.assert_allclose(got[0], [[1, 3, 3], [1, 1, 3], [1, 0, 3]], atol=1e-12)
    # root turned 90 degrees about z takes -y to +x; then the knee about its x axis takes its -y to -z
    np.testing.assert_allclose(got[1], [[0, 1, 0], [2, 1, 0], [2, 1, -1]], atol=1e-12)


def test_asf_by_hand(tmp_path):
    skeleton = read_asf(write(tmp_path, "s.asf", ASF))
    amc = write(tmp_path, "s_1.amc", ":DEGREES\n1\nroot 0 1 0 0 0 0\narm 0\n2\nroot 0 0 0 0 0 90\narm 90\n")
    got = read_amc(amc, skeleton) / 0.01  # 1 unit = 1 inch / 2.54 = 1 cm
    np.testing.assert_allclose(got[0], [[0, 1, 0], [2, 1, 0]], atol=1e-12)
    # the bone's x axis points along world y, so its turn takes +x to -z; the root takes that to itself
    np.testing.assert_allclose(got[1], [[0, 0, 0], [0, 0, -2]], atol=1e-12)


@pytest.mark.parametrize(
    "change, message",
    [
        (("HIERARCHY", "SKELETON"), "a.bvh:1: expected a BVH file"),
        (("Frames: 2", "Frames: 9"), "9 frames announced, 2 found"),
        (("1 2 3 0 0 0 0 0 0", "1 2 3 0 0"), "a.bvh:19: expected 9 numbers, got 5"),
        (("1 2 3 0 0 0 0 0 0", "1 2 x 0 0 0 0 0 0"), "a.bvh:19: expected numbers"),
        (("OFFSET 0 -2 0", "OFFSET 0 -2"), "a.bvh:8: expected 3 numbers, got 2"),
        (("Frame Time: 0.02", "Frame Time: 0"), "must be positive"),
    ],
)
def test_malformed_bvh(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read_bvh(write(tmp_path, "a.bvh", BVH.replace(*change)))


def test_malformed_acclaim(tmp_path):
    skeleton = read_asf(write(tmp_path, "s.asf", ASF))
    with pytest.raises(ValueError, match=r"b.amc:2: expected a frame number or a bone"):
        read_amc(write(tmp_path, "b.amc", "1\nleg 1 2\n"), skeleton)
    with pytest.raises(ValueError, match="holds no frames"):
        read_amc(write(tmp_path, "c.amc", ":DEGREES\n"), skeleton)
    with pytest.raises(ValueError, match="t.asf:14: cannot be read as ASF"):
        read_asf(write(tmp_path, "t.asf", ASF.replace("length 2\n", "length two\n")))
    with pytest.raises(ValueError, match="without a place in :hierarchy: \\['arm'\\]"):
        read_asf(write(tmp_path, "u.asf", ASF.replace("    root arm\n", "")))
    with pytest.raises(ValueError, match="lacks the joints"):
        read_bvh_motion(write(tmp_path, "a.bvh", BVH))


def random_poses(frames=12, seed=0) -> np.ndarray:
    """[T, 17, 3] with constant bone lengths and arbitrary directions."""
    rng = np.random.default_rng(seed)
    poses = rng.normal(size=(frames, 17, 3))
    for j, p in enumerate(H36M17.parents):
        if p >= 0:
            direction = poses[:, j] / np.linalg.norm(poses[:, j], axis=-1, keepdims=True)
            poses[:, j] = poses[:, p] + (0.1 + 0.02 * j) * direction
    return poses


def test_written_bvh_moves_like_the_poses(tmp_path):
    poses = random_poses()
    motion = read_bvh(write_bvh(tmp_path / "out.bvh", poses, fps=30))
    back = motion.positions()[:, [motion.names.index(n) for n in H36M17.names]] / 100 * [1, -1, -1]
    np.testing.assert_allclose(back, poses, atol=2e-6)
    assert motion.fps == pytest.approx(30, rel=1e-5)


@pytest.mark.skipif(
    not (MOCAP / "raw" / "expected_positions.npz").is_file(), reason="needs the motion-capture sample files"
)
def test_real_files():
    want = np.load(MOCAP / "raw" / "expected_positions.npz")
    for name in ("cmu_12_01", "cmu_14_08_first400"):
        motion = read_bvh(MOCAP / "raw" / f"{name}.bvh")
        assert motion.names == list(want[f"{name}_names"]) and motion.parents == list(want[f"{name}_parents"])
        got = motion.positions(list(want[f"{name}_frames"]))
        np.testing.assert_allclose(got, want[f"{name}_pos"], atol=1e-4)
    skeleton = read_asf(MOCAP / "raw" / "02.asf")
    assert skeleton.names == list(want["02_03_names"])
    got = read_amc(MOCAP / "raw" / "02_03.amc", skeleton)[want["02_03_frames"]]
    np.testing.assert_allclose(got, want["02_03_pos_m"], atol=1e-6)
    for motion in (read_amc_motion(MOCAP / "raw" / "02_03.amc"), read_bvh_motion(MOCAP / "raw" / "cmu_12_01.bvh")):
        height = motion.joints[:, 10, 2] - motion.joints[:, [3, 6], 2].min(1)
        assert 1.3 < np.median(height) < 1.8
    # the same motions as prepared by others, thorax put back, without the first pose and at 60 frames/s
    archive = {m.id: m for m in read_motions(MOCAP)}
    for name, other in (("cmu_12_01", "s12_01"), ("cmu_14_08_first400", "s14_08")):
        ours, theirs = read_bvh_motion(MOCAP / "raw" / f"{name}.bvh").resampled(60), archive[other]
        count = min(len(ours.joints), len(theirs.joints))
        apart = [m.joints[10:count] - m.joints[10:count, :1] for m in (ours, theirs)]
        assert np.linalg.norm(apart[0] - apart[1], axis=-1).mean() < 0.01


def test_lost_thorax_is_given_back(tmp_path):
    joint = "JOINT {0}\n{{\nOFFSET {1}\nCHANNELS 3 Zrotation Xrotation Yrotation\n{2}\n}}"
    end = "End Site\n{\nOFFSET 0 0 0\n}"
    for offset, lost in (("0 0 0", True), ("0 1 0", False)):
        above = [
            joint.format(n, offset if n == "Neck" else "0 0 0", end) for n in ("Neck", "LeftShoulder", "RightShoulder")
        ]
        body = joint.format("Spine1", "0 2 0.5", "\n".join(above))
        text = (
            f"HIERARCHY\nROOT Hips\n{{\nOFFSET 0 0 0\nCHANNELS 3 Xposition Yposition "
            f"Zposition\n{body}\n}}\nMOTION\nFrames: 1\n"
        )
        (tmp_path / "a.bvh").write_text(text + "Frame Time: 0.01\n" + " ".join(["0"] * 15) + "\n")
        read = read_bvh(tmp_path / "a.bvh")
        got = with_thorax(read)
        moved = [n for n, a, b in zip(got.names, got.offsets, read.offsets) if not np.array_equal(a, b)]
        assert moved == (["Neck", "LeftShoulder", "RightShoulder"] if lost else [])
        if lost:
            np.testing.assert_array_equal(got.offsets[got.names.index("Neck")], [0, 2, 0.5])


def motion(subject="a", frames=40, split="train", seed=0) -> Motion:
    joints = random_poses(frames, seed).astype(np.float32) + np.array([0, 0, 1], np.float32)
    return Motion(f"{subject}_{seed}", subject, "walk", split, joints, 60.0)


def test_archive_and_split(tmp_path):
    clips = {f"c{i}": random_poses(10 + i, i).astype(np.float32) for i in range(5)}
    np.savez(tmp_path / "clips.npz", **clips)
    rows = [
        {"id": k, "subject": s, "split": "test" if s == "z" else "train", "fps": 60, "description": "walk - slow"}
        for k, s in zip(clips, "aabcz")
    ]
    (tmp_path / "index.json").write_text(json.dumps({"clips": rows}))
    motions = read_motions(tmp_path)
    assert [m.action for m in motions] == ["walk"] * 5
    train, validation, test = split_subjects(motions, 0.2)
    assert {m.subject for m in test} == {"z"} and {m.subject for m in validation} == {"b"}
    assert {m.subject for m in train} == {"a", "c"}
    (tmp_path / "index.json").write_text(json.dumps({"clips": [{**rows[0], "id": "nope"}]}))
    with pytest.raises(ValueError, match="lacks the clip 'nope'"):
        read_motions(tmp_path)
    with pytest.raises(ValueError, match="cannot be split"):
        split_subjects([motion("a")])
    with pytest.raises(FileNotFoundError, match="expected a folder with clips.npz"):
        read_motions(tmp_path / "absent")


def test_resampling_keeps_the_path():
    m = motion(frames=61)
    slow = m.resampled(30)
    assert len(slow.joints) == 31
    np.testing.assert_allclose(slow.joints, m.joints[::2], atol=1e-6)
    assert len(m.resampled(50).joints) == 51


def test_camera_sees_the_person_upright():
    rng = np.random.default_rng(5)
    for seed in range(5):
        m = motion(seed=seed)
        camera = random_camera(rng, m.joints[:, 0].mean(0))
        np.testing.assert_allclose(camera.rotation @ camera.rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(camera.rotation) == pytest.approx(1)
        up = camera.rotation @ [0, 0, 1]
        assert up[1] < -0.8 and abs(up[0]) < 1e-9  # y down, no roll
        seen = camera.to_camera(m.joints)
        assert 2.0 < seen[..., 2].mean() < 7.5 and np.abs(np.median(camera.project(seen), axis=(0, 1))).max() < 0.5


def test_filmed_clip():
    m = motion()
    a = seen_by_camera(m, np.random.default_rng(1), noise_px=0)
    b = seen_by_camera(m, np.random.default_rng(1), noise_px=0)
    assert np.array_equal(a.keypoints, b.keypoints) and (a.pose[:, 0] == 0).all()
    bones = lambda x: np.linalg.norm(x[:, 1:] - x[:, list(H36M17.parents[1:])], axis=-1)
    np.testing.assert_allclose(bones(a.pose), bones(m.joints), atol=1e-5)
    assert a.with_channels(3).keypoints.shape == (40, 17, 3) and (a.with_channels(3).keypoints[..., 2] == 1).all()


def test_noise_has_the_asked_size_and_memory():
    noise = detector_noise(np.random.default_rng(0), (4000, 17, 2), sigma_px=5.0)
    assert noise.std() * 500 == pytest.approx(5.0, rel=0.1)
    lag = np.mean(noise[1:] * noise[:-1]) / np.mean(noise**2)
    assert 0.35 < lag < 0.55  # half of the variance follows an AR(1) of 0.9
    with pytest.raises(ValueError, match="correlation"):
        detector_noise(np.random.default_rng(0), (2, 17, 2), correlation=1.0)


def test_normalisations():
    pixels = np.random.default_rng(0).uniform(0, 1000, (5, 17, 3))
    there = normalise_2d(pixels, 1920, 1080)
    np.testing.assert_allclose((there[..., :2] + [1, 1080 / 1920]) * 960, pixels[..., :2], atol=1e-9)
    assert np.array_equal(there[..., 2], pixels[..., 2])
    np.testing.assert_allclose(normalise_2d(np.array([[960.0, 540.0]]), 1920, 1080), [[0, 0]], atol=1e-12)
    pixels[0, 0] = [9000, 9000, 0]  # not seen: must not stretch the box
    cropped = crop_scale_2d(pixels)
    good = cropped[pixels[..., 2] > 0][:, :2]
    assert np.abs(good).max() == pytest.approx(1) and np.ptp(good, axis=0).max() == pytest.approx(2)
    with pytest.raises(ValueError, match="coincide"):
        crop_scale_2d(np.ones((2, 17, 2)))
