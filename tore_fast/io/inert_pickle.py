"""A pickle machine that builds a tree and calls nothing: no class is looked up, no function runs, whatever the bytes
say.

In: pickled bytes of any protocol; out: Python's plain containers and scalars, with a Global where the file names a
class or function, a Made where it wants one called or an object filled, and a Persistent where it points outside
(torch's storages).
Next on the way: safe_pickle.py turns such a tree into arrays and matrices, weights.py into tensors; each builds what it
knows, after checking it. Lengths are checked against the bytes that are there, the number of instructions is limited.
"""

from __future__ import annotations

import codecs
import pickle
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

MAX_INSTRUCTIONS = 4_000_000  # a checkpoint of 10,000 tensors with its optimiser has about 500,000
_SMALL_INT = 1 << 60  # integer keys below have distinct hashes, so that no file can make a dict slow


class RefusedPickle(pickle.UnpicklingError, ValueError):
    """The file holds something else than plain data, or is damaged; nothing of it has been run."""


class Global(NamedTuple):
    """A class or function that the file names."""

    module: str
    name: str

    def __str__(self) -> str:
        name = f"{self.module}.{self.name}"[:120]
        return name if name.isprintable() else repr(name)  # errors are one line, whatever the file calls itself


class Made:
    """A call or an object that the file asks for: callee, arguments, then state, items and appended values."""

    __slots__ = ("appended", "args", "callee", "items", "state")

    def __init__(self, callee: Any, args: Any):
        self.callee, self.args = callee, args
        self.state: Any = None
        self.items: list[tuple[Any, Any]] = []
        self.appended: list[Any] = []


class Persistent:
    """A persistent id: what the file says lies outside of the pickle."""

    __slots__ = ("id",)

    def __init__(self, id: Any):
        self.id = id


_MARK = object()
SET, FROZENSET = Global("builtins", "set"), Global("builtins", "frozenset")


def parse(data: bytes, source: str, start: int = 0) -> tuple[Any, int]:
    """The tree of one pickle and the position after it.

    Args:
        data: the bytes; a pickle begins at `start`, more may follow it.
        source: names the file in errors.

    Raises:
        RefusedPickle: damaged or cut off, too many instructions, or an instruction that plain data never has.
    """
    machine = _Machine(data, start)
    try:
        return machine.run(), machine.at
    except RefusedPickle as e:
        raise RefusedPickle(f"{source}: {e}") from None
    except (IndexError, KeyError, ValueError, TypeError, struct.error, OverflowError, MemoryError) as e:
        raise RefusedPickle(f"{source}: damaged pickle ({type(e).__name__} at byte {machine.at})") from None


