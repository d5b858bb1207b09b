"""Photographs to bodies: read -> boxes -> crops -> model -> vertices, joints, SMPL parameters and cameras per person.

`ImagePipeline().predict(["photo.jpg"])` is the whole of it; `stream` does the same for any number of images in constant
memory. Way of the data: io/image.py, a box (given, or from `find_people`), bodies.py (crop and model) -> here ->
results.py.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from .._device import check_precision, pick_device
from .._threads import available_cpus
from ..body import BodyTopology
from ..geometry import camera
from ..geometry.crop import Crop, centre_crop
from ..geometry.rotation import matrix_to_axis_angle
from ..io.image import ImageError, check_boxes, read_image
from ..models import load
from .bodies import Bodies, BodyModel, Sight, body_model
from .hosts import attach_fov_net
from .options import check_camera

BOX_MODES = ("auto", "model", "full", "centre")
REFINE_STEPS = 2  # how often "auto" crops again around what the model saw
# A second look that sees half the size is distrusted: it cropped into the person, and the next would see less still.
# Mean 2D error of 32 synthetic images, share of the size: hands in tight frames 23 -> 17 %, 1.7x wider 40 -> 38 %,
# bodies unchanged.
SHRUNK = 0.5

Box = tuple[float, float, float, float]
NOBODY = "nobody found"  # note of an image without people
FindPeople = Callable[[np.ndarray], Sequence[Sequence[float]]]
"""[H, W, 3] uint8 -> boxes (x0, y0, x1, y1 pixels, more numbers are ignored) of the people, best first; [] for
nobody."""


@dataclass(frozen=True)
class Person:
    """One body or hand. Camera axes: x right, y down, z away. The fields are keys of the result files (results.py)."""

    box: Box  # x0, y0, x1, y1 pixels of the image
    box_source: str  # "given", "found", "auto", "full" or "centre"
    crop: Crop
    camera: np.ndarray  # [3] scale, tx, ty: crop point in [-1, 1] = scale * (xy + t)
    camera_image: np.ndarray  # [3] scale_px, x_px, y_px: pixel = scale_px * xy + (x_px, y_px)
    focal_px: float  # of the whole image's camera, the same for all its people
    principal_px: tuple[float, float]
    trans: np.ndarray  # [3] metres: vertices + trans lie in front of that camera
    vertices: np.ndarray  # [V, 3] metres
    vertices_coarse: np.ndarray  # [V_coarse, 3]
    joints_3d: np.ndarray  # [J, 3]
    joints_2d: np.ndarray  # [J, 2] pixels of the image
    poses: np.ndarray | None = None  # [72] axis-angle, of models of SMPL parameters
    rotations: np.ndarray | None = None  # [24, 3, 3]
    betas: np.ndarray | None = None  # [10]
    # of bodies fitted to landmarks (photographs.py)
    score: float | None = None  # 0..1: there is a person
    focal_source: str | None = None  # "given", "exif" or "assumed"
    landmarks_2d: np.ndarray | None = None  # [33, 2] pixels of the image
    landmarks_3d: np.ndarray | None = None  # [33, 3] metres about the middle of the hips, as the net gives them
    visibility: np.ndarray | None = None  # [33] 0..1
    believed: bool | None = None
    reason: str | None = None  # why not; "" where it is


@dataclass(frozen=True)
class ImageResult:
    """The people of one image, or the error that kept them from being found."""

    name: str
    size: tuple[int, int] = (0, 0)  # width, height of the upright image
    people: list[Person] = field(default_factory=list)
    error: str | None = None
    pixels: np.ndarray | None = None  # [H, W, 3] uint8
    refused: tuple[str, ...] = ()  # a line for each given box that is none; the others were done
    notes: tuple[str, ...] = ()  # what a user should know of it: nobody found, an assumed camera, a body not believed


class Stored(NamedTuple):
    """An image that is read when its turn comes."""

    name: str
    read: Callable[[], bytes]


class Reading(NamedTuple):
    """An image whose turn comes soon: a thread reads it."""

    source: Any
    boxes: Any
    reading: Future[ImageResult]


Group = list[Reading]


class Job(NamedTuple):
    """A crop to be run."""

    image: int  # number in the group
    pixels: np.ndarray
    focal_px: float
    box: Box
    source: str
    crop: Crop


class Output(NamedTuple):
    """What the model gave for one crop."""

    camera: np.ndarray
    vertices: np.ndarray
    vertices_coarse: np.ndarray
    joints: np.ndarray
    rotations: np.ndarray | None
    betas: np.ndarray | None


class ImagePipeline:
    """Images in, people out.

    Args:
        model: None for the built-in default; a checkpoint folder; a registered name of task mesh or smpl
            (random weights: useful only for trying things); or a module whose forward returns `camera`,
            `vertices_coarse` and `vertices`, or a BodyModel.
        checkpoint, upstream, overrides: weights (a folder of ours or an official file) and config fields; see
            `models.load`.
        topology: faces and joint regressors of the mesh; default: what the model's mesh name says.
        mesh_data: folder with the SMPL/MANO topology files, for models of those meshes (else $TORE_FAST_MESH_DATA).
        body: "free" or a SMPL model file, posed by models of SMPL parameters. fov_net: HumanFoV's file, for a CameraHMR
            model that comes without it.
        find_people: looks for the people of images without given boxes; None: the model itself does ("auto").
        device: "auto" takes a GPU where there is one. precision: fp32, bf16 or fp16. batch_size: crops run at once.
        fixed_batch: always run batches of that size, filled up by repeating a crop: a result then does not depend on
            how many others ran beside it. workers: threads that read images (0: as many as there are CPUs).
        focal_px, fov_deg (vertical), principal_px: the camera where it is known.
        box_rule, masks: of HMR2.0 and CameraHMR (bodies.py).

    Example:
        >>> photo = np.zeros((240, 180, 3), np.uint8)  # or "photo.jpg"
        >>> results = ImagePipeline().predict([photo])
        >>> results[0].people[0].vertices.shape
        (6890, 3)
    """

    def __init__(
        self,
        model: nn.Module | BodyModel | str | Path | None = None,
        *,
        checkpoint: str | Path | None = None,
        upstream: str | None = None,
        overrides: dict[str, Any] | None = None,
        topology: BodyTopology | None = None,
        mesh_data: str | Path | None = None,
        body: str = "free",
        fov_net: str | None = None,
        find_people: FindPeople | None = None,
        device: str = "auto",
        precision: str = "fp32",
        batch_size: int = 8,
        workers: int = 0,
        fixed_batch: bool = False,
        focal_px: float | None = None,
        fov_deg: float | None = None,
        principal_px: tuple[float, float] | None = None,
        box_rule: str = "hmr2",
        masks: str = "auto",
    ):
        for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        check_camera(focal_px, fov_deg)
        check_precision(precision)
        self.device = torch.device(pick_device(device))
        if isinstance(model, BodyModel):
            self.body_model = model
        else:
            network = (
                model
                if isinstance(model, nn.Module)
                else load(
                    checkpoint or model or "default",
                    upstream,
                    model=None if model is None else str(model),
                    mesh_data=mesh_data,
                    **(overrides or {}),
                )
            )
            if fov_net is not None:
                attach_fov_net(network, fov_net, str(checkpoint or model))
            self.body_model = body_model(
                network,
                str(checkpoint or model),
                device=self.device,
                precision=precision,
                body=body,
                topology=topology,
                mesh_data=mesh_data,
                box_rule=box_rule,
                masks=masks,
                own=not isinstance(model, nn.Module),  # a module handed in stays as it is
            )
            if self.body_model.engine is not None:
                self.body_model.engine.set_batch(batch_size)
        self.model = self.body_model.network
        self.topology, self.joint_names = self.body_model.topology, self.body_model.joint_names
        self.batch_size, self.workers, self.find_people = batch_size, workers or available_cpus(), find_people
        self._fixed_batch = fixed_batch
        self._focal_px, self._fov_deg, self._principal_px = focal_px, fov_deg, principal_px
        self.seconds: dict[str, float] = {"read": 0.0, "model": 0.0, "mesh": 0.0}
        self.counts = {"images": 0, "people": 0}

    def predict(self, images: Sequence[Any] | Any, boxes: Any = None) -> list[ImageResult]:
        """Results in the order of the images; a bad image gives a result with `error`, the others are done.

        Args:
            images: paths, PIL images or arrays (see io/image.py), one or several.
            boxes: None or "auto": by `find_people`, without one as "model": a box found by the model itself; "full":
                the whole image; "centre": the centre square of the official demo; or per image a list of (x0, y0, x1,
                y1), one result per box (None in that list: as above).
        """
        if isinstance(images, (str, Path, np.ndarray)) or not isinstance(images, Iterable):
            images = [images]
            if boxes is not None and not isinstance(boxes, str) and len(boxes) and np.ndim(boxes[0]) < 2:
                boxes = [boxes]
        images = list(images)
        if boxes is not None and not isinstance(boxes, str) and len(boxes) != len(images):
            raise ValueError(f"predict: boxes must have one entry per image ({len(images)}), got {len(boxes)}")
        return list(self.stream(images, boxes))

    def stream(self, images: Iterable[Any], boxes: Any = None) -> Iterator[ImageResult]:
        """Like `predict`, one result after the other; two batches are read ahead, no more are in memory."""
        if isinstance(boxes, str) and boxes not in BOX_MODES:
            raise ValueError(f"predict: boxes must be one of {BOX_MODES} or lists of boxes, got {boxes!r}")
        pool = ThreadPoolExecutor(self.workers)
        try:
            for group in read_ahead(zip_boxes(images, boxes), self.batch_size, pool):
                yield from self._group(group)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)  # a caller who has enough does not wait for the rest

    def _read(self, group: Group) -> list[ImageResult]:
        start = time.perf_counter()
        read = [item.reading.result() for item in group]
        self.seconds["read"] += time.perf_counter() - start  # what was waited for; the rest ran beside the model
        return read

    def _group(self, group: Group) -> Iterator[ImageResult]:
        read = self._read(group)
        opened: list[ImageResult] = []
        jobs: list[Job] = []
        for i, (image, item) in enumerate(zip(read, group)):
            if image.error is None:
                try:
                    mine, bad = self._jobs(i, image, item.boxes)
                    jobs += mine
                    image = replace(image, refused=tuple(bad))
                except ImageError as e:
                    image = ImageResult(image.name, error=str(e))
            opened.append(image)
        for first in range(0, len(jobs), self.batch_size):
            part = jobs[first : first + self.batch_size]
            for job, person in zip(part, self._people(part)):
                opened[job.image].people.append(person)
        for result in opened:
            self.counts["images"] += 1
            self.counts["people"] += len(result.people)
            if result.error is None and not result.people:
                result = replace(result, notes=(*result.notes, NOBODY))
            yield result

    def _jobs(self, number: int, image: ImageResult, boxes: Any) -> tuple[list[Job], list[str]]:
        """The crops of an image: given boxes, those of `find_people`, or one for the whole image; and lines on bad
        boxes."""
        assert image.pixels is not None  # it was read
        width, height = image.size
        focal, pixels = self.focal_px(image.pixels), image.pixels
        mode, source = boxes if isinstance(boxes, str) else None, "given"
        if boxes in (None, "auto") and self.find_people is not None:
            boxes, source, mode = [tuple(float(v) for v in b[:4]) for b in self.find_people(pixels)], "found", None
        elif boxes in (None, "auto", "model"):
            mode = "auto"
        if mode is not None:
            whole = (0.0, 0.0, float(width), float(height))
            crop = centre_crop(width, height) if mode == "centre" else self.body_model.whole_crop(width, height)
            return [Job(number, pixels, focal, whole, mode, crop)], []
        checked, bad = check_boxes(boxes, width, height, image.name)
        return [Job(number, pixels, focal, b, source, self.body_model.crop_of_box(b)) for b in checked], bad

    def focal_px(self, pixels: np.ndarray) -> float:
        """Focal length in pixels of an image's camera: given, from the field of view, or the model's own way."""
        if self._focal_px is not None:
            return float(self._focal_px)
        if self._fov_deg is not None:
            return float(camera.focal_from_fov(math.radians(self._fov_deg), pixels.shape[0]))
        return self.body_model.focal_px(pixels)

    def _people(self, jobs: list[Job]) -> list[Person]:
        seen = self._run(jobs)
        open_ = set(range(len(jobs)))
        for _ in range(REFINE_STEPS):
            closer = {i: job for i, job in self._refined(jobs, seen).items() if i in open_}
            if not closer:
                break
            for (i, job), fresh in zip(closer.items(), self._run(list(closer.values()))):
                if _extent(job, fresh) < SHRUNK * _extent(jobs[i], seen[i]):
                    open_.discard(i)
                else:
                    jobs[i], seen[i] = job, fresh
        return [self._person(job, s) for job, s in zip(jobs, seen)]

    def _run(self, jobs: list[Job]) -> list[Output]:
        start = time.perf_counter()
        sights = [Sight(j.pixels, j.crop, j.focal_px) for j in jobs]
        if self._fixed_batch:
            sights += sights[-1:] * (self.batch_size - len(sights))
        found: Bodies = self.body_model(sights)
        self.seconds["model"] += time.perf_counter() - start
        rows: Any = ((None if array is None else array[i] for array in found) for i in range(len(jobs)))
        return [Output(*row) for row in rows]

    def _refined(self, jobs: list[Job], seen: list[Output]) -> dict[int, Job]:
        """For "auto" jobs, by number: the box of the mesh just seen, where it is plausible and clearly another than the
        crop."""
        closer = {}
        for i, (job, values) in enumerate(zip(jobs, seen)):
            points = _points(job, values)
            if job.source != "auto" or not np.isfinite(points).all():
                continue
            height, width = job.pixels.shape[:2]
            (x0, y0), (x1, y1) = points.min(0), points.max(0)
            box: Any = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
            if min(box[2] - box[0], box[3] - box[1]) < 0.05 * max(width, height):
                continue  # nothing one could call a person: the whole image stays
            box = tuple(round(16 * float(v)) / 16 for v in box)  # the last bits depend on the batch; a crop should not
            new = self.body_model.crop_of_box(box)
            if new.side < 0.85 * job.crop.side or abs(new.center[0] - job.crop.center[0]) > 0.1 * job.crop.side:
                closer[i] = job._replace(box=box, crop=new)
        return closer

    def _person(self, job: Job, seen: Output) -> Person:
        height, width = job.pixels.shape[:2]
        principal = self._principal_px or (width / 2, height / 2)
        place = camera.image_camera(seen.camera, job.crop.center, job.crop.side)
        scale = place[0] + 1e-9
        trans = np.array([*((place[1:] - principal) / scale), job.focal_px / scale], np.float32)
        if self.body_model.task == "smpl":
            points = seen.joints + trans
            joints_2d = job.focal_px * points[:, :2] / np.maximum(points[:, 2:], 1e-6) + np.array(principal)
        else:
            joints_2d = job.crop.to_image(seen.camera[0] * (seen.joints[:, :2] + seen.camera[1:]))
        poses = None
        if seen.rotations is not None:
            poses = matrix_to_axis_angle(torch.from_numpy(seen.rotations)).flatten().numpy()
        return Person(
            box=job.box,
            box_source=job.source,
            crop=job.crop,
            camera=seen.camera,
            camera_image=place,
            focal_px=job.focal_px,
            principal_px=(float(principal[0]), float(principal[1])),
            trans=trans,
            vertices=seen.vertices,
            vertices_coarse=seen.vertices_coarse,
            joints_3d=seen.joints,
            joints_2d=joints_2d,
            poses=poses,
            rotations=seen.rotations,
            betas=seen.betas,
        )


def zip_boxes(images: Iterable[Any], boxes: Any) -> Iterator[tuple[Any, Any]]:
    """Each image with its boxes, or with the mode that holds for all."""
    for i, image in enumerate(images):
        yield image, (boxes if boxes is None or isinstance(boxes, str) else boxes[i])


def read_ahead(items: Iterable[tuple[Any, Any]], size: int, pool: ThreadPoolExecutor) -> Iterator[Group]:
    """Groups of `size` images in order, the next group being read while the caller works on one."""
    waiting: Group | None = None
    items = iter(items)
    while True:
        group = [Reading(s, b, pool.submit(read_result, s)) for s, b in itertools.islice(items, size)]
        if waiting:
            yield waiting
        if not group:
            return
        waiting = group


def read_result(image: Any) -> ImageResult:
    """Pixels of an image, or why there are none. Whatever a decoder raises costs this image alone."""
    name = str(image) if isinstance(image, (str, Path)) else image.name if isinstance(image, Stored) else "image"
    try:
        pixels = read_image(image.read(), name) if isinstance(image, Stored) else read_image(image)
    except ImageError as e:
        return ImageResult(name, error=str(e))
    except Exception as e:  # noqa: BLE001 (decoders raise anything on damaged files: KeyError, struct.error, MemoryError ...)
        return ImageResult(name, error=f"{name}: cannot be decoded ({type(e).__name__}: {e})")
    return ImageResult(name, (pixels.shape[1], pixels.shape[0]), [], None, pixels)


def _points(job: Job, seen: Output) -> np.ndarray:  # [V, 2] pixels of the image
    return job.crop.to_image(seen.camera[0] * (seen.vertices[:, :2] + seen.camera[1:]))


def _extent(job: Job, seen: Output) -> float:
    """Longer side of what the model saw, in pixels of the image; 0 where that is no number."""
    size = float(np.ptp(_points(job, seen), axis=0).max())
    return size if np.isfinite(size) else 0.0
