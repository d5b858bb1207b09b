"""The body (or hand) model every part of the package talks to: mesh hierarchy, regressors, skinning.

In: baked assets (assets.py) or official files (official.py); out: vertices and joints for data/, train/,
pipelines/. `BodyTopology` is what can be had without a model file; `Body` adds the template and linear blend
skinning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from ..geometry.skeleton import H36M17_TO_J14
from .hierarchy import MeshHierarchy
from .lbs import ancestor_table, forward_kinematics, pose_matrices, skin_vertices


@dataclass(frozen=True)
class BodyTopology:
    """Everything about a body that needs no model file."""

    name: str
    hierarchy: MeshHierarchy
    regressors: dict[str, sp.csr_matrix] = field(default_factory=dict)  # name -> [K, V_0]
    loss_faces: dict[int, np.ndarray] = field(default_factory=dict)  # level -> faces an official loss uses instead

    @property
    def regressor_names(self) -> tuple[str, ...]:
        return (*self.regressors, *(("j14",) if "h36m17" in self.regressors else ()))

    def regressor(self, name: str, level: int = 0) -> np.ndarray:  # [K, V_level] float32
        """Dense joint regressor; above level 0 it is composed with the up-sampling matrices (joints from the
        coarse mesh by one small product). "j14" is taken out of "h36m17"."""
        if name == "j14" and "h36m17" in self.regressors:
            return self.regressor("h36m17", level)[list(H36M17_TO_J14)]
        if name not in self.regressors:
            have = ", ".join(self.regressor_names) or "none"
            raise ValueError(f"{self.name}: no joint regressor {name!r}; there is {have}")
        matrix = sp.csr_matrix(self.regressors[name]) @ self.hierarchy.up_matrix(level)
        return matrix.toarray().astype(np.float32)


class BodyOutput(NamedTuple):
    vertices: Tensor  # [B, V, 3] metres
    joints: Tensor  # [B, J, 3] posed joints of the kinematic tree


class Body(nn.Module):
    """A skinned mesh with a hierarchy. Holds buffers only (nothing in the state dict); moves with
    .to(device).

    Args:
        topology: faces, up-sampling matrices, regressors.
        template [V, 3], shape_dirs [V, 3, S], weights [V, J]: metres; rows of weights sum to one.
        joints [J, 3], joint_dirs [J, 3, S]: rest joints and their change with shape.
        pose_dirs [9 (J - 1), V * 3] or None: pose correctives (SMPL, MANO), on R - I of joints 1..J-1.
        pose_mean [J, 3] or None: axis-angle added to axis-angle poses (MANO's mean hand).
        parts [V] and part_names: surface labels for rendering.

    Source: Loper et al., "SMPL" (2015), eq. 6-10.
    """

    ancestors: Tensor
    template: Tensor
    shape_dirs: Tensor
    weights: Tensor
    joints: Tensor
    joint_dirs: Tensor
    pose_dirs: Tensor | None
    pose_mean: Tensor | None
    part_labels: Tensor

    def __init__(
        self,
        topology: BodyTopology,
        *,
        template: Any,
        shape_dirs: Any,
        weights: Any,
        joints: Any,
        joint_dirs: Any,
        joint_names: Any,
        parents: Any,
        pose_dirs: Any = None,
        pose_mean: Any = None,
        parts: Any = None,
        part_names: Any = (),
    ) -> None:
        super().__init__()
        self.topology = topology
        self.joint_names, self.parents = tuple(joint_names), tuple(int(p) for p in parents)
        self.part_names = tuple(part_names)
        self.register_buffer("ancestors", ancestor_table(self.parents), persistent=False)
        count, bones = len(template), len(self.parents)
        shapes = np.shape(shape_dirs)[-1]
        expected = {
            "template": (template, (count, 3)),
            "shape_dirs": (shape_dirs, (count, 3, shapes)),
            "weights": (weights, (count, bones)),
            "joints": (joints, (bones, 3)),
            "joint_dirs": (joint_dirs, (bones, 3, shapes)),
        }
        for key, (value, shape) in expected.items():
            if np.shape(value) != shape:
                raise ValueError(f"Body {topology.name}: {key} must be {list(shape)}, got {list(np.shape(value))}")
            self._constant(key, value)
        if topology.hierarchy.num_vertices(0) != count:
            raise ValueError(
                f"Body {topology.name}: template has {count} vertices, the hierarchy "
                f"{topology.hierarchy.num_vertices(0)}"
            )
        self._constant("pose_dirs", pose_dirs)
        self._constant("pose_mean", pose_mean)
        self._constant("part_labels", np.zeros(count) if parts is None else parts, torch.uint8)
        for level in range(topology.hierarchy.num_levels):
            self._constant(f"index{level}", topology.hierarchy.vertex_index(level), torch.int64)
            for name in topology.regressor_names:
                self._constant(f"regressor_{name}_{level}", topology.regressor(name, level))

    def _constant(self, name: str, value: Any, dtype: torch.dtype = torch.float32) -> None:
        if value is not None:
            value = torch.as_tensor(np.ascontiguousarray(value)).to(dtype)
        self.register_buffer(name, value, persistent=False)

    @property
    def name(self) -> str:
        return self.topology.name

    @property
    def hierarchy(self) -> MeshHierarchy:
        return self.topology.hierarchy

    @property
    def num_joints(self) -> int:
        return len(self.parents)

    @property
    def num_betas(self) -> int:
        return self.shape_dirs.shape[-1]

    def faces(self, level: int = 0) -> np.ndarray:  # [F, 3] int32
        return self.hierarchy.faces[level]

    def coarse(self, vertices: Tensor, level: int) -> Tensor:  # [B, V_0, 3] -> [B, V_level, 3]
        """The vertices a coarser level keeps."""
        return vertices[:, getattr(self, f"index{level}")]

    def regress(self, name: str, vertices: Tensor) -> Tensor:  # [B, V_level, 3] -> [B, K, 3]
        """Named joints from the vertices of any level (the level is told by the vertex count)."""
        counts = self.hierarchy.counts
        if vertices.dim() != 3 or vertices.shape[1] not in counts:
            raise ValueError(f"Body.regress: vertices must be [B, V, 3] with V in {counts}, got {list(vertices.shape)}")
        matrix: Any = getattr(self, f"regressor_{name}_{counts.index(vertices.shape[1])}", None)
        if matrix is None:
            self.topology.regressor(name)  # raises with the names there are
        return matrix.to(vertices.dtype) @ vertices

    def rest(self, betas: Tensor | None, batch: int, level: int = 0) -> tuple[Tensor, Tensor]:
        """Vertices [B, V_level, 3] and joints [B, J, 3] of shapes in the rest pose, without pose
        correctives."""
        index = slice(None) if level == 0 else getattr(self, f"index{level}")
        template, dirs = self.template[index], self.shape_dirs[index]
        if betas is None:
            return template.expand(batch, -1, -1), self.joints.expand(batch, -1, -1)
        n = betas.shape[1] if betas.dim() == 2 else -1
        if not 0 <= n <= self.num_betas or betas.shape[0] not in (1, batch):
            raise ValueError(f"Body.forward: betas must be [{batch}, <= {self.num_betas}], got {list(betas.shape)}")
        betas = betas.expand(batch, -1).to(self.template.dtype)
        vertices = template + (betas @ dirs[..., :n].flatten(0, 1).T).unflatten(1, (-1, 3))
        joints = self.joints + (betas @ self.joint_dirs[..., :n].flatten(0, 1).T).unflatten(1, (-1, 3))
        return vertices, joints

    def forward(
        self,
        pose: Tensor,  # [B, J * 3] or [B, J, 3] axis-angle, or [B, J, 3, 3]
        betas: Tensor | None = None,  # [B, S] or [1, S], S up to num_betas
        transl: Tensor | None = None,  # [B, 3] metres
        level: int = 0,
    ) -> BodyOutput:
        """Poses the body by linear blend skinning.

        Args:
            pose: joint rotations relative to the parent, joint 0 in the world; zeros = T-pose facing +z, y
                up.
            betas: shape coefficients in standard deviations; None = mean shape.
            level: hierarchy level whose vertices are wanted; 2 skins 431 vertices instead of 6,890.

        Returns:
            BodyOutput(vertices [B, V_level, 3], joints [B, J, 3]) in metres, dtype of the body.
            Differentiable.

        Raises:
            ValueError: a shape that does not fit.

        Example:
            >>> from tore_fast.body import load_body
            >>> body = load_body("free")
            >>> vertices, joints = body(torch.zeros(2, 24, 3), torch.zeros(2, 10))
            >>> vertices.shape
            torch.Size([2, 6890, 3])
        """
        if not 0 <= level < self.hierarchy.num_levels:
            raise ValueError(f"Body.forward: level must be 0..{self.hierarchy.num_levels - 1}, got {level}")
        if self.pose_mean is not None and pose.shape[-2:] != (3, 3):
            pose = pose + (self.pose_mean.flatten() if pose.dim() == 2 else self.pose_mean)
        rotations = pose_matrices(pose, self.num_joints).to(self.template.dtype)
        batch = rotations.shape[0]
        if transl is not None and transl.shape != (batch, 3):
            raise ValueError(f"Body.forward: transl must be [{batch}, 3], got {list(transl.shape)}")
        vertices, rest_joints = self.rest(betas, batch, level)
        index = slice(None) if level == 0 else getattr(self, f"index{level}")
        if self.pose_dirs is not None:
            bend = (rotations[:, 1:] - torch.eye(3, dtype=rotations.dtype, device=rotations.device)).flatten(1)
            dirs = self.pose_dirs if level == 0 else self.pose_dirs.unflatten(1, (-1, 3))[:, index].flatten(1)
            vertices = vertices + (bend @ dirs).unflatten(1, (-1, 3))
        world, joints = forward_kinematics(rotations, rest_joints, self.ancestors)
        vertices = skin_vertices(vertices, self.weights[index], world, joints, rest_joints)
        if transl is not None:
            vertices, joints = vertices + transl[:, None], joints + transl[:, None]
        return BodyOutput(vertices, joints)
