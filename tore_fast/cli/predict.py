"""`tore-fast predict photo.jpg clip.mp4`: people in photographs and videos to bodies, with any model of task mesh or
smpl."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from ..pipelines.options import DecodeOptions
from . import UsageError, arguments, format_error, print_error, print_note
from ._options import ModelArgs, OutArgs, RunArgs, report_failures

VIDEO_FORMATS = ("npz", "bvh", "glb", "mp4")


@dataclass(kw_only=True)
class VideoArgs(DecodeOptions):
    """Videos only."""

    fps: float | None = None
    """Frames per second; default: the file's, 30 for folders."""
    motion: str | None = None
    """Checkpoint folder of a motion decoder (fasthmr_motion), with HMR2.0 and CameraHMR; none: the model's own
    poses."""
    folders: bool = False
    """A folder is the frames of one video, not separate photographs."""


@dataclass(kw_only=True)
class Args(ModelArgs, RunArgs, OutArgs):
    """People in photographs and videos to bodies.

    An image gives an overlay (png), meshes (glb, obj, ply; with several people also one scene) and numbers (npz, json);
    a video a folder with a file per tracked person (npz, bvh, animated glb) and an overlay (mp4). docs/results.md lists
    every key. OUT/results.json says which file came from which input.

    With HMR2.0 and CameraHMR an interrupted video goes on where it stopped when started again with the same --out.
    """

    inputs: Annotated[Positional[list[str]], tyro.conf.arg(metavar="INPUT ...")]
    """Images, videos, folders, glob patterns; several are taken."""
    format: str | None = None
    """Separated by commas. Images: png, glb, obj, ply, npz, json, html (default png,glb,npz). Videos: npz, bvh, glb,
    mp4 (default
    npz,mp4 where imageio-ffmpeg is there, else npz)."""
    boxes: str = "auto"
    """Where people are: auto (everybody is looked for), model (one person, by the model's own output), full (whole
    image), centre (the official demo's square), or a file. Images: JSON
    {"photo.jpg": [[x0, y0, x1, y1], ...]}, COCO, or CSV image,x0,y0,x1,y1. Videos: CSV frame,track,x0,y0,x1,y1, MOT,
    COCO or
    JSON {"track": [[frame, x0, y0, x1, y1], ...]}. A CSV header decides what its columns are (x,y,w,h)."""
    min_score: float = 0.5
    """People that are less sure to be people are dropped (0 to 1)."""
    max_people: int = 64
    """The best so many people of an image are kept."""
    mirrored: bool = True
    """Landmarks of each person also in the mirrored image: slower, steadier."""
    landmarks: Path | None = None
    """Another landmark net than the built-in one: a folder of `tore-fast convert`, or pose_landmark_heavy.tflite
    itself."""
    detector: str | None = None
    """Instead of boxes: MODULE:CALLABLE (image [H, W, 3] -> boxes [N, 4], [N, 5] with scores, or YOLO's [N, 6]), or
    torchvision:MODEL (extra `detect`)."""
    detector_weights: str | None = None
    """Weights file of a torchvision detector."""
    masks: str = "auto"
    """For token merging (Mask-ToMe) in HMR2.0 and CameraHMR: auto (a detector's), ellipse (in every box), none; for
    videos also a folder of FRAME.png or TRACK/FRAME.png, or MODULE:CALLABLE (frame number, frame, {track: box}) ->
    {track: [H, W]
    mask}."""
    body: str = "free"
    """Body posed by models of SMPL parameters: free, or a SMPL model file."""
    box_rule: str = "hmr2"
    """Crop of HMR2.0 and CameraHMR: hmr2, or tight (CameraHMR's demo)."""
    fov: float | None = None
    """Vertical field of view of the camera in degrees."""
    focal: float | None = None
    """Focal length in pixels, instead of --fov. Without both: from CameraHMR's net, else HMR2.0's default."""
    principal: tuple[float, float] | None = None
    """Principal point x y in pixels; default: the image's centre."""
    fov_net: str | None = None
    """HumanFoV's file, for a CameraHMR model that comes without it."""
    video: VideoArgs = field(default_factory=VideoArgs)


