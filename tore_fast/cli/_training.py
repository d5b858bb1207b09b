"""What the TCFormer commands share: the model to start from or to test, testing, training and export."""

from __future__ import annotations

import ast
import os
from dataclasses import asdict
from pathlib import Path


def config_overrides(options: dict[str, str]) -> dict[str, object]:
    """Config fields from NAME VALUE text: numbers, True/False, lists as "1,2,3"; everything else stays text."""
    values: dict[str, object] = {}
    for name, text in options.items():
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[name] = text
    return values


def start_model(
    name: str,
    checkpoint: Path | None,
    options: dict[str, str] | None = None,
    backbone: Path | None = None,
    tag: str = "",
    **fields,
):
    """A registered model, or the weights of a folder or an official file.

    Args:
        name: registered name; not used with a checkpoint, which knows its own.
        options: NAME VALUE pairs of the command line, fields of the model's config.
        backbone: classifier whose weights the model's backbone starts from (a folder of ours or an official file).
        tag: of the registry, what a registered model must be for.
        fields: config fields that the data decides (number of classes or key points); a checkpoint must agree.

    Raises:
        ValueError: no such model or field, or a checkpoint for other data.
    """
    from ..models import create_model, load_pretrained, model_entry
    from ..models.convert.keypoints import load_tcformer

    chosen = config_overrides(options or {})
    if checkpoint is None:
        check_tag(model_entry(name), tag)
        try:
            model = create_model(name, **fields, **chosen)
        except TypeError as e:  # the config dataclass names the field it does not have, or that came twice
            raise ValueError(f"--options: {name}: {e}") from None
        if backbone is not None:
            take_backbone(model, backbone)
        return model
    if backbone is not None:
        raise ValueError("--pretrained: --checkpoint brings its own backbone; give one of the two")
    model = load_pretrained(checkpoint, **chosen) if checkpoint.is_dir() else load_tcformer(checkpoint, **chosen)
    for field, wanted in fields.items():
        got = getattr(model.config, field, None)
        if got != wanted:
            raise ValueError(f"--checkpoint: {checkpoint} has {field} {got}, the data needs {wanted}")
    return model


def check_tag(entry, tag: str) -> None:
    """ValueError if a registered model is not made for `tag`."""
    if tag and tag not in entry.tags:
        raise ValueError(f"--model: {entry.name} is not made for {tag} (tags: {', '.join(entry.tags) or 'none'})")


def check_crops(model, size: tuple[int, int]) -> None:
    """ValueError if the model cannot read crops of `size` (H, W)."""
    own = getattr(model.config, "image_size", None)
    if isinstance(own, (tuple, list)) and tuple(own) != tuple(size):  # PPT: a position of its own for every patch
        raise ValueError(f"--image-size: the model reads {own[0]} {own[1]}, got {size[0]} {size[1]}")
    for stage, ratio in enumerate(getattr(model.config, "sr_ratios", ()), start=1):
        least = 4 * (ratio - 1) * 2 ** (stage - 1) + 1  # ceil(ceil(side / 4) / 2^(stage - 1)) >= ratio
        if min(size) < least:
            raise ValueError(
                f"--image-size: stage {stage} of the model needs sides of at least {least}, got {size[0]} {size[1]}"
            )


def take_backbone(model, path: Path) -> None:
    """Copies a TCFormer classifier's weights, all but its last layer, into `model.backbone`.

    Raises:
        ValueError: another model than a classifier, or one of other sizes.
    """
    from ..models import load_pretrained
    from ..models._registry import facts_of
    from ..models.convert.keypoints import load_tcformer

    if not hasattr(getattr(model, "backbone", None), "forward_features"):
        raise ValueError(f"--pretrained: a {type(model).__name__} has no TCFormer backbone")
    source = load_pretrained(path) if path.is_dir() else load_tcformer(path)
    if facts_of(source).task != "classify":
        raise ValueError(f"--pretrained: {path}: expected a TCFormer classifier, got {type(source).__name__}")
    state = {k: v for k, v in source.state_dict().items() if not k.startswith("head.")}
    own = model.backbone.state_dict()
    bad = [k for k in own.keys() | state.keys() if k not in own or k not in state or own[k].shape != state[k].shape]
    if bad:
        raise ValueError(
            f"--pretrained: {path}: {len(bad)} of {len(own)} tensors do not fit the backbone (first: {min(bad)})"
        )
    model.backbone.load_state_dict(state)
    print(f"{path}: {len(state)} tensors for the backbone")


