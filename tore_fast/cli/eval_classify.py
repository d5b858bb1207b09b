"""`tore-fast eval classify`: top-1 and top-5 accuracy of an image classifier on class folders; a stopped run goes
on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ._models import check_crops, tested_model
from ._report import EvalArgs, device_of, guarded, report, work_folder


@dataclass(kw_only=True)
class Args(EvalArgs):
    """ImageNet's protocol: shorter side to 256/224 of the input size (bicubic), centre crop. Under torchrun every
    process
    takes a share; the same command goes on after a kill."""

    data: Path
    """Folder of class folders, e.g. ILSVRC2012's val/ with n01440764/ and so on (classes in alphabetical order)."""
    model: str = ""
    """A registered name (tore-fast list), or a checkpoint folder."""
    checkpoint: Path | None = None
    """Weights: a folder of ours, or an official file."""
    image_size: int = 0
    """Side of the crop; 0: the one the model was trained on."""


def run(args: Args) -> int:
    return guarded(lambda: _evaluate(args))


def _evaluate(args: Args) -> int:
    from ..data.imagenet_folder import imagenet_folder
    from ..eval.evaluate import evaluate_rows
    from ..eval.task_scoring import ClassScoring, ListedItems

    model, size = tested_model(args.model, args.checkpoint, "classification")
    side = args.image_size or size[0]
    check_crops(model, (side, side))
    data = imagenet_folder(args.data, False, side)
    result = evaluate_rows(
        model,
        ListedItems("class folders", data),
        ClassScoring(data.classes, side),
        work_folder(args),
        batch_size=args.batch_size,
        device=device_of(args.device),
        precision=args.precision,
        workers=args.workers,
        limit=args.limit,
        label={"data": str(args.data), "model": str(args.checkpoint or args.model)},
    )
    return 0 if result is None else report(result[0], args.json)