def run(args: Args) -> int:
    from ..pipelines.inputs import sort_inputs
    from ..pipelines.names import output_names

    with arguments():
        args.check_limit()
        found = sort_inputs(args.inputs, args.video.folders)
        for path in found.keypoints:
            found.errors.append(f"{path}: key points or boxes, not an image; key points go to `tore-fast lift`")
        for line in found.errors:
            print_error(line)
        paths = [*found.images, *found.videos]
        if not any(os.path.exists(p) for p in paths):
            for path in paths:
                print_error(f"{path}: no such file")
            raise UsageError("no image or video to work on")
        formats = _formats(args, found.images, found.videos)
        detector = _detector(args, found.videos)
        pipeline = _pipeline(args, found.images, found.videos, detector)
        shared = _video_runner(args, pipeline, formats[1]) if found.videos else None
    args.note_random("bodies")
    entries: list[dict[str, Any]] = []
    with args.folder() as out:
        with arguments("--out"):
            names = dict(zip(paths, output_names(paths, out, [f".{f}" for f in (*formats[0], *formats[1])])))
        if found.images:
            entries += _images(args, pipeline, found.images, names, formats[0])
        for path in found.videos:
            entries.append(_video(args, pipeline, shared, detector, path, out / names[path], formats[1]))
        failed = len(found.errors) + sum("error" in e for e in entries)
        _summary(args, pipeline, entries)
    return report_failures(failed, len(paths) + len(found.errors))


