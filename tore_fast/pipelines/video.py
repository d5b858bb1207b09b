"""Videos and images of people -> body parameters, joints, files: the FastHMR pipeline from end to end.

In: frames (io/video.py) with boxes and masks of tracked people; out: per track an AMASS-like .npz, BVH and animated
GLB. Frames stream through crops and host in batches over people and frames (rows on disk, pipelines/track_store.py);
then every track goes through the motion decoder and the inverse kinematics in clips. Memory does not grow with length.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from .._threads import available_cpus
from ..body import Body
from ..engine import Engine
from ..geometry import camera
from ..geometry.crop import Crop, crop_of_box
from ..geometry.rotation import matrix_to_rot6d, rot6d_to_matrix
from ..geometry.warp import as_tensor, letterbox, mask_crop, normalise_image, person_crops
from ..geometry.windows import fill_gaps, track_spans
from ..io.image import ImageError
from ..io.video import VideoSource
from ..layers.mask_tome import ellipse_mask, warn_if_over_budget
from ..models._checkpoint import load
from ..models.motion.fasthmr import FastHMRMotion, motion_rotations
from ..models.smpl.hmr2 import HMR2
from .hosts import RestSkeleton, load_host, load_named_body
from .options import VideoOptions
from .reading import ahead
from .track_files import FORMATS, track_writers
from .track_store import TrackStore
from .writing import InOrder

Masks = Callable[[int, np.ndarray, dict[int, tuple]], dict[int, np.ndarray] | None]
Tracker = Callable[[int, np.ndarray], dict[int, tuple[float, float, float, float]]]


@dataclass
class Timing:
    """Seconds per stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    frames: int = 0
    people: int = 0

    @contextmanager
    def stage(self, name: str, device: torch.device | None = None) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def table(self) -> str:
        """One line per stage; per person only where people went through the network (not in a run that only wrote
        files)."""
        total = sum(self.seconds.values())

        def each(seconds: float) -> str:
            return f"{1000 * seconds / self.people:12.2f}" if self.people else f"{'-':>12}"

        lines = [f"{'stage':10}{'seconds':>10}{'ms/person':>12}{'share':>8}"]
        for name, s in self.seconds.items():
            lines.append(f"{name:10}{s:10.2f}{each(s)}{100 * s / max(total, 1e-9):7.0f}%")
        rate = f"   {self.people / total:.1f} persons/s" if self.people and total else ""
        lines.append(f"{'total':10}{total:10.2f}{each(total)}{rate}")
        return "\n".join(lines)


class WaitingCrop(NamedTuple):
    """A crop that waits for its batch."""

    frame: int
    track: int
    box: tuple[float, ...]
    square: tuple[float, float, float]  # centre x, y and side, px
    image_size: tuple[int, int]  # W, H px
    focal_px: float
    crop: Tensor  # [3, S, S]
    mask: Tensor | None  # [S, S]


