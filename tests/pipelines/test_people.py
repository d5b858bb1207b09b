"""Everybody in a photograph. The person is the NASA portrait that scikit-image carries (public domain), 512 px."""

from __future__ import annotations

import numpy as np
import pytest

from tore_fast.models.keypoints.blazepose import LANDMARKS
from tore_fast.pipelines import people as module
from tore_fast.pipelines.people import MIRRORED, PeopleFinder, View, Window, box_of_points, letterbox, windows_of

NOSE = (222, 115)  # px, read off the portrait


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    return np.ascontiguousarray(pytest.importorskip("skimage.data").astronaut())


@pytest.fixture(scope="module")
def finder() -> PeopleFinder:
    return PeopleFinder(device="cpu")


def test_a_portrait(finder, portrait):
    found = finder(portrait)
    assert len(found) == 1 and found.score[0] > 0.9 and found.detection[0] > 0.7
    assert found.points.shape == (1, 33, 2) and found.world.shape == (1, 33, 3)
    assert np.linalg.norm(found.points[0, 0] - NOSE) < 20
    left, right = LANDMARKS.index("left_shoulder"), LANDMARKS.index("right_shoulder")
    assert found.points[0, left, 0] > found.points[0, right, 0] + 150  # she faces the camera
    assert found.visibility[0, :11].min() > 0.9
    assert found.visibility[0, LANDMARKS.index("left_ankle")] < 0.2  # half a body: the legs are not seen
    assert found.crop_points[0, :, :2].min() > -256 and found.crop_points[0, 0, 1] < 128
    box = finder.boxes(portrait)
    assert box.shape == (1, 5) and 0 <= box[0, 0] < 150 and box[0, 1] < 60 and 300 < box[0, 2] <= 512


def test_grey_upside_down_and_sideways(finder, portrait):
    grey = np.repeat(portrait.mean(2, keepdims=True).astype(np.uint8), 3, 2)
    assert np.linalg.norm(finder(grey).points[0, 0] - NOSE) < 20
    over = finder(np.ascontiguousarray(portrait[::-1, ::-1]))
    assert len(over) == 1 and np.linalg.norm(512 - over.points[0, 0] - NOSE) < 25
    assert over.world[0, 0, 1] > 0  # the head is below the hips
    side = finder(np.ascontiguousarray(np.rot90(portrait)))
    assert len(side) == 1 and np.linalg.norm(side.points[0, 0] - [NOSE[1], 512 - NOSE[0]]) < 25


def test_two_people_and_a_batch(finder, portrait):
    small = portrait[::2, ::2]
    pair = np.concatenate([small, np.full((256, 40, 3), 90, np.uint8), small[:, ::-1]], 1)
    one, two, none = finder.find([portrait, pair, np.full((100, 300, 3), 200, np.uint8)])
    assert (len(one), len(two), len(none)) == (1, 2, 0)
    noses = two.points[np.argsort(two.points[:, 0, 0]), 0]
    assert np.linalg.norm(noses[0] - np.array(NOSE) / 2) < 15
    assert np.linalg.norm(noses[1] - [256 + 40 + 256 - NOSE[0] / 2, NOSE[1] / 2]) < 15
    np.testing.assert_allclose(one.points, finder(portrait).points, atol=0.05)
    assert len(PeopleFinder(device="cpu", max_people=1)(pair)) == 1
    assert len(PeopleFinder(device="cpu", min_score=1.0)(pair)) == 0


def test_nobody(finder):
    rng = np.random.default_rng(0)
    for pixels in (
        np.zeros((1, 1, 3), np.uint8),
        np.zeros((2000, 3, 3), np.uint8),
        rng.integers(0, 255, (300, 400, 3), np.uint8),
    ):
        assert len(finder(pixels)) == 0 and finder.boxes(pixels).shape == (0, 5)
    assert finder.find([]) == []


def test_the_mirrored_image_gives_the_mirrored_person(finder, portrait):
    a, b = finder(portrait), finder(np.ascontiguousarray(portrait[:, ::-1]))
    swapped = b.points[0, list(MIRRORED)]
    seen = a.visibility[0] > 0.8
    assert np.abs([512, 0] * np.ones(2) - swapped * [1, -1] - a.points[0])[seen].max() < 25
    assert MIRRORED[0] == 0 and sorted(MIRRORED) == list(range(33))
    assert LANDMARKS[MIRRORED[LANDMARKS.index("mouth_left")]] == "mouth_right"