def tested_model(name: str, checkpoint: Path | None, tag: str):
    """The model to test and the (H, W) its crops have by default: those it was trained on here, else the registry's.

    Args:
        name: a registered name (then with random weights, and a note) or a checkpoint folder; "" with a checkpoint.
        checkpoint: a folder of ours or an official file; an official layout's own sizes are used unless `name` is given.
        tag: of the registry, what the model must be for.
    """
    import sys

    import torch

    from ..models import create_model, from_pretrained, model_entry
    from ..models._hub import read_config
    from ..models.keypoints.tcformer import DEPTHS

    if checkpoint is None and name and Path(name).is_dir():
        checkpoint = Path(name)
    if checkpoint is None:
        if not name:
            raise ValueError(f"--model or --checkpoint: expected a model with the tag {tag!r} (tore-fast list)")
        torch.manual_seed(0)
        print("note: random weights (no --checkpoint)", file=sys.stderr)
        model, entry = create_model(name), model_entry(name)
    elif checkpoint.is_dir():
        model, entry = from_pretrained(checkpoint), model_entry(read_config(checkpoint)["model"])
    elif name:
        model, entry = from_pretrained(checkpoint, model=name), model_entry(name)
    else:
        model = from_pretrained(checkpoint, "tcformer")
        keypoints, size = (
            getattr(model.config, "num_keypoints", 0),
            "large" if model.config.depths == DEPTHS["large"] else "base",
        )
        entry = model_entry(
            f"tcformer_{size}"
            if not keypoints
            else "tcformer_light_wflw"
            if keypoints == 98
            else f"tcformer_{size}_wholebody"
        )
    check_tag(entry, tag)
    own = getattr(model.config, "image_size", None)  # (H, W) of PPT, which reads no other
    size = tuple(own) if isinstance(own, (tuple, list)) else tuple(entry.input_shape[1:])
    return model, trained_size(checkpoint) or size


def trained_size(checkpoint: Path | None) -> tuple[int, int] | None:
    """(H, W) of the crops a folder of ours was trained on, where `train` wrote it down."""
    from ..models._hub import read_config

    if checkpoint is None or not checkpoint.is_dir():
        return None
    size = read_config(checkpoint).get("trained_on", {}).get("image_size")
    return None if size is None else (int(size[0]), int(size[1]))


def finish(task, args, facts: dict) -> int:
    """Tests, or trains and exports the averaged weights; `facts` go into the folder's config.json."""
    from ..models import save_pretrained
    from ..train.loop import train

    if args.test:
        metrics = task.evaluate(task.model.eval())
        print("\n".join(f"{k}: {v:.4f}" for k, v in metrics.items()))
        return 0
    train(task, args.train)
    if args.export is not None and int(os.environ.get("RANK", 0)) == 0:
        metrics, step, weights = _averaged(Path(args.train.out))
        task.model.load_state_dict(weights)
        facts = {**facts, "step": step, "training": asdict(args.train)}
        save_pretrained(task.model.cpu().eval(), args.export, args.model, metrics=metrics, trained_on=facts)
        numbers = "  ".join(f"{k} {v:.4g}" for k, v in metrics.items())
        print(f"{args.export}: {numbers or f'the weights of step {step}, not evaluated'}")
    return 0


def _averaged(run: Path) -> tuple[dict[str, float], int, dict]:
    """(metrics, step, weights) of the best evaluation; of the last step where nothing was evaluated."""
    from ..train.checkpoint import read_run

    kept = run / "best.pt"
    if kept.is_file():
        state = read_run(kept, ("model", "step", "metrics"))
        return state["metrics"], state["step"], state["model"]
    state = read_run(run / "last.pt", ("model", "step", "ema"))
    return {}, state["step"], state["ema"]["average"] if state["ema"] else state["model"]
