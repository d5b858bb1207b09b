"""Reads the pickles that SMPL, MANO and mesh-sampling files are made of, without running anything they say.

In: .pkl and .npz (with object arrays) from third parties; out: numpy arrays and scipy matrices for body/official.py and
the data readers. inert_pickle.py makes a tree of the file; here numpy arrays, dtypes and scalars of plain kinds, scipy
CSC/CSR matrices and the array inside chumpy objects are rebuilt from it, each after its lengths and indices were
checked. Any other class or function named by the file stops the reading. chumpy is not needed.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import scipy.sparse as sp

from .inert_pickle import Global, Made, Persistent, RefusedPickle, parse
from .open_file import open_regular, read_regular

__all__ = ["RefusedPickle", "Resolver", "loads", "read_npz", "read_pickle"]

MAX_FILE = 4 << 30
MAX_DEPTH = 60
MAX_RATIO, FREE_OF_RATIO = 200, 64 << 20  # a zip member may unpack to so many times its size, if larger than this
_PLAIN = re.compile(r"[<>=|]?(b1|\?|[iu][1248]|f2|f4|f8|c8|c16|[SU]\d{1,6})")
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_SPARSE = {
    **{(f"scipy.sparse.{p}csc", n): sp.csc_matrix for p in ("", "_") for n in ("csc_matrix", "csc_array")},
    **{(f"scipy.sparse.{p}csr", n): sp.csr_matrix for p in ("", "_") for n in ("csr_matrix", "csr_array")},
}
_OBJECT = np.dtype(object)
_BYTES = tuple((module, name) for module in ("builtins", "__builtin__") for name in ("bytes", "bytearray"))


class Resolver:
    """Turns a tree of inert_pickle into arrays; every node once, so that shared parts cost nothing twice.

    Args:
        source: names the file in errors.
        size: bytes of the file: all arrays together cannot be larger.
    """

    wanted = "numpy arrays, scipy csc/csr matrices and chumpy arrays"

    def __init__(self, source: str, size: int):
        self.source, self.left = source, size + (1 << 16)
        self._done: dict[int, Any] = {}
        self._open: set[int] = set()

    def __call__(self, node: Any) -> Any:
        if not isinstance(node, (list, tuple, dict, Made, Persistent)):
            return node
        key = id(node)
        if key in self._done:
            return self._done[key]
        if key in self._open or len(self._open) >= MAX_DEPTH:
            raise self.refuse("nested in itself or too deeply")
        self._open.add(key)
        try:
            value = self._done[key] = self._one(node)
        finally:
            self._open.discard(key)
        return value

    def refuse(self, why: str) -> RefusedPickle:
        return RefusedPickle(f"{self.source}: {why}")

    def _one(self, node: Any) -> Any:
        if isinstance(node, Global):
            return self.unknown(node)
        if isinstance(node, (list, tuple)):
            return type(node)([self(v) for v in node])
        if isinstance(node, dict):
            return {self.key(k): self(v) for k, v in node.items()}
        if isinstance(node, Persistent):
            raise self.refuse("refused to load something outside of the file")
        return self.made(node)

    def key(self, key: Any) -> Any:
        if isinstance(key, (Global, Made)):
            self.unknown(key)
        return key

    def unknown(self, node: Global | Made) -> Any:
        """What becomes of a class, function or call that is not known here."""
        name = node.callee if isinstance(node, Made) else node
        raise self.refuse(f"refused to load {name}; only {self.wanted} are read from pickles")

    def made(self, node: Made) -> Any:
        callee, args = node.callee, node.args if isinstance(node.args, tuple) else ()
        if callee in (("copy_reg", "_reconstructor"), ("copyreg", "_reconstructor")) and args:
            callee, args = args[0], args[1:]  # object(), whose state follows
            if isinstance(callee, Global) and callee[1] == "ndarray":
                raise self.refuse(f"refused to construct {callee}")
        if not isinstance(callee, Global):
            return self.unknown(node)
        module, name = callee
        if module in _MULTIARRAY and name == "_reconstruct":
            return self.array(args, node.state)
        if module in _MULTIARRAY and name == "scalar":
            return self.buffer(self.raw(args[1]), self.dtype(args[0]), (), "C")[()]
        if module in _NUMERIC and name == "_frombuffer":  # protocol 5
            data, dtype, shape, order = args
            return self.buffer(self.raw(data), self.dtype(dtype), shape, order)
        if callee == ("numpy", "dtype"):
            return self.dtype(node)
        if (sparse := _SPARSE.get((module, name))) is not None:
            return self.sparse(sparse, node.state)
        if callee == ("chumpy.ch", "Ch"):
            return self.numbers(self.field(node, "x"))
        if callee == ("chumpy.reordering", "Select"):
            return self.select(node)
        if callee == ("_codecs", "encode") or callee in _BYTES:
            return self.raw(node)
        if callee == ("collections", "OrderedDict"):
            return {self.key(k): self(v) for k, v in _pairs(node, args)}
        if module in ("__builtin__", "builtins") and name in ("set", "frozenset"):  # chumpy's bookkeeping
            items = [self(v) for v in (args[0] if args else node.appended)]
            if not all(isinstance(v, (str, bytes, int, float)) for v in items):
                raise self.refuse("a set of something else than texts and numbers")
            return set(items) if name == "set" else frozenset(items)
        return self.unknown(node)

    # numpy

    def raw(self, node: Any) -> bytes:
        """Bytes, however the protocol wrote them."""
        if isinstance(node, Made) and node.callee == ("_codecs", "encode"):  # how Python 3 writes them into protocol 2
            node = node.args[0]
        if isinstance(node, Made) and node.callee in _BYTES:  # without arguments: empty bytes in protocol 2
            node = node.args[0] if node.args else b""
        if isinstance(node, str):
            return node.encode("latin1")
        if not isinstance(node, bytes):
            raise self.refuse("an array without its bytes")
        return node

    def dtype(self, node: Any) -> np.dtype:
        text = node.args[0] if isinstance(node, Made) and node.callee == ("numpy", "dtype") and node.args else None
        text = text.decode("ascii") if isinstance(text, bytes) else text
        if text in ("O", "O8", "|O", "O4"):
            return _OBJECT
        state = node.state if isinstance(node, Made) else None
        plain = state is None or (isinstance(state, tuple) and len(state) > 4 and state[2:5] == (None, None, None))
        if not (isinstance(text, str) and _PLAIN.fullmatch(text) and plain):
            raise self.refuse(f"an array of {str(text)[:30] if text else 'no'} type; plain numbers and texts are read")
        order = state[1] if state is not None else "="
        return np.dtype(text).newbyteorder("<" if order == "<" else ">" if order == ">" else "=")

    def array(self, args: tuple, state: Any) -> np.ndarray:
        if not args or args[0] != ("numpy", "ndarray") or not isinstance(state, tuple) or len(state) != 5:
            raise self.refuse("an array without its state")
        _version, shape, dtype, fortran, data = state
        dtype = self.dtype(dtype)
        if dtype != _OBJECT:
            return self.buffer(self.raw(data), dtype, shape, "F" if fortran else "C")
        if not isinstance(data, list) or len(data) != self.count(shape):
            raise self.refuse("an object array whose list has another length than its shape")
        flat = np.empty(len(data), object)
        for i, value in enumerate(data):
            flat[i] = self(value)
        return flat.reshape(shape, order="F" if fortran else "C")

    def count(self, shape: Any) -> int:
        """Items of an array of this shape, which must be a plain one."""
        fine = isinstance(shape, tuple) and len(shape) <= 32 and all(type(n) is int and 0 <= n < 1 << 40 for n in shape)
        if not fine:
            raise self.refuse("an array whose shape is no tuple of sizes")
        return math.prod(shape)

    def buffer(self, data: bytes, dtype: np.dtype, shape: Any, order: Any) -> np.ndarray:
        """Array of plain numbers (writable, its own memory) from exactly the bytes it needs."""
        count = self.count(shape)
        if dtype == _OBJECT or dtype.itemsize == 0 or count * dtype.itemsize != len(data):
            raise self.refuse(f"an array {list(shape)} of {dtype} with {len(data):,} bytes")
        self.take(len(data))
        flat = np.frombuffer(data, dtype).copy() if count else np.empty(0, dtype)
        if dtype.kind == "U" and count and (flat.view(f"{dtype.byteorder}u4") > 0x10FFFF).any():
            raise self.refuse("a text array with characters that do not exist")
        if dtype.kind == "b" and count:
            flat = flat.view(np.uint8) != 0
        return flat.reshape(shape, order="F" if order == "F" else "C")

    def take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise self.refuse("arrays that are larger than the whole file")

    # scipy and chumpy

    def field(self, node: Made, name: str) -> Any:
        if not isinstance(node.state, dict) or name not in node.state:
            raise self.refuse(f"{node.callee} without its field {name!r}")
        return node.state[name]

    def numbers(self, node: Any) -> np.ndarray:
        value = np.asarray(self(node))
        if value.dtype.kind not in "biufc":
            raise self.refuse(f"expected an array of numbers, got {value.dtype}")
        return value

    def select(self, node: Made) -> np.ndarray:
        picks = self.numbers(self.field(node, "idxs"))
        self.take(picks.size * 8)
        array = self.numbers(self.field(node, "a")).reshape(-1)[picks]
        shape = node.state.get("preferred_shape")
        return array if shape is None else array.reshape(self(shape))

    def sparse(self, build: type, state: Any) -> Any:
        if not isinstance(state, dict) or not {"data", "indices", "indptr"} <= state.keys():
            raise self.refuse("a sparse matrix without its arrays")
        shape = self(state.get("_shape", state.get("shape")))
        data, indices, indptr = (self.numbers(state[k]) for k in ("data", "indices", "indptr"))
        try:
            return checked_sparse(build, data, indices, indptr, shape)
        except ValueError as e:
            raise self.refuse(str(e)) from None


def checked_sparse(build: type, data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, shape: Any) -> Any:
    """A CSC or CSR matrix (`build`) whose structure was checked, since scipy itself follows wrong indices out of its
    memory.

    Args:
        data: [E] numbers. indices: [E] row (CSC) or column (CSR) of each. indptr: [majors + 1]. shape: (rows, columns).

    Raises:
        ValueError: a length, an index or an order that cannot be.
    """
    shape = tuple(int(n) for n in np.asarray(shape).reshape(-1)) if shape is not None else ()
    if len(shape) != 2 or not all(0 <= n < 1 << 31 for n in shape):
        raise ValueError(f"sparse matrix: expected a shape (rows, columns), got {shape}")
    major, minor = shape if build is sp.csr_matrix else shape[::-1]
    if data.ndim != 1 or any(a.ndim != 1 or a.dtype.kind not in "iu" for a in (indices, indptr)):
        raise ValueError("sparse matrix: expected one-dimensional arrays and integer indices")
    steps, entries = indptr.astype(np.int64), indices.astype(np.int64)
    if len(steps) != major + 1 or steps[0] != 0 or (np.diff(steps) < 0).any():
        raise ValueError(f"sparse matrix: indptr must rise from 0 over {major + 1} values")
    if not len(data) == len(entries) == steps[-1]:
        raise ValueError(f"sparse matrix: {steps[-1]} entries by indptr, {len(entries)} indices, {len(data)} values")
    if len(entries) and (entries.min() < 0 or entries.max() >= minor):
        raise ValueError(f"sparse matrix: indices {entries.min()} .. {entries.max()}, expected 0 .. {minor - 1}")
    index = np.int32 if max(len(data), *shape) < 1 << 31 else np.int64
    return build((data, entries.astype(index), steps.astype(index)), shape=shape)


def _pairs(node: Made, args: tuple) -> list[tuple[Any, Any]]:
    """Items of an OrderedDict: Python 2 gives them as an argument, Python 3 afterwards."""
    given = args[0] if args and isinstance(args[0], list) else []
    return [(p[0], p[1]) for p in given if isinstance(p, (list, tuple)) and len(p) == 2] + node.items


def read_pickle(path: str | Path) -> Any:
    """Contents of a .pkl with every array as numpy and every sparse matrix as scipy.

    Raises:
        RefusedPickle: the file names anything but arrays (nothing has been run), or is damaged. FileNotFoundError,
        ValueError: no such file, or no regular one.
    """
    return loads(read_regular(path, MAX_FILE), Path(path).name)


def loads(data: bytes, source: str) -> Any:
    """Like read_pickle for pickled bytes (a member of a tar); `source` names them in errors."""
    tree, _ = parse(data, source)
    try:
        return Resolver(source, len(data))(tree)
    except RefusedPickle:
        raise
    except (ValueError, TypeError, AttributeError, IndexError, KeyError, OverflowError, MemoryError) as e:
        raise RefusedPickle(f"{source}: damaged pickle ({type(e).__name__}: {str(e)[:120]})") from None


def read_npz(path: str | Path, keys: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of an .npz, object arrays included, with the same restrictions as read_pickle.

    Args:
        keys: read only these (others are not looked at); None = all.

    Raises:
        KeyError: a key is missing. RefusedPickle: as read_pickle. zipfile.BadZipFile: no .npz.
    """
    path, out, total = Path(path), {}, 0
    with open_regular(path) as stream, _opened(stream) as archive:
        there = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
        for key in there if keys is None else keys:
            if key not in there:
                raise KeyError(f"{path.name}: no array {key!r}; there is {', '.join(there[:20])}")
            source = f"{path.name}[{key}]"
            data = unpack(archive, archive.getinfo(f"{key}.npy"), source)
            if (total := total + len(data)) > MAX_FILE:
                raise RefusedPickle(f"{path.name}: arrays of more than {MAX_FILE:,} bytes")
            out[key] = _read_npy(data, source)
    return out


