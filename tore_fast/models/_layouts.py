"""Layouts of official weight files: each family's file `layouts.py` registers its own, `recognise` finds the one of a
file.

Used by _checkpoint.py. A layout is told by key names alone; what the shapes say (sizes) its `load` reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ._registry import _load_families

State = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """How the files of one official project are laid out.

    Args:
        name: for messages and config.json. upstream: the word a user gives for the project (one or several layouts).
        fits: whether a state dict has the keys of this layout.
        load: (state, source, **options) -> model in eval mode, loaded strictly; options are config fields, and `mesh`
            and `mesh_data` of image-to-mesh models. `without_topology=True` checks the keys against a mesh of the right
            size.
        dropped: whether the loader leaves this key out.
    """

    name: str
    upstream: str
    fits: Callable[[State], bool]
    load: Callable[..., nn.Module]
    dropped: Callable[[str], bool] = lambda key: False


_LAYOUTS: list[Layout] = []
_EXPLAIN: list[Callable[[State], str]] = []


def register_layout(layout: Layout) -> None:
    """Adds a layout; more special ones are registered before more general ones of the same file."""
    _LAYOUTS.append(layout)


def register_explanation(explain: Callable[[State], str]) -> None:
    """Adds a function that says in half a sentence how near a file of no known layout is to the family's."""
    _EXPLAIN.append(explain)


def upstreams() -> list[str]:
    """Words for the projects whose files are read."""
    _load_families()
    return list(dict.fromkeys(layout.upstream for layout in _LAYOUTS))


def recognise(state: State, source: str, upstream: str | None = None) -> Layout:
    """The layout of a state dict, among those of `upstream` if it is given.

    Raises:
        ValueError: an unknown upstream, or no layout fits.
    """
    known = upstreams()
    if upstream is not None and upstream not in known:
        raise ValueError(f"load: upstream must be one of {', '.join(known)}, got {upstream!r}")
    among = [layout for layout in _LAYOUTS if upstream in (None, layout.upstream)]
    for layout in among:
        if layout.fits(state):
            return layout
    if upstream is not None and len(among) == 1 and upstream not in ("fastmetro", "metro", "graphormer"):
        return among[0]  # its loader says what is missing
    wanted = "no known layout" if upstream is None else f"no layout of {upstream!r}"
    raise ValueError(f"{source}: {wanted}; {'; '.join(explain(state) for explain in _EXPLAIN)}")
