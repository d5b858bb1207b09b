"""`tore-fast eval keypoints`: OKS-AP, NME or pixel error of a heat-map model; a stopped run goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ._models import check_crops, tested_model, trained_size
from ._report import EvalArgs, device_of, guarded, number, report, unit_of, work_folder, write_json


@dataclass(kw_only=True)
class Args(EvalArgs):
    """Key points on COCO-WholeBody (133), COCO (17) or WFLW (98) by the official protocols, or on synthetic people
    (14).
    Under torchrun every process takes a share; the same command goes on after a kill."""

    data: str
    """coco_wholebody_val_v1.0.json, person_keypoints_val2017.json, list_98pt_rect_attr_test.txt; `synth` needs no
    files."""
    model: str = ""
    """A registered name (tore-fast list), or a checkpoint folder."""
    checkpoint: Path | None = None
    """Weights: a folder of ours, or an official file."""
    format: Literal["auto", "wholebody", "coco", "wflw"] = "auto"
    """auto: wflw for .txt, else by the model's key points."""
    images: Path | None = None
    """Folder of the images (default: that of --data)."""
    boxes: Path | None = None
    """Detector boxes in COCO's result format (the papers' protocol); default: the annotated boxes."""
    image_size: tuple[int, int] = (0, 0)
    """Height and width of the crops; 0 0: those the model was trained on (synth: else 128 128)."""
    difficulty: float = 0.5
    """synth: of poses, views, occlusion and backgrounds, 0..1."""
    flip_test: bool = True
    """Average with the mirrored image."""
    refine: Literal["none", "quarter", "dark"] = "quarter"
    """Where between the pixels of the map a point lies."""
    half_pixel: bool = False
    """For weights of the HRNet face code, whose targets are cut off to whole map pixels."""
    pred_json: Path | None = None
    """wholebody, coco: the detections in COCO's result format, for xtcocotools or an evaluation server."""


def run(args: Args) -> int:
    return guarded(lambda: _synthetic(args) if args.data == "synth" else _evaluate(args))


def _evaluate(args: Args) -> int:
    from ..eval.evaluate import evaluate_rows
    from ..eval.keypoint_sets import format_of, read_set
    from ..eval.task_scoring import KeypointScoring, ListedItems, write_coco_results

    if args.pred_json is not None and args.data.endswith(".txt"):
        raise ValueError("--pred-json: WFLW has no result format")
    model, size = tested_model(args.model, args.checkpoint, "keypoints")
    size = args.image_size if args.image_size[0] else size
    check_crops(model, size)
    form = format_of(args.format, args.data, getattr(model.config, "num_keypoints", 0))
    found = read_set(form, args.data, args.images, size, boxes=args.boxes, limit=args.limit)
    scoring = KeypointScoring(form, found.data, found.metric, args.flip_test, args.refine, args.half_pixel)
    result = evaluate_rows(
        model,
        ListedItems(scoring.name, scoring.data),
        scoring,
        work_folder(args),
        batch_size=args.batch_size,
        device=device_of(args.device),
        precision=args.precision,
        workers=args.workers,
        label={"data": args.data, "model": str(args.checkpoint or args.model)},
    )
    if result is None:
        return 0  # rank 0 reports
    metrics, rows = result
    code = report(metrics, args.json)
    if args.pred_json is not None:
        print(f"{args.pred_json}: {write_coco_results(scoring, rows, args.pred_json)} detections")
    return code


def _synthetic(args: Args) -> int:
    """Held-out images of data/synth; the model must have their 14 joints."""
    from ..body import load_body
    from ..train.tcformer_synth import NUM_JOINTS, SynthKeypoints

    model, _ = tested_model(args.model, args.checkpoint, "keypoints")
    if model.config.num_keypoints != NUM_JOINTS:
        raise ValueError(f"--data synth: has {NUM_JOINTS} joints, the model {model.config.num_keypoints}")
    side = args.image_size[0] or (trained_size(args.checkpoint or Path(args.model)) or (128, 128))[0]
    if args.image_size[0] != args.image_size[1]:
        raise ValueError(f"--image-size: synthetic images are square, got {args.image_size}")
    task = SynthKeypoints(model, load_body("free"), side, args.difficulty, eval_images=args.limit or 256)
    metrics = task.evaluate(model.to(device_of(args.device)).eval())
    print("\n".join(f"{name:24}{number(name, value):>10}  {unit_of(name)}" for name, value in metrics.items()))
    write_json(metrics, args.json)
    return 0
