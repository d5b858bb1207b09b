"""Statistics of the bake: shape space, random posed bodies, up-sampling matrices, joint regressors.

In: T-posed sample shapes from tools/bake/body.py; out: the numbers that go into the asset file.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from scipy.optimize import nnls

from tore_fast.body.fit_upsampling import barycentric_upsampling, fit_upsampling
from tore_fast.body.lbs import ancestor_table, forward_kinematics, skin_vertices
from tore_fast.geometry.rotation import axis_angle_to_matrix

COMPONENTS, NEIGHBORS = 10, 12
FIT, VALID, TEST = 700, 200, 200  # posed bodies for fitting, for choosing the ridge, for the figures printed
RIDGES = (1e-8, 1e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4)  # square metres
REGRESSOR_FIT, REGRESSOR_CANDIDATES = 200, 400


def principal_components(vertices, joints, index):
    """Shape space of vertices [N, V, 3] (those of `index`) and joints [N, J, 3] together.

    Returns template [v, 3], shape directions [v, 3, S], joints [J, 3], joint directions [J, 3, S]; a
    direction is one standard deviation long and points to more height.
    """
    n = len(vertices)
    data = np.concatenate([vertices[:, index].reshape(n, -1), joints.reshape(n, -1)], 1).astype(np.float64)
    mean = data.mean(0)
    data -= mean
    value, vector = np.linalg.eigh(data @ data.T)
    value, vector = value[::-1][:COMPONENTS], vector[:, ::-1][:, :COMPONENTS]
    dirs = data.T @ vector / np.sqrt(n)  # length = standard deviation
    first = dirs[: 3 * len(index)].reshape(len(index), 3, -1)
    sign = np.sign(mean[: 3 * len(index)].reshape(-1, 3)[:, 1] @ first[:, 1])  # stretches upwards and downwards
    sign[sign == 0] = 1
    dirs *= sign
    scores = vector * np.sqrt(n) * sign
    left = np.linalg.norm((data - scores @ dirs.T)[:, : 3 * len(index)].reshape(n, -1, 3), axis=2).mean()
    print(f"shape: {COMPONENTS} components, mean vertex error {1e3 * left:.2f} mm over {n} training shapes")
    split = 3 * len(index)
    parts = (mean[:split], dirs[:split], mean[split:], dirs[split:])
    return tuple(x.reshape(-1, 3) if x.ndim == 1 else x.reshape(-1, 3, COMPONENTS) for x in parts)


def four_weights(weights: np.ndarray) -> np.ndarray:
    small = np.argsort(-weights, axis=1, kind="stable")[:, 4:]
    out = weights.copy()
    np.put_along_axis(out, small, 0, 1)
    return out / out.sum(1, keepdims=True)


class Sampler:
    """Random posed bodies of the baked model; `points` ride along as (joint index, rest place)."""

    def __init__(self, template, shape_dirs, joints, joint_dirs, weights, parents, spread, points):
        self.t = [
            torch.from_numpy(np.ascontiguousarray(x)) for x in (template, shape_dirs, joints, joint_dirs, weights)
        ]
        self.ancestors, self.spread, self.points = (ancestor_table(tuple(parents)), torch.tensor(spread), points)

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
            r, t = forward_kinematics(axis_angle_to_matrix(aa), j, self.ancestors)
            vertices.append(skin_vertices(v, weights, r, t, j).numpy().astype(np.float32))
            owner, near = self.points["joint"], v[:, self.points["near"]].mean(2)  # [m, P, 3] rest places
            ride = (r[:, owner] @ (near - j[:, owner])[..., None])[..., 0] + t[:, owner]
            extras.append(torch.cat([t, ride], 1).numpy())
        return np.concatenate(vertices), np.concatenate(extras)


def fit_levels(sample, template, faces, picks, noise):
    """Up-sampling matrices with the ridge chosen on one set of bodies and errors printed on another.

    noise: metres of independent error in the coarse vertices that the choice of the ridge reckons with.
    """
    fit, valid, test = sample(FIT, 1)[0], sample(VALID, 2)[0], sample(TEST, 3)[0]

    def errors(up, bodies, pick):  # [S, V] metres
        return np.linalg.norm(np.stack([up @ b[pick] for b in bodies]) - bodies, axis=2)

    def report(what, e):
        e = 1e3 * e
        print(f"  {what}: mean {e.mean():.2f} p95 {np.percentile(e, 95):.2f} max {e.max():.1f} mm (held out)")

    ups, above = [], np.arange(len(template))
    for level, pick in enumerate(picks):
        best = None
        for ridge in RIDGES:
            u = fit_upsampling(template[above], faces[level], pick, fit[:, above], NEIGHBORS, ridge)
            row = np.sqrt(np.asarray(u.power(2).sum(1))).mean()
            score = errors(u, valid[:, above], pick).mean() + noise * row
            if best is None or score < best[0]:
                best = (score, u, ridge, row)
        plain = barycentric_upsampling(template[above], template[above][pick], faces[level + 1], pick)
        print(f"up {len(pick)} -> {len(above)}: ridge {best[2]:.0e}, mean row norm {best[3]:.2f}")
        report("barycentric", errors(plain, test[:, above], pick))
        report("fitted", errors(best[1], test[:, above], pick))
        ups.append(best[1])
        above = above[pick]
    if len(ups) == 2:
        report(f"{len(above)} -> {len(template)}", errors(ups[0] @ ups[1], test, above))
    return tuple(ups)


def fit_regressors(sample, template, weights, parents, rest_points, owners):
    """Joint regressors [P, V]: non-negative, local, rows summing to one, following each point over random
    poses.

    Returns the rows and their mean error per point on held-out poses (metres).
    """
    (fit_v, fit_p), (test_v, test_p) = sample(REGRESSOR_FIT, 4), sample(TEST, 5)
    rows = sp.lil_matrix((len(rest_points), len(template)))
    for p, place in enumerate(rest_points):
        around = [owners[p], max(parents[owners[p]], 0)]  # both sides of the joint, all round the limb
        own = np.flatnonzero(weights[:, around].sum(1) > 0.3)
        near = np.sort(own[nearest(template[own], place, REGRESSOR_CANDIDATES)])
        offset = (fit_v[:, near] - fit_p[:, None, p]).transpose(0, 2, 1).reshape(-1, len(near))
        heavy = np.full((1, len(near)), 100.0)  # the sum-to-one row outweighs 600 rows of centimetres
        goal = np.append(np.zeros(len(offset)), 100.0)
        w, _ = nnls(np.concatenate([offset.astype(np.float64), heavy]), goal)
        keep = w > 1e-3
        rows[p, near[keep]] = w[keep] / w[keep].sum()
    rows = rows.tocsr()
    return rows, np.linalg.norm(np.stack([rows @ v for v in test_v]) - test_p, axis=2).mean(0)


def nearest(template, place, count):
    """Indices of the vertices nearest to a place, nearest first."""
    return np.argsort(np.linalg.norm(template - place, axis=1), kind="stable")[:count]
