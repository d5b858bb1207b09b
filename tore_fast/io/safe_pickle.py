"""Reads the pickles that SMPL, MANO and mesh-sampling files are made of, without running anything they say.

In: .pkl and .npz (with object arrays) from third parties; out: numpy arrays and scipy matrices for
official.py. Only numpy arrays, dtypes and scalars, scipy CSC/CSR matrices and the array inside chumpy objects
are rebuilt; any other class or function named by the file stops the reading. chumpy is not needed.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import scipy.sparse as sp

try:  # numpy 2 moved it; both names occur in files
    from numpy._core import multiarray as _multiarray
except ImportError:
    from numpy.core import multiarray as _multiarray

_SPARSE = {"csc_matrix": sp.csc_matrix, "csr_matrix": sp.csr_matrix}
_CHUMPY = {("chumpy.ch", "Ch"), ("chumpy.reordering", "Select")}


class RefusedPickle(pickle.UnpicklingError, ValueError):
    """The file holds something else than arrays, or is damaged; nothing of it has been run."""


class _Payload:
    """State of an object whose class is known by name only."""

    kind = ""

    def __setstate__(self, state):
        self.state = state


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream, source: str):
        super().__init__(stream, encoding="latin1")
        self._source = source
        self._classes: dict[tuple[str, str], object] = {}  # made anew for every file

    def find_class(self, module: str, name: str):
        key = (module, name)
        if key not in self._classes:
            self._classes[key] = self._resolve(module, name)
        return self._classes[key]

    def _resolve(self, module: str, name: str):
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray"):
            if name == "ndarray":
                return np.ndarray
            if name == "dtype":
                return np.dtype
            if name in ("_reconstruct", "scalar") and module != "numpy":
                return getattr(_multiarray, name)
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":  # protocol 5
            return lambda data, dtype, shape, order: np.frombuffer(data, dtype).reshape(shape, order=order)
        if (
            module in ("scipy.sparse.csc", "scipy.sparse._csc", "scipy.sparse.csr", "scipy.sparse._csr")
            and name in _SPARSE
        ):
            return type("_SparsePayload", (_Payload,), {"kind": name})
        if (module, name) in _CHUMPY:
            return type("_ChumpyPayload", (_Payload,), {"kind": f"chumpy {name}"})
        if (module, name) in (("copy_reg", "_reconstructor"), ("copyreg", "_reconstructor")):
            return lambda cls, base, state: _new_payload(cls, self._source)
        if (module, name) in (("__builtin__", "object"), ("builtins", "object")):
            return _Payload  # only ever the base class handed to _reconstructor
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text.encode("latin1")  # how Python 3 writes bytes into protocol 2
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module in ("__builtin__", "builtins") and name in ("set", "frozenset"):  # chumpy's bookkeeping
            return {"set": set, "frozenset": frozenset}[name]
        raise RefusedPickle(
            f"{self._source}: refused to load {module}.{name}; only numpy arrays, scipy csc/csr matrices and "
            "chumpy arrays are read from pickles"
        )


def _new_payload(cls, source: str):
    if not (isinstance(cls, type) and issubclass(cls, _Payload)):
        raise RefusedPickle(f"{source}: refused to construct {cls!r}")
    return cls()


def _plain(x, source: str):
    """Payloads inside containers and object arrays become arrays and matrices."""
    if isinstance(x, dict):
        return {k: _plain(v, source) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return type(x)(_plain(v, source) for v in x)
    if isinstance(x, np.ndarray) and x.dtype == object:
        out = np.empty(x.shape, object)
        for i, v in np.ndenumerate(x):
            out[i] = _plain(v, source)
        return out
    if not isinstance(x, _Payload):
        return x
    state = getattr(x, "state", None)
    if not isinstance(state, dict):
        raise RefusedPickle(f"{source}: {x.kind} without a state")
    try:
        if x.kind in _SPARSE:
            shape = state.get("_shape", state.get("shape"))
            return _SPARSE[x.kind]((state["data"], state["indices"], state["indptr"]), shape=shape)
        if x.kind == "chumpy Ch":
            return np.asarray(_plain(state["x"], source))
        array = np.asarray(_plain(state["a"], source)).reshape(-1)[np.asarray(state["idxs"])]
        return array if state.get("preferred_shape") is None else array.reshape(state["preferred_shape"])
    except KeyError as e:
        raise RefusedPickle(f"{source}: {x.kind} without its field {e}") from None


def read_pickle(path: str | Path) -> dict:
    """Contents of a .pkl with every array as numpy and every sparse matrix as scipy.

    Raises:
        RefusedPickle: the file names anything but arrays (nothing has been run), or is damaged.
    """
    path = Path(path)
    with open(path, "rb") as stream:
        return _load(stream, path.name)


def loads(data: bytes, source: str):
    """Like read_pickle for pickled bytes (a member of a tar); `source` names them in errors."""
    return _load(io.BytesIO(data), source)


def _load(stream, source: str):
    try:
        return _plain(_Unpickler(stream, source).load(), source)
    except pickle.UnpicklingError as e:
        raise e if source in str(e) else RefusedPickle(f"{source}: {e}") from None
    except (EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError) as e:
        raise RefusedPickle(f"{source}: damaged pickle ({type(e).__name__}: {e})") from None


def read_npz(path: str | Path, keys: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of an .npz, object arrays included, with the same restrictions as read_pickle.

    Args:
        keys: read only these (others are not looked at); None = all.

    Raises:
        KeyError: a key is missing. RefusedPickle: as read_pickle.
    """
    path, out = Path(path), {}
    with zipfile.ZipFile(path) as archive:
        there = [n.removesuffix(".npy") for n in archive.namelist()]
        for key in there if keys is None else keys:
            if key not in there:
                raise KeyError(f"{path.name}: no array {key!r}; there is {', '.join(there)}")
            out[key] = _read_npy(archive.read(f"{key}.npy"), f"{path.name}[{key}]")
    return out


def _read_npy(data: bytes, source: str) -> np.ndarray:
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if header is None:
        raise ValueError(f"{source}: .npy version {version} is not read here")
    shape, _, dtype = header(stream)
    if not dtype.hasobject:
        return np.load(io.BytesIO(data), allow_pickle=False)
    value = _load(stream, source)
    if not isinstance(value, np.ndarray) or value.shape != shape:
        raise RefusedPickle(f"{source}: the header promises an object array {shape}, the pickle holds something else")
    return value
