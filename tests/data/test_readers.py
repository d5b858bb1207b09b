"""Readers of TSV sets and 4D-Humans' tars on made-up files in exactly the official formats: every label comes back,
damage is
named, nothing is executed. The other sets: test_reader_sets.py."""

from __future__ import annotations

import json
import multiprocessing
import pickle

import numpy as np
import pytest
from made_up.sets import body_label, hmr2_person, image, write_hmr2_tar, write_tar, write_tsv, write_tsv_set
from PIL import Image

from tore_fast.data.readers import DataError, MissingData, TsvReader, open_dataset, to_j24
from tore_fast.data.readers.hmr2_tar import expand_tars
from tore_fast.geometry.skeleton import J24


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def close_images(a, b):
    return a.shape == b.shape and np.abs(a.astype(int) - b).mean() < 3  # JPEG


# ---- METRO's TSV
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lineidx", [True, False])
def test_tsv(tmp_path, rng, lineidx):
    images = [image(rng) for _ in range(4)]
    labels = [body_label(rng) for _ in range(4)]
    labels[2] |= {"has_smpl": 0, "has_3d_joints": 0, "gender": ""}
    write_tsv_set(tmp_path, labels, images, lineidx=lineidx)
    write_tsv(tmp_path / "test.linelist.tsv", [["3"], ["2"], ["0"]])
    (tmp_path / "test.yaml").write_text(
        "img: test.img.tsv\nlabel: test.label.tsv\nhw: test.hw.tsv\nlinelist: test.linelist.tsv\n"
    )
    data = open_dataset(tmp_path / "test.yaml")
    assert isinstance(data, TsvReader) and len(data) == 3 and len(list(data)) == 3
    for i, source in enumerate((3, 2, 0)):
        record, label = data[i], labels[source]
        assert record.name == f"test/{source:05d}.jpg" and data.size(i) == (96, 128)
        assert close_images(record.image, images[source])
        assert record.center.tolist() == label["center"] and record.scale == pytest.approx(0.55)
        np.testing.assert_allclose(record.keypoints_2d, label["2d_joints"][0], rtol=1e-6)
        np.testing.assert_allclose(record.pose, label["pose"], rtol=1e-6)
        assert record.keypoints_3d_set == "j24" and record.keypoints_3d.shape == (24, 4)
    assert data[0].has_smpl and data[0].has_3d and data[0].gender == "female"
    assert not data[1].has_smpl and not data[1].has_3d and data[1].has_2d and data[1].gender == "neutral"
    assert data[-1].name == data[2].name
    with pytest.raises(IndexError):
        data[3]


def test_tsv_composite_set(tmp_path, rng):
    for name, count in (("h36m", 2), ("coco", 3)):
        write_tsv_set(tmp_path / name, [body_label(rng, scale=0.1 * count)] * count, [image(rng)] * count, "train")
    for kind in ("img", "label", "hw"):
        (tmp_path / f"{kind}.txt").write_text(f"h36m/train.{kind}.tsv\ncoco/train.{kind}.tsv\n")
    write_tsv(tmp_path / "mixed.linelist.tsv", [["1", "2"], ["0", "1"], ["1", "0"]])
    (tmp_path / "mixed.yaml").write_text(
        "composite: true\nimg: img.txt\nlabel: [h36m/train.label.tsv, coco/train.label.tsv]\nhw: "
        "hw.txt\nlinelist: mixed.linelist.tsv\n"
    )
    data = open_dataset(tmp_path / "mixed.yaml")
    assert [r.name for r in data] == [
        "coco/train.hw.tsv_train/00002.jpg",
        "h36m/train.hw.tsv_train/00001.jpg",
        "coco/train.hw.tsv_train/00000.jpg",
    ]
    assert [round(r.scale, 6) for r in data] == [0.3, 0.2, 0.3]


def test_tsv_hands_and_old_size_column(tmp_path, rng):
    label = body_label(rng)
    label |= {
        "2d_joints": [[[1.0, 2.0, 1.0]] * 21],
        "3d_joints": [[[0.1, 0.2, 0.3, 1.0]] * 21],
        "pose": [0.1] * 48,
        "scale": 0.9,
    }
    del label["gender"]
    write_tsv_set(tmp_path, [label], [image(rng, 224, 224)])
    write_tsv(tmp_path / "test.hw.tsv", [["hand", "224 223"]])
    (tmp_path / "t.yaml").write_text("img: test.img.tsv\nlabel: test.label.tsv\nhw: test.hw.tsv\n")
    data = open_dataset(tmp_path / "t.yaml")
    assert data.size(0) == (223, 224)
    assert data[0].keypoints_2d_set == "hand21" and data[0].pose.shape == (48,) and data[0].gender == "neutral"


