"""The baked licence-free bodies: how tools/bake/body.py packs them and how they are read back.

In: assets/free_body.npz, assets/free_hand.npz; out: plain float arrays for body.py and a MeshHierarchy.
Packing (0.5 MB instead of 2): metres in fixed point, along the vertex order as differences (neighbours in the
file are neighbours on the body, so differences deflate well); up-sampling and skin weights in 1/4096 and
1/255.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from ..io.atomic import write_arrays
from .hierarchy import MeshHierarchy

FOLDER = Path(__file__).resolve().parent / "assets"
_UP_STEP = 1 / 4096
_TEMPLATE_STEP, _SHAPE_STEP = 4e-5, 4e-5  # metres
_FORMAT = 1


def _pack_metres(x: np.ndarray, step: float) -> np.ndarray:
    whole = np.rint(x.reshape(len(x), -1) / step).astype(np.int64)
    if np.abs(whole).max() > 32767:
        raise ValueError(f"pack: {np.abs(whole).max() * step:.3f} m does not fit int16 at {step} m a unit")
    diff = np.diff(whole, axis=0, prepend=0)  # modulo 2^16: the running sum wraps back
    return np.ascontiguousarray(diff.T.astype(np.int16))  # one coordinate after the other


def _unpack_metres(packed: np.ndarray, step: float) -> np.ndarray:
    return np.cumsum(packed, axis=1, dtype=np.int16).T * step


def _pack_up(up: sp.csr_matrix, pick: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    free = np.setdiff1d(np.arange(up.shape[0]), pick)
    rows = up[free]
    width = np.diff(rows.indptr)
    if len(set(width)) != 1:
        raise ValueError("pack: rows of the up-sampling matrix must all have the same length")
    cols, data = rows.indices.reshape(len(free), -1), rows.data.reshape(len(free), -1)
    whole = np.rint(data / _UP_STEP).astype(np.int64)
    largest = np.abs(whole).argmax(1)
    whole[np.arange(len(free)), largest] += round(1 / _UP_STEP) - whole.sum(1)  # rows sum to one exactly
    return np.diff(cols, axis=1, prepend=0).T.astype(np.uint16), whole.T.astype(np.int16)


def _unpack_up(cols: np.ndarray, whole: np.ndarray, pick: np.ndarray, count: int) -> sp.csr_matrix:
    cols = np.cumsum(cols.astype(np.int64), axis=0).T
    free = np.setdiff1d(np.arange(count), pick)
    rows = np.concatenate([pick, np.repeat(free, cols.shape[1])])
    data = np.concatenate([np.ones(len(pick)), whole.T.reshape(-1) * _UP_STEP])
    m = sp.csr_matrix(
        (data, (rows, np.concatenate([np.arange(len(pick)), cols.reshape(-1)]))), shape=(count, len(pick))
    )
    m.sort_indices()
    return m


def save(
    path: Path,
    *,
    template: Any,
    shape_dirs: Any,
    joints: Any,
    joint_dirs: Any,
    weights: Any,
    hierarchy: Any,
    regressors: Any,
    parts: Any,
    meta: Any,
) -> None:
    """Packs one body; arguments as `load` returns them. `weights` may have at most four non-zeros a row."""
    count = len(template)
    index = np.argsort(-weights, axis=1, kind="stable")[:, :4]
    value = np.rint(np.take_along_axis(weights, index, 1) * 255).astype(np.int64)
    value[:, 0] += 255 - value.sum(1)
    index[value == 0] = 0
    arrays = {
        "template": _pack_metres(template, _TEMPLATE_STEP),
        "shape_dirs": _pack_metres(shape_dirs, _SHAPE_STEP),
        "joints": joints.astype(np.float32),
        "joint_dirs": joint_dirs.astype(np.float32),
        "weight_index": index.T.astype(np.uint8),
        "weight_value": value.T.astype(np.uint8),
        "parts": parts.astype(np.uint8),
    }
    for level, faces in enumerate(hierarchy.faces):
        arrays[f"faces{level}"] = faces.astype(np.uint16).T
    for level, (pick, up) in enumerate(zip(hierarchy.picks, hierarchy.ups)):
        arrays[f"pick{level}"] = pick.astype(np.uint16)
        arrays[f"up{level}_cols"], arrays[f"up{level}_values"] = _pack_up(up, pick)
    for name, matrix in regressors.items():
        m = sp.csr_matrix(matrix)
        arrays[f"regressor_{name}_ptr"] = m.indptr.astype(np.uint16)
        arrays[f"regressor_{name}_cols"] = m.indices.astype(np.uint16)
        arrays[f"regressor_{name}_values"] = m.data.astype(np.float32)
    text = json.dumps({**meta, "format": _FORMAT, "vertices": count, "regressors": list(regressors)}, sort_keys=True)
    arrays["meta"] = np.frombuffer(text.encode(), np.uint8)
    write_arrays(path, arrays, compressed=True)


def load(path: Path) -> dict:
    """Unpacks one baked body.

    Returns a dict: template [V, 3], shape_dirs [V, 3, S], joints [J, 3], joint_dirs [J, 3, S], weights [V, J]
    (all float64, metres), parts [V] uint8, hierarchy, regressors {name: csr [K, V]}, meta (names, parents,
    ...).
    """
    with np.load(path, allow_pickle=False) as file:
        a = {k: file[k] for k in file.files}
    meta = json.loads(bytes(a["meta"]))
    if meta.get("format") != _FORMAT:
        raise ValueError(f"{path.name}: format {meta.get('format')}, this version of tore_fast reads {_FORMAT}")
    count, joints = meta["vertices"], len(a["joints"])
    weights = np.zeros((count, joints))
    np.add.at(weights, (np.arange(count)[:, None], a["weight_index"].T), a["weight_value"].T / 255.0)
    levels = sum(k.startswith("pick") for k in a)
    faces = tuple(np.ascontiguousarray(a[f"faces{i}"].T.astype(np.int32)) for i in range(levels + 1))
    picks = tuple(a[f"pick{i}"].astype(np.int32) for i in range(levels))
    sizes = (count, *(len(p) for p in picks))
    ups = tuple(_unpack_up(a[f"up{i}_cols"], a[f"up{i}_values"], picks[i], sizes[i]) for i in range(levels))
    regressors = {
        name: sp.csr_matrix(
            (a[f"regressor_{name}_values"].astype(np.float64), a[f"regressor_{name}_cols"], a[f"regressor_{name}_ptr"]),
            shape=(len(a[f"regressor_{name}_ptr"]) - 1, count),
        )
        for name in meta["regressors"]
    }
    return {
        "template": _unpack_metres(a["template"], _TEMPLATE_STEP),
        "shape_dirs": _unpack_metres(a["shape_dirs"], _SHAPE_STEP).reshape(count, 3, -1),
        "joints": a["joints"].astype(np.float64),
        "joint_dirs": a["joint_dirs"].astype(np.float64),
        "weights": weights,
        "parts": a["parts"],
        "hierarchy": MeshHierarchy(faces, picks, ups),
        "regressors": regressors,
        "meta": meta,
    }
