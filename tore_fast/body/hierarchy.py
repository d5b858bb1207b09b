"""A mesh at several resolutions: faces per level, vertex picks downwards, sparse matrices upwards.

In: official matrices (official.py), the baked assets (assets.py) or any template (build_hierarchy); out:
CsrMatrix for ops.mesh_upsample, MeshTopology for ops.mesh_attention, edges for losses. Level 0 is the finest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ..ops import CsrMatrix, MeshTopology, csr_matrix, mesh_topology
from .decimate import decimate
from .fit_upsampling import barycentric_upsampling, fit_upsampling


def check_sparse(what: str, matrix: sp.spmatrix) -> None:
    """ValueError unless every index of a CSR or CSC matrix lies inside it: scipy looks only when asked to."""
    try:
        matrix.check_format(full_check=True)
    except (ValueError, AttributeError, TypeError) as e:
        raise ValueError(f"{what}: {e}") from None


def index_array(what: str, values: np.ndarray) -> np.ndarray:
    """`values` as int32; ValueError where one is no whole number that int32 holds (a cast would make it another)."""
    values = np.asarray(values)
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all() or (values != np.floor(values)).any():
        raise ValueError(f"{what}: expected whole numbers, got {values.dtype}")
    if values.size and (values.min() < -(2**31) or values.max() >= 2**31):
        raise ValueError(f"{what}: {values.min()}..{values.max()} are no vertex indices")
    return values.astype(np.int32)


@dataclass(frozen=True)
class MeshHierarchy:
    """Faces, picks and up-sampling matrices of L nested meshes; 6890 -> 1723 -> 431 for a body."""

    faces: tuple[np.ndarray, ...]  # L x [F_l, 3] int32
    picks: tuple[np.ndarray, ...]  # (L - 1) x [V_{l+1}] int32: the vertices of level l that level l + 1 keeps
    ups: tuple[sp.csr_matrix, ...]  # (L - 1) x [V_l, V_{l+1}] float

    def __post_init__(self) -> None:
        if not len(self.faces) - 1 == len(self.picks) == len(self.ups):
            raise ValueError(
                f"MeshHierarchy: {len(self.faces)} face lists need one pick list and one up matrix less, got "
                f"{len(self.picks)} and {len(self.ups)}"
            )
        for level, (pick, up) in enumerate(zip(self.picks, self.ups)):
            check_sparse(f"MeshHierarchy: up matrix of level {level}", up)
            if len(pick) and pick.min() < 0:
                raise ValueError(f"MeshHierarchy: level {level}: picks name vertex {pick.min()}")
            if up.shape[1] != len(pick) or (len(pick) and pick.max() >= up.shape[0]):
                raise ValueError(f"MeshHierarchy: level {level}: {len(pick)} picks do not fit the up matrix {up.shape}")
        for level, faces in enumerate(self.faces):
            if faces.size and faces.min() < 0:
                raise ValueError(f"MeshHierarchy: level {level}: its faces name vertex {faces.min()}")
            if faces.size and faces.max() >= self.num_vertices(level):
                raise ValueError(
                    f"MeshHierarchy: level {level} has {self.num_vertices(level)} vertices, its faces name "
                    f"vertex {faces.max()}"
                )

    @property
    def num_levels(self) -> int:
        return len(self.faces)

    @property
    def counts(self) -> tuple[int, ...]:
        """Vertices per level, finest first."""
        return tuple(self.num_vertices(level) for level in range(self.num_levels))

    def num_vertices(self, level: int = 0) -> int:
        if level == 0:
            return self.ups[0].shape[0] if self.ups else int(self.faces[0].max()) + 1
        return self.ups[level - 1].shape[1]

    def vertex_index(self, level: int, fine: int = 0) -> np.ndarray:  # [V_level] int64
        """Where the vertices of a coarse level are in a finer one: coarse = fine_vertices[:,
        vertex_index]."""
        if not 0 <= fine <= level < self.num_levels:
            raise ValueError(f"vertex_index: need 0 <= fine <= level < {self.num_levels}, got {fine=}, {level=}")
        index = np.arange(self.num_vertices(level))
        for pick in reversed(self.picks[fine:level]):
            index = pick[index].astype(np.int64)
        return index

    def up_matrix(self, coarse: int, fine: int = 0) -> sp.csr_matrix:  # [V_fine, V_coarse]
        """Product of the up-sampling matrices between two levels, as scipy CSR (float64)."""
        if not 0 <= fine <= coarse < self.num_levels:
            raise ValueError(f"up_matrix: need 0 <= fine <= coarse < {self.num_levels}, got {fine=}, {coarse=}")
        matrix = sp.identity(self.num_vertices(fine), format="csr")
        for up in self.ups[fine:coarse]:
            matrix = (matrix @ up).tocsr()
        return matrix

    def up(self, level: int) -> CsrMatrix:
        """The matrix from level + 1 to level, for ops.mesh_upsample."""
        return csr_matrix(self.ups[level])

    def down(self, level: int) -> CsrMatrix:
        """The 0/1 matrix that picks the vertices of level + 1 out of level (indexing by `picks` is
        faster)."""
        n, pick = self.num_vertices(level), self.picks[level]
        return csr_matrix(sp.csr_matrix((np.ones(len(pick)), (np.arange(len(pick)), pick)), shape=(len(pick), n)))

    def edges(self, level: int = 0) -> np.ndarray:  # [E, 2] int64, i < j, sorted
        """Undirected edges of a level."""
        f = self.faces[level].astype(np.int64)
        both = np.concatenate([f[:, [0, 1]], f[:, [1, 2]], f[:, [2, 0]]])
        return np.unique(np.sort(both, 1), axis=0)

    def adjacency(self, level: int) -> sp.csr_matrix:  # [V, V] float32
        """Neighbours and self, every row averaged (entries 1 / row count), as Mesh Graphormer's graph
        convolution has it."""
        n, e = self.num_vertices(level), self.edges(level)
        i, j = e.T
        rows, cols = np.concatenate([i, j, np.arange(n)]), np.concatenate([j, i, np.arange(n)])
        m = sp.csr_matrix((np.ones(len(rows), np.float32), (rows, cols)), shape=(n, n))
        m.sort_indices()
        m.data /= np.repeat(np.diff(m.indptr), np.diff(m.indptr))
        return m

    def topology(self, level: int, joints: int = 0) -> MeshTopology:
        """Attention pattern for ops.mesh_attention: `joints` global tokens, then this level's vertices."""
        return mesh_topology(self.adjacency(level), joints)


