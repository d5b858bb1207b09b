"""Data sets on the command line, for `train mesh` and `train smpl`: PATH[@WEIGHT][?OPTION=VALUE&...] to readers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ._train_options import TrainArgs

SYNTH = ("synth",)


@dataclass(kw_only=True)
class SetArgs(TrainArgs):
    """Flags of the tasks that train on labelled data sets or on synthetic images."""

    data: tuple[str, ...] = SYNTH
    """`synth`: synthetic images, rendered while training. Or data sets, PATH[@WEIGHT][?OPTION=VALUE&...] each, e.g.
    h36m.yaml@0.5 3dpw@0.2?split=train (docs/data.md lists formats); without weights all items make one epoch."""
    val: str = ""
    """Data set that is measured, PATH[?OPTION=VALUE]; synthetic images have their own held-out split. The checkpoint is
    not
    chosen on it: the last averaged weights are exported."""
    val_items: int = 2000
    """At most so many items of it."""
    body: str = "auto"
    """auto: the free body (models of hands: the free hand); else a file or folder with the SMPL (MANO) model of the
    data."""
    mesh_data: str | None = None
    """Folder of the SMPL/MANO topology files (also $TORE_FAST_MESH_DATA)."""


def open_sets(texts: Sequence[str]) -> tuple[list, list[float] | None]:
    """(readers, weights or None) of the --data arguments.

    Raises:
        ValueError: a malformed text, weights on some sets only, or a set without a label.
    """
    from ..data.readers import open_dataset

    if "synth" in texts:
        raise ValueError("--data: synth cannot be mixed with data sets")
    sources = [source_of(text) for text in texts]
    weights: list[Any] = [w for _, w, _ in sources]
    if any(w is None for w in weights) and any(w is not None for w in weights):
        raise ValueError("--data: give every set a weight (PATH@WEIGHT) or none")
    readers = [open_dataset(path, **options) for path, _, options in sources]
    for text, reader in zip(texts, readers):
        _check_labels(text, reader)
    return readers, None if weights[0] is None else weights


def check_given(args: SetArgs) -> None:
    """A recipe on data sets leaves --data open."""
    if not args.data:
        raise ValueError("--data: give the data sets of the recipe (docs/data.md), or synth")


def validation(
    text: str, protocol: Any, *, image_size: int, batch_size: int, items: int, smpl_head: bool = False
) -> Callable | None:
    """model -> metrics on the set that --val names; None without one."""
    from ..data.readers import open_dataset
    from ..eval.evaluate import score

    if not text:
        return None
    path, _, options = source_of(text)
    held_out = open_dataset(path, **options)

    def validate(model: Any) -> dict[str, float]:
        return score(
            model, held_out, protocol, image_size=image_size, batch_size=batch_size, limit=items, smpl_head=smpl_head
        )

    return validate


def _check_labels(text: str, reader: Any, items: int = 20) -> None:
    """A set without any label would train nothing, silently: every loss term is zero."""
    count = min(items, len(reader))
    if not count:
        raise ValueError(f"--data {text}: no item")
    if not any(r.has_2d or r.has_3d or r.has_smpl for r in (reader[i] for i in range(count))):
        raise ValueError(
            f"--data {text}: no 2D joints, 3D joints or SMPL parameters in its first {count} items; there is "
            "nothing to learn from (docs/data.md shows how to give labels)"
        )


def source_of(text: str) -> tuple[str, float | None, dict[str, str]]:
    """(path, weight, reader options) of PATH[@WEIGHT][?OPTION=VALUE&...]."""
    path, _, query = text.partition("?")
    options = {}
    for pair in filter(None, query.split("&")):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"--data {text}: expected OPTION=VALUE after '?', got {pair!r}")
        options[key] = value
    head, at, tail = path.rpartition("@")
    if not at:
        return path, None, options
    try:
        weight = float(tail)
    except ValueError:
        return path, None, options  # an @ in the path itself
    if not weight > 0:
        raise ValueError(f"--data {text}: the weight must be positive, got {tail}")
    return head, weight, options
