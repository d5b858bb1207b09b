"""Data files of the field that hold pickled dictionaries of arrays, read without running any code they might contain.

In: a .pkl file, or an object array inside an .npz. Out: dicts, lists, strings, numbers and numpy arrays; a file that refers
to anything else is refused by name. Used by data/h36m.py.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_SCALAR = np.float64(0).__reduce__()[0]
_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, encoding: text.encode(encoding if encoding == "latin1" else "ascii"),
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _RECONSTRUCT for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _SCALAR for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): lambda data, dtype, shape, order: np.frombuffer(data, dtype).reshape(shape, order=order)
       for core in ("core", "_core")},  # protocol 5
    **{(m, n): v for m in ("builtins", "__builtin__") for n, v in (("set", set), ("list", list), ("dict", dict), ("slice", slice))},
    ("collections", "OrderedDict"): dict,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not plain data")
        return _ALLOWED[module, name]


def _load(file: BinaryIO, what: str):
    try:
        return _Reader(file, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{what}: cannot be read as plain data: {e}") from e


def read_pickle(path: str | Path):
    """Content of a .pkl file of plain data."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as f:
        return _load(f, str(path))


def loads(data: bytes, what: str):
    """The plain data in pickled bytes; `what` names them in errors."""
    return _load(io.BytesIO(data), what)


def read_npz(path: str | Path) -> dict:
    """All members of an .npz; zero-dimensional object arrays come back as the object they hold."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    out = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as f:
                    out[member.removesuffix(".npy")] = _read_npy(f, f"{path}:{member}")
    except zipfile.BadZipFile as e:
        raise ValueError(f"{path}: not an npz file ({e})") from e
    return out


def _read_npy(file: BinaryIO, what: str):
    try:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(file)
    except ValueError as e:
        raise ValueError(f"{what}: not an array ({e})") from e
    if not dtype.hasobject:
        data = np.frombuffer(file.read(), dtype=dtype, count=int(np.prod(shape, dtype=np.int64))).copy()
        return data.reshape(shape[::-1]).T if fortran else data.reshape(shape)
    array = _load(file, what)
    return array.item() if isinstance(array, np.ndarray) and array.shape == () else array
