"""Values that follow from weights: made on first use, made again when a weight has changed.

Used by linear.py (weights in the layout of a backend) and, through layers/prepared.py, by every module that keeps for
inference what is the same at each call.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor


def stamp_of(sources: tuple[Tensor, ...]) -> tuple[tuple[int, int], ...]:
    """Where each tensor lies and how often it was written to in place (inference tensors do not count that)."""
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in sources)


class Derived:
    """Store of values by name, each with the state of the tensors that it was made from."""

    def __init__(self) -> None:
        # name -> (stamp, value, memory of the sources: held, so that no other tensor can come to lie there)
        self._made: dict[Hashable, tuple[tuple, Any, tuple]] = {}

    def get(self, name: Hashable, sources: tuple[Tensor, ...], compute: Callable[[], Any]) -> Any:
        """compute() without gradient, or its earlier result if none of `sources` was replaced or written to since.

        A write through `.data` is not noticed (PyTorch does not count it); a new `.data` is.
        """
        stamp = stamp_of(sources)
        found = self._made.get(name)
        if found is None or found[0] != stamp:
            with (
                torch.inference_mode(False),
                torch.no_grad(),
            ):  # a value made in inference mode could meet no gradient later
                value = compute()
            found = self._made[name] = (stamp, value, tuple(t.untyped_storage() for t in sources))
        return found[1]

    def peek(self, name: Hashable) -> Any:
        """The value as it was last made, or None."""
        found = self._made.get(name)
        return None if found is None else found[1]

    def __contains__(self, name: Hashable) -> bool:
        return name in self._made

    def names(self) -> list[Hashable]:
        return list(self._made)

    def clear(self) -> None:
        self._made.clear()
