"""`tore-fast eval --format wholebody|coco|wflw|imagenet`: key-point and classification models on their official data.

In: the flags of cli/eval.py; out: the scoring, items and model of eval/task_scoring.py for evaluate_rows. `--options` here:
images, boxes, image_size, flip_test, refine, half_pixel.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ._training import config_overrides

FORMATS = ("wholebody", "coco", "wflw", "imagenet")
_KEYPOINT_OPTIONS = ("images", "boxes", "image_size", "flip_test", "refine", "half_pixel")


def task_of(args) -> str | None:
    """Format of a key-point or classification task, None for meshes."""
    if args.format in FORMATS:
        return args.format
    return "wflw" if args.format is None and Path(args.data).suffix == ".txt" else None


def task_model(args):
    """The model to test and the (H, W) it was made for."""
    import torch

    from ..models import create_model, model_entry
    from ..models._hub import read_config
    from ..models.convert import from_pretrained
    from ..models.tcformer import DEPTHS

    if args.checkpoint is None and Path(args.model).is_dir():
        args.checkpoint = args.model
    if args.checkpoint is None:
        if args.model == "default":
            raise ValueError(f"--format {args.format}: give --model (tore-fast list) or --checkpoint; the default model makes meshes")
        torch.manual_seed(0)
        print("note: random weights (no --checkpoint)", file=sys.stderr)
        return create_model(args.model), model_entry(args.model).input_shape[1:]
    path = Path(args.checkpoint)
    if path.is_dir():
        return from_pretrained(path), model_entry(read_config(path)["model"]).input_shape[1:]
    if args.model != "default":
        return from_pretrained(path, args.upstream, model=args.model), model_entry(args.model).input_shape[1:]
    model = from_pretrained(path, args.upstream or "tcformer")
    if getattr(model.config, "num_classes", 0):
        return model, (224, 224)
    keypoints, large = getattr(model.config, "num_keypoints", 0), model.config.depths == DEPTHS["large"]
    return model, (256, 256) if keypoints == 98 else (384, 288) if large else (256, 192)


def prepare(args):
    """(model, items, scoring, limit) for evaluate_rows.

    Raises:
        ValueError: an option, a file or a model that does not fit; the text says which.
    """
    from ..eval.task_scoring import ListedItems

    task = task_of(args)
    options = {k: str(v) if k in ("images", "boxes") else v for k, v in config_overrides(args.options).items()}
    known = ("image_size",) if task == "imagenet" else _KEYPOINT_OPTIONS
    unknown = [k for k in options if k not in known]
    if unknown:
        raise ValueError(f"--options: {task} data has no option {unknown[0]!r}; expected {', '.join(known)}")
    model, size = task_model(args)
    size = options.pop("image_size", size)
    size = (size, size) if isinstance(size, int) else tuple(size)
    if task == "imagenet":
        from ..data.imagenet_folder import imagenet_folder
        from ..eval.task_scoring import ClassScoring

        if size[0] != size[1]:
            raise ValueError(f"--options image_size: classification pictures are square, got {size}")
        data = imagenet_folder(args.data, False, size[0])
        return model, ListedItems(task, data), ClassScoring(data.classes, size[0]), args.limit
    scoring = _keypoints(task, args, options, size)
    return model, ListedItems(task, scoring.data), scoring, None


def _keypoints(task: str, args, options: dict, size: tuple[int, int]):
    from ..data import coco_body, wflw, wholebody
    from ..eval.keypoint_metrics import LandmarkMetric, OksMetric, WholeBodyMetric
    from ..eval.task_scoring import KeypointScoring, in_images_of

    images, boxes = options.pop("images", None), options.pop("boxes", None)
    if images is None:
        raise ValueError(f"--format {task} needs --options images FOLDER")
    if not Path(images).is_dir():
        raise ValueError(f"--options images: {images} is not a folder")
    for name in ("flip_test", "half_pixel"):
        options[name] = _switch(name, options.get(name, name == "flip_test"))
    if task == "wflw":
        if boxes is not None:
            raise ValueError("--options boxes: WFLW's faces come with their rectangles")
        faces, attributes = wflw.read_wflw(args.data, images)
        faces, attributes = faces[: args.limit], attributes[: args.limit]
        data = wflw.wflw_dataset(faces, size)
        metric = LandmarkMetric(attributes, wflw.SUBSETS, wflw.EYE_CORNERS)
    else:
        read, make, kind = (
            (wholebody.read_wholebody, wholebody.wholebody_dataset, WholeBodyMetric)
            if task == "wholebody"
            else (coco_body.read_coco_body, coco_body.coco_body_dataset, OksMetric)
        )
        people = read(args.data, images, boxes)[: args.limit]
        if not people:
            raise ValueError(f"--data {args.data}: nobody to test" + (f" in {boxes}" if boxes else " has a labelled point"))
        data = make(people, size)
        everybody = read(args.data, images, None, everybody=True)
        metric = kind(everybody if args.limit is None else in_images_of(everybody, people), size)
    return KeypointScoring(task, data, metric, **options)


def _switch(name: str, value) -> bool:
    text = str(value).lower()
    if text not in ("true", "false", "0", "1"):
        raise ValueError(f"--options {name}: expected true or false, got {value!r}")
    return text in ("true", "1")