def read_npy(path: str | Path) -> np.ndarray:
    """Array of an .npy, object arrays included, with the same restrictions as read_pickle.

    Raises:
        RefusedPickle: as read_pickle. FileNotFoundError, ValueError: no such file, or no regular one.
    """
    return _read_npy(read_regular(path, MAX_FILE), Path(path).name)


def _opened(stream: BinaryIO) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(stream)
    except (NotImplementedError, ValueError, OverflowError, OSError, struct.error) as e:  # damaged lists of members
        raise zipfile.BadZipFile(str(e)) from None


def unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, source: str) -> bytes:
    """A member's bytes; RefusedPickle for one that is damaged, or unpacks to more than data does."""
    limit = min(MAX_FILE, max(FREE_OF_RATIO, MAX_RATIO * member.compress_size))
    if member.file_size > limit:
        raise RefusedPickle(
            f"{source}: {member.compress_size:,} bytes that unpack to {member.file_size:,} are not read"
        )
    try:
        with archive.open(member) as stream:
            return stream.read(member.file_size)
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as e:
        raise RefusedPickle(f"{source}: damaged ({str(e)[:120]})") from None
    except Exception as e:  # zlib.error and what other decoders raise
        raise RefusedPickle(f"{source}: damaged ({type(e).__name__}: {str(e)[:120]})") from None


def _read_npy(data: bytes, source: str) -> np.ndarray:
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if header is None:
            raise ValueError(f".npy version {version} is not read here")
        shape, fortran, dtype = header(stream)
    except Exception as e:  # numpy's header reader also raises SyntaxError, TokenError, MemoryError ...
        said = " ".join(str(e).split())[:120]
        raise RefusedPickle(f"{source}: no .npy array ({said})") from None
    rest = data[stream.tell() :]
    if not dtype.hasobject:
        if dtype.itemsize * math.prod(shape) != len(rest) or (dtype.itemsize == 0 and math.prod(shape) > 1 << 20):
            raise RefusedPickle(f"{source}: an array {list(shape)} of {dtype} with {len(rest):,} bytes")
        if any(n < 0 for n in shape):
            raise RefusedPickle(f"{source}: an array {list(shape)}")
        return np.load(io.BytesIO(data), allow_pickle=False)
    value = loads(rest, source)
    if not isinstance(value, np.ndarray) or value.shape != shape:
        raise RefusedPickle(f"{source}: the header promises an object array {shape}, the pickle holds something else")
    return value
