"""Models of the tasks keypoints, classify and smpl on the command line: which one is meant, and whether it fits the
data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..models._registry import ModelEntry


def check_tags(entry: ModelEntry, tags: tuple[str, ...]) -> None:
    """ValueError if a registered model has none of `tags`."""
    if tags and not set(tags) & set(entry.tags):
        raise ValueError(
            f"--model: {entry.name} is not made for {' or '.join(tags)} (tags: {', '.join(entry.tags) or 'none'})"
        )


def check_crops(model: Any, size: tuple[int, int]) -> None:
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


def tested_model(name: str, checkpoint: Path | None, tag: str) -> tuple[Any, tuple[int, int]]:
    """The model to test and the (H, W) its crops have by default: those it was trained on here, else the registry's.

    Args:
        name: a registered name (then with random weights, and a note) or a checkpoint folder; "" with a checkpoint.
        checkpoint: a folder of ours or an official file; an official layout's own sizes are used unless `name` is
            given.
        tag: of the registry, what the model must be for.
    """
    import sys

    from ..models import load, model_entry
    from ..models._checkpoint import registered_name

    source = checkpoint or name
    if not source:
        raise ValueError(f"--model or --checkpoint: expected a model with the tag {tag!r} (tore-fast list)")
    model = load(source, None if name else "tcformer", model=name or None)
    held = registered_name(source)
    if checkpoint is None and held == name:
        print("note: random weights (no --checkpoint)", file=sys.stderr)
    entry = model_entry(held or name or _tcformer_name(model))
    check_tags(entry, (tag,))
    own = getattr(model.config, "image_size", None)  # (H, W) of PPT, which reads no other
    size: Any = tuple(own) if isinstance(own, (tuple, list)) else tuple(entry.input_shape[1:])
    return model, trained_size(Path(source)) or size


def _tcformer_name(model: Any) -> str:
    """Registered name with the crops of an official TCFormer file."""
    from ..models.keypoints.tcformer import DEPTHS

    size = "large" if model.config.depths == DEPTHS["large"] else "base"
    points = getattr(model.config, "num_keypoints", 0)
    if not points:
        return f"tcformer_{size}"
    return "tcformer_light_wflw" if points == 98 else f"tcformer_{size}_wholebody"


def trained_size(checkpoint: Path | None) -> tuple[int, int] | None:
    """(H, W) of the crops a folder of ours was trained on, where `train` wrote it down."""
    from ..models._checkpoint import read_config

    if checkpoint is None or not checkpoint.is_dir():
        return None
    size = read_config(checkpoint).get("trained_on", {}).get("image_size")
    return None if size is None else (int(size[0]), int(size[1]))
