"""Attributes of somebody's objects that are replaced for a while, and put back exactly as they were."""

from __future__ import annotations

from typing import Any

_ABSENT: Any = object()


class Overrides:
    """Instance attributes set over methods, modules or parameters; state dicts do not see them.

    `undo` restores what an instance had of its own, and uncovers what its class or module has.
    """

    def __init__(self) -> None:
        self._done: list[tuple[Any, str, Any, str]] = []

    def put(self, obj: Any, name: str, value: Any, what: str = "") -> None:
        """Sets obj.name; `what` is the name of the speed-up that it belongs to."""
        own = vars(obj)
        self._done.append((obj, name, own.get(name, _ABSENT), what))
        own[name] = value

    @property
    def names(self) -> list[str]:
        return sorted({what for *_, what in self._done if what})

    @property
    def attributes(self) -> list[str]:
        """What was replaced, without names of objects and without doubles."""
        return sorted({name for _, name, _, _ in self._done})

    def undo(self) -> None:
        while self._done:
            obj, name, before, _ = self._done.pop()
            if before is _ABSENT:
                vars(obj).pop(name, None)
            else:
                vars(obj)[name] = before