def build_hierarchy(
    vertices: np.ndarray,  # [V, 3]
    faces: np.ndarray,  # [F, 3]
    counts: Sequence[int],
    samples: np.ndarray | None = None,  # [S, V, 3]
    neighbors: int = 12,
    ridge: float = 1e-5,
) -> MeshHierarchy:
    """Hierarchy of any template: our decimation, then up-sampling fitted to posed `samples` or, without,
    barycentric.

    Args:
        counts: falling vertex counts below V, e.g. (1723, 431).
        samples: bodies of this topology in varied poses and shapes, metres; 200 or more. Fitted matrices have
            a half to a quarter of the barycentric error (see docs of fit_upsampling).
        neighbors, ridge: see fit_upsampling.

    Raises: as decimate and fit_upsampling.
    """
    levels = decimate(vertices, faces, counts)
    vertices = np.asarray(vertices, np.float64)
    all_faces, picks, ups = [np.asarray(faces, np.int32)], [], []
    above = np.arange(len(vertices))
    for kept, coarse_faces in levels:
        pick = np.searchsorted(above, kept).astype(np.int32)
        if samples is None:
            ups.append(barycentric_upsampling(vertices[above], vertices[kept], coarse_faces, pick))
        else:
            ups.append(fit_upsampling(vertices[above], all_faces[-1], pick, samples[:, above], neighbors, ridge))
        all_faces.append(coarse_faces)
        picks.append(pick)
        above = kept
    return MeshHierarchy(tuple(all_faces), tuple(picks), tuple(ups))
