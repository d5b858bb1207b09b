"""Finds everybody in a photograph: detector on the whole image and on windows, a turned crop a person, 33 landmarks
each.

In: pixels [H, W, 3] uint8; out: `People` (points, world points, visibility, scores) for body/fit, and boxes for models
that need them. Nets: models/keypoints/blazepose.py. Videos: pipelines/people_tracks.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from .._device import autocast, check_precision, pick_device
from ..body.fit import Landmarks
from ..geometry.roi import MARGIN, Roi, cut_roi, roi_of_points
from ..models import load
from ..models.keypoints.blazepose import ALIGNMENT, LANDMARKS, BodyLandmarks, PersonDetector
from .contact_sheet import cells_of

WINDOWS = ("auto", "never", "always")
MIN_DETECTION, MIN_PARTIAL = 0.45, 0.55  # of the detector's score, in the whole image and in a window
MIN_SCORE = 0.5  # of the landmark net's "there is a person"
MIN_EVIDENCE = 0.45  # of both scores' product: shoes, lamps and cats have one high score, seldom two
HOPE, MIN_HOPE = 0.66, 0.1  # of both scores: a second crop although the landmark net doubts the first
MAX_PEOPLE = 64
_MERGE_OVERLAP = 0.3  # IoU of candidates that are averaged into one
# Two finds are one person where these lie closer, in sides of the crop:
_SAME_HIPS, _SAME_POINTS, _SAME_HEAD, _SAME_TORSO = 0.10, 0.10, 0.035, 0.10
_DOUBTFUL = 0.65  # a detection below this on a better one's torso is that person
_SEEN = 0.5  # visibility of a landmark that the net sees
_HEAD, _LIMBS, _TORSO = slice(0, 11), slice(11, 29), [11, 12, 23, 24]
_MAX_CHANGE = 2.0  # a second crop so much larger or smaller than the first is not believed
_COARSE, _FINE, _SHARP, _LONGEST = 224, 400, 576, 1024  # px: sizes of the detector's looks at a whole image
_MAX_WINDOWS, _WINDOW_FILL = 64, 1.7  # a person's crop is at most so many sides of the window
_HINT, _SMALL = 0.25, 0.75  # a candidate of this score and of this part of the shorter side says that windows pay
_AGREE = 0.05  # mean distance of the limbs in both passes, sides of the crop
_TURNED = 0.75  # by how much a find in a turned image counts less
_FILLING = 0.9  # of the shorter side: a person who leaves little room for others
_BESIDE = 0.6  # sides of the crop: so far from a person somebody else may be
_FAINT = 0.1  # candidates below say nothing
_OTHER_SIDE = {"left": "right", "right": "left"}
MIRRORED = tuple(
    LANDMARKS.index("_".join(_OTHER_SIDE.get(word, word) for word in name.split("_"))) for name in LANDMARKS
)
"""Landmark of the other side of the body, by number."""


class Candidate(NamedTuple):
    """What the detector saw, pixels of the image."""

    score: float
    hips: np.ndarray  # [2] middle of the hips
    circle: np.ndarray  # [2] point on the circle round the body
    faint: bool = False

    @property
    def roi(self) -> Roi:
        return roi_of_points(self.hips, self.circle)


@dataclass(frozen=True)
class People:
    """N people of one image, best first. Arrays are float32.

    Axes of `world`: x right, y down, z away from the camera; its origin is the middle of the hips.
    """

    points: np.ndarray  # [N, 33, 2] pixels of the image
    crop_points: np.ndarray  # [N, 33, 3] px of the 256 px crop; z on the same scale
    world: np.ndarray  # [N, 33, 3] metres
    visibility: np.ndarray  # [N, 33] 0..1
    presence: np.ndarray  # [N, 33] 0..1
    score: np.ndarray  # [N] 0..1 of the landmark net: there is a person
    detection: np.ndarray  # [N] 0..1 of the detector
    rois: tuple[Roi, ...] = ()  # the crops that the points were read from
    next_rois: tuple[Roi, ...] = ()  # the crops that the points ask for

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, rows: Sequence[int]) -> People:
        columns: Any = (_rows(getattr(self, f.name), list(rows)) for f in fields(self))
        return People(*columns)

    def moved(self, x: float, y: float) -> People:
        """The same people where this image is a part of a larger one, its corner at (x, y)."""
        rois, following = (
            tuple(replace(r, center_x=r.center_x + x, center_y=r.center_y + y) for r in rs)
            for rs in (self.rois, self.next_rois)
        )
        return replace(self, points=self.points + np.float32([x, y]), rois=rois, next_rois=following)

    @property
    def boxes(self) -> np.ndarray:
        """[N, 4] x0, y0, x1, y1: the body with its head, and hands and feet; beyond the image where the points are."""
        return np.array([box_of_points(p, v) for p, v in zip(self.points, self.visibility)]).reshape(-1, 4)

    def landmarks(self, device: str | torch.device = "cpu") -> Landmarks:
        """What body.fit.fit_body takes.

        Where a part of the body is not seen, the fit counts pixels in a crop of what is seen: most of the crop round
        a head that fills the image is guessed, and a small body below it would miss the face by few of that crop's
        pixels.
        """
        sides = [r.side * _seen_part(p, v) for r, p, v in zip(self.rois, self.points, self.visibility)]
        arrays = (self.points, self.world, self.visibility, self.score, np.array(sides))
        return Landmarks(*(torch.from_numpy(np.asarray(a, np.float32)).to(device) for a in arrays))


def _rows(value: np.ndarray | tuple, rows: list[int]) -> np.ndarray | tuple:
    return tuple(value[i] for i in rows) if isinstance(value, tuple) else value[rows]


def nobody() -> People:
    """People of an image without any."""
    shapes = ((33, 2), (33, 3), (33, 3), (33,), (33,), (), ())
    columns: Any = (np.zeros((0, *shape), np.float32) for shape in shapes)
    return People(*columns)


def joined(parts: Sequence[People]) -> People:
    """All people of several in a row."""
    parts = [p for p in parts if len(p)] or [nobody()]
    columns = [[getattr(p, f.name) for p in parts] for f in fields(People)]
    whole: Any = (sum(c, ()) if isinstance(c[0], tuple) else np.concatenate(c) for c in columns)
    return People(*whole)


def _seen_part(points: np.ndarray, visibility: np.ndarray) -> float:
    """Extent of the seen landmarks as a part of that of all of them, 0.1 to 1."""
    seen = visibility >= _SEEN
    if seen.sum() < 3 or not np.isfinite(points).all():
        return 1.0
    part, whole = (np.ptp(p, axis=0).max() for p in (points[seen], points))
    return float(np.clip(part / max(whole, 1e-6), 0.1, 1.0))


def box_of_points(points: np.ndarray, visibility: np.ndarray) -> np.ndarray:
    """[4] box round a person's points [33, 2], with the top of the head; hidden points count where too few are seen."""
    use = visibility > 0.3
    if use.sum() < 6:
        use[:] = True
    ears, shoulders = points[7:9].mean(0), points[11:13].mean(0)
    corners = np.concatenate([points[use], [ears + 0.6 * (ears - shoulders)]] if use[:11].any() else [points[use]])
    low, high = corners.min(0), corners.max(0)
    margin = 0.04 * (high - low).max()
    return np.array([*(low - margin), *(high + margin)])


