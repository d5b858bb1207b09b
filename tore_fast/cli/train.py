"""`tore-fast train TASK`: one module train_TASK.py per task, all on train/run.py.

`--recipe NAME` sets a task's flags as a paper did (recipes/); flags that follow still change them. The recipe names its
task.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from . import UsageError

SUBCOMMANDS = {
    "mesh": "image-to-mesh models on labelled data sets or on synthetic images of the free body and hand",
    "smpl": "regressors of body parameters (TCFormer, HMR2.0) on labelled data sets or on synthetic images",
    "lifting": "video 2D-to-3D pose models (MixSTE, MotionBERT, MHFormer, HoT, TPC) on motion capture",
    "keypoints": "heat-map models (TCFormer, PPT) on COCO-WholeBody, COCO, WFLW or synthetic people",
    "classify": "image classifiers (TCFormer) on folders of class folders",
    "motion": "FastHMR's motion prior (stage 1) and the one-step denoiser on it (stage 2)",
}


def default_job(argv: list[str]) -> str:
    """The task where none is named: the recipe's. `--list-recipes` prints them and ends."""
    if "--list-recipes" in argv:
        from ..recipes import table

        print(f"recipes (tore-fast train --recipe NAME --data ...; any flag can be changed):\n\n{table()}")
        sys.exit(0)
    name, _ = _take_recipe(argv)
    if name is None:
        raise UsageError(f"expected a task ({', '.join(SUBCOMMANDS)}), --recipe NAME or --list-recipes")
    return _load(name).task


def defaults(args_class: type, task: str, argv: list[str]) -> Any:
    """(Args with the recipe's values or None, argv without --recipe)."""
    from ..recipes import RecipeError, arguments

    name, rest = _take_recipe(argv)
    if name is None:
        return None, rest
    recipe = _load(name)
    if recipe.task != task:
        raise UsageError(f"--recipe {name}: is for `tore-fast train {recipe.task}`, not {task}")
    try:
        made = arguments(recipe, args_class)
    except RecipeError as e:
        raise UsageError(str(e)) from e
    model = _value(rest, "--model")
    if model and model != made.model and hasattr(made, "labels") and _value(rest, "--labels.loss") is None:
        made = dataclasses.replace(made, labels=dataclasses.replace(made.labels, loss="auto"))  # the model's own
    return made, rest


def _value(argv: list[str], flag: str) -> str | None:
    """The word behind a flag, or None where it is not given."""
    for i, word in enumerate(argv):
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
        if word == flag and i + 1 < len(argv):
            return argv[i + 1]
    return None


def announce(argv: list[str], args: Any) -> None:
    """Says which recipe runs, and where this run's batch is not the recipe's."""
    from ..recipes import batch_note

    name, _ = _take_recipe(argv)
    if name is not None:
        recipe = _load(name)
        print(f"recipe {recipe.name}: {recipe.about} (from {recipe.source})")
        note = batch_note(recipe, args.train)
        if note:
            print(note)
        labels = recipe.args.get("labels", {})
        if "loss" in labels and args.labels.loss == "auto":
            print(f"loss: that of {args.model} instead of {labels['loss']}")


def _take_recipe(argv: list[str]) -> tuple[str | None, list[str]]:
    for i, flag in enumerate(argv):
        if flag.startswith("--recipe="):
            return flag.split("=", 1)[1], [*argv[:i], *argv[i + 1 :]]
        if flag == "--recipe":
            if i + 1 == len(argv):
                raise UsageError("--recipe: expected a name; tore-fast train --list-recipes shows them")
            return argv[i + 1], [*argv[:i], *argv[i + 2 :]]
    return None, argv


def _load(name: str) -> Any:
    from ..recipes import RecipeError, load_recipe

    try:
        return load_recipe(name)
    except RecipeError as e:
        raise UsageError(str(e)) from e
