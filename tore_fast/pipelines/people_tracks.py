"""People of a video: each followed from frame to frame by the crop that their own points ask for.

In: frames in order; out: `Tracked` a frame (people with numbers that stay). The detector runs every few frames and when
somebody was lost; points are smoothed by a one-euro filter. Detection in photographs: people.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from ..geometry.roi import Roi
from ..geometry.smooth import OneEuro
from .people import People, PeopleFinder, is_same, joined, next_roi

_MIN_CUTOFF_HZ, _SPEED_HZ = 1.0, 8.0  # of the filter; points in sides of the crop
_REACH, _GROWTH = 0.5, 1.6  # a lost person comes back within so many sides of the crop, at most so much larger


class Tracked(NamedTuple):
    """The people of one frame."""

    people: People
    numbers: list[int]  # of each; a number stays with a person


@dataclass
class _Track:
    roi: Roi  # crop for the next frame
    last: People  # one row, as the net gave it
    seen: int  # frame
    unit: float  # side of the crop when the track began, px
    filter: OneEuro = field(repr=False)


class PeopleTracker:
    """Frames in order in, people with numbers out. One tracker a video.

    Args:
        finder: nets and thresholds. rate: frames per second. detect_every: frames between two looks for new people.
        max_lost: frames after which somebody who comes back is somebody new. smooth: filter the points.
    """

    def __init__(
        self, finder: PeopleFinder, rate: float = 30.0, detect_every: int = 10, max_lost: int = 30, smooth: bool = True
    ):
        for name, value in (("detect_every", detect_every), ("max_lost", max_lost)):
            if value < 1:
                raise ValueError(f"PeopleTracker: {name} must be at least 1, got {value}")
        self._new_filter = partial(OneEuro, rate, _MIN_CUTOFF_HZ, _SPEED_HZ)
        self._new_filter()  # refuses a rate that is none
        self.finder, self.rate, self.detect_every, self.max_lost = finder, rate, detect_every, max_lost
        self.smooth = smooth
        self._tracks: dict[int, _Track] = {}
        self._next, self._frame, self._looked = 0, -1, -math.inf

    def __call__(self, frame: np.ndarray) -> Tracked:
        """People of the next frame [H, W, 3] uint8."""
        self._frame += 1
        alive = [n for n, t in self._tracks.items() if t.seen == self._frame - 1]
        people = self.finder.at([(frame, self._tracks[n].roi) for n in alive])
        kept = self._still_there(people, alive)
        people, numbers = people[kept], [alive[k] for k in kept]
        lost = len(kept) < len(alive)
        if not numbers or lost or self._frame - self._looked >= self.detect_every:
            people, numbers = self._look(frame, people, numbers)
        for k, n in enumerate(numbers):
            track = self._tracks[n]
            track.roi, track.last, track.seen = next_roi(people, k), people[[k]], self._frame
        self._tracks = {n: t for n, t in self._tracks.items() if self._frame - t.seen <= self.max_lost}
        return Tracked(self._smoothed(people, numbers), numbers)

    def _still_there(self, people: People, numbers: list[int]) -> list[int]:
        """Rows that show a person, not one whom an older track has already."""
        kept: list[int] = []
        for k in sorted(range(len(people)), key=lambda k: numbers[k]):
            sure = people.score[k] >= self.finder.min_score and np.isfinite(people.points[k]).all()
            if sure and not any(is_same(people, k, other) for other in kept):
                kept.append(k)
        return sorted(kept)

    def _look(self, frame: np.ndarray, people: People, numbers: list[int]) -> tuple[People, list[int]]:
        """People whom the detector finds and nobody follows yet; a person lost a while ago keeps the number."""
        found = self.finder.find([frame], thorough=self._looked < 0)[0]
        self._looked = self._frame
        rows, numbers, both = list(range(len(people))), list(numbers), joined([people, found])
        for k in range(len(people), len(both)):
            if len(rows) >= self.finder.max_people or any(is_same(both, k, other) for other in rows):
                continue
            rows.append(k)
            numbers.append(self._number(both, k, numbers))
        return both[rows], numbers

    def _number(self, people: People, k: int, taken: list[int]) -> int:
        """Number of the lost track that row k continues, else a new one."""
        best, nearest = None, _REACH
        for n, track in self._tracks.items():
            before, now = track.last.rois[0].side, people.rois[k].side
            if n in taken or not 1 / _GROWTH < now / before < _GROWTH:
                continue
            gap = float(np.linalg.norm(people.points[k, 23:25].mean(0) - track.last.points[0, 23:25].mean(0)))
            if gap / max(before, now) < nearest:
                best, nearest = n, gap / max(before, now)
        if best is None:
            best, self._next = self._next, self._next + 1
        self._tracks[best] = _Track(people.rois[k], people[[k]], self._frame, people.rois[k].side, self._new_filter())
        return best

    def _smoothed(self, people: People, numbers: list[int]) -> People:
        if not self.smooth or not numbers:
            return people
        tracks = [self._tracks[n] for n in numbers]
        points = [t.filter.push(p / t.unit) * t.unit for t, p in zip(tracks, people.points)]
        return People(**{**vars(people), "points": np.stack(points).astype(np.float32)})
