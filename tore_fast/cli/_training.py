"""What the TCFormer training commands share: the model to start from, testing, training and export."""

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
