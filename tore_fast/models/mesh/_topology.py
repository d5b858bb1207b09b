"""The mesh a model regresses: coarse adjacency, up-sampling matrices, rest template.

In: a name ("free", "free_hand", "smpl", "mano"), a body of tore_fast.body, or arrays of one's own; out: what the models
of this folder hold as buffers. SMPL and MANO topologies are licence-bound and come from the user's folder (argument or
$TORE_FAST_MESH_DATA; layout of the official repositories).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch

from ...body import BodyTopology, load_body, load_topology
from ...body.official import load_model, mesh_data_folder
from ...geometry.skeleton import H36M17_TO_J14, MANO21_TO_HAND21, MANO_FINGERTIPS
from ...ops import MeshTopology, mesh_topology

MESH_NAMES = ("free", "free_hand", "smpl", "mano")


@dataclass(frozen=True, eq=False)
class ModelMesh:
    """One nested mesh as a model needs it."""

    adjacency: sp.csr_matrix  # [V, V] coarse level with self loops, every row averaged
    ups: tuple[sp.csr_matrix, ...]  # coarse to fine, e.g. (1723 x 431, 6890 x 1723)
    template_joints: np.ndarray | None = None  # [J, 3] rest pose, metres, centred on pelvis or wrist
    template_vertices: np.ndarray | None = None  # [V, 3] coarse, same frame
    name: str = "custom"

    def __post_init__(self) -> None:
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
        """Attention pattern of `joints` global tokens and the coarse vertices."""
        return mesh_topology(self.adjacency, joints)

    def template(self) -> torch.Tensor:  # [J + V, 3]
        """Rest joints, then rest coarse vertices: the queries of METRO and Mesh Graphormer."""
        if self.template_joints is None or self.template_vertices is None:
            raise ValueError(
                f"mesh {self.name!r} has no rest template, which METRO and Mesh Graphormer need as queries: give "
                "mesh_from_topology(...) the rest vertices of the user's model file"
            )
        both = np.concatenate([self.template_joints, self.template_vertices]).astype(np.float32)
        return torch.from_numpy(both)


def mesh_from_topology(
    topology: BodyTopology,
    rest_vertices: np.ndarray | None = None,  # [V_fine, 3]
    rest_joints: np.ndarray | None = None,  # [J, 3]
) -> ModelMesh:
    """ModelMesh of a body topology.

    Args:
        rest_vertices: template in metres and the frame of the queries. Needed by METRO and Mesh Graphormer only.
            Joints are regressed from it: 14 by h36m17 (centred on the pelvis), else 21 by hand21 (on the wrist).
        rest_joints: used instead of regressing them; joint 0 is then the origin (hand).
    """
    h = topology.hierarchy
    ups = tuple(sp.csr_matrix(up) for up in reversed(h.ups))
    joints = coarse = None
    if rest_vertices is not None:
        rest = np.asarray(rest_vertices, np.float64)
        if rest_joints is not None:
            joints = np.asarray(rest_joints, np.float64)
            origin = joints[0]
        elif "h36m17" in topology.regressors:
            all_joints = topology.regressors["h36m17"] @ rest
            joints, origin = all_joints[list(H36M17_TO_J14)], all_joints[0]
        else:
            joints = topology.regressors["hand21"] @ rest
            origin = joints[0]
        joints = joints - origin
        coarse = rest[h.vertex_index(h.num_levels - 1)] - origin
    return ModelMesh(h.adjacency(h.num_levels - 1), ups, joints, coarse, topology.name)


def resolve_mesh(
    mesh: str | ModelMesh | BodyTopology, folder: str | Path | None = None, need_template: bool = False
) -> ModelMesh:
    """ModelMesh by name (see MESH_NAMES) or from a BodyTopology; a ModelMesh passes through.

    Args:
        folder: topology files of SMPL or MANO.
        need_template: read the rest mesh, too, from the user's SMPL or MANO model file in the same folder.

    Raises:
        ValueError: unknown name; "smpl"/"mano" without a folder. FileNotFoundError: the folder lacks the files.
    """
    if isinstance(mesh, ModelMesh):
        return mesh
    if isinstance(mesh, BodyTopology):
        return mesh_from_topology(mesh)
    if mesh in ("free", "free_hand"):
        return _free_mesh(mesh)
    if mesh not in MESH_NAMES:
        raise ValueError(f"mesh must be one of {MESH_NAMES}, a ModelMesh or a BodyTopology, got {mesh!r}")
    folder = mesh_data_folder(folder)
    if not folder:
        raise ValueError(
            f"mesh={mesh!r} needs the topology files of the official repositories, which cannot be shipped: "
            "pass mesh_data=FOLDER (--mesh-data FOLDER) or set TORE_FAST_MESH_DATA (or use the free mesh)"
        )
    topology = load_topology(mesh, Path(folder))
    return mesh_from_topology(topology, *(_official_rest(mesh, Path(folder), topology) if need_template else ()))


def _official_rest(name: str, folder: Path, topology: BodyTopology) -> tuple[np.ndarray, np.ndarray | None]:
    """Rest vertices (and, for a hand, joints) as METRO poses them: SMPL turned by 3.1416 about x, MANO's mean hand."""
    try:
        body = load_model(name, folder, topology)
    except FileNotFoundError as e:
        raise FileNotFoundError(f"{e}; METRO and Mesh Graphormer take their queries from its rest mesh") from None
    pose = torch.zeros(1, body.num_joints, 3)
    if name == "smpl":
        pose[0, 0, 0] = 3.1416
    out = body(pose)
    vertices = out.vertices[0].double().numpy()
    if name == "smpl":
        return vertices, None
    tips = [444 if v == 445 else v for v in MANO_FINGERTIPS]  # manopth's right-hand tips, which made the template
    joints = np.concatenate([out.joints[0].double().numpy(), vertices[tips]])
    return vertices, joints[list(MANO21_TO_HAND21)]


@functools.lru_cache
def _free_mesh(name: str) -> ModelMesh:
    with torch.device("cpu"):  # models may be built under another default device, e.g. "meta"
        body = load_body(name)
    # METRO's queries: the rest mesh turned by 180 degrees about x, as the camera sees it (y down)
    return mesh_from_topology(body.topology, body.template.numpy() * np.array([1.0, -1.0, -1.0]))
