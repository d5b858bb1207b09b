"""Adapters for files under the SMPL and MANO licences, which users bring themselves.

In: model files (.pkl, .npz) and the public topology files of METRO, FastMETRO and Mesh Graphormer; out:
BodyTopology and Body. Nothing is downloaded, no pickle is executed (safe_pickle.py).
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from ..geometry.skeleton import MANO16, MANO21_TO_HAND21, MANO_FINGERTIPS, SMPL24, SMPL38_TO_J24
from ..io.safe_pickle import read_npy, read_npz, read_pickle
from .body import Body, BodyTopology
from .hierarchy import MeshHierarchy, build_hierarchy, check_sparse, index_array

LEVELS = {"smpl": (6890, 1723, 431), "mano": (778, 195)}
_SAMPLING = {"smpl": "mesh_downsampling.npz", "mano": "mano_downsampling.npz"}
_REGRESSORS = {"smpl": {"h36m17": "J_regressor_h36m_correct.npy", "extra14": "J_regressor_extra.npy"}, "mano": {}}
_MODEL_FILES = {
    "smpl": (  # smplx's names, SMPLify's, and those of the current download (SMPL_python_v.1.1.0)
        "SMPL_NEUTRAL.pkl",
        "SMPL_NEUTRAL.npz",
        "basicModel_neutral_lbs_10_207_0_v1.0.0.pkl",
        "basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl",
    ),
    "mano": ("MANO_RIGHT.pkl", "MANO_RIGHT.npz"),
}
_MODEL_SOURCES = {
    "smpl": "SMPL is licensed for research: register at the SMPL page of MPI for Intelligent Systems (SMPLify holds "
    "the neutral file)",
    "mano": "MANO is licensed for research: register at the MANO page of MPI for Intelligent Systems",
}
_TOPOLOGY_SOURCE = "the METRO and FastMETRO projects have these files in their folder src/modeling/data"
_FIT_BODIES, _FIT_SPREAD = (300, 0.35)  # random poses (radians per axis) behind the up-sampling of a bare model file


def _check_name(function: str, name: str) -> None:
    if name not in LEVELS:
        raise ValueError(f"{function}: name must be 'smpl' or 'mano', got {name!r}")


def mesh_data_folder(given: str | Path | None = None) -> str | Path | None:
    """Folder of the SMPL and MANO topology files: the given one, else $TORE_FAST_MESH_DATA, else None."""
    return given or os.environ.get("TORE_FAST_MESH_DATA") or None


def load_topology(name: str, folder: str | Path) -> BodyTopology:
    """Mesh hierarchy and joint regressors of SMPL or MANO from the topology files alone.

    Args:
        name: "smpl" (6890 -> 1723 -> 431) or "mano" (778 -> 195).
        folder: holds `mesh_sampling_plain.npz`, or `mesh_downsampling.npz` ("mano": `mano_downsampling.npz`)
            as the official repositories have them; where present also `J_regressor_h36m_correct.npy` (->
            "h36m17"), `J_regressor_extra.npy` (-> "extra14"), `smpl_1723_faces.npy` (-> loss_faces[1]).

    Raises:
        ValueError: unknown name, another file under that name, counts that are not SMPL's or MANO's.
        FileNotFoundError: no sampling file.
    """
    _check_name("load_topology", name)
    folder = Path(folder)
    plain, sampling = folder / "mesh_sampling_plain.npz", folder / _SAMPLING[name]
    file = next((f for f in (plain, sampling) if f.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"load_topology({name!r}): neither {plain.name} nor {sampling.name} in {folder}; {_TOPOLOGY_SOURCE}"
        )
    try:
        hierarchy = (_plain_hierarchy if file == plain else _pickled_hierarchy)(name, file)
    except (KeyError, IndexError, TypeError, AttributeError, zipfile.BadZipFile) as e:
        said = e.args[0] if e.args else type(e).__name__
        raise ValueError(f"{file}: not the mesh sampling file of {name.upper()} ({said})") from None
    if hierarchy.counts != LEVELS[name]:
        raise ValueError(
            f"load_topology({name!r}): expected {LEVELS[name]} vertices, the files have {hierarchy.counts}"
        )
    regressors = {}
    for key, regressor in _REGRESSORS[name].items():
        if (folder / regressor).is_file():
            matrix = read_npy(folder / regressor)
            if matrix.ndim != 2 or matrix.shape[1] != LEVELS[name][0]:
                raise ValueError(f"{regressor}: expected [K, {LEVELS[name][0]}], got {list(matrix.shape)}")
            regressors[key] = sp.csr_matrix(matrix)
    loss_faces, file = {}, folder / "smpl_1723_faces.npy"
    if name == "smpl" and file.is_file():
        loss_faces[1] = index_array(str(file), read_npy(file))
    return BodyTopology(name, hierarchy, regressors, loss_faces)


def _picks(down: sp.spmatrix) -> np.ndarray:
    down = sp.csr_matrix(down)
    down.eliminate_zeros()
    if (np.diff(down.indptr) != 1).any() or not np.allclose(down.data, 1):
        raise ValueError("down-sampling matrix: every row must have a single 1 (a kept vertex)")
    return down.indices.astype(np.int32)


def _plain_hierarchy(name: str, path: Path) -> MeshHierarchy:
    with np.load(path, allow_pickle=False) as z:

        def csr(key: Any) -> Any:
            parts = (z[f"{key}_data"], z[f"{key}_indices"], z[f"{key}_indptr"])
            matrix = sp.csr_matrix(parts, shape=tuple(z[f"{key}_shape"]))
            check_sparse(f"{path}: {key}", matrix)
            return matrix

        steps = range(len(LEVELS[name]) - 1)
        faces = tuple(index_array(f"{path}: {name}_F{i}", z[f"{name}_F{i}"]) for i in range(len(LEVELS[name])))
        return MeshHierarchy(
            faces,
            tuple(_picks(csr(f"{name}_D{i}")) for i in steps),
            tuple(csr(f"{name}_U{i}").astype(np.float64) for i in steps),
        )


def _pickled_hierarchy(name: str, path: Path) -> MeshHierarchy:
    data, levels = read_npz(path, ("U", "D", "F")), len(LEVELS[name])
    faces = tuple(index_array(f"{path}: F", f) for f in data["F"][:levels])
    for key in ("U", "D"):
        for matrix in data[key][: levels - 1]:
            check_sparse(f"{path}: {key}", matrix)
    picks = tuple(_picks(d) for d in data["D"][: levels - 1])
    return MeshHierarchy(faces, picks, tuple(sp.csr_matrix(u) for u in data["U"][: levels - 1]))


def load_model(
    name: str,
    path: str | Path,
    topology: str | Path | BodyTopology | None = None,
    num_betas: int = 10,
    flat_hand_mean: bool = False,
) -> Body:
    """SMPL or MANO from an official model file.

    Args:
        path: the .pkl or .npz, or a folder with it under its official name.
        topology: folder for load_topology (or its result); None = a hierarchy of our own by decimation, with
            up-sampling fitted to random poses (some seconds).
        flat_hand_mean: MANO: zero pose is the flat hand instead of the mean hand (as in smplx).

    Raises:
        FileNotFoundError: no model file. ValueError: a field is missing or misshapen, or (RefusedPickle) the pickle
        holds more than arrays.
    """
    _check_name("load_body", name)
    file = _find_model(name, Path(path))
    try:
        raw = read_npz(file) if file.suffix == ".npz" else read_pickle(file)
    except zipfile.BadZipFile as e:
        raise ValueError(f"{file}: not an .npz file ({e})") from None
    count, bones = LEVELS[name][0], 24 if name == "smpl" else 16

    def get(key: str, *shape: int | None) -> np.ndarray:
        if not isinstance(raw, dict) or key not in raw:
            raise ValueError(f"{file.name}: no field {key!r}; is this an official {name.upper()} model file?")
        given: Any = raw[key]
        value = given.toarray() if sp.issparse(given) else np.asarray(given)
        if value.ndim != len(shape) or any(w is not None and w != g for w, g in zip(shape, value.shape)):
            raise ValueError(f"{file.name}: {key} must be {[w or 'any' for w in shape]}, got {list(value.shape)}")
        return value.astype(np.float64)

    template, weights = get("v_template", count, 3), get("weights", count, bones)
    shape_dirs = get("shapedirs", count, 3, None)[..., :num_betas]
    pose_dirs = get("posedirs", count, 3, 9 * (bones - 1)).reshape(count * 3, -1).T
    regressor, faces = get("J_regressor", bones, count), get("f", None, 3).astype(np.int32)
    parents = get("kintree_table", 2, bones)[0].astype(np.int64)
    if tuple(parents[1:]) != (SMPL24.parents if name == "smpl" else MANO16.parents)[1:]:
        raise ValueError(f"{file.name}: kintree_table is not {name.upper()}'s tree")
    mean = np.zeros((bones, 3))
    if name == "mano" and not flat_hand_mean:
        mean[1:] = get("hands_mean", 45).reshape(15, 3)

    def make(topology: BodyTopology) -> Body:
        return Body(
            topology,
            template=template,
            shape_dirs=shape_dirs,
            weights=weights,
            joints=regressor @ template,
            joint_dirs=np.einsum("jv,vcs->jcs", regressor, shape_dirs),
            joint_names=(SMPL24 if name == "smpl" else MANO16).names,
            parents=(-1, *parents[1:]),
            pose_dirs=pose_dirs,
            pose_mean=mean if mean.any() else None,
        )

    if topology is None:
        hierarchy = _own_hierarchy(make, template, faces, LEVELS[name][1:])
        topology = BodyTopology(name, hierarchy)
    elif not isinstance(topology, BodyTopology):
        topology = load_topology(name, topology)
    regressors = {**topology.regressors, **_model_regressors(name, regressor, topology)}
    return make(BodyTopology(name, topology.hierarchy, regressors, topology.loss_faces))


def _find_model(name: str, path: Path) -> Path:
    if path.is_file():
        return path
    for sub in (path, path / name, path / "models", path / name / "models"):
        for file in _MODEL_FILES[name]:
            if (sub / file).is_file():
                return sub / file
    raise FileNotFoundError(
        f"load_body({name!r}): {path} is neither a model file nor a folder with one of "
        f"{', '.join(_MODEL_FILES[name])}. "
        f"{_MODEL_SOURCES[name]}"
    )


def _model_regressors(name: str, regressor: np.ndarray, topology: BodyTopology) -> dict[str, sp.csr_matrix]:
    own = sp.csr_matrix(regressor)
    if name == "mano":
        tips = sp.csr_matrix((np.ones(5), (np.arange(5), MANO_FINGERTIPS)), shape=(5, own.shape[1]))
        return {"mano16": own, "hand21": sp.vstack([own, tips]).tocsr()[list(MANO21_TO_HAND21)]}
    if "extra14" not in topology.regressors:
        return {"smpl24": own}
    return {"smpl24": own, "j24": sp.vstack([own, topology.regressors["extra14"]]).tocsr()[list(SMPL38_TO_J24)]}


def _own_hierarchy(make: Callable, template: np.ndarray, faces: np.ndarray, counts: tuple[int, ...]) -> MeshHierarchy:
    body = make(BodyTopology("bare", MeshHierarchy((faces,), (), ())))
    g = torch.Generator().manual_seed(0)
    pose = torch.randn(_FIT_BODIES, body.num_joints, 3, generator=g) * _FIT_SPREAD
    betas = torch.randn(_FIT_BODIES, body.num_betas, generator=g).clamp(-2.5, 2.5)
    with torch.no_grad():
        samples = np.concatenate([body(p, b).vertices.numpy() for p, b in zip(pose.split(25), betas.split(25))])
    return build_hierarchy(template, faces, counts, samples)
