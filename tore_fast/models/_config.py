"""Config dataclasses of models from keywords: every field known, every value of the field's type, in one place.

In: a model class with `config_class`, and a config or fields (keywords, a checkpoint folder's config.json, command-line
overrides). Out: the frozen dataclass. Used by _registry.py and by the classes themselves.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints


def make_config(model: type, config: Any, fields: Mapping[str, Any]) -> Any:
    """The config of `model`: the given one (None: the defaults) with `fields` changed.

    Raises:
        TypeError: `config` is of another class. ValueError: an unknown field, or a value of another type than the
            field's.
    """
    kind = model.config_class  # type: ignore[attr-defined]
    if config is not None and not isinstance(config, kind):
        raise TypeError(
            f"{model.__name__}: config must be a {kind.__name__}, got {config!r:.60}; models by name come from "
            "create_model(name)"
        )
    values = {name: check_field(kind, name, value, model.__name__) for name, value in fields.items()}
    if config is None:
        return kind(**values)
    return dataclasses.replace(config, **values) if values else config


def check_field(kind: type, name: str, value: Any, who: str) -> Any:
    """`value` as the field `name` of the dataclass `kind` holds it (lists become tuples); ValueError if it cannot."""
    hints = _hints(kind)
    if name not in hints:
        raise ValueError(f"{who}: unknown config field {name!r}; there are {', '.join(sorted(hints))}")
    try:
        return _as(hints[name], value)
    except TypeError:
        shown = getattr(hints[name], "__name__", None) or str(hints[name])
        raise ValueError(
            f"{who}: {name} must be {str(hints[name]) if get_args(hints[name]) else shown}, got {value!r:.80}"
        ) from None


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}


def _as(hint: Any, value: Any) -> Any:
    """`value` if it fits `hint`; TypeError otherwise. A bool is no number, a whole number is a float, a list a
    tuple."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        for part in args:
            try:
                return _as(part, value)
            except TypeError:
                continue
        raise TypeError
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_as(args[0], v) for v in value)
        if len(args) != len(value):
            raise TypeError
        return tuple(_as(a, v) for a, v in zip(args, value))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return hint(**{k: check_field(hint, k, v, hint.__name__) for k, v in value.items()})
        if isinstance(value, hint):
            return value
        raise TypeError
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return value
    if origin is not None:  # Literal and the like: the config's own checks
        return value
    if hint in (None, type(None)):
        if value is None:
            return None
        raise TypeError
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise TypeError
    return value
