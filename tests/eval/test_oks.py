"""OKS-AP against pycocotools on random people, and against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tore_fast.eval.oks import (
    BODY_SIGMAS,
    WHOLEBODY_SIGMAS,
    KeypointTable,
    extent_area,
    keypoint_ap,
    oks,
    oks_nms,
    rescore,
    wholebody_ap,
)
from tore_fast.geometry.skeleton import WHOLEBODY_PARTS


def people(rng, images=12, joints=17):
    """Annotations with unlabelled joints, crowds and people without any joint; detections near some of them."""
    rows, found = [], []
    for image in range(images):
        for _ in range(rng.integers(0, 5)):
            box = np.concatenate([rng.uniform(0, 300, 2), rng.uniform(15, 250, 2)])
            xy = box[:2] + rng.uniform(0, 1, (joints, 2)) * box[2:]
            v = rng.integers(0, 3, joints) * (rng.random() > 0.15)
            points = np.concatenate([xy, v[:, None]], 1)
            points[v == 0] = 0
            rows.append((image, points, box[2] * box[3] * 0.6, 1.0, rng.random() < 0.1, box))
            for _ in range(rng.integers(0, 4)):
                noise = rng.normal(0, rng.uniform(0.5, 0.15 * np.sqrt(box[2] * box[3])), (joints, 2))
                found.append((image, np.concatenate([xy + noise, np.ones((joints, 1))], 1), rng.random()))
        found.append((image, np.concatenate([rng.uniform(0, 400, (joints, 2)), np.ones((joints, 1))], 1), rng.random()))
    annotations = KeypointTable(*(np.array(c) for c in zip(*rows)))
    points = np.array([f[1] for f in found])
    detections = KeypointTable(
        np.array([f[0] for f in found]),
        points,
        extent_area(points),
        np.array([f[2] for f in found]),
        np.zeros(len(found), bool),
        np.zeros((len(found), 4)),
    )
    return annotations, detections


@pytest.mark.parametrize("seed", range(4))
def test_matches_pycocotools(seed):
    pytest.importorskip("pycocotools", reason="compares with pycocotools (extra: test)")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations, detections = people(np.random.default_rng(seed))
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i in range(12)],
        "categories": [{"id": 1}],
        "annotations": [
            {
                "id": n + 1,
                "image_id": int(annotations.image_id[n]),
                "category_id": 1,
                "iscrowd": int(annotations.ignore[n]),
                "keypoints": annotations.points[n].ravel().tolist(),
                "area": float(annotations.area[n]),
                "num_keypoints": int((annotations.points[n, :, 2] > 0).sum()),
                "bbox": annotations.box[n].tolist(),
            }
            for n in range(len(annotations.score))
        ],
    }
    coco.createIndex()
    results = coco.loadRes(
        [
            {
                "image_id": int(detections.image_id[n]),
                "category_id": 1,
                "score": float(detections.score[n]),
                "keypoints": detections.points[n].ravel().tolist(),
            }
            for n in range(len(detections.score))
        ]
    )
    run = COCOeval(coco, results, "keypoints")
    run.evaluate()
    run.accumulate()
    run.summarize()
    ours = keypoint_ap(annotations, detections)
    names = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")
    np.testing.assert_allclose([ours[n] for n in names], run.stats, atol=1e-9)
    assert 0 < ours["AP"] < 1


def test_oks_formula():
    points = np.zeros((1, 17, 3))
    points[0, :2, 2] = 1, 2  # two labelled joints at the origin
    shifted = points.copy()
    shifted[0, 0, 0] = 3.0
    expected = (np.exp(-9 / (2 * 100 * (2 * 0.026) ** 2)) + 1) / 2
    assert oks(shifted, points, np.array([100.0]), BODY_SIGMAS)[0, 0] == pytest.approx(expected)


def test_wholebody_parts_are_separate():
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 200, (3, 133, 2))
    truth = KeypointTable(
        np.arange(3),
        np.concatenate([xy, np.full((3, 133, 1), 2.0)], 2),
        np.full(3, 4e4),
        np.ones(3),
        np.zeros(3, bool),
        np.tile([0.0, 0, 200, 200], (3, 1)),
    )
    bad_hand = truth.points.copy()
    bad_hand[:, 91:112, :2] += 150
    found = truth._replace(points=bad_hand)
    result = wholebody_ap(truth, found, WHOLEBODY_PARTS)
    assert result["body_AP"] == result["face_AP"] == result["right_hand_AP"] == pytest.approx(1.0)
    assert result["left_hand_AP"] == 0.0
    assert 0.0 < result["whole_AP"] < 1.0
    assert len(WHOLEBODY_SIGMAS) == 133


def test_nms_and_rescore():
    base = np.random.default_rng(0).uniform(0, 100, (17, 2))
    points = np.stack([base, base + 0.1, base + 60])
    kept = oks_nms(points, np.array([0.5, 0.9, 0.4]), np.full(3, 1e4), BODY_SIGMAS)
    assert kept.tolist() == [1, 2]
    assert rescore(np.array([0.5]), np.array([[0.1, 0.4, 0.8]]))[0] == pytest.approx(0.3)


def test_wrong_joint_count_is_one_error():
    annotations, detections = people(np.random.default_rng(0), joints=6)
    with pytest.raises(ValueError, match="17 joints"):
        keypoint_ap(annotations, detections)
