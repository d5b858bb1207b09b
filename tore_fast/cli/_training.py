"""What the TCFormer commands share: the model to start from or to test, testing, training and export."""

from __future__ import annotations

import ast
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


def start_model(name: str, checkpoint: Path | None, options: dict[str, str] | None = None, **fields):
    """A registered model, or the weights of a folder or an official file.

    Args:
        name: registered name; not used with a checkpoint, which knows its own.
        options: NAME VALUE pairs of the command line, fields of the model's config.
        fields: config fields that the data decides (number of classes or key points); a checkpoint must agree.

    Raises:
        ValueError: no such model or field, or a checkpoint for other data.
    """
    from ..models import create_model, load_pretrained
    from ..models.convert.tcformer import load_tcformer

    chosen = config_overrides(options or {})
    if checkpoint is None:
        try:
            return create_model(name, **fields, **chosen)
        except TypeError as e:  # the config dataclass names the field it does not have, or that came twice
            raise ValueError(f"--options: {name}: {e}") from None
    model = load_pretrained(checkpoint, **chosen) if checkpoint.is_dir() else load_tcformer(checkpoint, **chosen)
    for field, wanted in fields.items():
        got = getattr(model.config, field, None)
        if got != wanted:
            raise ValueError(f"--checkpoint: {checkpoint} has {field} {got}, the data needs {wanted}")
    return model


def tested_model(name: str, checkpoint: Path | None, tag: str):
    """The model to test and the (H, W) its crops have by default.

    Args:
        name: a registered name (then with random weights, and a note) or a checkpoint folder; "" with a checkpoint.
        checkpoint: a folder of ours or an official file; an official layout's own sizes are used unless `name` is given.
        tag: of the registry, what the model must be for.
    """
    import sys

    import torch

    from ..models import create_model, from_pretrained, model_entry
    from ..models._hub import read_config
    from ..models.tcformer import DEPTHS

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
        keypoints, size = getattr(model.config, "num_keypoints", 0), "large" if model.config.depths == DEPTHS["large"] else "base"
        entry = model_entry(f"tcformer_{size}" if not keypoints else "tcformer_light_wflw" if keypoints == 98 else f"tcformer_{size}_wholebody")
    if tag not in entry.tags:
        raise ValueError(f"--model: {entry.name} is not made for {tag} (tags: {', '.join(entry.tags) or 'none'})")
    return model, tuple(entry.input_shape[1:])


def finish(task, args, facts: dict) -> int:
    """Tests, or trains and exports the averaged weights."""
    import torch

    from ..models import save_pretrained
    from ..train.loop import train

    if args.test:
        metrics = task.evaluate(task.model.eval())
        print("\n".join(f"{k}: {v:.4f}" for k, v in metrics.items()))
        return 0
    train(task, args.train)
    if args.export is not None:
        best = torch.load(Path(args.train.out) / "best.pt", map_location="cpu", weights_only=True)
        task.model.load_state_dict(best["model"])
        facts = {**facts, "step": best["step"], "training": asdict(args.train)}
        save_pretrained(task.model.cpu().eval(), args.export, args.model, metrics=best["metrics"], trained_on=facts)
        print(f"{args.export}: " + "  ".join(f"{k} {v:.4g}" for k, v in best["metrics"].items()))
    return 0
