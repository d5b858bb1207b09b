"""What is known about every model: facts of its class (`@model_facts`), names and sizes (`register_models`).

A family's file declares both; `create_model(name)` and `list_models("*tore*")` are for users. Pipelines, training,
scoring and conversion ask `facts_of(model)` or `model_entry(name)`; they never look at a class's name.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn

from ._config import make_config

# Rooms of the families. Their files register names when imported; importing torch-heavy files waits until a name is
# asked for.
ROOMS = ("mesh", "smpl", "lifting", "keypoints", "motion")
TASKS = {
    "mesh": "image crops to the vertices of a body or hand",
    "smpl": "image crops to the pose, shape and camera of a parametric body",
    "lifting": "2D key points of a clip to 3D poses",
    "keypoints": "image crops to 2D key points (heat maps, points, detections)",
    "classify": "images to classes",
    "motion": "features of a clip to a motion",
    "camera": "whole images to a field of view",
}

Model = TypeVar("Model", bound=type[nn.Module])


@dataclass(frozen=True)
class PaperRow:
    """What a paper prints for a model: parameters in millions, multiply-adds in billions ("GFLOPs" in these papers)."""

    params_m: float | None = None
    gmacs: float | None = None
    source: str = ""  # paper, table
    note: str = ""  # why ours differs, where it does


@dataclass(frozen=True)
class Facts:
    """What is known about all models of one class, whatever their size."""

    task: str  # one of TASKS
    family: str  # for `list --family`
    # rule of the person crops: square (data/person_crop.py), hmr2 (data/hmr2_crop.py), topdown (data/topdown.py)
    crop: str = ""
    pixels: str = (
        "imagenet"  # of the crops: imagenet (mean and deviation taken off), unit (0..1), or "" for other inputs
    )
    projection: str = (
        ""  # of the camera in official weights: the mesh centred on its root, or as it comes out ("as_is")
    )
    loss: str = ""  # of the publication, by its name in train/
    masked_queries: str = ""  # queries that training may mask: "all", "joints", or "" for none
    takes_camera: bool = False  # forward also takes the crop's place, the image's size and the focal length
    frames_out: str = ""  # lifting: the model is meant for "all" frames or the "middle" one of a window
    free_fields: tuple[
        str, ...
    ] = ()  # config fields that change no weight, so that a name may set them for given weights
    licence: str = ""  # of the official weights, where they are known

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"Facts: task must be one of {', '.join(TASKS)}, got {self.task!r}")


def model_facts(**facts: Any) -> Callable[[Model], Model]:
    """Class decorator: `Class.facts`, see Facts."""

    def wrap(cls: Model) -> Model:
        cls.facts = Facts(**facts)  # type: ignore[attr-defined]
        return cls

    return wrap


def facts_of(model: nn.Module) -> Facts | None:
    """Facts of a model's class, also inside a data-parallel wrapper; None for modules that are not of this package."""
    return getattr(getattr(model, "module", model), "facts", None)


@dataclass(frozen=True)
class ModelEntry:
    """One registered name."""

    name: str
    model: type[nn.Module]
    fields: Mapping[str, Any]  # of its config, where they differ from the class's defaults
    paper: PaperRow | None = None
    input_shape: tuple[int, ...] = (3, 224, 224)  # of one item, without the batch axis
    tags: tuple[str, ...] = field(default=())

    @property
    def facts(self) -> Facts:
        return self.model.facts  # type: ignore[attr-defined]

    @property
    def task(self) -> str:
        return self.facts.task

    @property
    def family(self) -> str:
        return self.facts.family

    @property
    def config(self) -> Any:
        """Its config dataclass."""
        return make_config(self.model, None, self.fields)

    def build(self, **overrides: Any) -> Any:
        """The model with random weights; overrides are fields of its config (and mesh, mesh_data of image-to-mesh
        models)."""
        from_fields = getattr(self.model, "from_fields", None)
        if from_fields is not None:
            return from_fields(self.fields, overrides)
        return self.model(make_config(self.model, None, {**self.fields, **overrides}))


_ENTRIES: dict[str, ModelEntry] = {}
_NAME_RULES: list[Callable[[str], ModelEntry | None]] = []


def register_name_rule(rule: Callable[[str], ModelEntry | None]) -> Callable[[str], ModelEntry | None]:
    """Decorator for families with endlessly many sizes: `rule(name)` gives the entry of a name it can read, else None.

    Such names work wherever a registered one does, but are not listed.
    """
    _NAME_RULES.append(rule)
    return rule


def register_model(name: str, model: type[nn.Module], fields: Mapping[str, Any] | None = None, **entry: Any) -> None:
    """Gives `model` with these config fields a name.

    Args:
        entry: paper, input_shape and tags of ModelEntry.
    """
    if name in _ENTRIES:
        raise ValueError(f"register_model: {name!r} is already registered by {_ENTRIES[name].family}")
    _ENTRIES[name] = ModelEntry(name, model, fields or {}, **entry)


def register_models(
    model: type[nn.Module],
    rows: Mapping[str, Mapping[str, Any]],
    papers: Mapping[str, PaperRow] | None = None,
    **entry: Any,
) -> None:
    """Registers a table {name: config fields}; `papers` and `entry` (input_shape, tags) as `register_model`."""
    for name, fields in rows.items():
        register_model(name, model, fields, paper=(papers or {}).get(name), **entry)


def _load_families() -> None:
    for room in ROOMS:
        package = importlib.import_module(f".{room}", __package__)
        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("_"):
                importlib.import_module(f".{module.name}", package.__name__)


def list_models(pattern: str = "*", task: str | None = None) -> list[str]:
    """Sorted names that match a shell pattern (and a task of TASKS); a full name that only a name rule knows gives
    itself."""
    _load_families()
    found = sorted(fnmatch.filter(_ENTRIES, pattern)) or [e.name for e in [_by_rule(pattern)] if e is not None]
    return found if task is None else [n for n in found if model_entry(n).task == task]


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
        raise ValueError(f"create_model: no model {name[:80]!r}{hint}")
    return _ENTRIES[name]


def nearest_name(model: nn.Module) -> str:
    """Registered name of the same class that shares most config fields with `model`; ValueError if there is none.

    A body and a hand are never taken for each other.
    """
    _load_families()
    config: Any = model.config
    hand = getattr(config, "num_joints", 0) == 21
    alike = [e for e in _ENTRIES.values() if e.model is type(model)]
    alike = [e for e in alike if ("hand" in e.tags) == hand] or alike
    if not alike:
        raise ValueError(f"{type(model).__name__} has no registered name; give one")
    return max(alike, key=lambda e: (_shared(config, e.config), -len(e.name))).name


def _shared(config: Any, other: Any) -> int:
    return sum(getattr(config, f.name) == getattr(other, f.name) for f in dataclasses.fields(config))


def create_model(name: str, **overrides: Any) -> Any:
    """Builds a registered model with random weights, in eval mode off (as torch modules start).

    Args:
        name: one of `list_models()`, or one that a name rule can read (hot_mixste_135_n2f45: models/lifting/hot.py).
        **overrides: fields of the model's config dataclass to change.

    Example:
        >>> create_model("fastmetro_s_r50").config.num_vertices
        431
    """
    return model_entry(name).build(**overrides)
