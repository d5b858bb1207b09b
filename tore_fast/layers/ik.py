"""Analytic inverse kinematics of HybrIK: joint positions + twists -> one rotation per joint.

In: posed joints [B, J, 3] and twists (cos, sin) [B, R - 1, 2] from models/motion/fasthmr.py, rest joints of the shaped
body; out: local rotations [B, R, 3, 3] for body/. `joints_to_features` is the way back (training data of
models/motion/vae.py). Joints of one depth of the tree are solved together, so 23 joints take 8 batched steps.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry.procrustes import kabsch
from ..geometry.rotation import minimal_rotation, rodrigues, swing_twist
from ..geometry.skeleton import SMPL29

# the joint that each of SMPL29 points at
CHILDREN = (3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 27, 28, 15, 16, 17, 24, 18, 19, 20, 21, 22, 23, 25, 26, -1, -1, -1, -1, -1)
LEAF_VERTICES = (411, 2445, 5905, 3216, 6617)  # of the 6,890-vertex SMPL mesh, joints 24..28
FAR_M = 0.015  # adaptive mode: above this distance the rotated-rest target is not trusted


@dataclass(frozen=True)
class IKTree:
    """Kinematic tree: parent per joint (-1 for the root) and the child each joint points at (-1 for leaves)."""

    parents: tuple[int, ...] = SMPL29.parents
    children: tuple[int, ...] = CHILDREN

    def __post_init__(self) -> None:
        n = len(self.parents)
        if len(self.children) != n or n < 2:
            raise ValueError(f"IKTree: children must have one entry per joint ({n}), got {len(self.children)}")
        if any(not -1 <= p < i for i, p in enumerate(self.parents)) or self.parents[0] != -1:
            raise ValueError("IKTree: parents must be in tree order, the root first with parent -1")
        rotated = [c >= 0 for c in self.children]
        if rotated != sorted(rotated, reverse=True):
            raise ValueError("IKTree: joints without a child (leaves) must come last")

    @functools.cached_property
    def num_rotations(self) -> int:
        return sum(c >= 0 for c in self.children)

    @functools.cached_property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """Rotated joints by depth, without the root."""
        depth = [0] * len(self.parents)
        for i in range(1, len(self.parents)):
            depth[i] = depth[self.parents[i]] + 1
        found = sorted({depth[i] for i in range(1, self.num_rotations)})
        return tuple(tuple(i for i in range(1, self.num_rotations) if depth[i] == d) for d in found)

    @functools.cached_property
    def root_children(self) -> tuple[int, ...]:
        """Children of the root, the one it points at first."""
        main = self.children[0]
        return (main, *(i for i, p in enumerate(self.parents) if p == 0 and i != main))

    def bones(self, joints: Tensor) -> Tensor:
        """Offsets from each joint's parent, [..., J, 3]; the root keeps its position."""
        parents = list(self.parents[1:])
        return torch.cat((joints[..., :1, :], joints[..., 1:, :] - joints[..., parents, :]), dim=-2)


SMPL_TREE = IKTree()


def _root_two_step(rest: Tensor, target: Tensor) -> Tensor:
    """Spine first, then the mean of the other children turned about the spine; [B, n, 3], main child first."""
    spine = minimal_rotation(rest[:, 0], target[:, 0])
    up = target[:, 0] / target[:, 0].norm(dim=-1, keepdim=True)
    side_rest = (spine @ rest[:, 1:].mean(1)[..., None])[..., 0]
    side_target = target[:, 1:].mean(1)
    side_rest = side_rest - (side_rest * up).sum(-1, keepdim=True) * up
    side_target = side_target - (side_target * up).sum(-1, keepdim=True) * up
    return minimal_rotation(side_rest, side_target) @ spine


