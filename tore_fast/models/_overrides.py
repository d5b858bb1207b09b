"""Config fields from the command line: NAME VALUE pairs, typed by the fields of the model's config dataclass.

In: text as a user types it (`--set keep_tokens 90 prop_attn false`); out: values for `create_model(name, **values)`. A
field that does not exist and a value of another type are refused by name. Callers: the verbs of cli/.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

TRUE, FALSE, NONE = ("true",), ("false",), ("none", "null")


def parse_overrides(config: type, pairs: Mapping[str, str], flag: str = "--set") -> dict[str, Any]:
    """Values of `pairs` as the fields of the dataclass `config` want them.

    Args:
        config: config dataclass of a model (`config_type` gives it for a registered name).
        pairs: field name -> text. Words: true, false and none in any case; numbers; sequences as 1,2,3 or (1, 2, 3).
        flag: named in front of error messages.

    Raises:
        ValueError: an unknown field (with the nearest names) or a value of another type.

    Example:
        >>> @dataclasses.dataclass
        ... class Config:
        ...     depth: int = 12
        ...     qkv_bias: bool = True
        >>> parse_overrides(Config, {"qkv_bias": "false"})
        {'qkv_bias': False}
    """
    types_ = get_type_hints(config)
    known = [f.name for f in dataclasses.fields(config) if f.init]
    values = {}
    for name, text in pairs.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(known)}"
            raise ValueError(f"{flag} {name}: {config.__name__} has no such field; {hint}")
        try:
            values[name] = parse_value(str(text), types_[name])
        except ValueError:
            raise ValueError(f"{flag} {name}: expected {describe(types_[name])}, got {str(text)!r}") from None
    return values


def config_type(name: str) -> type:
    """Config dataclass of a registered model name.

    Raises:
        ValueError: no such model.
    """
    from ._registry import model_entry

    return model_entry(name).model.config_class  # type: ignore[attr-defined]


def parse_value(text: str, kind: Any) -> Any:
    """`text` as a value of the type `kind` (bool, int, float, str, Literal, tuple, list, unions of these); ValueError
    otherwise."""
    origin, word = get_origin(kind), text.strip()
    if origin in (Union, types.UnionType):
        choices = get_args(kind)
        if type(None) in choices and word.lower() in NONE:
            return None
        for choice in sorted((c for c in choices if c is not type(None)), key=lambda c: c is str):  # text fits anything
            try:
                return parse_value(text, choice)
            except ValueError:
                continue
        raise ValueError(text)
    if origin is Literal:
        for choice in get_args(kind):
            if word == str(choice):
                return choice
        raise ValueError(text)
    if origin in (tuple, list) or kind in (tuple, list):
        return _sequence(word, kind)
    if kind is bool:
        if word.lower() not in (*TRUE, *FALSE):
            raise ValueError(text)
        return word.lower() in TRUE
    if kind is int:
        return int(word)
    if kind is float:
        value = float(word)
        if math.isnan(value):
            raise ValueError(text)
        return value
    if kind is str:
        return text
    raise ValueError(text)


def _sequence(word: str, kind: Any) -> tuple:
    inner = get_args(kind)
    many = not inner or get_origin(kind) is list or (len(inner) == 2 and inner[1] is Ellipsis)
    parts = _split(word)
    if not many and len(parts) != len(inner):
        raise ValueError(word)
    kinds = [inner[0] if inner else float | str] * len(parts) if many else list(inner)
    return tuple(parse_value(part, k) for part, k in zip(parts, kinds))


def _split(word: str) -> list[str]:
    """Parts of "1,2", "(1, 2)" or "[[1, 2], [3]]" at the outermost commas."""
    if word[:1] in "([" and word[-1:] in ")]" and _closes_at_end(word):
        word = word[1:-1]
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(word):
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append(word[start:i])
            start = i + 1
    parts.append(word[start:])
    parts = [p.strip() for p in parts]
    return parts[:-1] if parts[-1] == "" else parts


def _closes_at_end(word: str) -> bool:
    depth = 0
    for i, letter in enumerate(word):
        depth += (letter in "([") - (letter in ")]")
        if depth == 0:
            return i == len(word) - 1
    return False


def describe(kind: Any) -> str:
    """A type in plain words, for messages."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join("none" if c is type(None) else describe(c) for c in inner)
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin in (tuple, list):
        if origin is list or (len(inner) == 2 and inner[1] is Ellipsis):
            return f"a list of {describe(inner[0]).removeprefix('a ').removeprefix('an ')}s, as 1,2,3"
        return f"{len(inner)} values, as {','.join('1234'[: len(inner)])}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))