class PeopleFinder:
    """Photographs in, people with landmarks out.

    Args:
        detector, landmarks: the nets; default: the built-in ones. landmarks may be a checkpoint folder or a .tflite
            file of a heavier landmark net.
        min_score: of the landmark net's "there is a person"; below it a find is dropped.
        max_people: the best so many are kept.
        windows: "auto" looks at parts of an image where the whole one may hide smaller people, "never", "always".
        mirrored: run every crop also mirrored, and average: slower, steadier.
        device, precision: as everywhere. batch_size: crops run at once.

    Example:
        >>> finder = PeopleFinder()
        >>> len(finder(np.zeros((120, 160, 3), np.uint8)))
        0
    """

    def __init__(
        self,
        detector: PersonDetector | None = None,
        landmarks: BodyLandmarks | str | Path | None = None,
        *,
        min_score: float = MIN_SCORE,
        max_people: int = MAX_PEOPLE,
        windows: str = "auto",
        mirrored: bool = True,
        device: str = "auto",
        precision: str = "fp32",
        batch_size: int = 16,
    ):
        if not 0 <= min_score <= 1:
            raise ValueError(f"min_score must lie in 0..1, got {min_score}")
        for name, value in (("max_people", max_people), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if windows not in WINDOWS:
            raise ValueError(f"windows must be one of {', '.join(WINDOWS)}, got {windows!r}")
        self.device, self.precision = torch.device(pick_device(device)), check_precision(precision)
        nets: list[Any] = []
        for net, name in ((detector, "person_detector"), (landmarks, "body_landmarks")):
            source = name if net is None else net
            net = load(source) if isinstance(source, (str, Path)) else source
            wanted = PersonDetector if name == "person_detector" else BodyLandmarks
            if not isinstance(net, wanted):
                raise ValueError(f"{source}: expected a {wanted.__name__}, got {type(net).__name__}")
            placed: Any = net
            nets.append(placed.to(self.device, memory_format=torch.channels_last).eval())
        self.detector, self.landmarks = nets
        self.min_score, self.max_people, self.windows, self.mirrored = min_score, max_people, windows, mirrored
        self.batch_size = batch_size

    def __call__(self, pixels: np.ndarray) -> People:
        """People of one image."""
        return self.find([pixels])[0]

    def boxes(self, pixels: np.ndarray) -> np.ndarray:
        """[N, 5] boxes (x0, y0, x1, y1) inside the image and scores, best first: for models that need a box a
        person."""
        people, (height, width) = self(pixels), pixels.shape[:2]
        boxes = people.boxes.clip(0, [width, height, width, height])
        rows = np.concatenate([boxes, people.score[:, None]], 1)
        return rows[(boxes[:, 2:] - boxes[:, :2]).min(1) >= 2] if len(rows) else np.zeros((0, 5))

    def find(self, images: Sequence[np.ndarray], thorough: bool = True) -> list[People]:
        """People of several images; nets run over all of them at once.

        Args:
            thorough: False only looks at the whole image, and leaves out the mirrored pass: for frames of a video.
        """
        found = self._detect(images, thorough)
        people = self.at([(images[i], c.roi) for i, cs in enumerate(found) for c in cs])
        out, first = [], 0
        for cs in found:
            mine = people[range(first, first + len(cs))]
            first += len(cs)
            mine = People(**{**vars(mine), "detection": np.array([c.score for c in cs], np.float32)})
            out.append(mine[_hopeful(mine)])
        out = self._again(images, out, thorough and self.mirrored)
        if thorough and self.windows != "never":
            for i, pixels in enumerate(images):
                cells = cells_of(pixels)
                apart = self._in_cells(pixels, cells) if cells else nobody()
                if 2 * len(apart) >= len(cells) > 0 and len(apart) > len(out[i]):
                    out[i] = apart
        return out

    def _in_cells(self, pixels: np.ndarray, cells: Sequence[tuple[int, int, int, int]]) -> People:
        """People of a contact sheet, each looked for in a cell of its own; best first."""
        found = self.find([np.ascontiguousarray(pixels[y0:y1, x0:x1]) for x0, y0, x1, y1 in cells])
        people = joined([p.moved(x0, y0) for p, (x0, y0, _, _) in zip(found, cells)])
        order = np.argsort(-people.detection, kind="stable")[: self.max_people]
        return people[order.tolist()]

    def in_boxes(self, pixels: np.ndarray, boxes: Sequence[Sequence[float]]) -> People:
        """The person of each given box (x0, y0, x1, y1), in their order, nobody dropped; `detection` is 1."""
        rois = []
        for x0, y0, x1, y1 in boxes:
            rois.append(Roi((x0 + x1) / 2, (y0 + y1) / 2, max(4.0, MARGIN * max(x1 - x0, y1 - y0)), 0.0))
        people = self.at([(pixels, roi) for roi in rois])
        for mirrored in (False, self.mirrored):
            people = self.at([(pixels, next_roi(people, k)) for k in range(len(people))], mirrored)
        return People(**{**vars(people), "detection": np.ones(len(people), np.float32)})

    def _again(self, images: Sequence[np.ndarray], people: list[People], mirrored: bool) -> list[People]:
        """The second crop, from the points of the first, and the mirrored pass."""
        jobs = []
        for i, one in enumerate(people):
            for k in range(len(one)):
                jobs.append((images[i], next_roi(one, k)))
        second = self.at(jobs, mirrored)
        out, first = [], 0
        for one in people:
            mine = second[range(first, first + len(one))]
            first += len(one)
            mine = People(**{**vars(mine), "detection": one.detection})
            out.append(mine[_distinct(mine, self.min_score)[: self.max_people]])
        return out

    @torch.inference_mode()
    def at(self, jobs: Sequence[tuple[np.ndarray, Roi]], mirrored: bool = False) -> People:
        """Landmarks of given crops, one person each, in order; `detection` is 0."""
        size = self.landmarks.config.image_size
        parts = []
        step = max(1, self.batch_size // 2) if mirrored else self.batch_size
        for start in range(0, len(jobs), step):
            part = jobs[start : start + step]
            crops = torch.from_numpy(np.stack([cut_roi(pixels, roi, size) for pixels, roi in part]))
            if mirrored:
                crops = torch.cat([crops, crops.flip(3)])
            crops = crops.to(self.device).contiguous(memory_format=torch.channels_last)
            with autocast(self.device, self.precision):
                out = self.landmarks(crops)
            values = [v.float().cpu().numpy() for v in out]
            if mirrored:
                values = _averaged(values, size)
            parts.append(_people(values, [roi for _, roi in part], size))
        return joined(parts)

    def _detect(self, images: Sequence[np.ndarray], thorough: bool = True) -> list[list[Candidate]]:
        """Candidates of every image, best first, each person once as far as the detector tells."""
        found = self._candidates(images, [[View(_whole(im), _COARSE)] for im in images])
        if self.windows != "never":
            closer = [self.windows == "always" or not _is_alone(im, seen) for im, seen in zip(images, found)]
            fine = self._candidates(images, [[View(_whole(im), _FINE)] * look for im, look in zip(images, closer)])
            found = [a + b for a, b in zip(found, fine)]
        more = [i for i, im in enumerate(images) if self.windows == "always" or self._windows_pay(im, found[i])]
        if thorough and self.windows != "never" and more:
            sharp = self._candidates(
                images, [[View(_whole(im), _SHARP)] if i in more else [] for i, im in enumerate(images)]
            )
            found = [a + b for a, b in zip(found, sharp)]
            looks = [[View(w, _COARSE, True) for w in windows_of(im.shape[1], im.shape[0])] for im in images]
            parts = self._candidates(images, [looks[i] if i in more else [] for i in range(len(images))])
            found = [a + [c for c in b if _is_backed(c, a)] for a, b in zip(found, parts)]
        out = [_apart([c for c in seen if not c.faint]) for seen in found]
        lost = [i for i, seen in enumerate(out) if not seen]
        if thorough and lost:  # upside down, or lying along the image: the detector wants the head up
            for quarters in (2, 1, 3):
                turned = [np.ascontiguousarray(np.rot90(images[i], quarters)) for i in lost]
                again = self._candidates(turned, [[View(_whole(im), _COARSE)] for im in turned])
                for i, im, seen in zip(lost, turned, again):
                    out[i] = out[i] or _apart([_turned_back(c, quarters, im) for c in seen if not c.faint])
        return out

    @staticmethod
    def _windows_pay(pixels: np.ndarray, seen: list[Candidate]) -> bool:
        """Whether parts of the image may show people that the whole one hides: nobody, several or a small one was
        seen."""
        sure = _apart([c for c in seen if not c.faint])
        small = _SMALL * min(pixels.shape[:2])
        if len(sure) != 1:
            return True
        far = [np.linalg.norm(c.hips - sure[0].hips) / sure[0].roi.side for c in seen]
        return any(c.score >= _HINT and (d > _BESIDE or c.roi.side < small and d > 0.3) for c, d in zip(seen, far))

    @torch.inference_mode()
    def _candidates(self, images: Sequence[np.ndarray], looks: Sequence[Sequence[View]]) -> list[list[Candidate]]:
        """What the detector sees in the given views of every image; views of one shape run together."""
        out: list[list[Candidate]] = [[] for _ in images]
        shapes: dict[tuple[int, ...], list] = {}
        for i, views in enumerate(looks):
            for view in views:
                box = letterbox(images[i], view)
                shapes.setdefault(box.pixels.shape, []).append((i, view, box))
        for shape, jobs in shapes.items():
            step = max(1, self.batch_size * _COARSE**2 // (shape[0] * shape[1]))
            for start in range(0, len(jobs), step):
                part = jobs[start : start + step]
                batch = torch.from_numpy(np.stack([box.pixels for _, _, box in part])).to(self.device)
                batch = batch.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last) / 255
                with autocast(self.device, self.precision):
                    seen = self.detector(batch)
                arrays = (v.float().cpu().numpy() for v in seen)
                for (i, view, box), scores, boxes, points in zip(part, *arrays):
                    out[i] += _merged(scores, boxes, points, view, box)
        return out


class Window(NamedTuple):
    """A part of an image, pixels."""

    x0: int
    y0: int
    x1: int
    y1: int


class View(NamedTuple):
    """A window, and how large the detector sees it: 224 is the longer side, more the side of a square of the same
    area."""

    window: Window
    size: int
    partial: bool = False


class Letterbox(NamedTuple):
    """What the detector is given."""

    pixels: np.ndarray  # [H, W, 3] uint8, sides multiples of 32, black round the image
    offset: np.ndarray  # [2] of the image in it
    scale: np.ndarray  # [2] px of the image per px


def _whole(pixels: np.ndarray) -> Window:
    return Window(0, 0, pixels.shape[1], pixels.shape[0])


def windows_of(width: int, height: int) -> list[Window]:
    """Overlapping squares (about 45 %) of 0.6 of the shorter side, 0.75 of it in long images; 64 at most."""
    short, long = min(width, height), max(width, height)
    side = max(1, int(short * (0.6 if long < 1.6 * short else 0.75)))

    def starts(length: int) -> list[int]:
        count = max(2, int(np.ceil((length - side) / (0.55 * side))) + 1)
        return np.linspace(0, length - side, count).astype(int).tolist()

    return [Window(x, y, x + side, y + side) for y in starts(height) for x in starts(width)][:_MAX_WINDOWS]


def letterbox(pixels: np.ndarray, view: View) -> Letterbox:
    """A view as the detector takes it."""
    x0, y0, x1, y1 = view.window
    width, height = x1 - x0, y1 - y0
    scale = view.size / max(width, height)
    if view.size > _COARSE:
        scale = min(view.size / (width * height) ** 0.5, _LONGEST / max(width, height))
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    outer = [-(-n // 32) * 32 for n in inner]
    x, y = (outer[0] - inner[0]) // 2, (outer[1] - inner[1]) // 2
    out = np.zeros((outer[1], outer[0], 3), np.uint8)
    part = Image.fromarray(pixels[y0:y1, x0:x1])
    out[y : y + inner[1], x : x + inner[0]] = np.asarray(
        part.resize(inner, Image.Resampling.BILINEAR, reducing_gap=3.0)
    )
    return Letterbox(out, np.array([x, y], float), np.array([width / inner[0], height / inner[1]]))


def _turned_back(c: Candidate, quarters: int, turned: np.ndarray) -> Candidate:
    """A candidate of an image that was turned by np.rot90, in the image itself."""
    height, width = turned.shape[:2]

    def back(p: np.ndarray) -> np.ndarray:
        x, y = p
        return {1: np.array([height - y, x]), 2: np.array([width - x, height - y]), 3: np.array([y, width - x])}[
            quarters
        ]

    return c._replace(score=_TURNED * c.score, hips=back(c.hips), circle=back(c.circle))


def _merged(scores: np.ndarray, boxes: np.ndarray, points: np.ndarray, view: View, box: Letterbox) -> list[Candidate]:
    """Weighted non-maximum suppression: overlapping candidates become their mean, weighted by score."""
    enough = MIN_PARTIAL if view.partial else MIN_DETECTION
    keep = np.flatnonzero(scores >= _FAINT)
    keep = keep[np.argsort(-scores[keep], kind="stable")]
    scores, boxes, points = scores[keep], boxes[keep], points[keep]
    left, out = np.ones(len(keep), bool), []
    area = (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(1)
    for i in range(len(keep)):
        if not left[i]:
            continue
        inter = (np.minimum(boxes[i, 2:], boxes[:, 2:]) - np.maximum(boxes[i, :2], boxes[:, :2])).clip(min=0).prod(1)
        same = left & (inter > _MERGE_OVERLAP * np.maximum(area[i] + area - inter, 1e-9))
        same[i] = True
        left &= ~same
        if scores[i] >= enough:
            same &= scores >= enough
        weight = scores[same, None, None]
        mean = (points[same, :2] * weight).sum(0) / weight.sum()
        hips, circle = (mean - box.offset) * box.scale + view.window[:2]
        found = Candidate(float(scores[i]), hips, circle, bool(scores[i] < enough))
        if found.roi.is_usable() and not (view.partial and _is_cut(found, view.window)):
            out.append(found)
    return out


def _is_alone(pixels: np.ndarray, seen: list[Candidate]) -> bool:
    """Whether one large person is all that the detector has an idea of, and leaves no room for another beside."""
    if len(seen) != 1 or seen[0].faint or seen[0].roi.side < _FILLING * min(pixels.shape[:2]):
        return False
    x = seen[0].hips[0]
    return bool(max(x, pixels.shape[1] - x) <= seen[0].roi.side)


def _is_backed(c: Candidate, whole: list[Candidate]) -> bool:
    """Whether a look at the whole image also has an idea of the person whom a window shows: shoes and fences are
    none."""
    return any(
        np.linalg.norm(c.hips - w.hips) < 0.35 * c.roi.side and 0.4 < w.roi.side / c.roi.side < 2.5 for w in whole
    )


def _is_cut(c: Candidate, window: Window) -> bool:
    """Whether a window holds only a part of the person it found, so that the whole image is the better place to
    look."""
    inside = window.x0 <= c.hips[0] <= window.x1 and window.y0 <= c.hips[1] <= window.y1
    return not inside or c.roi.side > _WINDOW_FILL * (window.x1 - window.x0)


def _apart(candidates: list[Candidate]) -> list[Candidate]:
    """Best first; a candidate whose hips lie on a better one's is the same person."""
    out: list[Candidate] = []
    for c in sorted(candidates, key=lambda c: -c.score):
        if all(np.linalg.norm(c.hips - o.hips) >= _SAME_HIPS * o.roi.side for o in out):
            out.append(c)
    return out


def next_roi(people: People, k: int) -> Roi:
    """The crop that a person's points ask for; the one they were read from where that is another world."""
    before, after = people.rois[k], people.next_rois[k]
    steady = after.is_usable() and 1 / _MAX_CHANGE < after.side / before.side < _MAX_CHANGE
    return after if steady else before


def _hopeful(people: People) -> list[int]:
    """Rows worth a second crop, which is often right where the detector's own was not; best detection first."""
    order = np.argsort(-people.detection, kind="stable").tolist()
    evidence = people.detection * people.score
    kept: list[int] = []
    for i in order:
        sure, finite = evidence[i] >= MIN_EVIDENCE, np.isfinite(people.points[i]).all()
        doubtful = people.detection[i] >= HOPE and people.score[i] >= MIN_HOPE
        if finite and (sure or doubtful) and not any(is_same(people, i, k) for k in kept):
            kept.append(i)
    return kept


def _distinct(people: People, min_score: float) -> list[int]:
    """Rows that are sure enough and not a second find of another one; best detection first.

    Where two crops have the same head, the larger one is kept: the smaller took an upper body for a whole one.
    """
    order = np.argsort(-people.detection, kind="stable")
    evidence = people.detection * people.score
    side = [roi.side for roi in people.rois]
    kept: list[int] = []
    for i in order.tolist():
        sure = people.score[i] >= min_score and evidence[i] >= MIN_EVIDENCE
        if not sure or not np.isfinite(people.points[i]).all():
            continue
        better = next((k for k in kept if _same_head(people, i, k) and side[i] > 1.15 * side[k]), None)
        if better is not None:
            kept[kept.index(better)] = i
        elif not any(is_same(people, i, k) for k in kept):
            kept.append(i)
    return kept


def _same_head(people: People, i: int, k: int) -> bool:
    gap = people.points[i, _HEAD].mean(0) - people.points[k, _HEAD].mean(0)
    return bool(np.linalg.norm(gap) < _SAME_HEAD * max(people.rois[i].side, people.rois[k].side))


def is_same(people: People, i: int, k: int) -> bool:
    """Whether row i is another find of the better row k."""
    a, b = people.points[i], people.points[k]
    small, large = sorted((people.rois[i].side, people.rois[k].side))
    if _same_head(people, i, k) or np.linalg.norm(a[_LIMBS] - b[_LIMBS], axis=1).mean() < _SAME_POINTS * small:
        return True
    hips, torso = a[23:25].mean(0), np.linalg.norm(a[_TORSO].mean(0) - b[_TORSO].mean(0))
    if people.rois[i].side < 0.35 * large and np.linalg.norm(b - hips, axis=1).min() < _SAME_TORSO * large:
        return True  # a shoe or a hand taken for a person
    return bool(people.detection[i] < _DOUBTFUL and torso < _SAME_TORSO * large)


def _averaged(values: list[np.ndarray], size: int) -> list[np.ndarray]:
    """The second half of a batch are the mirrored images of the first: both seen the right way round, averaged.

    From the side the net may take left for right in one of the two, and the mean of both would have its arms in the
    middle: where the two are far apart, the pass that sees its limbs better counts alone.
    """
    half = len(values[0]) // 2
    order = np.arange(values[0].shape[1])
    order[: len(MIRRORED)] = MIRRORED
    straight, back = [v[:half] for v in values], []
    for k, v in enumerate(values):
        v = v[half:, order] if v.ndim > 1 else v[half:]
        if k in (0, 3):  # points and world points
            v = v * np.array([-1, 1, 1], v.dtype) + np.array([size if k == 0 else 0, 0, 0], v.dtype)
        back.append(v)
    gap = np.linalg.norm(straight[0][:, _LIMBS, :2] - back[0][:, _LIMBS, :2], axis=2).mean(1)
    better = back[1][:, _LIMBS].mean(1) > straight[1][:, _LIMBS].mean(1)
    share = np.where(gap <= _AGREE * size, 0.5, better.astype(float)).astype(np.float32)
    return [a + share.reshape(-1, *[1] * (a.ndim - 1)) * (b - a) for a, b in zip(straight, back)]


def _people(values: list[np.ndarray], rois: list[Roi], size: int) -> People:
    points, visibility, presence, world, score = values
    n = len(LANDMARKS)
    in_image = np.stack([roi.to_image(p[:, :2] / size) for roi, p in zip(rois, points)]).astype(np.float32)
    turned = np.stack([roi.turn(w) for roi, w in zip(rois, world)])
    following = tuple(roi_of_points(p[ALIGNMENT[0]], p[ALIGNMENT[1]]) for p in in_image)
    return People(
        in_image[:, :n],
        points[:, :n],
        turned[:, :n],
        visibility[:, :n],
        presence[:, :n],
        score,
        np.zeros_like(score),
        tuple(rois),
        following,
    )
