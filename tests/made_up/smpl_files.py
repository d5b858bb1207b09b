"""Licence-free stand-ins for the SMPL model and topology files: layout of the official ones, geometry of the free
body."""

from __future__ import annotations

import pickle

import numpy as np
import scipy.sparse as sp

from tore_fast.body import load_body
from tore_fast.geometry.skeleton import SMPL24


def write_topology(folder) -> None:
    """mesh_sampling_plain.npz and J_regressor_h36m_correct.npy."""
    body = load_body("free")
    h = body.hierarchy
    arrays = {f"smpl_F{i}": f for i, f in enumerate(h.faces)}
    for i, (up, picks) in enumerate(zip(h.ups, h.picks)):
        down = sp.csr_matrix((np.ones(len(picks)), (np.arange(len(picks)), picks)), shape=(len(picks), h.counts[i]))
        for key, m in ((f"smpl_U{i}", sp.csr_matrix(up)), (f"smpl_D{i}", down)):
            arrays |= {
                f"{key}_indptr": m.indptr,
                f"{key}_indices": m.indices,
                f"{key}_data": m.data,
                f"{key}_shape": m.shape,
            }
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "mesh_sampling_plain.npz", **arrays)
    np.save(folder / "J_regressor_h36m_correct.npy", body.topology.regressor("h36m17").astype(np.float64))


def write_smpl(folder, gender: str = "NEUTRAL", stretch: float = 1.0) -> None:
    """SMPL_<gender>.pkl: the free body as a SMPL file, `stretch` times as large."""
    body = load_body("free")
    count = len(body.template)
    fields = {
        "v_template": stretch * body.template.double().numpy(),
        "shapedirs": stretch * body.shape_dirs.double().numpy(),
        "posedirs": np.zeros((count, 3, 207)),
        "J_regressor": sp.csc_matrix(body.topology.regressor("smpl24").astype(np.float64)),
        "weights": body.weights.double().numpy(),
        "kintree_table": np.stack(
            [np.where(np.array(SMPL24.parents) < 0, 2**32 - 1, SMPL24.parents), np.arange(24)]
        ).astype(np.uint32),
        "f": body.faces().astype(np.uint32),
        "bs_style": "lbs",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"SMPL_{gender}.pkl").write_bytes(pickle.dumps(fields, protocol=2))