def test_tsv_damage_is_named(tmp_path, rng):
    write_tsv_set(tmp_path, [body_label(rng)] * 2, [image(rng)] * 2)
    yaml = tmp_path / "t.yaml"
    with pytest.raises(MissingData, match="t.yaml: not there.*MeshTransformer"):
        open_dataset(yaml)
    yaml.write_text("img: nowhere.img.tsv\n")
    with pytest.raises(MissingData, match="nowhere.img.tsv"):
        open_dataset(yaml)
    yaml.write_text("just text")
    with pytest.raises(DataError, match="expected keys img"):
        open_dataset(yaml)
    yaml.write_text("img: test.img.tsv\nlabel: test.label.tsv\n")
    (tmp_path / "test.label.lineidx").write_text("0\n17\n")
    with pytest.raises(DataError, match="stale"):
        open_dataset(yaml)[1]
    (tmp_path / "test.label.lineidx").unlink()
    write_tsv(tmp_path / "test.label.tsv", [["a", "[]"], ["b", "not json"]])
    for i, words in enumerate(("empty", "not JSON")):
        with pytest.raises(DataError, match=words):
            open_dataset(yaml)[i]
    write_tsv(tmp_path / "test.img.tsv", [["a", "@@"], ["b", "QUJD"]])
    write_tsv(tmp_path / "test.label.tsv", [["a", json.dumps([body_label(rng)])]] * 2)
    for i, words in enumerate(("base64", "not an image")):
        with pytest.raises(ValueError, match=words):
            open_dataset(yaml)[i].image  # noqa: B018


def _names_in_worker(data, indices):
    return [(data[i].name, float(data[i].image.mean())) for i in indices]


def test_readers_work_in_other_processes(tmp_path, rng):
    write_tsv_set(tmp_path, [body_label(rng) for _ in range(6)], [image(rng) for _ in range(6)])
    (tmp_path / "t.yaml").write_text("img: test.img.tsv\nlabel: test.label.tsv\n")
    write_hmr2_tar(tmp_path / "a.tar", [(f"k{i}", image(rng), [hmr2_person(rng)]) for i in range(6)])
    for data in (open_dataset(tmp_path / "t.yaml"), open_dataset(tmp_path / "a.tar")):
        here = _names_in_worker(data, range(6))  # opens the files before the fork, too
        with multiprocessing.get_context("fork").Pool(2) as pool:
            parts = pool.starmap(_names_in_worker, [(data, range(0, 3)), (data, range(3, 6))])
        assert parts[0] + parts[1] == here
        assert _names_in_worker(pickle.loads(pickle.dumps(data)), range(6)) == here


# ---- 4D-Humans
# -----------------------------------------------------------------------------------------------------------


def test_hmr2_tars(tmp_path, rng):
    images = [image(rng) for _ in range(3)]
    first, second = hmr2_person(rng), hmr2_person(rng, has_betas=np.array(0.0))
    write_hmr2_tar(tmp_path / "000000.tar", [("set/a.b", images[0], [first]), ("set/c", images[1], [first, second])])
    write_hmr2_tar(tmp_path / "000001.tar", [("set/d", images[2], [second])])
    data = open_dataset(str(tmp_path / "{000000..000001}.tar"))
    # webdataset cuts names at the first dot: the key is "set/a", its label "b.data.pyd"; such a sample has no data.pyd
    assert [r.name for r in data] == ["set/c_0", "set/c_1", "set/d"]
    record = data[0]
    assert close_images(record.image, images[1]) and close_images(data[2].image, images[2])
    np.testing.assert_array_equal(record.keypoints_2d, first["keypoints_2d"])
    np.testing.assert_array_equal(record.pose, first["body_pose"])
    assert record.keypoints_3d_set == "body44" and record.scale == pytest.approx(0.5) and record.has_smpl
    np.testing.assert_allclose(record.box_size, [60, 100])
    assert not data[1].has_smpl and data[1].extra == {"has_pose": True, "has_betas": False}
    assert len(open_dataset(tmp_path)) == 3 and len(expand_tars(str(tmp_path / "*.tar"))) == 2


def test_hmr2_hand_tar(tmp_path, rng):
    person = hmr2_person(rng, hand_pose=np.zeros(48), has_hand_pose=1, right=np.array(0), keypoints_2d=np.ones((21, 3)))
    del person["body_pose"], person["keypoints_3d"]
    write_hmr2_tar(tmp_path / "h.tar", [("x", image(rng), [person])])
    record = open_dataset(tmp_path / "h.tar")[0]
    assert record.pose.shape == (48,) and record.keypoints_2d_set == "hand21" and record.extra["right"] is False


class _Evil:
    def __reduce__(self):
        return (__import__("os").system, ("touch EXECUTED",))


