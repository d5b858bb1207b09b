"""Named training recipes: the papers' schedules as TOML files beside this one, for `tore-fast train --recipe NAME`.

In: a name or a path; out: a Recipe, and with `arguments` the Args of its task (cli/train_TASK.py), whose fields stay
free to change on the command line. A file has: task, about, source, items_per_step (the paper's processes x batch), and
[args] with the fields of the task's Args.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).resolve().parent


class RecipeError(ValueError):
    """A recipe that cannot be used; the text names the file and what is wrong."""


@dataclass(frozen=True)
class Recipe:
    name: str
    task: str
    """Task of `tore-fast train`."""
    about: str
    source: str
    """Paper or released script the numbers come from."""
    items_per_step: int
    """Items of one optimiser step over all processes; 0: whatever comes."""
    args: dict[str, Any] = field(default_factory=dict)


def recipe_names() -> list[str]:
    return sorted(p.stem for p in FOLDER.glob("*.toml"))


def load_recipe(name: str | Path) -> Recipe:
    """A recipe of this folder by name, or a user's .toml by path.

    Raises:
        RecipeError: unknown name, not TOML, or a key that does not belong there.
    """
    path = Path(name) if str(name).endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        raise RecipeError(
            f"--recipe {name}: no such recipe; there is {', '.join(recipe_names())}, or give a .toml file"
        )
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise RecipeError(f"{path}: not TOML ({e})") from None
    known = {f.name for f in dataclasses.fields(Recipe)} - {"name"}
    unknown, missing = sorted(set(data) - known), sorted({"task", "about", "source"} - set(data))
    if unknown or missing:
        raise RecipeError(
            f"{path}: "
            + (f"unknown key {unknown[0]!r}" if unknown else f"no {missing[0]!r}")
            + f"; expected {sorted(known)}"
        )
    return Recipe(path.stem, **{"items_per_step": 0, "args": {}, **data})


def arguments(recipe: Recipe, args_class: type) -> Any:
    """An `args_class` with the recipe's values; required fields that it leaves open are tyro.MISSING.

    Raises:
        RecipeError: a field that the task does not have, or a value of the wrong kind.
    """
    return _filled(args_class, None, recipe.args, f"recipe {recipe.name}: args")


def _filled(cls: type, default: Any, values: dict[str, Any], where: str) -> Any:
    import tyro

    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise RecipeError(f"{where}: no field {unknown[0]!r}; there is {', '.join(fields)}")
    hints, made = typing.get_type_hints(cls), {}
    for name, f in fields.items():
        start = getattr(default, name) if default is not None else _default(f)
        if name not in values:
            made[name] = tyro.MISSING if start is dataclasses.MISSING else start
        elif dataclasses.is_dataclass(hints[name]):
            if not isinstance(values[name], dict):
                raise RecipeError(f"{where}.{name}: expected a table, got {values[name]!r}")
            made[name] = _filled(
                hints[name], None if start is dataclasses.MISSING else start, values[name], f"{where}.{name}"
            )
        else:
            made[name] = _converted(values[name], hints[name], f"{where}.{name}")
    return cls(**made)


def _default(f: dataclasses.Field) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def _converted(value: Any, hint: Any, where: str) -> Any:
    """TOML's value as the field wants it: whole numbers are floats too, lists are tuples, text may be a path."""
    options = [a for a in (typing.get_args(hint) or (hint,)) if a is not type(None)]
    kinds = {o for o in (typing.get_origin(o) or o for o in [*options, hint]) if isinstance(o, type)}
    if isinstance(value, list) and tuple in kinds:
        return tuple(value)
    if isinstance(value, str) and Path in kinds:
        return Path(value)
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds:
        return float(value)
    literal = typing.get_origin(hint) is typing.Literal and value in options
    if not literal and not any(isinstance(value, k) and (k is not int or not isinstance(value, bool)) for k in kinds):
        raise RecipeError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {value!r}")
    return value


def batch_note(recipe: Recipe, train: Any) -> str:
    """A sentence where processes x batch x accumulation is not what the recipe was made for; "" where it is."""
    have = train.batch_size * train.accumulate * int(os.environ.get("WORLD_SIZE", 1))
    if not recipe.items_per_step or have == recipe.items_per_step:
        return ""
    more, rest = divmod(recipe.items_per_step, have)
    hint = f"; --train.accumulate {more * train.accumulate} makes it so" if not rest else ""
    return f"note: {recipe.name} has {recipe.items_per_step} items per step, this run {have}{hint}"


def table() -> str:
    """All recipes as text: name, task, what it is."""
    recipes = [load_recipe(name) for name in recipe_names()]
    width = max(len(r.name) for r in recipes)
    return "\n".join(f"  {r.name:{width}}  {r.task:9} {r.about}" for r in recipes)
