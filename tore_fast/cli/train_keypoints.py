"""`tore-fast train keypoints`: heat-map models on COCO-WholeBody, COCO, WFLW or synthetic people."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..train.config import TrainConfig
from . import arguments


@dataclass
class Args:
    """Trains (or tests) a key-point model; the same command resumes a stopped run."""

    data: Literal["synth", "wholebody", "coco", "wflw"] = "synth"
    """synth needs no files."""
    model: str = "tcformer_light_wholebody"
    """A key-point model of the TCFormer family (tore-fast list)."""
    annotations: Path | None = None
    """Training annotations: coco_wholebody_train_v1.0.json, person_keypoints_train2017.json or list_98pt_rect_attr_train.txt."""
    images: Path | None = None
    """Folder of the training images."""
    val_annotations: Path | None = None
    """Annotations of the test set."""
    val_images: Path | None = None
    """Folder of the test images (default: --images)."""
    boxes: Path | None = None
    """wholebody, coco: detector boxes of the test set (COCO result format); default: the annotated boxes."""
    options: dict[str, str] = field(default_factory=dict)
    """Fields of the model's config as NAME VALUE pairs: reduction conv neck none depths 1,1,1,1 ..."""
    image_size: tuple[int, int] = (0, 0)
    """Height and width of the crops; 0 0: 128x128 for synth, else the model's."""
    difficulty: float = 0.5
    """synth: of poses, views, occlusion and backgrounds, 0..1."""
    flip_test: bool = True
    """Average with the mirrored image when testing."""
    pretrained: Path | None = None
    """Start the backbone from an ImageNet classifier: official TCFormer file or a folder of ours (TCFormer models)."""
    checkpoint: Path | None = None
    """Start from (or test) a folder of ours or an official file."""
    test: bool = False
    """Only print the metrics."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(lr=5e-4, weight_decay=0.01, schedule="cosine", clip_norm=0.0)
    )
    export: Path | None = None
    """Write the trained model here as a checkpoint folder."""


def run(args: Args) -> int:
    import torch

    from ._training import finish

    torch.manual_seed(args.train.seed)
    with arguments():
        task = _synth(args) if args.data == "synth" else _annotated(args)
    size = (task.image_size,) * 2 if args.data == "synth" else task.training.image_size
    return finish(task, args, {"data": args.data, "image_size": list(size)})


def _synth(args: Args):
    from ..body import load_body
    from ..train.tcformer_synth import NUM_JOINTS, SynthKeypoints
    from ._training import check_crops, start_model, trained_size

    size = args.image_size[0] or (trained_size(args.checkpoint) or (128, 128))[0]
    if args.image_size[0] != args.image_size[1]:
        raise ValueError(f"--image-size: synthetic images are square, got {args.image_size}")
    model = start_model(
        args.model, args.checkpoint, args.options, args.pretrained, "keypoints", num_keypoints=NUM_JOINTS
    )
    check_crops(model, (size, size))
    return SynthKeypoints(model, load_body("free"), size, args.difficulty, seed=args.train.seed + 1)


def _annotated(args: Args):
    from ..data import coco_body, topdown, wflw, wholebody
    from ..eval.keypoint_metrics import LandmarkMetric, OksMetric, WholeBodyMetric
    from ..models import model_entry
    from ..train.keypoints import Keypoints
    from ._training import check_crops, start_model, trained_size

    needed = {"--val-annotations": args.val_annotations, "--val-images (or --images)": args.val_images or args.images}
    if not args.test:
        needed |= {"--annotations": args.annotations, "--images": args.images}
    missing = [flag for flag, value in needed.items() if value is None]
    if missing:
        raise ValueError(f"--data {args.data} needs {', '.join(missing)}")
    size = (
        args.image_size
        if args.image_size[0]
        else trained_size(args.checkpoint) or tuple(model_entry(args.model).input_shape[1:])
    )
    val_images, seed = args.val_images or args.images, args.train.seed
    if args.data == "wflw":
        held_out, attributes = wflw.read_wflw(args.val_annotations, val_images)
        training = held_out if args.test else wflw.read_wflw(args.annotations, args.images)[0]
        metric = LandmarkMetric(attributes, wflw.SUBSETS, wflw.EYE_CORNERS)
        make, augment, points = wflw.wflw_dataset, wflw.AUGMENT, wflw.NUM_KEYPOINTS
    else:
        source, read, make, kind = {
            "wholebody": (wholebody, wholebody.read_wholebody, wholebody.wholebody_dataset, WholeBodyMetric),
            "coco": (coco_body, coco_body.read_coco_body, coco_body.coco_body_dataset, OksMetric),
        }[args.data]
        held_out = read(args.val_annotations, val_images, args.boxes)
        training = held_out if args.test else read(args.annotations, args.images)
        metric = kind(read(args.val_annotations, val_images, everybody=True), size)
        augment, points = topdown.CropAugment(), source.NUM_KEYPOINTS
    for flag, people in (("--val-annotations", held_out), ("--annotations", training)):
        if not people:
            raise ValueError(f"{flag}: nobody in it has a labelled point")
    model = start_model(args.model, args.checkpoint, args.options, args.pretrained, "keypoints", num_keypoints=points)
    check_crops(model, size)
    sets = make(training, size, augment, seed), make(held_out, size)
    return Keypoints(model, *sets, metric, args.flip_test, seed=seed)