def _formats(args: Args, images: list[Path], videos: list[Path]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Formats of images and of videos; each given one must be for something that is there."""
    from ..io.video import why_no_mp4
    from ..pipelines.results import FORMATS, parse_formats

    if args.format is None:
        return ("png", "glb", "npz"), ("npz",) if why_no_mp4() else ("npz", "mp4")
    known = [*(FORMATS if images or not videos else ()), *(VIDEO_FORMATS if videos else ())]
    given = parse_formats(args.format, tuple(dict.fromkeys(known)))
    of_images = tuple(f for f in given if f in FORMATS)
    of_videos = tuple(f for f in given if f in VIDEO_FORMATS)
    if (images and not of_images) or (videos and not of_videos):
        raise ValueError(
            f"--format: {args.format!r} gives nothing for {'images' if images and not of_images else 'videos'}"
        )
    if videos and "mp4" in of_videos and (reason := why_no_mp4()):
        raise ValueError(f"--format: {reason}")
    return of_images, of_videos


def _detector(args: Args, videos: list[Path]) -> Callable | None:
    from ..data.detect import load_detector
    from ..pipelines.images import BOX_MODES

    if args.detector is None:
        return None
    if args.boxes not in BOX_MODES:
        raise ValueError("--boxes or --detector, not both")
    return load_detector(args.detector, args.detector_weights)


def _pipeline(args: Args, images: list[Path], videos: list[Path], detector: Callable | None) -> Any:
    """The pipeline of images, and what the options of both kinds must fulfil before any work."""
    from ..data.boxes import read_boxes
    from ..data.detect import as_detections
    from ..io.image import ImageError
    from ..io.video import TrackBoxes
    from ..pipelines.images import BOX_MODES
    from ..pipelines.options import MASK_SOURCES, VideoOptions
    from ..pipelines.photographs import image_pipeline

    if args.boxes not in BOX_MODES:
        with arguments("--boxes"):
            if images:
                read_boxes(args.boxes)
            if videos:
                TrackBoxes.read(args.boxes)
    masks = args.masks if args.masks in MASK_SOURCES else "auto"
    VideoOptions(masks=masks, box_rule=args.box_rule, focal_px=args.focal, fov_deg=args.fov)

    def found(pixels: Any) -> Sequence[Sequence[float]]:
        assert detector is not None  # not asked without one
        try:
            return as_detections(detector(pixels), pixels.shape[:2]).boxes.tolist()
        except Exception as e:  # noqa: BLE001 (the detector is the user's; it costs this image)
            raise ImageError(f"--detector {args.detector}: {type(e).__name__}: {str(e)[:120]}") from e

    return image_pipeline(
        args.model,
        checkpoint=args.checkpoint,
        overrides=args.config_fields(),
        mesh_data=args.mesh_data,
        body=args.body,
        fov_net=args.fov_net,
        find_people=None if detector is None else found,
        device=args.device,
        precision=args.precision,
        batch_size=args.batch_size,
        focal_px=args.focal,
        fov_deg=args.fov,
        principal_px=args.principal,
        box_rule=args.box_rule,
        masks=masks,
        min_score=args.min_score,
        max_people=args.max_people,
        mirrored=args.mirrored,
        landmarks=args.landmarks,
    )


def _images(
    args: Args, pipeline: Any, paths: list[Path], names: dict[Path, str], formats: tuple[str, ...]
) -> list[dict]:
    """Index entries of all images; errors are said as they come."""
    from .._threads import available_cpus
    from ..data.boxes import boxes_of, read_boxes, unmatched
    from ..pipelines.images import BOX_MODES
    from ..pipelines.results import write_result
    from ..pipelines.writing import InOrder

    paths = paths[: args.limit]
    if args.boxes in BOX_MODES:
        boxes: Any = args.boxes
    else:
        table = read_boxes(args.boxes)
        boxes = [boxes_of(table, p) for p in paths]
        for p in (p for p, b in zip(paths, boxes) if b is None):
            print_note(f"{p}: not in {args.boxes}; a box is looked for")
        if absent := unmatched(table, paths):
            shown = ", ".join(name[:80] for name in absent[:5]) + (" ..." if len(absent) > 5 else "")
            print_note(f"{args.boxes}: boxes for {len(absent)} images that are not there: {shown}")
    entries: list[dict] = []

    def write(path: Path, result: Any) -> tuple[Any, dict]:
        return result, entry_of(path, result)

    def entry_of(path: Path, result: Any) -> dict:
        entry: dict[str, Any] = {"name": names[path], "source": str(path), "files": []}
        if result.error is not None:
            return entry | {"error": result.error}
        try:
            written = write_result(result, pipeline, args.out, names[path], formats)
        except (OSError, ValueError) as e:
            return entry | {"error": f"{result.name}: results not written: {format_error(e)}"}
        entry |= {"files": [p.name for p in written], "people": len(result.people)}
        if result.refused:  # the other people are done
            entry["error"] = "; ".join(result.refused[:5])
        return entry

    def told(written: tuple[Any, dict]) -> None:
        result, entry = written
        if "error" in entry:
            print_error(entry["error"])
        for note in result.notes:
            print_note(f"{result.name}: {note}")
        entries.append(entry)
        bar.update()

    with args.progress(len(paths), "img") as bar, InOrder(available_cpus(), told) as queue:
        try:
            for path, result in zip(paths, pipeline.stream(paths, boxes)):
                queue.put(partial(write, path, result))
        except ValueError as e:  # the model's output does not fit a mesh
            raise UsageError(f"--model: {e}") from e
    pipeline.seconds["write"] = queue.waited_s  # the rest ran beside the model
    return entries


def _video_runner(args: Args, pipeline: Any, formats: tuple[str, ...]) -> Any:
    """What all videos share; checks their options before any work."""
    from ..pipelines.bodies import HostModel
    from ._predict_video import check_mesh_video, host_runner

    if isinstance(pipeline.body_model, HostModel):
        return host_runner(args, pipeline)
    check_mesh_video(args, formats)
    return None


def _video(
    args: Args,
    pipeline: Any,
    shared: Any,
    detector: Callable | None,
    path: Path,
    folder: Path,
    formats: tuple[str, ...],
) -> dict:
    """Index entry of one video; what goes wrong costs this video only."""
    from ..data.detect import BoxTracker, TableTracker
    from ..io.video import TrackBoxes, open_video
    from ..pipelines.images import BOX_MODES
    from ._predict_video import host_video, mesh_video

    entry: dict[str, Any] = {"name": folder.name, "source": str(path), "files": []}
    try:
        source = open_video(path, args.video.fps)
        tracker: Any = None
        if detector is not None:
            tracker = BoxTracker(detector)
        elif args.boxes not in BOX_MODES:
            tracker = TableTracker(TrackBoxes.read(args.boxes), args.boxes)
        work = mesh_video if shared is None else host_video
        written, error = work(args, pipeline, shared, source, tracker, folder, formats)
        entry |= {"files": [str(p.relative_to(args.out)) for p in written]}
        entry |= {"people": sum(p.suffix == f".{formats[0]}" for p in written)}
        problems = [*([error] if error else []), *getattr(tracker, "problems", [])]
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            entry["error"] = (problems[0] if str(path) in problems[0] else f"{path}: {problems[0]}") + more
        if source.variable:
            note = f"variable frame rate: {source.fps:g} a second on average, each frame's time is in the npz"
            print_note(f"{path}: {note}")
        if isinstance(tracker, TableTracker) and args.limit is None and (late := tracker.unused()):
            print_note(f"{args.boxes}: boxes for {len(late)} frames that {path} does not have: {late[0]} ...")
    except (OSError, ValueError, RuntimeError, MemoryError) as e:
        entry["error"] = format_error(e) if str(path) in str(e) else f"{path}: {format_error(e)}"
    if "error" in entry:
        print_error(entry["error"])
    return entry


def _summary(args: Args, pipeline: Any, entries: list[dict]) -> None:
    from .. import __version__
    from ..pipelines.names import write_index

    files = sum(len(e["files"]) for e in entries)
    if not files:
        return
    facts = {"tore_fast": __version__, "verb": "predict", "model": str(args.checkpoint or args.model)}
    index = write_index(args.out, entries, facts)
    seconds = {k: round(v, 3) for k, v in pipeline.seconds.items() if v > 0}
    people = sum(e.get("people", 0) for e in entries)
    done = sum("error" not in e for e in entries)
    args.say(
        {**facts, "index": str(index), "people": people, "files": files, "seconds": seconds, "items": entries},
        f"{people} people in {done} inputs on {pipeline.device}: {files} files in {args.out}/, listed in {index}\n"
        "seconds per stage: " + "  ".join(f"{k} {v:.2f}" for k, v in seconds.items()),
    )