class VideoPipeline:
    """Host (+ motion decoder + body) behind one object.

    Args:
        host: HMR2 or CameraHMR, possibly with merged layers and tokens. motion: FastHMR's motion decoder; None keeps
            the host's own pose read-out. body: SMPL or the free body, for joints, IK and meshes.
        options: see VideoOptions. device: where the networks run.
    """

    def __init__(
        self,
        host: HMR2,
        body: Body,
        motion: FastHMRMotion | None = None,
        options: VideoOptions | None = None,
        device: str | torch.device = "cpu",
    ):
        self.device, self.name = torch.device(device), type(host).__name__
        self.options = options or VideoOptions()
        self.host: Any = host.to(self.device).eval()  # HMR2.0 or CameraHMR
        self.body = body.to(self.device)
        self.motion = None if motion is None else motion.to(self.device).eval()
        width = host.config.decoder_dim
        if motion is not None and motion.config.condition_dim != width:
            raise ValueError(
                f"VideoPipeline: the motion decoder reads features of {motion.config.condition_dim} numbers, "
                f"the host gives {width}"
            )
        if motion is not None and motion.config.correct_host and not motion.host_motion.fits(host.smpl_head):
            raise ValueError(
                "VideoPipeline: the motion decoder corrects the poses of another host; give the one of its --correct"
            )
        if motion is not None and self.options.overlap >= motion.config.frames:
            raise ValueError(
                f"VideoPipeline: overlap must be below the decoder's {motion.config.frames} frames, got "
                f"{self.options.overlap}"
            )
        self.rest = RestSkeleton(self.body)
        self.timing = Timing()
        self._warned = self._over_budget = self._own_host = False

    @classmethod
    def from_checkpoint(
        cls,
        host: str,
        motion: str | None = None,
        body: str = "free",
        options: VideoOptions | None = None,
        device: str | torch.device = "cpu",
        fov_net: str | None = None,
        overrides: dict | None = None,
    ) -> VideoPipeline:
        """ImagePipeline from files, folded for inference.

        Args:
            host: checkpoint folder, official .ckpt, or a model name (random weights). motion: folder of the motion
                decoder.
            body: "free" or a SMPL model file. fov_net: HumanFoV's file, for a CameraHMR host without it. overrides:
                config fields, e.g.
            keep_tokens and merge_per_block (Mask-ToMe).

        Example:
            >>> pipe = VideoPipeline.from_checkpoint("hmr2_vitt", overrides={"keep_tokens": 24})
            >>> pipe.body.name
            'free'
        """
        name, network = load_host(host, fov_net, overrides)
        decoder = load(motion) if motion else None
        if decoder is not None and not isinstance(decoder, FastHMRMotion):
            raise ValueError(f"{motion}: not a motion decoder (fasthmr_motion)")
        pipe = cls(network, load_named_body(body), decoder, options, device)
        pipe._own_host = True  # a host handed in stays as it is
        pipe.name = name
        return pipe

    # ---- one batch of crops

    def focal(self, frame: np.ndarray) -> float:
        """Focal length in px for a clip with frames like this one: given, from the FoV net, or HMR2.0's default."""
        h, w = frame.shape[:2]
        o = self.options
        if o.focal_px is not None:
            return float(o.focal_px)
        if o.fov_deg is not None:
            return float(camera.focal_from_fov(math.radians(o.fov_deg), h))
        if getattr(self.host, "cam_model", None) is not None:
            with torch.inference_mode(), self.engine.context():
                fov = self.host.estimate_fov(
                    normalise_image(letterbox(as_tensor(frame, self.device), camera.CROP_PX))[None]
                )
            return float(camera.focal_from_fov(fov.float().clamp(0.05, 3.0), h)[0])
        return float(camera.default_focal(torch.tensor([[float(w), float(h)]]))[0])

    def _square(self, box: Sequence[float]) -> Crop:
        return crop_of_box(box, self.options.box_rule, self.host.config.box_margin)

    def _crops(
        self, frame: np.ndarray, squares: list[Crop], masks: list[np.ndarray | None] | None
    ) -> tuple[Tensor, Tensor | None]:
        """Crops and masks of a frame's people; `masks` None: nobody has one, tokens are merged without."""
        image = as_tensor(frame, self.device)
        crops = person_crops(image, squares, self.host.config.img_size[0])
        if self.host.backbone.merging is None or self.options.masks == "none":
            return crops, None
        size = crops.shape[-1]
        if self.options.masks == "ellipse":
            return crops, ellipse_mask(len(squares), size, size, self.device)
        if masks is None:
            return crops, None  # plain ToMe
        rows = []
        for square, mask in zip(squares, masks):
            if mask is None:
                if not self._warned:
                    warnings.warn("some people have no mask: an ellipse in their box stands in")
                    self._warned = True
                rows.append(ellipse_mask(1, size, size, self.device)[0])
            else:
                rows.append(mask_crop(as_tensor(mask, self.device), square, size))
        return crops, torch.stack(rows)

    def _check_budget(self, masks: Tensor | None) -> None:
        """One warning per pipeline when people cover more tokens than are kept."""
        merging = self.host.backbone.merging
        if masks is None or merging is None or merging.keep is None or self._over_budget:
            return
        self._over_budget = warn_if_over_budget(self.host.coverage(masks), merging, len(self.host.backbone.blocks))

    @torch.inference_mode()
    def _encode(self, crops: Tensor, masks: Tensor | None, squares: Tensor, image: Tensor, focal: Tensor) -> Any:
        if self.host.facts.takes_camera:
            return self.engine(crops, masks, squares[:, :2], squares[:, 2], image, focal)
        return self.engine(crops, masks)

    @functools.cached_property
    def engine(self) -> Engine:
        """Of the host; made at the first crop."""
        o = self.options
        return Engine(self.host, self.device, o.precision, o.batch_size, own=self._own_host, follow=True)

    @property
    def _coarse(self) -> int:
        return self.body.hierarchy.num_levels - 1

    # ---- videos

    def encode_video(
        self,
        source: VideoSource,
        work: str | Path,
        tracker: Tracker | None = None,
        masks: Masks | None = None,
        limit: int | None = None,
        settings: dict | None = None,
        on_frame: Callable[[int], None] | None = None,
    ) -> TrackStore:
        """Stage 1: every person of every frame through the host; rows in `work`, resumed if they are there.

        Args:
            tracker: (frame number, frame) -> {track: box}; None takes the whole frame as one person. With `state()` and
                `restore()` (data/detect.py:BoxTracker) its memory is saved too, so resumed runs keep the track numbers.
            masks: (frame number, frame, boxes) -> {track: [H, W] mask}; tracks without one get an ellipse. None:
                there are no masks, tokens are merged without.
            limit: stop after this many frames.
        """
        facts = {
            "video": source.path.name,
            "box_rule": self.options.box_rule,
            "masks": self.options.masks,
            **(settings or {}),
        }
        store = TrackStore(work, self.host.config.decoder_dim, facts)
        if store.finished:
            return store
        if hasattr(tracker, "restore") and "tracker" in store.facts:
            cast(Any, tracker).restore(store.facts["tracker"])

        # reading, detecting and cropping go on while another thread encodes and saves, in order
        encoder: InOrder[None] = InOrder(1, lambda _: None)
        frames = ahead(source.frames(store.next_frame), 2 * available_cpus())
        with encoder, closing(frames):
            self._encode_frames(source, store, frames, encoder, tracker, masks, limit, on_frame)
        return store

    def _encode_frames(
        self,
        source: VideoSource,
        store: TrackStore,
        frames: Iterator[tuple[int, np.ndarray]],
        encoder: InOrder[None],
        tracker: Tracker | None,
        masks: Masks | None,
        limit: int | None,
        on_frame: Callable[[int], None] | None,
    ) -> None:
        pending: list[WaitingCrop] = []
        timing, last, saved = self.timing, store.next_frame, store.next_frame
        errors: list[str] = getattr(source, "problems", [])

        def commit(next_frame: int, finished: bool = False) -> None:
            state = cast(Any, tracker).state() if hasattr(tracker, "state") else None

            def save() -> None:
                if state is not None:
                    store.facts["tracker"] = state
                store.commit(next_frame, finished)

            encoder.put(save)

        def flush() -> None:
            if pending:
                encoder.put(functools.partial(self._flush, store, list(pending)))
                pending.clear()

        while True:
            try:
                with timing.stage("read"):
                    item = next(frames, None)
            except ImageError as e:  # damaged from here on: what was read is done
                errors.append(str(e))
                item = None
            if errors and "error" not in store.facts:
                encoder.wait()  # it saves the facts
                store.facts["error"] = errors[0]
            if item is None or (limit is not None and item[0] >= limit):
                break
            index, frame = item
            h, w = frame.shape[:2]
            store.facts.setdefault("source", str(source.path))
            store.facts.setdefault("image_size", [w, h])
            focal = self._known_focal(store, frame, encoder)
            with timing.stage("detect"):
                boxes = {0: (0.0, 0.0, float(w), float(h))} if tracker is None else tracker(index, frame)
            with timing.stage("crop"):
                if boxes:
                    tracks = sorted(boxes)
                    squares = [self._square(boxes[t]) for t in tracks]
                    found = masks(index, frame, boxes) if masks is not None else None
                    given = None if found is None else [found.get(t) for t in tracks]
                    crops, mask = self._crops(frame, squares, given)
                    for i, t in enumerate(tracks):
                        own = None if mask is None else mask[i]
                        pending.append(
                            WaitingCrop(index, t, tuple(boxes[t]), squares[i].x_y_side, (w, h), focal, crops[i], own)
                        )
            last = index + 1
            timing.frames += 1
            if len(pending) >= self.options.batch_size or last - saved >= self.options.chunk_frames:
                flush()
                if last - saved >= self.options.chunk_frames:
                    commit(last)
                    saved = last
            if on_frame is not None:
                on_frame(index)
        flush()
        commit(last, finished=True)

    def _known_focal(self, store: TrackStore, frame: np.ndarray, encoder: InOrder[None]) -> float:
        """Focal length of frames of this size, px: a folder may hold several sizes."""
        size = f"{frame.shape[1]}x{frame.shape[0]}"
        known = store.facts.get("focal_px", {})
        if not known.get(size):
            encoder.wait()  # it uses the host and saves the facts
            known = store.facts["focal_px"] = {**known, size: self.focal(frame)}
        return known[size]

    def _flush(self, store: TrackStore, pending: list[WaitingCrop]) -> None:
        size = self.options.batch_size
        runs = [list(run) for _, run in itertools.groupby(pending, key=lambda p: p.mask is None)]
        for part in (run[first : first + size] for run in runs for first in range(0, len(run), size)):
            with self.timing.stage("encode", self.device):
                crops = torch.stack([p.crop for p in part])
                masks = None if part[0].mask is None else torch.stack([p.mask for p in part if p.mask is not None])
                squares = torch.tensor([p.square for p in part], device=self.device)
                image = torch.tensor([p.image_size for p in part], dtype=torch.float32, device=self.device)
                focal = torch.tensor([p.focal_px for p in part], device=self.device)
                self._check_budget(masks)
                out = self._encode(crops, masks, squares, image, focal)
            rows = np.zeros(len(part), store.dtype)
            rows["frame"], rows["box"] = [p.frame for p in part], [p.box for p in part]
            rows["square"], rows["image"] = [p.square for p in part], [p.image_size for p in part]
            rows["focal"] = [p.focal_px for p in part]
            for key, value in (
                ("cam", out.cam),
                ("betas", out.betas),
                ("rotations", out.rotations),
                ("token", out.token),
            ):
                rows[key] = value.float().cpu().numpy()
            for i, p in enumerate(part):
                store.append(p.track, rows[i : i + 1])
            self.timing.people += len(part)

    @torch.inference_mode()
    def decode_track(
        self,
        store: TrackStore,
        track: int,
        folder: str | Path,
        fps: float,
        formats: Sequence[str] = ("npz",),
        time_of: Callable[[int], float] | None = None,
    ) -> list[Path]:
        """Stage 2 for one track: motion decoder, IK, files. A track is cut where detections are missing for long.

        Returns:
            Paths; files of an earlier run that are complete stay as they are.
        """
        unknown = [f for f in formats if f not in FORMATS]
        if unknown:
            raise ValueError(f"decode_track: formats must be among {FORMATS}, got {unknown[0]!r}")
        folder, rows = Path(folder), store.rows(track)
        folder.mkdir(parents=True, exist_ok=True)
        ids = torch.from_numpy(np.array(rows["frame"], np.int64))
        spans = track_spans(ids, self.options.max_gap)
        paths = []
        for k, span in enumerate(spans):
            name = f"track_{track:03d}" + (f"_{k}" if len(spans) > 1 else "")
            files = [folder / f"{name}.{f}" for f in formats]
            if not all(p.exists() for p in files):
                keep = slice(int(torch.searchsorted(ids, span.first)), int(torch.searchsorted(ids, span.last)) + 1)
                at = time_of or (lambda frame: frame / fps)
                self._decode_span(rows[keep], ids[keep], span.first, span.last, store, track, files, fps, at)
            paths += files
        return paths

    def _decode_span(
        self,
        rows: Any,
        ids: Tensor,
        first: int,
        last: int,
        store: TrackStore,
        track: int,
        files: Any,
        fps: float,
        at: Callable[[int], float],
    ) -> None:
        o, count, device = self.options, last - first + 1, self.device
        betas = torch.from_numpy(np.array(rows["betas"]))
        shape = betas.median(0).values.to(device)[None]

        def every(key: str, a: int, b: int) -> Tensor:
            """Field of frames a..b-1 of the span, interpolated where a box was missing."""
            lo = max(0, int(torch.searchsorted(ids, first + a, right=True)) - 1)
            hi = min(len(ids), int(torch.searchsorted(ids, first + b - 1)) + 1)
            values = torch.from_numpy(np.array(rows[key][lo:hi])).to(device)
            return fill_gaps(values, ids[lo:hi], first + a, first + b - 1)

        writers = track_writers(files, self.body, o, count, shape, fps, store, track)
        try:
            for start, rotations in self._rotation_pieces(every, count, shape):
                end = start + len(rotations)
                with self.timing.stage("write", device):
                    square, image = every("square", start, end), every("image", start, end)
                    focal = every("focal", start, end)
                    principal = image / 2 if o.principal_px is None else square.new_tensor([o.principal_px])
                    trans = camera.full_translation(
                        every("cam", start, end), focal=focal, crop=square[:, 2], offset=square[:, :2] - principal
                    )
                    own = shape if o.betas_mode == "median" else every("betas", start, end)
                    posed = self.body(
                        rotations, own[:, : self.body.num_betas].expand(len(rotations), -1), trans, self._coarse
                    )
                    frames = torch.arange(first + start, first + end)
                    fields = {
                        "rotations": rotations,
                        "trans": trans,
                        "joints_3d": posed.joints[:, :24] - trans[:, None],
                        "focal_px": focal,
                        "principal_px": principal.expand(len(trans), 2),
                        "betas": own,
                        "box": every("box", start, end),
                        "frame": frames,
                        "time": torch.tensor([at(i) for i in frames.tolist()], dtype=torch.float64),
                        "detected": torch.isin(frames, ids),
                    }
                    piece = {k: v.cpu().numpy() for k, v in fields.items()}
                    for writer in writers:
                        writer(piece)
            with self.timing.stage("write"):
                for writer in writers:
                    writer(None)
        except BaseException:
            for file in files:
                for part in file.parent.glob(f".{file.stem}*"):
                    part.unlink(missing_ok=True)
            raise

    def _rotation_pieces(self, every: Callable, count: int, shape: Tensor) -> Iterator[tuple[int, Tensor]]:
        o = self.options
        if self.motion is None:
            for a in range(0, count, 512):
                b = min(count, a + 512)
                with self.timing.stage("decode", self.device):
                    # between two frames matrices are averaged through their first two columns
                    matrices = rot6d_to_matrix(matrix_to_rot6d(every("rotations", a, b)))
                yield a, matrices
            return
        pieces = self.motion.decode_stream(
            lambda a, b: every("token", a, b),
            count,
            o.overlap,
            o.seed,
            o.noise,
            o.denoising_steps,
            max(1, o.batch_size // 4),
        )
        while True:
            with self.timing.stage("decode", self.device):
                item = next(pieces, None)
            if item is None:
                return
            start, motion = item
            with self.timing.stage("ik", self.device):
                betas = shape if o.betas_mode == "median" else every("betas", start, start + len(motion.joints))
                rest = self.rest(betas).expand(len(motion.joints), -1, -1)
                rotations = motion_rotations(motion, rest, o.ik_mode)
            yield start, rotations
