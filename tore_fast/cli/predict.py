"""`tore-fast predict photo.jpg`: meshes, joints, cameras and an overlay picture for every person box."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

# exit codes: 0 all done, 1 some pictures failed, 2 nothing could be done
SOME_FAILED, NOTHING_DONE = 1, 2


@dataclass
class Args:
    """Photographs to meshes: an overlay, GLB/OBJ meshes and an npz of numbers for each picture."""

    images: Positional[list[str]]
    """Files, folders or glob patterns."""
    model: str = "default"
    """`default`, a registered name (tore-fast list), or a folder written by save_pretrained."""
    checkpoint: str | None = None
    """Weights: a folder of ours, or an official file of the named model."""
    boxes: str = "auto"
    """auto (found by the model itself), full (whole picture), centre (official demo's square), or a JSON/CSV file."""
    out: Path = Path("out")
    """Folder for the results."""
    format: str = "png,glb,npz"
    """Any of png, glb, obj, npz, separated by commas."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ..."""
    batch_size: int = 8
    """Crops run at once."""
    mesh_data: Path | None = None
    """Folder with the SMPL/MANO topology files, for official weights (else $TORE_FAST_MESH_DATA)."""


def run(args: Args) -> int:
    from ..data.boxes import BoxFileError, boxes_of, read_boxes
    from ..data.image import find_images
    from ..pipelines.image_to_mesh import BOX_MODES, Pipeline, load_model
    from ..pipelines.results import FORMATS, unique_names, write_result

    formats = tuple(f.strip() for f in args.format.split(",") if f.strip())
    wrong = [f for f in formats if f not in FORMATS]
    if wrong or not formats:
        return _fail(f"--format: expected some of {', '.join(FORMATS)}, got {args.format!r}")
    try:
        table = None if args.boxes in BOX_MODES else read_boxes(args.boxes)
    except BoxFileError as e:
        return _fail(f"--boxes: {e} (or one of {', '.join(BOX_MODES)})")
    paths, errors = find_images(args.images)
    for line in errors:
        print(f"error: {line}", file=sys.stderr)
    if not paths:
        return _fail("no picture to work on")
    try:
        pipeline = Pipeline(
            _model(args, load_model), mesh_data=args.mesh_data, device=args.device, batch_size=args.batch_size
        )
    except (ValueError, FileNotFoundError, PermissionError) as e:
        return _fail(str(e))
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        return _fail(f"--out: expected a folder that can be written, got {args.out} ({e.strerror})")

    boxes = args.boxes if table is None else [boxes_of(table, p) for p in paths]
    if table is not None:
        missing = [p for p, b in zip(paths, boxes) if b is None]
        for p in missing:
            print(f"note: {p}: not in {args.boxes}; a box is looked for", file=sys.stderr)
    failed, written, writing = len(errors), [], 0.0
    progress = _progress(len(paths))
    names = unique_names(paths)
    try:
        for name, result in zip(names, pipeline.stream(paths, boxes)):
            if result.error is not None:
                failed += 1
                progress.write(f"error: {result.error}", file=sys.stderr)
            else:
                start = time.perf_counter()
                try:
                    written += write_result(result, pipeline, args.out, name, formats)
                except OSError as e:
                    failed += 1
                    progress.write(f"error: {result.name}: results not written: {e}", file=sys.stderr)
                writing += time.perf_counter() - start
            progress.update()
    except ValueError as e:  # the model's output does not fit a mesh
        progress.close()
        return _fail(f"--model: {e}")
    progress.close()
    _summary(pipeline, writing, written, args.out)
    if failed:
        print(f"{failed} of {len(paths) + len(errors)} inputs failed (see above)", file=sys.stderr)
    return 0 if not failed else NOTHING_DONE if not written else SOME_FAILED


def _model(args: Args, load_model):
    """The module: a registered name, a folder of ours, or an official file (recognised by its keys, or as --model says)."""
    if args.checkpoint is None and not Path(args.model).is_dir():
        return load_model(args.model)
    from ..models import from_pretrained
    from ..pipelines.image_to_mesh import mesh_model

    if args.checkpoint is None:
        return mesh_model(from_pretrained(args.model, mesh_data=args.mesh_data), args.model)
    name = None if args.model == "default" else args.model
    return mesh_model(from_pretrained(args.checkpoint, model=name, mesh_data=args.mesh_data), args.checkpoint)


def _progress(total: int):
    from tqdm import tqdm

    return tqdm(total=total, unit="img", disable=None if sys.stderr.isatty() else True)


def _summary(pipeline, writing: float, written: list[Path], out: Path) -> None:
    seconds = {**pipeline.seconds, "write": writing}
    seconds = {k: v for k, v in seconds.items() if v > 0}
    counts = pipeline.counts
    print(f"{counts['people']} people in {counts['pictures']} pictures on {pipeline.device}: {len(written)} files in {out}/")
    print("seconds per stage: " + "  ".join(f"{k} {v:.2f}" for k, v in seconds.items()))


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return NOTHING_DONE
