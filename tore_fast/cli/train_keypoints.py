"""`tore-fast train keypoints`: heat-map models on COCO-WholeBody, COCO, WFLW or synthetic people."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..train.config import TrainConfig
from . import arguments
from ._train_options import TrainArgs, begin, build_model, model_name, run_task

if TYPE_CHECKING:
    from ..train.keypoints import Keypoints
    from ..train.tcformer_synth import SynthKeypoints

DEFAULT_MODEL = "tcformer_light_wholebody"


@dataclass(kw_only=True)
class Args(TrainArgs):
    """Trains a key-point model; the same command resumes a stopped run. --val is the reported set, so the last averaged
    weights are exported."""

    data: str = "synth"
    """Training annotations: coco_wholebody_train_v1.0.json, person_keypoints_train2017.json,
    list_98pt_rect_attr_train.txt;
    `synth`: rendered people, no files."""
    images: Path | None = None
    """Folder of the training images (default: that of --data)."""
    val: Path | None = None
    """Annotations of the set that is measured."""
    val_images: Path | None = None
    """Folder of its images (default: --images, else that of --val)."""
    boxes: Path | None = None
    """wholebody, coco: detector boxes of --val (COCO's result format); default: the annotated boxes."""
    format: Literal["auto", "wholebody", "coco", "wflw"] = "auto"
    """auto: told by the file."""
    image_size: tuple[int, int] = (0, 0)
    """Height and width of the crops; 0 0: 128x128 for synth, else the model's."""
    difficulty: float = 0.5
    """synth: of poses, views, occlusion and backgrounds, 0..1."""
    flip_test: bool = True
    """Average with the mirrored image when measuring."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(lr=5e-4, weight_decay=0.01, schedule="cosine", clip_norm=0.0)
    )


def run(args: Args) -> int:
    begin(args)
    with arguments():
        name = model_name(args, DEFAULT_MODEL, "keypoints")
        task = _synth(args, name) if args.data == "synth" else _annotated(args, name)
    return run_task(args, task, name, facts={"data": args.data, "image_size": list(task.crop_size)})


def _synth(args: Args, name: str) -> SynthKeypoints:
    from ..body import load_body
    from ..train.tcformer_synth import NUM_JOINTS, SynthKeypoints
    from ._models import check_crops, trained_size

    if args.image_size[0] != args.image_size[1]:
        raise ValueError(f"--image-size: synthetic images are square, got {args.image_size}")
    size = args.image_size[0] or (trained_size(args.checkpoint) or (128, 128))[0]
    model = build_model(args, name, ("keypoints",), num_keypoints=NUM_JOINTS)
    check_crops(model, (size, size))
    return SynthKeypoints(model, load_body("free"), size, args.difficulty, seed=args.train.seed + 1)


def _annotated(args: Args, name: str) -> Keypoints:
    from ..eval.keypoint_sets import format_of, read_set
    from ..models import model_entry
    from ..train.keypoints import Keypoints
    from ._models import check_crops, trained_size

    if not args.data:
        raise ValueError("--data: give the training annotations (docs/keypoints.md), or synth")
    if args.val is None:
        raise ValueError(f"--data {args.data} needs --val: the annotations that are measured")
    form = format_of(args.format, args.data)
    size: Any = (
        args.image_size if args.image_size[0] else trained_size(args.checkpoint) or model_entry(name).input_shape[1:]
    )
    training = read_set(form, args.data, args.images, size, training=True, seed=args.train.seed)
    held_out = read_set(form, args.val, args.val_images or args.images, size, boxes=args.boxes)
    model = build_model(args, name, ("keypoints",), num_keypoints=held_out.points)
    check_crops(model, size)
    return Keypoints(model, training.data, held_out.data, held_out.metric, args.flip_test, seed=args.train.seed)