class _Machine:
    def __init__(self, data: bytes, start: int):
        self.data, self.at = data, start
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(MAX_INSTRUCTIONS):
            code = self.take(1)
            if code == b".":
                return self.pop()
            if (step := _STEPS.get(code)) is None:
                raise RefusedPickle(f"damaged pickle (no instruction {code!r} at byte {self.at - 1})")
            step(self)
        raise RefusedPickle(f"a pickle of more than {MAX_INSTRUCTIONS:,} instructions")

    # the bytes

    def take(self, count: int) -> bytes:
        end = self.at + count
        if count < 0 or end > len(self.data):
            raise RefusedPickle(f"damaged pickle (it ends too early: {count:,} bytes expected at byte {self.at})")
        part = self.data[self.at : end]
        self.at = end
        return part

    def number(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise RefusedPickle("damaged pickle (it ends too early: a line without an end)")
        text = self.data[self.at : end]
        self.at = end + 1
        return text

    def name(self) -> str:
        return self.line().decode("utf-8", "replace")

    # the stack

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise RefusedPickle("damaged pickle (a mark in place of a value)")
        return value

    def top(self) -> Any:
        if self.stack[-1] is _MARK:
            raise RefusedPickle("damaged pickle (a mark in place of a value)")
        return self.stack[-1]

    def marked(self) -> list[Any]:
        """Values above the last mark, which are taken off with it."""
        at = len(self.stack) - 1
        while at >= 0 and self.stack[at] is not _MARK:
            at -= 1
        if at < 0:
            raise RefusedPickle("damaged pickle (no mark)")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def make(self, callee: Any, args: Any) -> None:
        self.stack.append(Made(callee, args))

    def put(self, key: int) -> None:
        self.memo[key] = self.top()

    # values

    def string(self) -> None:
        text = self.line()
        if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in b"\"'":
            raise RefusedPickle("damaged pickle (a string without quotes)")
        self.stack.append(codecs.escape_decode(text[1:-1])[0].decode("latin1"))

    def integer(self) -> None:
        text = self.line()
        self.stack.append({b"00": False, b"01": True}[text] if text in (b"00", b"01") else int(text))

    def long(self, form: str) -> None:
        self.stack.append(int.from_bytes(self.take(self.number(form)), "little", signed=True))

    # containers

    def append(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Made):
            target.appended.extend(values)
        else:
            raise RefusedPickle(f"damaged pickle (values appended to a {type(target).__name__})")

    def set_items(self, values: list[Any]) -> None:
        if len(values) % 2:
            raise RefusedPickle("damaged pickle (a key without a value)")
        target = self.top()
        pairs = zip(values[::2], values[1::2])
        if isinstance(target, dict):
            target.update((_key(k), v) for k, v in pairs)
        elif isinstance(target, Made):
            target.items.extend(pairs)
        else:
            raise RefusedPickle(f"damaged pickle (items of a {type(target).__name__})")

    def dictionary(self) -> None:
        values = self.marked()
        self.stack.append({})
        self.set_items(values)

    def collect(self, callee: Global) -> None:
        values = self.marked()
        self.make(callee, ())
        self.append(values)

    def add_items(self) -> None:
        values = self.marked()
        self.append(values)

    def append_one(self) -> None:
        value = self.pop()
        self.append([value])

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def set_many(self) -> None:
        values = self.marked()
        self.set_items(values)

    # names, calls, objects

    def global_line(self) -> None:
        self.stack.append(Global(self.name(), self.name()))

    def global_stack(self) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise RefusedPickle("damaged pickle (a name that is no text)")
        self.stack.append(Global(module, name))

    def call(self) -> None:
        args, callee = self.pop(), self.pop()
        self.make(callee, args)

    def new_ex(self) -> None:
        _kwargs, args, callee = self.pop(), self.pop(), self.pop()
        self.make(callee, args)

    def instance(self) -> None:
        name = Global(self.name(), self.name())
        self.make(name, tuple(self.marked()))

    def object(self) -> None:
        callee, *args = self.marked()
        self.make(callee, tuple(args))

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if not isinstance(target, Made):
            raise RefusedPickle("damaged pickle (a state for something that is no object)")
        target.state = state


def _key(key: Any) -> Any:
    """`key` if a dict can hold it at a known cost; a stand-in that equals nothing else otherwise."""
    if isinstance(key, tuple) and len(key) <= 64 and not isinstance(key, Global):
        return key if all(_scalar(k) for k in key) else Made(None, ())
    return key if _scalar(key) else Made(None, ())


def _scalar(key: Any) -> bool:
    if isinstance(key, int):
        return -_SMALL_INT < key < _SMALL_INT
    return key is None or isinstance(key, (str, bytes, float, Global, Made))


def _push(value: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    return lambda m: m.stack.append(value(m))


def _tuple(count: int) -> Callable[[_Machine], None]:
    def step(m: _Machine) -> None:
        m.stack.append(tuple(reversed([m.pop() for _ in range(count)])))

    return step


def _text(form: str, encoding: str) -> Callable[[_Machine], None]:
    errors = "surrogatepass" if encoding == "utf-8" else "strict"
    return _push(lambda m: m.take(m.number(form)).decode(encoding, errors))


_STEPS: dict[bytes, Callable[[_Machine], Any]] = {
    # stack and memo
    b"(": _push(lambda m: _MARK),
    b"0": lambda m: m.stack.pop(),
    b"1": _Machine.marked,
    b"2": _push(_Machine.top),
    b"p": lambda m: m.put(int(m.line())),
    b"q": lambda m: m.put(m.number("<B")),
    b"r": lambda m: m.put(m.number("<I")),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"g": _push(lambda m: m.memo[int(m.line())]),
    b"h": _push(lambda m: m.memo[m.number("<B")]),
    b"j": _push(lambda m: m.memo[m.number("<I")]),
    b"\x80": lambda m: m.take(1),  # protocol
    b"\x95": lambda m: m.take(8),  # frame: a hint for buffering only
    # scalars
    b"N": _push(lambda m: None),
    b"\x88": _push(lambda m: True),
    b"\x89": _push(lambda m: False),
    b"I": _Machine.integer,
    b"L": _push(lambda m: int(m.line().rstrip(b"L"))),
    b"J": _push(lambda m: m.number("<i")),
    b"K": _push(lambda m: m.number("<B")),
    b"M": _push(lambda m: m.number("<H")),
    b"\x8a": lambda m: m.long("<B"),
    b"\x8b": lambda m: m.long("<i"),
    b"F": _push(lambda m: float(m.line())),
    b"G": _push(lambda m: m.number(">d")),
    # text and bytes; Python 2's strings are latin1
    b"S": _Machine.string,
    b"T": _text("<i", "latin1"),
    b"U": _text("<B", "latin1"),
    b"V": _push(lambda m: m.line().decode("raw-unicode-escape")),
    b"X": _text("<I", "utf-8"),
    b"\x8c": _text("<B", "utf-8"),
    b"\x8d": _text("<Q", "utf-8"),
    b"B": _push(lambda m: m.take(m.number("<I"))),
    b"C": _push(lambda m: m.take(m.number("<B"))),
    b"\x8e": _push(lambda m: m.take(m.number("<Q"))),
    b"\x96": _push(lambda m: m.take(m.number("<Q"))),  # a bytearray: nothing here is ever changed
    # containers
    b"]": _push(lambda m: []),
    b"}": _push(lambda m: {}),
    b")": _push(lambda m: ()),
    b"\x8f": lambda m: m.make(SET, ()),
    b"l": _push(_Machine.marked),
    b"t": _push(lambda m: tuple(m.marked())),
    b"d": _Machine.dictionary,
    b"\x91": lambda m: m.collect(FROZENSET),
    b"\x85": _tuple(1),
    b"\x86": _tuple(2),
    b"\x87": _tuple(3),
    b"a": _Machine.append_one,
    b"e": _Machine.add_items,
    b"\x90": _Machine.add_items,
    b"s": _Machine.set_item,
    b"u": _Machine.set_many,
    # names, calls, objects
    b"c": _Machine.global_line,
    b"\x93": _Machine.global_stack,
    b"R": _Machine.call,
    b"\x81": _Machine.call,
    b"\x92": _Machine.new_ex,
    b"i": _Machine.instance,
    b"o": _Machine.object,
    b"b": _Machine.build,
    b"P": _push(lambda m: Persistent(m.name())),
    b"Q": _push(lambda m: Persistent(m.pop())),
}
