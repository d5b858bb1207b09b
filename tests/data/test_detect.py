"""Detector adapter and box tracker: identities through crossings, gaps and restarts; masks; messages."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tore_fast.data.detect import BoxTracker, Detections, as_detections, box_overlap, load_detector

FRAME = np.zeros((60, 80, 3), np.uint8)


def boxes_at(i: int):
    """Two people walking towards each other on different heights; the second is not seen in frames 6-8."""
    rows = [[5 + 2 * i, 5, 25 + 2 * i, 45, 0.9]]
    if i not in (6, 7, 8):
        rows.insert(0, [55 - i, 30, 75 - i, 59, 0.8])
    return rows


def test_tracks_keep_their_number_and_survive_a_restart():
    frames = iter(range(12))

    def detect(frame: np.ndarray):
        return boxes_at(next(frames))

    tracker = BoxTracker(detect)
    seen = []
    for i in range(12):
        if i == 7:  # an interrupted run: a new tracker with the saved memory
            state = json.loads(json.dumps(tracker.state()))
            tracker = BoxTracker(detect)
            tracker.restore(state)
        seen.append(tracker(i, FRAME))
    assert all(found[0][1] == 5 for found in seen) and all(found[1][1] == 30 for found in seen if 1 in found)
    assert [sorted(f) for f in seen] == [[0, 1]] * 6 + [[0]] * 3 + [[0, 1]] * 3


def test_long_lost_people_get_a_new_number_and_small_boxes_none():
    rows = [[0, 0, 30, 50]]
    tracker = BoxTracker(lambda frame: rows, max_lost=2)
    assert list(tracker(0, FRAME)) == [0] and list(tracker(3, FRAME)) == [1]
    rows = [[0, 0, 4, 50]]
    assert tracker(4, FRAME) == {} and tracker.masks(4, FRAME, {}) == {}


def test_masks_follow_their_box():
    masks = np.zeros((2, 60, 80), bool)
    masks[1, 5:45, 5:25] = True
    found = {"boxes": [[50, 30, 75, 59], [5, 5, 25, 45]], "scores": [0.5, 0.9], "masks": masks}
    tracker = BoxTracker(lambda frame: found)
    boxes = tracker(0, FRAME)
    got = tracker.masks(0, FRAME, boxes)
    assert boxes[0][0] == 5 and got[0].sum() == 800 and got[1].sum() == 0


def test_overlap_and_forms():
    np.testing.assert_allclose(
        box_overlap(np.array([[0, 0, 2, 2.0]]), np.array([[1, 0, 3, 2.0], [5, 5, 6, 6]])), [[1 / 3, 0]]
    )
    assert as_detections([], (60, 80)).boxes.shape == (0, 4)
    assert as_detections(Detections(np.ones((1, 4)), None), (60, 80)).scores.tolist() == [1]
    with pytest.raises(ValueError, match=r"boxes \[N, 4\] or \[N, 5\]"):
        as_detections(np.ones((2, 3)), (60, 80))
    with pytest.raises(ValueError, match=r"masks must be \[1, 60, 80\]"):
        as_detections({"boxes": [[0, 0, 1, 1]], "masks": np.ones((1, 5, 5))}, (60, 80))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("numpy", "MODULE:CALLABLE"),
        ("numpy:nothing", "no attribute"),
        ("no_such_module:f", "No module"),
        ("math:pi", "not callable"),
        ("torchvision:fasterrcnn_resnet50_fpn", "nothing is downloaded"),
        ("torchvision:yolo", "no detection model"),
    ],
)
def test_detectors_that_cannot_be_had(source, message):
    if source.startswith("torchvision"):
        pytest.importorskip("torchvision")
    with pytest.raises(ValueError, match=message):
        load_detector(source)
    assert load_detector("math:sqrt")(4) == 2
