"""Photographs to meshes: read -> boxes -> crops -> model -> vertices, joints and cameras per person.

`ImagePipeline().predict(["photo.jpg"])` is the whole of it; `stream` does the same for any number of images in constant
memory. Way of the data: io/image.py, geometry/crop.py -> models/ -> here -> vis/overlay.py, vis/export.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .._device import pick_device
from ..body import BodyTopology, load_body, load_topology
from ..geometry.camera import full_translation, image_camera
from ..geometry.crop import Crop, centre_crop, crop_of_box, whole_crop
from ..geometry.skeleton import H36M17_TO_J14, HAND21, J14
from ..geometry.warp import model_input
from ..io.image import ImageError, check_box, read_image
from ..models import create_model, from_pretrained, load_pretrained
from ..models._registry import facts_of
from ..models.default import BUILT_IN, default_folder
from .posed_body import PosedBody

BOX_MODES = ("auto", "full", "centre")
FOCAL_PX, CROP_PX = 1000.0, 224.0  # perspective camera of the official renderers, per 224-pixel crop
REFINE_STEPS = 2  # how often "auto" crops again around what the model saw
# A second look that sees half the size is distrusted: it cropped into the person, and the next would see less still. Mean 2D
# error of 32 synthetic images, share of the size: hands in tight frames 23 -> 17 %, 1.7x wider 40 -> 38 %, bodies unchanged.
SHRUNK = 0.5


@dataclass(frozen=True)
class Person:
    """One body or hand. Metres, x right, y down, z away from the camera, centred on the regressed pelvis (wrist)."""

    box: tuple[float, float, float, float]  # x0, y0, x1, y1 pixels of the image
    box_source: str  # "given", "auto", "full" or "centre"
    crop: Crop
    camera: np.ndarray  # [3] scale, tx, ty: crop point in [-1, 1] = scale * (xy + t)
    camera_image: np.ndarray  # [3] scale_px, x_px, y_px: pixel = scale_px * xy + (x_px, y_px)
    translation: np.ndarray  # [3] metres: perspective camera of focal `focal_px` centred on the crop
    focal_px: float
    vertices: np.ndarray  # [V, 3]
    vertices_coarse: np.ndarray  # [V_coarse, 3]
    joints_3d: np.ndarray  # [14, 3] regressed from the mesh (J14); a hand has [21, 3] (HAND21)
    joints_2d: np.ndarray  # [14, 2] pixels of the image


@dataclass(frozen=True)
class ImageResult:
    """What came of one image: people, or the reason why not."""

    name: str
    size: tuple[int, int] = (0, 0)  # width, height of the upright image
    people: list[Person] = field(default_factory=list)
    error: str | None = None
    pixels: np.ndarray | None = None  # [H, W, 3] uint8


@dataclass
class _Open:
    """A image on its way: its pixels and the crops still to be run."""

    name: str
    pixels: np.ndarray
    crops: list[tuple[tuple[float, float, float, float], str, Crop]]


class ImagePipeline:
    """Images in, people out.

    Args:
        model: None for the built-in default; a folder written by `save_pretrained`; a registered name (random
            weights: useful only for trying things); or a module whose forward returns `camera`, `joints`,
            `vertices_coarse` and `vertices`.
        checkpoint, upstream: weights, a folder of ours or an official file; see `load_model`.
        topology: faces and joint regressors of the mesh the model speaks of; default: what the model's mesh name says.
        mesh_data: folder with the SMPL/MANO topology files, for models of those meshes (else $TORE_FAST_MESH_DATA).
        device: "auto" takes a GPU where there is one.
        batch_size: crops run at once.

    Example:
        >>> photo = np.zeros((240, 180, 3), np.uint8)  # or "photo.jpg"
        >>> results = ImagePipeline().predict([photo])
        >>> results[0].people[0].vertices.shape
        (6890, 3)
    """

    def __init__(
        self,
        model: nn.Module | str | Path | None = None,
        *,
        checkpoint: str | Path | None = None,
        upstream: str | None = None,
        topology: BodyTopology | None = None,
        mesh_data: str | Path | None = None,
        device: str = "auto",
        batch_size: int = 8,
    ):
        if batch_size < 1:
            raise ValueError(f"ImagePipeline: batch_size must be at least 1, got {batch_size}")
        self.device = torch.device(pick_device(device))
        if isinstance(model, nn.Module):
            self.model = (PosedBody(model) if _is_parametric(model) else model).to(self.device).eval()
        else:
            loaded = load_model(model, checkpoint, upstream=upstream, mesh_data=mesh_data)
            self.model = mesh_model(loaded, str(checkpoint or model)).to(self.device).eval()
            self.model.fuse()  # exact inference shortcuts; a module handed in stays as it is
        self.topology = mesh_of(self.model, mesh_data) if topology is None else topology
        regressor, self._picks, self.joint_names = _joint_rows(self.topology)
        self._regressor = torch.from_numpy(regressor).to(self.device)
        official = self.topology.name in ("smpl", "mano")
        facts = facts_of(self.model)
        # official METRO and TORE weights project the mesh as it comes out; FastMETRO's (and ours) after centring it
        self._centred = not (official and facts is not None and facts.projection == "as_is")
        size = getattr(getattr(self.model, "config", None), "image_size", 224)
        self.image_size = int(size if isinstance(size, int) else size[0])
        self.batch_size = batch_size
        self.seconds: dict[str, float] = {"read": 0.0, "crop": 0.0, "model": 0.0, "mesh": 0.0}
        self.counts = {"images": 0, "people": 0}

    def predict(self, images: Sequence[Any] | Any, boxes: Any = None) -> list[ImageResult]:
        """Results in the order of the images; a bad image gives a result with `error`, the others are done.

        Args:
            images: paths, PIL images or arrays (see io/image.py), one or several.
            boxes: None or "auto": a box found by the model itself; "full": the whole image; "centre": the centre
                square of the official demo; or per image a list of (x0, y0, x1, y1), one result per box.
        """
        if isinstance(images, (str, Path, np.ndarray)) or not isinstance(images, Iterable):
            images = [images]
            if boxes is not None and not isinstance(boxes, str) and len(boxes) and np.ndim(boxes[0]) < 2:
                boxes = [boxes]
        images = list(images)
        if boxes is not None and not isinstance(boxes, str) and len(boxes) != len(images):
            raise ValueError(
                f"ImagePipeline.predict: boxes must have one entry per image ({len(images)}), got {len(boxes)}"
            )
        return list(self.stream(images, boxes))

    def stream(self, images: Iterable[Any], boxes: Any = None) -> Iterator[ImageResult]:
        """Like `predict`, one result after the other; only a batch of images is in memory."""
        if isinstance(boxes, str) and boxes not in BOX_MODES:
            raise ValueError(f"ImagePipeline: boxes must be one of {BOX_MODES} or lists of boxes, got {boxes!r}")
        with ThreadPoolExecutor(2) as pool:
            group: list[tuple[Any, Any]] = []
            for i, image in enumerate(images):
                group.append((image, boxes if boxes is None or isinstance(boxes, str) else boxes[i]))
                if len(group) == self.batch_size:
                    yield from self._group(group, pool)
                    group = []
            if group:
                yield from self._group(group, pool)

    def _group(self, group: list[tuple[Any, Any]], pool: ThreadPoolExecutor) -> Iterator[ImageResult]:
        start = time.perf_counter()
        opened = list(pool.map(lambda pair: _open(*pair), group))
        self.seconds["read"] += time.perf_counter() - start
        jobs = [(o, job) for o in opened if isinstance(o, _Open) for job in o.crops]
        found: dict[int, list[Person]] = {id(o): [] for o in opened}
        for first in range(0, len(jobs), self.batch_size):
            part = jobs[first : first + self.batch_size]
            for (o, _), person in zip(part, self._people(part)):
                found[id(o)].append(person)
        for o in opened:
            self.counts["images"] += 1
            if isinstance(o, ImageResult):
                yield o
                continue
            self.counts["people"] += len(found[id(o)])
            height, width = o.pixels.shape[:2]
            yield ImageResult(o.name, (width, height), found[id(o)], None, o.pixels)

    def _people(self, jobs: list[tuple[_Open, tuple]]) -> list[Person]:
        out = self._run([(o.pixels, job[2]) for o, job in jobs])
        open_ = set(range(len(jobs)))
        for _ in range(REFINE_STEPS):
            closer = {i: job for i, job in _refined(jobs, out).items() if i in open_}
            if not closer:
                break
            fresh = self._run([(o.pixels, job[2]) for o, job in closer.values()])
            for (i, job), values in zip(closer.items(), fresh):
                if _extent(job, values) < SHRUNK * _extent(jobs[i], out[i]):
                    open_.discard(i)
                else:
                    jobs[i], out[i] = job, values
        return [_person(o, job, values) for (o, job), values in zip(jobs, out)]

    @torch.inference_mode()
    def _run(self, crops: list[tuple[np.ndarray, Crop]]) -> list[dict[str, np.ndarray]]:
        t0 = time.perf_counter()
        images = torch.stack([model_input(p, c, self.image_size) for p, c in crops]).to(self.device)
        t1 = time.perf_counter()
        out = self.model(images)
        lacking = [k for k in ("camera", "vertices", "vertices_coarse") if not hasattr(out, k)]
        if lacking:
            raise ValueError(
                f"ImagePipeline: expected an image-to-mesh model (fastmetro*, metro*, graphormer*, tore_default), got "
                f"{type(self.model).__name__}, whose output lacks {', '.join(lacking)}"
            )
        vertices = out.vertices.float()
        if vertices.shape[1] != self._regressor.shape[1]:
            raise ValueError(
                f"ImagePipeline: the model gives {vertices.shape[1]} vertices, the mesh {self.topology.name!r} has "
                f"{self._regressor.shape[1]}; pass the topology the model was made for"
            )
        regressed = self._regressor @ vertices
        root = regressed[:, :1]
        camera = out.camera.float()
        if not self._centred:  # the same image points, said of the centred mesh
            camera = torch.cat([camera[:, :1], camera[:, 1:] + root[:, 0, :2]], 1)
        values = {
            "camera": camera,
            "vertices": vertices - root,
            "vertices_coarse": out.vertices_coarse.float() - root,
            "joints": regressed[:, self._picks] - root,
        }
        host = {k: v.cpu().numpy() for k, v in values.items()}
        t2 = time.perf_counter()
        self.seconds["crop"] += t1 - t0
        self.seconds["model"] += t2 - t1
        return [{k: v[i] for k, v in host.items()} for i in range(len(crops))]


def load_model(model: nn.Module | str | Path | None, checkpoint: str | Path | None = None, **options) -> nn.Module:
    """Module from what `ImagePipeline(model=...)` accepts, or from a checkpoint.

    Args:
        checkpoint: a folder of ours or an official file. `model` is then None or "default" (told by the file), or the
            registered name that the file must fit.
        **options: of `from_pretrained` (upstream, mesh_data), for folders and files; None means not given.
    """
    if isinstance(model, nn.Module):
        return model
    given = {k: v for k, v in options.items() if v is not None}
    if checkpoint is not None:
        return from_pretrained(checkpoint, model=None if model in (None, "default") else str(model), **given)
    if model is None or str(model) in BUILT_IN:
        return load_pretrained(default_folder(str(model or "default")))
    if Path(model).is_dir():
        return from_pretrained(model, **given)
    return mesh_model(create_model(str(model)), str(model))


def _is_parametric(model: nn.Module) -> bool:
    """A model of body parameters that reads the same crops as the image-to-mesh models."""
    facts = facts_of(model)
    return facts is not None and facts.task == "smpl" and facts.crop == "square"


def mesh_model(model: nn.Module, source: str) -> nn.Module:
    """`model` where it regresses a mesh from images, or the body it regresses parameters of; else a ValueError that names
    `source`."""
    if _is_parametric(model):
        return PosedBody(model)
    if not hasattr(model, "mesh"):
        raise ValueError(
            f"{source}: expected an image-to-mesh model (fastmetro*, metro*, graphormer*, tore_default, tcformer_*_hmr), "
            f"got {type(model).__name__}"
        )
    return model


def mesh_of(model: nn.Module, mesh_data: str | Path | None = None) -> BodyTopology:
    """Topology of the mesh a model regresses, by the name it carries ("free" where it carries none)."""
    name = getattr(getattr(model, "mesh", None), "name", "free")
    if name in ("free", "free_hand"):
        return load_body(name).topology
    folder = mesh_data or os.environ.get("TORE_FAST_MESH_DATA")
    if folder is None:
        raise ValueError(
            f"ImagePipeline: the model speaks of the licence-bound mesh {name!r}: give the folder with its topology files "
            "(--mesh-data DIR, mesh_data=... or $TORE_FAST_MESH_DATA)"
        )
    return load_topology(name, folder)


def _joint_rows(topology: BodyTopology) -> tuple[np.ndarray, list[int], tuple[str, ...]]:
    """Regressor whose row 0 is the root, the rows that are reported, and their names."""
    if "h36m17" in topology.regressors:
        return topology.regressor("h36m17"), list(H36M17_TO_J14), J14.names
    if "hand21" in topology.regressors:
        return topology.regressor("hand21"), list(range(21)), HAND21.names
    raise ValueError(
        f"ImagePipeline: the mesh {topology.name!r} has no joint regressor; its folder needs J_regressor_h36m_correct.npy"
    )


def _open(image: Any, boxes: Any) -> _Open | ImageResult:
    name = str(image) if isinstance(image, (str, Path)) else "image"
    try:
        pixels = read_image(image)
        height, width = pixels.shape[:2]
        whole = (0.0, 0.0, float(width), float(height))
        if boxes is None or isinstance(boxes, str):
            mode = boxes or "auto"
            crop = centre_crop(width, height) if mode == "centre" else whole_crop(width, height)
            return _Open(name, pixels, [(whole, mode, crop)])
        checked = [check_box(b, width, height, name) for b in boxes]
        return _Open(name, pixels, [(b, "given", crop_of_box(b)) for b in checked])
    except ImageError as e:
        return ImageResult(name, error=str(e))


def _refined(jobs: list[tuple[_Open, tuple]], out: list[dict]) -> dict[int, tuple[_Open, tuple]]:
    """For "auto" jobs, by number: the box of the mesh just seen, where it is plausible and clearly another than the crop."""
    closer = {}
    for i, (job, values) in enumerate(zip(jobs, out)):
        o, (_, source, crop) = job
        points = _points(job, values)
        if source != "auto" or not np.isfinite(points).all():
            continue
        height, width = o.pixels.shape[:2]
        (x0, y0), (x1, y1) = points.min(0), points.max(0)
        box = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
        if min(box[2] - box[0], box[3] - box[1]) < 0.05 * max(width, height):
            continue  # nothing one could call a person: the whole image stays
        new = crop_of_box(box)
        if new.side < 0.85 * crop.side or abs(new.center[0] - crop.center[0]) > 0.1 * crop.side:
            closer[i] = (o, (tuple(float(v) for v in box), source, new))
    return closer


def _points(job: tuple[_Open, tuple], values: dict[str, np.ndarray]) -> np.ndarray:  # [V, 2] pixels of the image
    return job[1][2].to_image(values["camera"][0] * (values["vertices"][:, :2] + values["camera"][1:]))


def _extent(job: tuple[_Open, tuple], values: dict[str, np.ndarray]) -> float:
    """Longer side of what the model saw, in pixels of the image; 0 where that is no number."""
    size = float(np.ptp(_points(job, values), axis=0).max())
    return size if np.isfinite(size) else 0.0


def _person(o: _Open, job: tuple, values: dict[str, np.ndarray]) -> Person:
    box, source, crop = job
    camera = values["camera"]
    points = camera[0] * (values["joints"][:, :2] + camera[1:])
    return Person(
        box=box,
        box_source=source,
        crop=crop,
        camera=camera,
        camera_image=image_camera(camera, crop.center, crop.side),
        translation=full_translation(torch.from_numpy(camera)[None], focal=FOCAL_PX, crop=CROP_PX)[0].numpy(),
        focal_px=FOCAL_PX * crop.side / CROP_PX,
        vertices=values["vertices"],
        vertices_coarse=values["vertices_coarse"],
        joints_3d=values["joints"],
        joints_2d=crop.to_image(points),
    )
