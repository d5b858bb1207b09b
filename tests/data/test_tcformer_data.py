"""Readers of COCO-WholeBody, WFLW and class folders on files made on the spot; crops against their own inverse."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tore_fast.data import topdown, wflw, wholebody
from tore_fast.data.heatmap import decode_heatmaps, map_to_image
from tore_fast.data.imagenet_folder import imagenet_folder, imagenet_mixup
from tore_fast.geometry.crop import crop_of_box


@pytest.fixture
def coco(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (240, 320, 3), dtype=np.uint8)).save(tmp_path / "000000000001.jpg")

    def triples(n, v=2):
        return np.concatenate([rng.uniform((60, 40), (200, 200), (n, 2)), np.full((n, 1), v)], 1).ravel().tolist()

    person = {
        "id": 5,
        "image_id": 1,
        "category_id": 1,
        "iscrowd": 0,
        "bbox": [50, 30, 170, 190],
        "area": 20000.0,
        "keypoints": triples(17),
        "foot_kpts": triples(6),
        "face_kpts": triples(68),
        "lefthand_kpts": triples(21),
        "righthand_kpts": triples(21, 0),
    }
    crowd = {**person, "id": 6, "iscrowd": 1}
    empty = {**person, "id": 7, **{f: [0] * len(person[f]) for f in wholebody.FIELDS}}
    data = {"images": [{"id": 1, "file_name": "000000000001.jpg"}], "annotations": [person, crowd, empty]}
    (tmp_path / "ann.json").write_text(json.dumps(data))
    boxes = [
        {"image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40], "score": 0.7},
        {"image_id": 1, "category_id": 3, "bbox": [0, 0, 5, 5], "score": 0.9},
    ]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    return tmp_path


def test_wholebody_reader(coco):
    people = wholebody.read_wholebody(coco / "ann.json", coco)
    assert [p.annotation_id for p in people] == [5]
    assert people[0].points.shape == (133, 3)
    assert (people[0].points[112:, 2] == 0).all() and (people[0].points[:112, 2] == 2).all()
    found = wholebody.read_wholebody(coco / "ann.json", coco, coco / "boxes.json")
    assert len(found) == 1 and found[0].score == 0.7 and found[0].box == (1, 2, 30, 40)


def test_wholebody_items_decode_to_the_annotation(coco):
    people = wholebody.read_wholebody(coco / "ann.json", coco)
    item = wholebody.wholebody_dataset(people)[0]
    assert item["image"].shape == (3, 256, 192) and item["target"].shape == (133, 64, 48)
    assert item["weight"].sum() == 112
    points, _ = decode_heatmaps(item["target"][None], "none")
    back = map_to_image(points, item["center"][None], item["size"][None], (64, 48))[0]
    error = (back - torch.from_numpy(people[0].points[:, :2])).abs()[item["weight"] > 0]
    pixel = float(item["size"][0]) / 48  # one map pixel in the image
    assert error.max() <= 0.51 * pixel


def test_augmented_targets_follow_the_image(tmp_path):
    """A bright dot under a key point stays under it through crop, rotation, scale and flip."""
    image = np.zeros((200, 200, 3), np.uint8)
    image[88:93, 108:113] = 255
    points = np.zeros((17, 3), np.float32)
    points[5] = 110, 90, 2
    Image.fromarray(image).save(tmp_path / "dot.png")
    person = topdown.Instance(tmp_path / "dot.png", 1, (40, 30, 120, 130), points, 1e4, 1.0, 1)
    flip = tuple(range(5)) + (6, 5) + tuple(range(7, 17))
    augment = topdown.CropAugment(shift_p=1.0, rotation_p=1.0)
    data = topdown.TopDownDataset([person], (128, 96), flip, augment)
    sides, seen = set(), 0
    for epoch in range(12):
        data.epoch = epoch
        item = data[0]
        assert torch.equal(item["image"], data[0]["image"]), "an item must be a function of seed, epoch and index"
        joint = int(item["weight"].argmax())
        bright = item["image"].sum(0)
        if item["weight"].sum() == 0 or bright.max() < 5:
            continue  # rotated or shifted out of the crop
        seen += 1
        sides.add(joint)
        y, x = np.argwhere(bright.numpy() > 5).mean(0)
        at = int(item["target"][joint].argmax())
        assert abs(at % 24 * 4 - x) <= 3 and abs(at // 24 * 4 - y) <= 3
    assert sides == {5, 6} and seen >= 8


def test_half_body_crop_is_smaller():
    rng = np.random.default_rng(1)
    points = np.stack([rng.uniform(80, 120, 17), np.linspace(20, 220, 17)], 1)
    visible = np.full(17, 2.0)
    upper = np.arange(17) < 9
    crop = crop_of_box((60, 10, 140, 230), "topdown", size=(256, 192))
    augment = topdown.CropAugment(shift_p=0, scale=0, rotation_p=0, half_body_p=1.0)
    got = topdown.augmented_crop(crop, points, visible, augment, rng, (256, 192), upper)
    assert got.size[1] < 0.75 * crop.size[1]


def test_wholebody_errors(coco):
    with pytest.raises(wholebody.WholeBodyError, match="no such annotation file"):
        wholebody.read_wholebody(coco / "nothing.json", coco)
    data = json.loads((coco / "ann.json").read_text())
    data["annotations"][0]["foot_kpts"] = [1, 2, 3]
    (coco / "bad.json").write_text(json.dumps(data))
    with pytest.raises(wholebody.WholeBodyError, match="annotation 5: foot_kpts must have 18 numbers, got 3"):
        wholebody.read_wholebody(coco / "bad.json", coco)
    for content in (b"{", bytes(range(128, 256))):
        (coco / "broken.json").write_bytes(content)
        with pytest.raises(wholebody.WholeBodyError, match="broken.json: not JSON"):
            wholebody.read_wholebody(coco / "broken.json", coco)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["annotations"][0].pop("bbox"), r"annotation 5: expected an object with 'bbox', got \{"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2]), "annotation 5: bbox must have 4 numbers, got 2"),
        (
            lambda d: d["annotations"][0].update(bbox=[1, 2, 3, float("nan")]),
            "annotation 5: bbox must be finite numbers",
        ),
        (lambda d: d["annotations"][0].update(keypoints=["a"] * 51), "annotation 5: keypoints must be finite numbers"),
        (lambda d: d["annotations"][0].pop("image_id"), "annotation 5: expected an object with 'image_id'"),
        (lambda d: d["annotations"].insert(0, 3), "entry 0 of 'annotations': expected an object with 'id', got 3"),
        (lambda d: d["images"][0].pop("file_name"), "image 0: expected an object with 'file_name'"),
        (lambda d: d.update(images={"a": 1}), "'images' must be a list, got dict"),
    ],
)
def test_wholebody_damaged_entries(coco, change, words):
    data = json.loads((coco / "ann.json").read_text())
    change(data)
    (coco / "bad.json").write_text(json.dumps(data))
    with pytest.raises(wholebody.WholeBodyError, match=words):
        wholebody.read_wholebody(coco / "bad.json", coco)


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ({"a": 1}, "expected a list of detections, got dict"),
        ([{"image_id": 1, "bbox": [1, 2, 3, 4]}], "entry 0: expected an object with 'score'"),
        ([{"image_id": 1, "score": 0.5}], "entry 0: expected an object with 'bbox'"),
        ([{"image_id": 1, "bbox": [1, 2, 3, 4], "score": "high"}], "entry 0: score must be finite numbers"),
        ([{"image_id": 9, "bbox": [1, 2, 3, 4], "score": 0.5}], "entry 0: image_id 9 is not in"),
    ],
)
def test_detector_boxes_damaged(coco, boxes, words):
    (coco / "bad_boxes.json").write_text(json.dumps(boxes))
    with pytest.raises(wholebody.WholeBodyError, match=words):
        wholebody.read_wholebody(coco / "ann.json", coco, coco / "bad_boxes.json")


def wflw_line(rng, name, attributes="1 0 0 1 0 0"):
    points = " ".join(f"{v:.3f}" for v in rng.uniform(20, 180, 196))
    return f"{points} 20 25 180 190 {attributes} {name}"


def test_wflw_reader(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "a").mkdir()
    Image.fromarray(rng.integers(0, 255, (200, 210, 3), dtype=np.uint8)).save(tmp_path / "a" / "x.jpg")
    (tmp_path / "list.txt").write_text(
        wflw_line(rng, "a/x.jpg") + "\n" + wflw_line(rng, "a/x.jpg", "0 0 0 0 0 1") + "\n"
    )
    faces, attributes = wflw.read_wflw(tmp_path / "list.txt", tmp_path)
    assert len(faces) == 2 and attributes.tolist() == [[True, False, False, True, False, False], [False] * 5 + [True]]
    assert faces[0].box == (20, 25, 160, 165) and faces[0].points.shape == (98, 3)
    item = wflw.wflw_dataset(faces, augment=wflw.AUGMENT)[1]
    assert item["image"].shape == (3, 256, 256) and item["target"].shape == (98, 64, 64)
    (tmp_path / "bad.txt").write_text("1 2 3 x.jpg\n")
    with pytest.raises(wflw.WFLWError, match="line 1: expected 207 columns, got 4"):
        wflw.read_wflw(tmp_path / "bad.txt", tmp_path)
    (tmp_path / "bad.txt").write_text("nan " + wflw_line(rng, "a/x.jpg").split(" ", 1)[1])
    with pytest.raises(wflw.WFLWError, match="line 1: expected finite numbers"):
        wflw.read_wflw(tmp_path / "bad.txt", tmp_path)
    (tmp_path / "bad.txt").write_bytes(bytes(range(256)))
    with pytest.raises(wflw.WFLWError, match="not a text file"):
        wflw.read_wflw(tmp_path / "bad.txt", tmp_path)


def test_imagenet_folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.fromarray(rng.integers(0, 255, (90, 70, 3), dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    for training in (True, False):
        data = imagenet_folder(tmp_path, training, 64)
        image, label = data[3]
        assert image.shape == (3, 64, 64) and label == 1 and len(data) == 4
    images, soft = imagenet_mixup(2)(torch.rand(4, 3, 64, 64), torch.tensor([0, 0, 1, 1]))
    assert soft.shape == (4, 2) and torch.allclose(soft.sum(1), torch.ones(4), atol=1e-5)
    with pytest.raises(ValueError, match="not a folder"):
        imagenet_folder(tmp_path / "missing", True)
