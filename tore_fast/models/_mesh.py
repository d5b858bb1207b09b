"""The mesh a model regresses: coarse adjacency, up-sampling matrices, rest template.

In: a name ("free_body", "free_hand", "smpl", "mano"), or arrays of one's own; out: what the models of this folder hold as
buffers. SMPL and MANO topologies are licence-bound and come from the user's folder (argument or $TORE_FAST_MESH_DATA).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch

from ..ops import MeshTopology, mesh_topology

MESH_NAMES = ("free_body", "free_hand", "smpl", "mano")


@dataclass(frozen=True, eq=False)
class ModelMesh:
    """One nested mesh as a model needs it."""

    adjacency: sp.csr_matrix  # [V, V] coarse level with self loops, every row averaged
    ups: tuple[sp.csr_matrix, ...]  # coarse to fine, e.g. (1723 x 431, 6890 x 1723)
    template_joints: np.ndarray | None = None  # [J, 3] rest pose, metres, centred on pelvis or wrist, y down
    template_vertices: np.ndarray | None = None  # [V, 3] coarse, same frame

    def __post_init__(self):
        v = self.adjacency.shape[0]
        for up in self.ups:
            if up.shape[1] != v:
                raise ValueError(f"ModelMesh: an up-sampling matrix {up.shape} does not fit {v} vertices")
            v = up.shape[0]

    @property
    def counts(self) -> tuple[int, ...]:
        """Vertices per level, coarse to fine: (431, 1723, 6890)."""
        return (self.adjacency.shape[0], *(up.shape[0] for up in self.ups))

    def topology(self, joints: int) -> MeshTopology:
        return mesh_topology(self.adjacency, joints)

    def template(self) -> torch.Tensor:  # [J + V, 3]
        """Rest joints, then rest coarse vertices: the queries of METRO and Mesh Graphormer."""
        if self.template_joints is None or self.template_vertices is None:
            raise ValueError(
                "this mesh has no rest template, which METRO and Mesh Graphormer need as queries: give template_joints "
                "[J, 3] and template_vertices [V, 3] (SMPL: the rest mesh of the user's model file)"
            )
        both = np.concatenate([self.template_joints, self.template_vertices]).astype(np.float32)
        return torch.from_numpy(both)


def resolve_mesh(mesh: str | ModelMesh, folder: str | Path | None = None) -> ModelMesh:
    """ModelMesh by name; a ModelMesh passes through."""
    if isinstance(mesh, ModelMesh):
        return mesh
    if mesh not in MESH_NAMES:
        raise ValueError(f"mesh must be one of {MESH_NAMES} or a ModelMesh, got {mesh!r}")
    if mesh.startswith("free"):
        return _free_mesh(mesh)
    folder = folder or os.environ.get("TORE_FAST_MESH_DATA")
    if not folder:
        raise ValueError(
            f"mesh={mesh!r} needs the topology files of the official repositories, which cannot be shipped: "
            "pass mesh_data=FOLDER or set TORE_FAST_MESH_DATA (or use the free mesh)"
        )
    return official_mesh(mesh, Path(folder))


def _free_mesh(name: str) -> ModelMesh:
    raise NotImplementedError("free body not there yet")


def official_mesh(kind: str, folder: Path) -> ModelMesh:
    """Topology of SMPL (6890 -> 1723 -> 431) or MANO (778 -> 195) without a template."""
    plain = folder / "mesh_sampling_plain.npz"
    if not plain.is_file():
        raise FileNotFoundError(f"{folder}: no {plain.name}")
    with np.load(plain, allow_pickle=False) as f:
        def csr(name: str) -> sp.csr_matrix:
            return sp.csr_matrix((f[f"{name}_data"], f[f"{name}_indices"], f[f"{name}_indptr"]), shape=f[f"{name}_shape"])

        ups = (csr("smpl_U1"), csr("smpl_U0")) if kind == "smpl" else (csr("mano_U0"),)
        faces = f["smpl_F2"] if kind == "smpl" else f["mano_F1"]
    v = ups[0].shape[1]
    i, j = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).T.astype(np.int64)
    a = sp.csr_matrix((np.ones(2 * len(i)), (np.r_[i, j], np.r_[j, i])), shape=(v, v))
    a = (a != 0).astype(np.float64) + sp.identity(v, format="csr")
    return ModelMesh(sp.csr_matrix(sp.diags(1 / np.asarray(a.sum(1)).ravel()) @ a), ups)