def hybrik_ik(
    joints: Tensor,  # [B, J, 3] metres
    twists: Tensor,  # [B, R - 1, 2] (cos, sin)
    rest_joints: Tensor,  # [B, J, 3] or [J, 3] metres
    mode: str = "adaptive",
    root: str | None = None,
    tree: IKTree = SMPL_TREE,
) -> Tensor:  # [B, R, 3, 3]
    """Local joint rotations that pose the rest skeleton like `joints`.

    Args:
        joints: posed joints, any origin; leaves included (J = 29 with the SMPL tree).
        twists: turn about each bone of joints 1..R-1, normalised here (norm + 1e-8).
        rest_joints: joints of the rest pose with the predicted shape.
        mode: "adaptive" aims each bone from the already rotated skeleton, so errors do not add up along a limb, unless
            that target is more than 15 mm off the plain bone; "naive" uses the plain bones.
        root: "svd" (Kabsch over the root's children) or "two_step" (spine, then hips); default svd for adaptive,
            two_step for naive, as HybrIK.
        tree: kinematic tree.

    Returns:
        Rotations relative to the parent, [:, 0] the global orientation.

    Source: HybrIK (CVPR 2021), its inference and its naive transform.
    """
    if mode not in ("adaptive", "naive"):
        raise ValueError(f"hybrik_ik: mode must be 'adaptive' or 'naive', got {mode!r}")
    root = root or ("svd" if mode == "adaptive" else "two_step")
    if root not in ("svd", "two_step"):
        raise ValueError(f"hybrik_ik: root must be 'svd' or 'two_step', got {root!r}")
    n, rotations = len(tree.parents), tree.num_rotations
    if joints.dim() != 3 or joints.shape[1:] != (n, 3):
        raise ValueError(f"hybrik_ik: joints must be [B, {n}, 3], got {list(joints.shape)}")
    batch = joints.shape[0]
    if twists.shape != (batch, rotations - 1, 2):
        raise ValueError(f"hybrik_ik: twists must be [{batch}, {rotations - 1}, 2], got {list(twists.shape)}")
    rest_joints = rest_joints.expand(batch, n, 3).to(joints.dtype)

    rest, posed = tree.bones(rest_joints), tree.bones(joints)
    origin = rest_joints[:, :1]
    final = joints - joints[:, :1] + origin
    twists = twists / (twists.norm(dim=-1, keepdim=True) + 1e-8)

    kids = list(tree.root_children)
    turn_root = kabsch if root == "svd" else _root_two_step
    first = turn_root(rest[:, kids], posed[:, kids])
    local: list[Tensor] = [first] + [first] * (rotations - 1)
    chain = list(local)
    position = [origin[:, 0]] * rotations
    for level in tree.levels:
        child = [tree.children[i] for i in level]
        parent_turn = torch.stack([chain[tree.parents[i]] for i in level], 1)  # [B, n, 3, 3]
        here = torch.stack([position[tree.parents[i]] for i in level], 1)
        here = here + (parent_turn @ rest[:, list(level), :, None])[..., 0]
        bone = rest[:, child]
        target = posed[:, child]
        if mode == "adaptive":
            plain = target * (bone.norm(dim=-1, keepdim=True) / target.norm(dim=-1, keepdim=True))
            target = final[:, child] - here
            target = torch.where((target - plain).norm(dim=-1, keepdim=True) > FAR_M, plain, target)
        target = (parent_turn.mT @ target[..., None])[..., 0]
        swing = minimal_rotation(bone, target)
        turn = twists[:, [i - 1 for i in level]]
        twist = rodrigues(bone / bone.norm(dim=-1, keepdim=True), turn[..., 0], turn[..., 1])
        both = swing @ twist
        total = parent_turn @ both
        for k, i in enumerate(level):
            local[i], chain[i], position[i] = both[:, k], total[:, k], here[:, k]
    return torch.stack(local, 1)


def forward_kinematics(
    rotations: Tensor,  # [B, R, 3, 3] local
    rest_joints: Tensor,  # [B, J, 3] or [J, 3]
    tree: IKTree = SMPL_TREE,
) -> Tensor:  # [B, J, 3]
    """Posed joints of the tree; the root stays at its rest position."""
    batch, n = rotations.shape[0], len(tree.parents)
    if rotations.shape[1:] != (tree.num_rotations, 3, 3):
        raise ValueError(
            f"forward_kinematics: rotations must be [B, {tree.num_rotations}, 3, 3], got {list(rotations.shape)}"
        )
    bones = tree.bones(rest_joints.expand(batch, n, 3))
    chain, position = [rotations[:, 0]], [bones[:, 0]]
    for i in range(1, n):
        p = tree.parents[i]
        position.append(position[p] + (chain[p] @ bones[:, i, :, None])[..., 0])
        if i < tree.num_rotations:
            chain.append(chain[p] @ rotations[:, i])
    return torch.stack(position, 1)


def pose_to_features(
    rotations: Tensor,  # [B, R, 3, 3] local
    rest_joints: Tensor,  # [B, J, 3] or [J, 3]
    tree: IKTree = SMPL_TREE,
) -> Tensor:  # [B, 3 J + 2 (R - 1)]
    """Root-relative joints (metres) and twists (cos, sin) of a pose: 133 numbers with the SMPL tree.

    Feeding the two halves back to `hybrik_ik` with the same rest joints returns the rotations.
    Source: FastHMR Table 15 (29 x 3 + 23 x 2).
    """
    batch = rotations.shape[0]
    joints = forward_kinematics(rotations, rest_joints, tree)
    bones = tree.bones(rest_joints.expand(batch, len(tree.parents), 3))
    children = list(tree.children[1 : tree.num_rotations])
    _, twists = swing_twist(rotations[:, 1:], bones[:, children])
    return torch.cat(((joints - joints[:, :1]).flatten(1), twists.flatten(1)), dim=1)


def split_features(features: Tensor, tree: IKTree = SMPL_TREE) -> tuple[Tensor, Tensor]:
    """[..., 133] -> joints [..., 29, 3] and twists [..., 23, 2]."""
    n, turns = len(tree.parents), tree.num_rotations - 1
    if features.shape[-1] != 3 * n + 2 * turns:
        raise ValueError(f"split_features: last axis must be {3 * n + 2 * turns}, got {list(features.shape)}")
    lead = features.shape[:-1]
    return features[..., : 3 * n].reshape(*lead, n, 3), features[..., 3 * n :].reshape(*lead, turns, 2)
