"""People of a video: numbers that stay, the filter, a body that does not jump. Frames: scikit-image's NASA portrait,
moved."""

from __future__ import annotations

import numpy as np
import pytest

from tore_fast.pipelines.people import PeopleFinder
from tore_fast.pipelines.people_tracks import PeopleTracker
from tore_fast.pipelines.photographs import PhotographPipeline


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    portrait = pytest.importorskip("skimage.data").astronaut()[::2, ::2]
    wide = np.full((256, 420, 3), 80, np.uint8)
    out = []
    for i in range(6):
        frame = wide.copy()
        frame[:, 20 + 8 * i : 276 + 8 * i] = portrait
        out.append(frame)
    return out


@pytest.fixture(scope="module")
def finder() -> PeopleFinder:
    return PeopleFinder(device="cpu", mirrored=False)


def test_one_person_keeps_the_number_and_is_followed(finder, frames):
    tracker = PeopleTracker(finder, rate=25.0)
    seen = [tracker(f) for f in frames]
    assert [t.numbers for t in seen] == [[0]] * 6
    noses = np.array([t.people.points[0, 0, 0] for t in seen])
    assert 25 < noses[-1] - noses[0] < 45  # 40 px in all, the filter a little behind
    assert (np.diff(noses) > 0).all()


def test_somebody_who_comes_back_is_the_same_person(finder, frames):
    empty = np.full_like(frames[0], 80)
    tracker = PeopleTracker(finder, max_lost=3)
    numbers = [tracker(f).numbers for f in (frames[0], empty, frames[1])]
    assert numbers == [[0], [], [0]]
    late = [tracker(f).numbers for f in (*[empty] * 4, frames[1])]
    assert late == [[], [], [], [], [1]]  # too late: somebody new


def test_people_side_by_side_have_numbers_of_their_own(finder, frames):
    pair = [np.concatenate([f[:, :300], f[:, :300][:, ::-1]], 1) for f in frames[:3]]
    tracker = PeopleTracker(finder)
    seen = [tracker(f) for f in pair]
    assert [sorted(t.numbers) for t in seen] == [[0, 1]] * 3
    for n in (0, 1):
        noses = [t.people.points[t.numbers.index(n), 0, 0] for t in seen]
        assert np.ptp(noses) < 60


def test_a_rate_that_is_none(finder):
    with pytest.raises(ValueError, match="fps must be positive"):
        PeopleTracker(finder, 0)


def test_a_video_of_fitted_bodies(finder, frames):
    pipeline = PhotographPipeline(finder, device="cpu")
    results = list(pipeline.track([*frames[:3], np.full_like(frames[0], 80)], 25.0))
    assert [numbers for numbers, _ in results] == [[0], [0], [0], []]
    bodies = [r.people[0] for _, r in results[:3]]
    poses = np.stack([b.joints_3d - b.joints_3d[:1] for b in bodies])
    assert np.linalg.norm(np.diff(poses, axis=0), axis=-1).mean() < 0.03  # metres a frame
    assert bodies[2].trans[0] > bodies[0].trans[0]


def test_arguments(finder):
    with pytest.raises(ValueError, match="detect_every must be at least 1, got 0"):
        PeopleTracker(finder, detect_every=0)
