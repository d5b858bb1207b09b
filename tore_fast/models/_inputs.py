"""What one item of a model's input looks like: engines, exports and benchmarks ask here."""

from __future__ import annotations

from typing import Any

from torch import nn

from ._registry import facts_of, model_entry, nearest_name


def input_shape(model: nn.Module) -> tuple[int, ...]:
    """Shape of one item, without the batch axis: the registered one, with the sizes of this model's config.

    Raises:
        ValueError: a module that is not of this package.

    Example:
        >>> from tore_fast.models import create_model
        >>> input_shape(create_model("mixste_27"))
        (27, 17, 2)
    """
    facts, config = facts_of(model), getattr(model, "config", None)
    if facts is None or config is None:
        raise ValueError(f"{type(model).__name__}: not a model of this package, so its input shape is not known")
    shape = model_entry(nearest_name(model)).input_shape
    if facts.task == "lifting":
        return (config.frames, *shape[1:])
    if facts.task == "motion":
        width = getattr(config, "condition_dim", None) or config.num_features
        return (config.frames if hasattr(config, "frames") else shape[0], width)
    if facts.task == "mesh" and getattr(config, "backbone", "") is None:  # fed with feature maps
        return (config.feature_dim, *config.grid)
    side: Any = getattr(config, "image_size", None)
    if side is None and hasattr(config, "img_size"):
        side = config.img_size[0]  # hosts take the square crop and cut its sides
    return shape if side is None else (3, *((side, side) if isinstance(side, int) else side))