def test_pickles_are_never_executed(tmp_path, rng, monkeypatch, body):
    monkeypatch.chdir(tmp_path)
    write_hmr2_tar(tmp_path / "bad.tar", [("x", image(rng), [{"center": _Evil()}])])
    with pytest.raises(ValueError, match="refused to load"):
        open_dataset(tmp_path / "bad.tar")
    folder = tmp_path / "sequenceFiles" / "test"
    folder.mkdir(parents=True)
    (folder / "s.pkl").write_bytes(pickle.dumps({"sequence": _Evil()}, protocol=2))
    with pytest.raises(ValueError, match="refused to load"):
        open_dataset(tmp_path)
    values = np.empty(1, object)
    values[0] = _Evil()
    np.savez(tmp_path / "bad.npz", imgname=values, center=np.zeros((1, 2)), scale=np.ones(1))
    with pytest.raises(ValueError, match="refused to load"):
        open_dataset(tmp_path / "bad.npz")
    assert not (tmp_path / "EXECUTED").exists()


def test_damaged_tars(tmp_path, rng):
    with pytest.raises(MissingData, match="4D-Humans"):
        open_dataset(tmp_path / "none.tar")
    (tmp_path / "text.tar").write_text("no tar at all" * 100)
    with pytest.raises(DataError, match="not an .* tar"):
        open_dataset(tmp_path / "text.tar")
    write_tar(tmp_path / "images.tar", [("a.jpg", b"x")])
    with pytest.raises(DataError, match="no sample with a image and a data.pyd"):
        open_dataset(tmp_path / "images.tar")


@pytest.mark.parametrize("pixels", [True, False])
def test_hmr2_npz(tmp_path, rng, pixels):
    n = 3
    body2d, extra2d = rng.random((n, 25, 3)), rng.random((n, 19, 3))
    body3d, extra3d = rng.random((n, 25, 4)), rng.random((n, 19, 4))
    scale = np.array([[120.0, 200.0], [60, 80], [300, 100]])
    np.savez(
        tmp_path / "val.npz",
        imgname=np.array(["im/a.jpg", "im/a.jpg", "im/b.jpg"]),
        center=rng.random((n, 2)) * 90,
        scale=scale if pixels else scale / 200,
        body_keypoints_2d=body2d,
        extra_keypoints_2d=extra2d,
        body_keypoints_3d=body3d,
        extra_keypoints_3d=extra3d,
        body_pose=rng.random((n, 72)),
        betas=rng.random((n, 10)),
        has_body_pose=np.array([1, 0, 1]),
        has_betas=np.array([1, 1, 1]),
        gender=np.array(["m", "f", "x"]),
    )
    (tmp_path / "pics" / "im").mkdir(parents=True)
    Image.fromarray(image(rng)).save(tmp_path / "pics" / "im" / "b.jpg")
    data = open_dataset(tmp_path / "val.npz", images=tmp_path / "pics")
    assert [r.name for r in data] == ["im/a.jpg", "im/a.jpg#1", "im/b.jpg"]
    assert [r.scale for r in data] == pytest.approx([1.0, 0.4, 1.5]) and data[2].image.shape == (128, 96, 3)
    np.testing.assert_allclose(data[1].keypoints_2d, np.concatenate([body2d[1], extra2d[1]]), rtol=1e-6)
    # in 3D the limbs and neck of OpenPose are not trusted, the rest is
    trusted = data[1].keypoints_3d[:, 3] > 0
    assert trusted[0] and not trusted[1:15].any() and trusted[15:].all()
    assert [r.has_smpl for r in data] == [True, False, True] and [r.gender for r in data] == [
        "male",
        "female",
        "neutral",
    ]


def test_spin_npz(tmp_path, rng):
    np.savez(
        tmp_path / "3dpw_test.npz",
        imgname=np.array(["a.jpg"]),
        center=np.array([[10.0, 20]]),
        scale=np.array([1.5]),
        pose=rng.random((1, 72)),
        shape=rng.random((1, 10)),
        part=rng.random((1, 24, 3)),
        S=rng.random((1, 24, 4)),
    )
    record = open_dataset(tmp_path / "3dpw_test.npz")[0]
    assert record.scale == 1.5 and record.has_smpl and record.keypoints_3d_set == record.keypoints_2d_set == "j24"
    np.savez(tmp_path / "bad.npz", imgname=np.array(["a"]), center=np.zeros((2, 2)), scale=np.ones(1))
    with pytest.raises(DataError, match="center has 2 rows"):
        open_dataset(tmp_path / "bad.npz")


def test_body44_into_j24():
    points = np.zeros((44, 3), np.float32)
    points[:, 0], points[:, 2] = np.arange(44), 1
    j24 = to_j24(points, "body44")
    assert j24[:19, 0].tolist() == list(range(25, 44))  # 4D-Humans' extra joints are J24's first 19
    assert dict(zip(J24.names[19:], j24[19:, 0])) == {"Nose": 0, "L_Eye": 16, "R_Eye": 15, "L_Ear": 18, "R_Ear": 17}
    coco = to_j24(np.ones((17, 3), np.float32), "coco17")
    known = {n for n, c in zip(J24, coco[:, 2]) if c}
    assert "R_Ankle" in known and not known & {"L_Hip", "R_Hip", "Pelvis", "Neck"}  # detectors' hips are elsewhere
    with pytest.raises(ValueError, match="must be .44, D."):
        to_j24(np.ones((24, 3)), "body44")
