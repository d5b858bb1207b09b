"""Model names: `@register_model` in a family's file, `create_model(name)` and `list_models("*tore*")` for users."""

from __future__ import annotations

import fnmatch
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

# Rooms of the families. Their files register names when imported; importing torch-heavy files waits until a name is asked for.
ROOMS = ("mesh", "smpl", "lifting", "keypoints", "motion")


@dataclass(frozen=True)
class PaperRow:
    """What a paper prints for a model: parameters in millions, multiply-adds in billions ("GFLOPs" in these papers)."""

    params_m: float | None = None
    gmacs: float | None = None
    source: str = ""  # paper, table
    note: str = ""  # why ours differs, where it does


@dataclass(frozen=True)
class ModelEntry:
    name: str
    build: Callable[..., nn.Module]
    family: str
    paper: PaperRow | None = None
    input_shape: tuple[int, ...] = (3, 224, 224)  # of one item, without the batch axis
    tags: tuple[str, ...] = field(default=())


_ENTRIES: dict[str, ModelEntry] = {}
_NAME_RULES: list[Callable[[str], ModelEntry | None]] = []


def register_name_rule(rule: Callable[[str], ModelEntry | None]) -> Callable[[str], ModelEntry | None]:
    """Decorator for families with endlessly many sizes: `rule(name)` gives the entry of a name it can read, else None.

    Such names work wherever a registered one does, but are not listed.
    """
    _NAME_RULES.append(rule)
    return rule


def register_model(
    name: str,
    family: str,
    paper: PaperRow | None = None,
    input_shape: tuple[int, ...] = (3, 224, 224),
    tags: tuple[str, ...] = (),
) -> Callable:
    """Decorator for a builder `fn(**overrides) -> nn.Module`; overrides are fields of the model's config dataclass."""

    def wrap(fn: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        if name in _ENTRIES:
            raise ValueError(f"register_model: {name!r} is already registered by {_ENTRIES[name].family}")
        _ENTRIES[name] = ModelEntry(name, fn, family, paper, input_shape, tags)
        return fn

    return wrap


def _load_families() -> None:
    for room in ROOMS:
        package = importlib.import_module(f".{room}", __package__)
        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("_"):
                importlib.import_module(f".{module.name}", package.__name__)


def list_models(pattern: str = "*") -> list[str]:
    """Sorted names that match a shell pattern; a full name that only a name rule knows gives itself."""
    _load_families()
    return sorted(fnmatch.filter(_ENTRIES, pattern)) or [e.name for e in [_by_rule(pattern)] if e is not None]


def _by_rule(name: str) -> ModelEntry | None:
    return next((entry for rule in _NAME_RULES if (entry := rule(name)) is not None), None)


def model_entry(name: str) -> ModelEntry:
    """Registry entry of `name`; ValueError with the nearest names if there is none."""
    import difflib

    _load_families()
    if name not in _ENTRIES:
        if (ruled := _by_rule(name)) is not None:
            return ruled
        near = difflib.get_close_matches(name, _ENTRIES, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; see list_models()"
        raise ValueError(f"create_model: no model {name!r}{hint}")
    return _ENTRIES[name]


def create_model(name: str, **overrides) -> nn.Module:
    """Builds a registered model with random weights, in eval mode off (as torch modules start).

    Args:
        name: one of `list_models()`, or one that a name rule can read (hot_mixste_135_n2f45: models/lifting/hot.py).
        **overrides: fields of the model's config dataclass to change.

    Example:
        >>> create_model("fastmetro_s_r50").config.num_vertices
        431
    """
    return model_entry(name).build(**overrides)
