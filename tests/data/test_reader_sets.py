"""3DPW, AMASS, FreiHAND, folders of your own, and the crops made of a record. TSV sets and tars: test_readers.py."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from made_up.sets import hmr2_person, image, python2_pickle, write_3dpw, write_freihand, write_hmr2_tar
from PIL import Image

from tore_fast.body import load_body
from tore_fast.data.augment import AugmentConfig, training_crop
from tore_fast.data.readers import (
    AmassReader,
    DataError,
    MissingData,
    ThreeDPWReader,
    evaluation_crop,
    open_dataset,
    to_j24,
    training_sample,
)
from tore_fast.geometry.crop import Crop, spin_pixels
from tore_fast.geometry.skeleton import J24


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# ---- 3DPW
# ----------------------------------------------------------------------------------------------------------------


def test_python2_pickle_is_read():
    value = {"a": [np.arange(6.0).reshape(2, 3), "text"], "b": np.float64(3.5), "c": np.array([[1, 2]], np.int64)}
    data = python2_pickle(value)
    assert b"cnumpy.core.multiarray\n_reconstruct" in data and b"_codecs" not in data
    from tore_fast.io.safe_pickle import loads

    back = loads(data, "made up")
    np.testing.assert_array_equal(back["a"][0], value["a"][0])
    assert back["a"][1] == "text" and back["b"] == 3.5 and back["c"].tolist() == [[1, 2]]


def test_3dpw(tmp_path, body):
    data = write_3dpw(tmp_path, body, invalid=((0, 1),))
    reader = open_dataset(tmp_path)
    assert isinstance(reader, ThreeDPWReader) and len(reader) == 5
    assert len(open_dataset(tmp_path, valid_only=False)) == 6
    assert [(r.sequence, r.frame) for r in reader] == [
        ("downtown_made_up_00_0", 0),
        ("downtown_made_up_00_0", 2),
        ("downtown_made_up_00_1", 0),
        ("downtown_made_up_00_1", 1),
        ("downtown_made_up_00_1", 2),
    ]
    assert [r.gender for r in reader] == ["male", "male", "female", "female", "female"]
    record, person, frame = reader[3], 1, 1
    assert record.image.shape == (128, 96, 3)

    def mesh(pose, translation):
        f = lambda x: torch.from_numpy(np.asarray(x)).float()[None]
        with torch.no_grad():
            return body(f(pose), f(data["betas"][person]), f(translation)).vertices[0].double().numpy()

    # posed by the record = posed in the world, then moved into the camera
    world = mesh(data["poses"][person][frame], data["trans"][person][frame])
    pose = data["cam_poses"][frame]
    np.testing.assert_allclose(mesh(record.pose, record.translation), world @ pose[:3, :3].T + pose[:3, 3], atol=1e-5)
    # detections sit on the projected joints, so the box around them holds every visible one
    visible = record.keypoints_2d[record.keypoints_2d[:, 2] > 0, :2]
    np.testing.assert_allclose(visible, record.extra["joints_2d_smpl24"][:18][record.keypoints_2d[:, 2] > 0], atol=1e-3)
    size = visible.max(0) - visible.min(0)
    np.testing.assert_allclose(record.center, (visible.max(0) + visible.min(0)) / 2, atol=1e-4)
    assert record.scale == pytest.approx(1.2 * size.max() / 200, rel=1e-5)
    last = reader[4]  # no detection there: the projected joints give the box
    joints = last.extra["joints_2d_smpl24"]
    assert not last.has_2d and last.scale == pytest.approx(1.2 * (joints.max(0) - joints.min(0)).max() / 200, rel=1e-5)


def test_3dpw_missing(tmp_path):
    (tmp_path / "sequenceFiles").mkdir()
    with pytest.raises(MissingData, match="sequence files .*register at the 3DPW page") as e:
        open_dataset(tmp_path)
    assert "\n" not in str(e.value)
    (tmp_path / "sequenceFiles" / "test").mkdir()
    (tmp_path / "sequenceFiles" / "test" / "a.pkl").write_bytes(pickle.dumps({"poses": []}, protocol=2))
    with pytest.raises(DataError, match="no sequence, trans"):
        open_dataset(tmp_path)


# ---- AMASS
# ---------------------------------------------------------------------------------------------------------------


def test_amass(tmp_path, rng):
    for name, count, numbers, rate in (
        ("S1/walk_poses", 25, 156, "mocap_framerate"),
        ("S2/run_stageii", 11, 165, "mocap_frame_rate"),
    ):
        file = tmp_path / f"{name}.npz"
        file.parent.mkdir()
        np.savez(
            file,
            poses=rng.normal(size=(count, numbers)),
            trans=rng.normal(size=(count, 3)),
            betas=np.arange(16.0),
            gender=np.array("female"),
            dmpls=np.zeros((count, 8)),
            **{rate: np.array(120.0)},
        )
    np.savez(tmp_path / "S1" / "shape.npz", betas=np.zeros(16), gender=np.array("male"))
    data = open_dataset(tmp_path, frames_per_s=30)
    assert isinstance(data, AmassReader) and data.num_motions == 2 and len(data) == 7 + 3
    raw = np.load(tmp_path / "S1" / "walk_poses.npz")["poses"]
    record = data[2]
    np.testing.assert_allclose(record.pose, np.concatenate([raw[8, :66], np.zeros(6)]), rtol=1e-6)
    assert record.extra["frames_per_s"] == 30 and record.gender == "female" and record.betas.tolist() == list(range(10))
    assert record.open_image is None and data[7].sequence == "S2/run_stageii" and data[7].frame == 0
    assert data[7].extra["hand_pose"].shape == (90,) and data.motion(0).pose.shape == (7, 72)
    assert pickle.loads(pickle.dumps(data))[9].name == data[9].name == "S2/run_stageii/2"
    with pytest.raises(DataError, match="no 'poses'"):
        open_dataset(tmp_path / "S1" / "shape.npz")
    with pytest.raises(MissingData, match="AMASS is licensed"):
        open_dataset(tmp_path / "none", format="amass")


# ---- FreiHAND and folders
# ------------------------------------------------------------------------------------------------


def test_freihand(tmp_path):
    write_freihand(tmp_path, load_body("free_hand"))
    data = open_dataset(tmp_path)
    record = data[1]
    assert len(data) == 3 and record.scale == 0.9 and record.center.tolist() == [112, 112]
    assert record.image.shape == (224, 224, 3) and record.vertices.shape == (778, 3) and record.has_smpl
    uv = record.keypoints_3d[:, :3] @ record.camera.intrinsics.T
    np.testing.assert_allclose(record.keypoints_2d[:, :2], uv[:, :2] / uv[:, 2:], rtol=1e-5)
    with pytest.raises(MissingData, match="FreiHAND"):
        open_dataset(tmp_path, split="training")
    with pytest.raises(ValueError, match="has no option 'colour'"):
        open_dataset(tmp_path, colour=1)


@pytest.mark.parametrize(
    "text",
    [
        "image,x0,y0,x1,y1,gender\na.png,10,20,50,100,m\n",
        "a.png,10,20,50,100\n",
        "image,x,y,w,h\na.png,10,20,40,80\n",
        "image,center_x,center_y,scale\na.png,30,60,0.48\n",
    ],
)
def test_csv_folder(tmp_path, rng, text):
    (tmp_path / "t.csv").write_text(text)
    Image.fromarray(image(rng)).save(tmp_path / "a.png")
    (record,) = open_dataset(tmp_path / "t.csv")
    assert record.center.tolist() == [30, 60] and record.scale == pytest.approx(0.48)
    assert record.image.shape == (128, 96, 3)


def test_json_folders(tmp_path, rng):
    rows = [
        {
            "image": "a.png",
            "box": [10, 20, 50, 100],
            "keypoints_2d": [[1, 2]] * 17,
            "pose": [0.1] * 72,
            "betas": [0.2] * 10,
            "gender": "female",
            "camera": [[500, 0, 48], [0, 500, 64], [0, 0, 1]],
            "sequence": "s",
            "frame": 3,
        },
        {"image": "b.png", "box": [0, 0, 5, 5], "keypoints_3d": [[1, 2, 3, 1]] * 24, "keypoints_3d_set": "smpl24"},
    ]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("t.json", "t.jsonl"):
        first, second = open_dataset(tmp_path / name)
        assert first.keypoints_2d_set == "coco17" and first.has_smpl and first.frame == 3 and first.gender == "female"
        assert second.keypoints_3d_set == "smpl24" and not second.has_smpl and second.has_3d
    coco = {
        "images": [
            {
                "id": 7,
                "file_name": "image_00012.jpg",
                "sequence": "office",
                "cam_param": {"focal": [500, 501], "princpt": [48, 64]},
            }
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "bbox": [10, 20, 40, 80],
                "keypoints": [5, 6, 2] * 17,
                "smpl_param": {"pose": [0.1] * 72, "shape": [0.0] * 10, "trans": [0, 0, 3], "gender": "male"},
            },
            {"id": 2, "image_id": 7, "bbox": [10, 20, 0, 80]},
        ],
    }
    (tmp_path / "3DPW_test.json").write_text(json.dumps(coco))
    (record,) = open_dataset(tmp_path / "3DPW_test.json", images=tmp_path)
    assert record.has_smpl and record.gender == "male" and (record.sequence, record.frame) == ("office_0", 12)
    assert record.center.tolist() == [30, 60] and record.camera.intrinsics[1, 1] == 501
    (tmp_path / "bad.json").write_text(json.dumps([{"image": "a.png", "box": [5, 5, 1, 1]}]))
    with pytest.raises(DataError, match="entry 1: the box"):
        open_dataset(tmp_path / "bad.json")[0]
    (tmp_path / "broken.json").write_text("[{")
    with pytest.raises(DataError, match="not JSON"):
        open_dataset(tmp_path / "broken.json")


@pytest.mark.parametrize(
    ("name", "whose"),
    [("3DPW", "3DPW page"), ("amass", "AMASS page"), ("FreiHAND_v2", "Freiburg"), ("Human3.6M", "METRO")],
)
def test_a_missing_folder_called_after_a_data_set_says_whose_it_is(tmp_path, name, whose):
    with pytest.raises(MissingData, match=whose):
        open_dataset(tmp_path / name)


def test_unknown_data(tmp_path):
    with pytest.raises(MissingData, match="no such file or folder"):
        open_dataset(tmp_path / "nothing")
    with pytest.raises(DataError, match="no known data set"):
        open_dataset(tmp_path)
    with pytest.raises(ValueError, match="format must be one of"):
        open_dataset(tmp_path, format="zip")


# ---- samples
# -------------------------------------------------------------------------------------------------------------


def test_evaluation_crop_is_the_official_one(tmp_path, rng):
    write_hmr2_tar(tmp_path / "a.tar", [("x", image(rng), [hmr2_person(rng)])])
    record = open_dataset(tmp_path / "a.tar")[0]
    np.testing.assert_array_equal(
        evaluation_crop(record, 64), training_crop(record.image, record.center, 0.5, None, 64)
    )
    # 256 x 192: the box 60 x 100 fits the aspect ratio by its height; the sides of the square are cut off
    tall = evaluation_crop(record, (64, 48))
    np.testing.assert_array_equal(tall, training_crop(record.image, record.center, 0.5, None, 64)[:, :, 8:56])
    with pytest.raises(ValueError, match="taller than wide"):
        evaluation_crop(record, (48, 64))


def test_training_sample(tmp_path, rng):
    write_hmr2_tar(tmp_path / "a.tar", [("x", image(rng), [hmr2_person(rng)])])
    record = open_dataset(tmp_path / "a.tar")[0]
    nothing = AugmentConfig(flip=0, noise=0, rotation_deg=0, scale=0)
    sample = training_sample(record, rng, nothing, 64)
    assert sample["image"].shape == (3, 64, 64) and sample["joints_2d"].shape == (24, 3)
    j24 = to_j24(record.keypoints_2d, "body44")
    want = 2 * spin_pixels(j24[:, :2], Crop.of_scale(record.center, record.scale), 64) / 64 - 1
    np.testing.assert_allclose(sample["joints_2d"][:, :2], want, atol=1e-6)
    assert np.abs(sample["joints_3d"][J24.index("Pelvis"), :3]).max() == 0 and sample["has_smpl"] == 1
    np.testing.assert_allclose(sample["pose"], record.pose, atol=1e-5)
    mirrored = training_sample(record, rng, AugmentConfig(flip=1, noise=0, rotation_deg=0, scale=0), 64)
    np.testing.assert_allclose(mirrored["image"], sample["image"][:, :, ::-1], atol=1e-6)
    right, left = J24.index("R_Wrist"), J24.index("L_Wrist")
    np.testing.assert_allclose(mirrored["joints_3d"][right, :3], sample["joints_3d"][left, :3] * [-1, 1, 1], atol=1e-6)


def test_training_sample_without_labels_and_hands(tmp_path, rng):
    (tmp_path / "t.csv").write_text("a.png,10,20,50,100\n")
    Image.fromarray(image(rng)).save(tmp_path / "a.png")
    sample = training_sample(open_dataset(tmp_path / "t.csv")[0], rng, image_size=32)
    assert not sample["has_2d"] and not sample["has_3d"] and not sample["has_smpl"] and sample["pose"].shape == (72,)
    write_freihand(tmp_path, load_body("free_hand"), hands=1)
    hand = training_sample(open_dataset(tmp_path)[0], rng, image_size=32)
    assert hand["joints_3d"].shape == (21, 4) and hand["pose"].shape == (48,) and hand["has_3d"] == 1
    with pytest.raises(ValueError, match="never mirrored"):
        training_sample(open_dataset(tmp_path)[0], rng, AugmentConfig())
