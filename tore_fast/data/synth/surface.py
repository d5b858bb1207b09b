"""What of a subject's surface never changes: faces, part and rest-position tables, the matrix of vertex normals.

In: a Body with part labels; out: tables for texture.py and shading.py. Hands (hand.py) have their own sub-class.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from ...body import Body
from ...ops import CsrMatrix, csr_matrix, mesh_upsample

SKIN, HAIR, UPPER, LOWER, SHOES = range(5)  # garments
NUM_GARMENTS = 5
LEFT_RIGHT = ("_l", "_r")


class Surface(nn.Module):
    """What every subject needs. Buffers only; moves with .to(device).

    Args:
        faces [F, 3]; shadow_faces: of the (coarser) mesh that throws the shadow.
        parts: [V] labels that index `part_names`.
        attributes: [V, 3 + K] rest position and whatever else the paint wants to know at every pixel.
        regressor: [J, V_body] joints, row 0 the origin; the body's vertices are the first of the V.
        shadow_bias: metres that a point may lie behind the shadow map's surface and still be lit.
    """

    faces: Tensor
    shadow_faces: Tensor
    face_part: Tensor
    vertex_part: Tensor
    rest: Tensor
    _corner: Tensor
    marks: dict[str, Any]  # of the subjects that are dressed

    def __init__(
        self,
        faces: Any,
        shadow_faces: Any,
        parts: Tensor,
        part_names: Any,
        attributes: Tensor,
        regressor: Any,
        shadow_bias: float,
    ) -> None:
        super().__init__()
        count, num_faces = len(attributes), len(faces)
        self.part_names, self.shadow_bias = tuple(part_names), shadow_bias
        self.register_buffer("faces", torch.from_numpy(np.ascontiguousarray(faces, dtype=np.int32)))
        self.register_buffer("_corner", self.faces.T.contiguous())
        self.register_buffer("shadow_faces", torch.from_numpy(np.ascontiguousarray(shadow_faces, dtype=np.int32)))
        rows, cols = faces.reshape(-1), np.repeat(np.arange(num_faces), 3)
        incidence = csr_matrix(sp.csr_matrix((np.ones(len(rows), np.float32), (rows, cols)), shape=(count, num_faces)))
        for name, t in zip(incidence._fields, incidence):
            self.register_buffer(f"_inc_{name}", t)
        for name, t in zip(incidence._fields, csr_matrix(regressor)):
            self.register_buffer(f"_joint_{name}", t)
        parts = parts.long()
        corner = parts[self.faces.long()]
        face_part = torch.where(corner[:, 1] == corner[:, 2], corner[:, 1], corner[:, 0])  # majority of three
        self.register_buffer("face_part", face_part.to(torch.uint8))
        self.register_buffer("vertex_part", parts)
        self.register_buffer("rest", attributes.float())

    def normals(self, vertices: Tensor) -> Tensor:  # [B, V, 3] -> [B, V, 3] of length one
        """Vertex normals, face areas as weights: face normals summed by one sparse matrix."""
        a, b, c = (vertices.index_select(1, index) for index in self._corner)
        x1, y1, z1 = (b - a).unbind(-1)
        x2, y2, z2 = (c - a).unbind(-1)
        across = torch.stack((y1 * z2 - z1 * y2, z1 * x2 - x1 * z2, x1 * y2 - y1 * x2), -1)
        total = mesh_upsample(across, self._incidence())
        return total / total.norm(dim=-1, keepdim=True).clamp(min=1e-12)

    def _incidence(self) -> Any:
        return CsrMatrix(*(getattr(self, f"_inc_{name}") for name in CsrMatrix._fields))

    def joints(self, vertices: Tensor) -> Tensor:  # [B, V_body, 3] -> [B, J, 3]
        """Joints by the body's regressor, as a sparse product."""
        return mesh_upsample(vertices, CsrMatrix(*(getattr(self, f"_joint_{name}") for name in CsrMatrix._fields)))


class ClothedSurface(Surface):
    """The free body's surface with the tables that texture.py dresses it by."""

    is_head: Tensor  # [P] bool, as all of these
    is_scalp: Tensor
    is_torso: Tensor
    is_arm: Tensor
    is_hand: Tensor
    is_leg: Tensor
    is_foot: Tensor

    def __init__(self, body: Body) -> None:
        if not body.part_names or "h36m17" not in body.topology.regressors:
            raise ValueError(
                f"SynthGenerator: body {body.name} has no part labels to dress it by; use load_body('free')"
            )
        super().__init__(
            body.faces(),
            body.faces(1),
            body.part_labels,
            body.part_names,
            body.template,
            body.topology.regressors["h36m17"],
            shadow_bias=0.035,
        )
        rest, parts = self.rest, self.vertex_part
        joint = {n: body.joints[i] for i, n in enumerate(body.joint_names)}
        head = rest[self._is("skin_head")[parts]]
        nose = head[head[:, 2].argmax()]
        self.marks = {  # metres in the rest pose
            "nose": (float(nose[1]), float(nose[2])),
            "top": float(rest[:, 1].max()),
            "shoulder": float(joint["L_Shoulder"][0]),
            "elbow": float(joint["L_Elbow"][0]),
            "wrist": float(joint["L_Wrist"][0]),
            "hip": float(joint["L_Hip"][1]),
            "knee": float(joint["L_Knee"][1]),
            "ankle": float(joint["L_Ankle"][1]),
            "neck": float(joint["Neck"][1]),
        }
        self.register_buffer("is_head", self._is("skin_head"))
        self.register_buffer("is_scalp", self._is("hair"))
        self.register_buffer("is_torso", self._is("torso"))
        self.register_buffer("is_arm", self._is("upper_arm", "lower_arm"))
        self.register_buffer("is_hand", self._is("hand"))
        self.register_buffer("is_leg", self._is("upper_leg", "lower_leg"))
        self.register_buffer("is_foot", self._is("shoe"))

    def _is(self, *stems: str) -> Tensor:  # [P] bool
        names = [n[:-2] if n.endswith(LEFT_RIGHT) else n for n in self.part_names]
        return torch.tensor([n in stems for n in names])
