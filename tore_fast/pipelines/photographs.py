"""The default of `predict`: everybody found, 33 landmarks each, a body fitted to them, one camera for the whole image.

In: photographs; out: the ImageResult of images.py, with scores, landmarks and whether each body is believed. No network
regresses the body: people.py finds the landmarks, body/fit poses the body. `image_pipeline` gives this pipeline or, for
a named model, that of images.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ..body import Body, load_body
from ..body.fit import FittedBody, fit_body
from ..geometry.camera import intrinsics
from ..geometry.crop import Crop
from ..geometry.skeleton import SMPL24
from ..io.exif import focal_from_exif
from ..io.image import ImageError, check_boxes
from .bodies import Bodies, BodyModel, Sight
from .hosts import load_named_body
from .images import NOBODY, Group, ImagePipeline, ImageResult, Person, Stored
from .people import People, PeopleFinder, joined, nobody
from .people_tracks import PeopleTracker

NAMES = (None, "default", "landmarks_fit")
"""Values of `model` that mean this pipeline."""
ASSUMED_FOCAL = 1.2  # of the longer side (45 degrees), where neither the user nor the file says
Camera = tuple[float, tuple[float, float], str]
"""Focal length and principal point in pixels, and where the focal length is from: given, exif or assumed."""
_WARM_STEPS = 3  # of the fit, from the frame before
_TEMPORAL = 1.0  # how strongly a fit is drawn to the frame before (body/fit)
_LARGE = 16_000_000  # images with more pixels are searched one at a time, to save memory


class FittedModel(BodyModel):
    """What results.py asks of a model: the body, its joints, the rule for the camera. It is not called on crops."""

    task, fitted = "smpl", True

    def __init__(self, finder: PeopleFinder, body: Body):
        super().__init__(finder.landmarks, finder.device, finder.precision)
        self.body, self.topology, self.joint_names = body, body.topology, SMPL24.names

    def focal_px(self, pixels: np.ndarray) -> float:
        return ASSUMED_FOCAL * max(pixels.shape[:2])

    def __call__(self, sights: Sequence[Sight]) -> Bodies:
        raise NotImplementedError("FittedModel: bodies come from PhotographPipeline")


class PhotographPipeline(ImagePipeline):
    """Photographs in, fitted bodies out; an ImagePipeline without a network for the body.

    Args:
        finder: finds people and landmarks; default: one with the options below (min_score, max_people, windows,
            mirrored, landmarks).
        body: "free" or a SMPL model file. steps: of the fit.
        focal_px, fov_deg (vertical), principal_px: the camera where it is known; else the focal length comes from EXIF,
        or is
            taken as 1.2 times the longer side, which the result's notes say.
        device, precision, batch_size, workers: as ImagePipeline.

    Example:
        >>> results = PhotographPipeline().predict([np.zeros((120, 160, 3), np.uint8)])
        >>> results[0].people, results[0].notes
        ([], ('nobody found',))
    """

    def __init__(
        self,
        finder: PeopleFinder | None = None,
        *,
        body: str | Body = "free",
        steps: int = 8,
        device: str = "auto",
        precision: str = "fp32",
        batch_size: int = 8,
        workers: int = 2,
        focal_px: float | None = None,
        fov_deg: float | None = None,
        principal_px: tuple[float, float] | None = None,
        **options: Any,
    ):
        if finder is None:
            finder = PeopleFinder(device=device, precision=precision, **options)
        shaped = body if isinstance(body, Body) else load_body("free") if body == "free" else load_named_body(body)
        super().__init__(
            FittedModel(finder, shaped.to(finder.device)),
            device=str(finder.device),
            batch_size=batch_size,
            workers=workers,
            focal_px=focal_px,
            fov_deg=fov_deg,
            principal_px=principal_px,
        )
        self.finder, self.steps = finder, steps
        self.body: Body = shaped.to(finder.device)
        self.seconds = {"read": 0.0, "find": 0.0, "fit": 0.0}

    def _group(self, group: Group) -> Iterator[ImageResult]:
        read = self._read(group)
        found, sources = self._find(read, [item.boxes for item in group])
        start = time.perf_counter()
        known = self._focal_px is not None or self._fov_deg is not None
        cameras = [
            self._camera(image, None if known or image.error is not None else self._source(item.source))
            for item, image in zip(group, read)
        ]
        fitted = self._fit(read, found, cameras)
        coarse: Any = [] if fitted is None else self.body.coarse(fitted.vertices, 2).cpu().numpy()
        self.seconds["fit"] += time.perf_counter() - start
        first = 0
        for image, people, source, camera in zip(read, found, sources, cameras):
            rows = range(first, first + len(people))
            first += len(people)
            self.counts["images"] += 1
            self.counts["people"] += len(people)
            if image.error is None:
                persons = [_person(people, k, fitted, row, source, camera, coarse[row]) for k, row in enumerate(rows)]
                image = replace(image, people=persons, notes=_notes(persons, camera))
            yield image

    def track(
        self, frames: Iterable[np.ndarray], rate: float, detect_every: int = 10
    ) -> Iterator[tuple[list[int], ImageResult]]:
        """People of a video, frame by frame: numbers that stay, and the result with one person each, in that order.

        The points are smoothed, and every fit starts from the frame before and is drawn to it.

        Args:
            frames: [H, W, 3] uint8 in order. rate: frames per second. detect_every: frames between two looks for new
                people.
        """
        tracker = PeopleTracker(self.finder, rate, detect_every)
        before: FittedBody | None = None
        numbers_before: list[int] = []
        for frame in frames:
            start = time.perf_counter()
            people, numbers = tracker(frame)
            image = ImageResult("frame", (frame.shape[1], frame.shape[0]), [], None, frame)
            camera = self._camera(image, None)
            middle = time.perf_counter()
            fitted = None
            if numbers:
                k = intrinsics(torch.tensor([float(camera[0])]), 2 * torch.tensor([camera[1]], dtype=torch.float32))
                warm = _rows_of(before, numbers_before, numbers)
                fitted = fit_body(
                    people.landmarks(self.device),
                    k[0].to(self.device),
                    self.body,
                    self.steps if warm is None or not bool(warm.believed.all()) else _WARM_STEPS,
                    warm,
                    temporal=0.0 if warm is None else _TEMPORAL,
                )
            before, numbers_before = fitted, numbers
            persons = []
            if fitted is not None:
                own = _with_own_origin(fitted, self.body)
                coarse = self.body.coarse(own.vertices, 2).cpu().numpy()
                persons = [_person(people, i, own, i, "found", camera, coarse[i]) for i in range(len(people))]
            self.seconds["find"] += middle - start
            self.seconds["fit"] += time.perf_counter() - middle
            self.counts["images"] += 1
            self.counts["people"] += len(persons)
            yield numbers, replace(image, people=persons, notes=_notes(persons, camera))

    def _find(self, read: list[ImageResult], boxes: list[Any]) -> tuple[list[People], list[str]]:
        """People of every image, by the boxes where they are given; a bad box turns the image into an error."""
        start = time.perf_counter()
        found, sources = [nobody()] * len(read), ["found"] * len(read)
        search = []
        for i, (image, given) in enumerate(zip(read, boxes)):
            if image.error is not None:
                continue
            if isinstance(given, str) and given == "model":
                raise ValueError(
                    'boxes: "model" needs a model that finds a body by itself; this one finds everybody ("auto")'
                )
            if given is None or isinstance(given, str) and given == "auto":
                search.append(i)
                continue
            width, height = image.size
            sources[i] = given if isinstance(given, str) else "given"
            try:
                rows, bad = _boxes(given, width, height, image.name)
            except ImageError as e:
                read[i] = ImageResult(image.name, error=str(e))
                continue
            read[i] = replace(image, refused=tuple(bad))
            found[i] = self.finder.in_boxes(cast(np.ndarray, image.pixels), rows)
        small = [i for i in search if read[i].size[0] * read[i].size[1] <= _LARGE]
        for part in (small, *([i] for i in search if i not in small)):
            for i, people in zip(part, self.finder.find([cast(np.ndarray, read[i].pixels) for i in part])):
                found[i] = people
        self.seconds["find"] += time.perf_counter() - start
        return found, sources

    @staticmethod
    def _source(item: Any) -> str | Path | bytes | None:
        if isinstance(item, Stored):
            try:
                return item.read()
            except Exception:  # noqa: BLE001 (read_result says what is wrong with it)
                return None
        return item if isinstance(item, (str, Path, bytes)) else None

    def _camera(self, image: ImageResult, source: str | Path | bytes | None) -> Camera:
        """Focal length, principal point (px) of an image, and where the focal length is from: given, exif or
        assumed."""
        if image.error is not None:
            return 1.0, (0.0, 0.0), "assumed"
        assert image.pixels is not None
        principal = self._principal_px or (image.size[0] / 2, image.size[1] / 2)
        if self._focal_px is not None or self._fov_deg is not None:
            return self.focal_px(image.pixels), principal, "given"
        focal = None if source is None else focal_from_exif(source)
        return (self.focal_px(image.pixels), principal, "assumed") if focal is None else (focal, principal, "exif")

    def _fit(self, read: list[ImageResult], found: list[People], cameras: list) -> FittedBody | None:
        people = joined(found)
        if not len(people):
            return None
        rows = []
        for one, (focal, principal, _) in zip(found, cameras):
            k = intrinsics(torch.tensor([float(focal)]), 2 * torch.tensor([principal], dtype=torch.float32))
            rows.append(k.expand(len(one), 3, 3))
        camera = torch.cat(rows).to(self.device)
        return _with_own_origin(fit_body(people.landmarks(self.device), camera, self.body, self.steps), self.body)


def image_pipeline(model: Any = None, *, checkpoint: str | Path | None = None, **options: Any) -> ImagePipeline:
    """The pipeline of a model: PhotographPipeline for None, "default" and "landmarks_fit" without a checkpoint, else
    ImagePipeline.

    Args:
        **options: of either; those of people.PeopleFinder (min_score, max_people, windows, mirrored, landmarks) go to
            both. An ImagePipeline of bodies gets its boxes from a PeopleFinder, unless `find_people` is given.
    """
    search: dict[str, Any] = {
        k: options.pop(k) for k in ("min_score", "max_people", "windows", "mirrored", "landmarks") if k in options
    }
    if checkpoint is None and (model is None or isinstance(model, str) and model in NAMES):
        known = ("body", "device", "precision", "batch_size", "workers", "focal_px", "fov_deg", "principal_px")
        kept = {k: v for k, v in options.items() if k in known}
        return PhotographPipeline(**kept, **search)
    pipeline = ImagePipeline(model, checkpoint=checkpoint, **options)
    if pipeline.find_people is None and pipeline.topology.name not in ("mano", "free_hand"):
        find: Any = _Search({**search, "device": options.get("device", "auto")})
        pipeline.find_people = find
    return pipeline


class _Search:
    """Boxes of a PeopleFinder that is made when the first image without boxes comes."""

    def __init__(self, options: dict[str, Any]):
        self.options = options
        self._finder: PeopleFinder | None = None

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        if self._finder is None:
            self._finder = PeopleFinder(**self.options)
        return self._finder.boxes(pixels)


def _rows_of(before: FittedBody | None, had: list[int], now: list[int]) -> FittedBody | None:
    """The fits of the people of `now` in the frame before; rows of new people are not believed, so they start
    afresh."""
    if before is None or not set(had) & set(now):
        return None
    rows = torch.tensor([had.index(n) if n in had else 0 for n in now], device=before.rotations.device)
    old = torch.tensor([n in had for n in now], device=before.rotations.device)
    return replace(
        before, rotations=before.rotations[rows], betas=before.betas[rows], believed=before.believed[rows] & old
    )


def _with_own_origin(fitted: FittedBody, body: Body) -> FittedBody:
    """The same bodies about the body model's origin instead of the pelvis: posed with its parameters, it gives these
    vertices."""
    pelvis = (body.joints[0] + fitted.betas.to(body.joint_dirs) @ body.joint_dirs[0].T).to(fitted.vertices)
    return replace(
        fitted,
        vertices=fitted.vertices + pelvis[:, None],
        joints=fitted.joints + pelvis[:, None],
        camera=torch.cat([fitted.camera[:, :1], fitted.camera[:, 1:] - fitted.camera[:, :1] * pelvis[:, :2]], 1),
        translation=None if fitted.translation is None else fitted.translation - pelvis,
    )


def _boxes(given: Any, width: int, height: int, name: str) -> tuple[list[tuple[float, float, float, float]], list[str]]:
    if given == "full":
        return [(0.0, 0.0, float(width), float(height))], []
    if given == "centre":
        side = min(width, height)
        x, y = (width - side) / 2, (height - side) / 2
        return [(x, y, x + side, y + side)], []
    return check_boxes(given, width, height, name)


def _person(people: People, k: int, fitted: Any, row: int, source: str, camera: Camera, coarse: np.ndarray) -> Person:
    focal, principal, _ = camera
    roi = people.rois[k]
    body = {
        f: getattr(fitted, f)[row].cpu().numpy() for f in ("rotations", "betas", "vertices", "joints", "translation")
    }
    scale, *place = fitted.camera[row].tolist()
    points = body["joints"] + body["translation"]
    place_in_crop = [(p - c) / scale for p, c in zip(place, roi.center)]
    box: Any = tuple(float(v) for v in people.boxes[k])
    return Person(
        box=box,
        box_source=source,
        crop=Crop.square(roi.center_x, roi.center_y, roi.side, math.degrees(roi.angle)),
        camera=np.array([2 * scale / roi.side, *place_in_crop], np.float32),
        camera_image=np.array([scale, *place], np.float32),
        focal_px=float(focal),
        principal_px=(float(principal[0]), float(principal[1])),
        trans=body["translation"],
        vertices=body["vertices"],
        vertices_coarse=coarse,
        joints_3d=body["joints"],
        joints_2d=focal * points[:, :2] / np.maximum(points[:, 2:], 1e-6) + np.array(principal),
        poses=fitted.axis_angle[row].flatten().cpu().numpy(),
        rotations=body["rotations"],
        betas=body["betas"],
        score=float(people.score[k]),
        focal_source=camera[2],
        landmarks_2d=people.points[k],
        landmarks_3d=people.world[k],
        visibility=people.visibility[k],
        believed=bool(fitted.believed[row]),
        reason=fitted.reasons[row],
    )


def _notes(persons: list[Person], camera: Camera) -> tuple[str, ...]:
    """What the user should be told of an image."""
    notes = [f"person {i} is not believed: {p.reason}" for i, p in enumerate(persons) if not p.believed]
    if not persons:
        notes.append(NOBODY)
    elif camera[2] == "assumed":
        notes.append(f"focal length assumed: {camera[0]:.0f} px, {ASSUMED_FOCAL} times the longer side")
    return tuple(notes)