@pytest.mark.parametrize("size", [(640, 480), (300, 300), (100, 1000), (5, 3), (1, 1)])
def test_windows_cover_the_image(size):
    width, height = size
    seen = np.zeros((height, width), int)
    for w in windows_of(width, height):
        assert 0 <= w.x0 < w.x1 <= width and 0 <= w.y0 < w.y1 <= height
        seen[w.y0 : w.y1, w.x0 : w.x1] += 1
    assert seen.min() > 0 and len(windows_of(width, height)) <= 64


def test_letterbox_knows_its_way_back():
    pixels = np.zeros((300, 400, 3), np.uint8)
    pixels[100:108, 200:208] = 255
    for size in (224, 400):
        box = letterbox(pixels, View(Window(50, 20, 390, 280), size))
        assert not any(n % 32 for n in box.pixels.shape[:2])
        y, x = np.argwhere(box.pixels[..., 0] > 128).mean(0) + 0.5
        np.testing.assert_allclose((np.array([x, y]) - box.offset) * box.scale + [50, 20], [204, 104], atol=1.5)


def test_overlapping_candidates_become_their_mean():
    view = View(Window(0, 0, 224, 224), 224)
    box = letterbox(np.zeros((224, 224, 3), np.uint8), view)
    boxes = np.array([[10, 10, 50, 50], [12, 10, 52, 50], [120, 120, 160, 160], [0, 0, 9, 9]], float)
    points = np.array([[[30, 60], [30, 20]], [[36, 60], [36, 20]], [[140, 180], [140, 130]], [[5, 5], [5, 0]]], float)
    found = module._merged(np.array([0.9, 0.6, 0.3, 0.05]), boxes, points, view, box)
    assert [c.score for c in found] == [0.9, 0.3] and [c.faint for c in found] == [False, True]
    np.testing.assert_allclose(found[0].hips, [(0.9 * 30 + 0.6 * 36) / 1.5, 60])


def test_box_of_points():
    points = np.zeros((33, 2))
    points[11], points[12], points[7], points[8] = (60, 100), (40, 100), (55, 70), (45, 70)
    points[0], points[27], points[28] = (50, 75), (45, 300), (55, 300)
    seen = np.zeros(33)
    seen[[0, 7, 8, 11, 12, 27, 28]] = 1
    x0, y0, x1, y1 = box_of_points(points, seen)
    assert x0 < 40 and x1 > 60 and 35 < y0 < 55 and 300 < y1 < 320
    assert np.isfinite(box_of_points(points, np.zeros(33))).all()


def test_another_landmark_net(tmp_path, portrait):
    from tore_fast.models import BodyLandmarks, PersonDetector, load, save

    save(load("body_landmarks"), tmp_path / "net", "body_landmarks")
    found = PeopleFinder(landmarks=tmp_path / "net", device="cpu")(portrait)
    assert len(found) == 1
    assert isinstance(PeopleFinder(device="cpu").detector, PersonDetector)
    with pytest.raises(ValueError, match=f"person_detector: expected a {BodyLandmarks.__name__}, got PersonDetector"):
        PeopleFinder(landmarks="person_detector")


def test_arguments():
    with pytest.raises(ValueError, match="min_score must lie in 0..1, got 2"):
        PeopleFinder(min_score=2)
    with pytest.raises(ValueError, match="max_people must be at least 1, got 0"):
        PeopleFinder(max_people=0)
    with pytest.raises(ValueError, match="windows must be one of auto, never, always, got 'sometimes'"):
        PeopleFinder(windows="sometimes")


def test_passes_that_disagree_are_not_averaged():
    """Two people: in the first both passes agree but for 4 px, in the second the mirrored one takes left for right."""
    points = np.zeros((4, 39, 3), np.float32)
    points[:, :, 1] = 100
    points[:2, 11:29:2, 0], points[:2, 12:29:2, 0] = 90, 150  # left limbs, right limbs
    points[2, 11:29:2, 0], points[2, 12:29:2, 0] = 256 - 154, 256 - 94  # the same person mirrored, 4 px beside
    points[3, 11:29:2, 0], points[3, 12:29:2, 0] = 256 - 90, 256 - 150  # sides mistaken
    seen, world = np.full((4, 39), 0.5, np.float32), points / 100
    seen[3] = 0.4
    got = module._averaged([points, seen, seen, world, np.ones(4, np.float32)], 256)
    np.testing.assert_allclose(got[0][0, [11, 12], 0], [92, 152])
    np.testing.assert_allclose(got[0][1, [11, 12], 0], [90, 150])
    assert [v.shape[0] for v in got] == [2] * 5 and got[1][1, 20] == 0.5
    np.testing.assert_allclose(got[3][1], world[1])
