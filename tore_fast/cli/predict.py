"""`tore-fast predict photo.jpg`: meshes, joints, cameras and an overlay image for every person box."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from . import FAILED, UsageError, arguments, complain, sentence


@dataclass
class Args:
    """Photographs to meshes: an overlay, GLB/OBJ meshes and an npz of numbers for each image."""

    images: Positional[list[str]]
    """Files, folders or glob patterns."""
    model: str = "default"
    """`default`, a registered name (tore-fast list), or a folder written by save_pretrained."""
    checkpoint: str | None = None
    """Weights: a folder of ours, or an official file (of the model that --model names, else told by its keys)."""
    boxes: str = "auto"
    """auto (found by the model itself), full (whole image), centre (official demo's square), or a JSON/CSV file."""
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
    from ..data.boxes import read_boxes
    from ..io.image import find_images
    from ..models.default import BUILT_IN
    from ..pipelines.images import BOX_MODES, ImagePipeline
    from ..pipelines.results import FORMATS

    formats = tuple(f.strip() for f in args.format.split(",") if f.strip())
    wrong = [f for f in formats if f not in FORMATS]
    if wrong or not formats:
        raise UsageError(f"--format: expected some of {', '.join(FORMATS)}, got {args.format!r}")
    with arguments("--boxes"):
        table = None if args.boxes in BOX_MODES else read_boxes(args.boxes)
    paths, errors = find_images(args.images)
    for line in errors:
        complain(line)
    if not any(p.exists() for p in paths):
        for path in paths:
            complain(f"{path}: no such file")
        raise UsageError("no image to work on")
    with arguments():
        pipeline = ImagePipeline(
            args.model,
            checkpoint=args.checkpoint,
            mesh_data=args.mesh_data,
            device=args.device,
            batch_size=args.batch_size,
        )
    if args.checkpoint is None and args.model not in BUILT_IN and not Path(args.model).is_dir():
        print(f"note: {args.model} without --checkpoint has random weights: the meshes mean nothing", file=sys.stderr)
    with _folder(args.out):
        return _predict(args, pipeline, paths, table, formats, len(errors))


def _predict(args: Args, pipeline, paths: list[Path], table, formats: tuple[str, ...], failed: int) -> int:
    """Runs all images; `failed` inputs gave none."""
    from ..data.boxes import boxes_of
    from ..pipelines.results import unique_names, write_result

    inputs = len(paths) + failed
    boxes = args.boxes if table is None else [boxes_of(table, p) for p in paths]
    if table is not None:
        for p in (p for p, b in zip(paths, boxes) if b is None):
            print(f"note: {p}: not in {args.boxes}; a box is looked for", file=sys.stderr)
    written, writing = [], 0.0
    progress = _progress(len(paths))
    try:
        for name, result in zip(unique_names(paths), pipeline.stream(paths, boxes)):
            if result.error is not None:
                failed += 1
                complain(result.error)
            else:
                start = time.perf_counter()
                try:
                    written += write_result(result, pipeline, args.out, name, formats)
                except OSError as e:
                    failed += 1
                    complain(f"{result.name}: results not written: {sentence(e)}")
                writing += time.perf_counter() - start
            progress.update()
    except ValueError as e:  # the model's output does not fit a mesh
        raise UsageError(f"--model: {e}") from e
    finally:
        progress.close()
    _summary(pipeline, writing, written, args.out)
    if failed:
        complain(f"{failed} of {inputs} inputs failed (see above)")
    return FAILED if failed else 0


@contextlib.contextmanager
def _folder(path: Path):
    """Makes the folder, and removes what it made if nothing came into it."""
    made = [p for p in (path, *path.parents) if not p.exists()]
    with arguments("--out: expected a folder that can be written"):
        path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty: results are there
            for p in made:
                p.rmdir()


def _progress(total: int):
    from tqdm import tqdm

    return tqdm(total=total, unit="img", disable=None if sys.stderr.isatty() else True)


def _summary(pipeline, writing: float, written: list[Path], out: Path) -> None:
    seconds = {**pipeline.seconds, "write": writing}
    seconds = {k: v for k, v in seconds.items() if v > 0}
    counts = pipeline.counts
    print(
        f"{counts['people']} people in {counts['images']} images on {pipeline.device}: {len(written)} files in {out}/"
    )
    print("seconds per stage: " + "  ".join(f"{k} {v:.2f}" for k, v in seconds.items()))
