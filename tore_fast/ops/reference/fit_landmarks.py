"""Plain torch twin of the landmark fit: every person of the batch takes the same number of damped Gauss-Newton steps.

Computed in float64 whatever the input, so that the compiled kernels (float64 inside, too) can be compared closely.
The pieces (`posed_landmarks`, `cost_parts`, `normal_equations`) are separate so that tests can differentiate them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...geometry.rotation import axis_angle_to_matrix, matrix_to_axis_angle, skew
from .._fit_args import FitSettings, LandmarkInputs, LandmarkModel, in_float64

SMALL_DEPTH = 0.05  # of the denominator 1 + depth / distance: nearer than this a point is held there
MIN_DAMPING, MAX_DAMPING = 1e-5, 1e8
DOWN, UP = 0.4, 6.0  # Marquardt: factor of the damping after an accepted and after a refused step
LARGEST = 1e6  # of a coordinate
CAMERA_STEP, SCALE_LIMIT = 0.4, 0.3  # largest change of log scale a step; largest |log| of the world cloud's scale


class Unknowns(NamedTuple):
    """Unknowns of the fit, one row a person."""

    rotations: Tensor  # [B, J, 3, 3] relative to the parent
    betas: Tensor  # [B, S]
    camera: Tensor  # [B, 4] log scale, x, y, log scale of the world cloud


class Problem(NamedTuple):
    """What stays the same during the fit, in float64."""

    points: Tensor  # [B, P, 2]
    weights: Tensor  # [B, P, 2]
    world: Tensor  # [B, P, 3]
    inv_focal: Tensor  # [B]
    anchor: Tensor  # [B, J, 3, 3]
    anchor_betas: Tensor  # [B, S]
    anchor_weight: Tensor  # [B]
    model: LandmarkModel
    settings: FitSettings


def proper_rotations(m: Tensor) -> Tensor:  # [..., 3, 3] -> [..., 3, 3]
    """Gram-Schmidt on the columns; the identity where they span nothing or are not finite."""
    a, b = m[..., 0], m[..., 1]
    x = a / a.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    y = b - (x * b).sum(-1, keepdim=True) * x
    length = y.norm(dim=-1, keepdim=True)
    y = y / length.clamp(min=1e-12)
    out = torch.stack((x, y, torch.linalg.cross(x, y)), -1)
    good = (a.norm(dim=-1) > 1e-6) & (length[..., 0] > 1e-6) & torch.isfinite(m).flatten(-2).all(-1)
    return torch.where(good[..., None, None], out, torch.eye(3, dtype=m.dtype, device=m.device))


def log_jacobian(v: Tensor) -> Tensor:  # [..., 3] -> [..., 3, 3]
    """d log(exp(v) exp(e)) / d e at e = 0: I + K / 2 + f K^2, f = 1/a^2 - cot(a/2) / (2 a)."""
    square = (v * v).sum(-1)
    small = square < 1e-4
    safe = torch.where(small, torch.ones_like(square), square)
    a = safe.sqrt()
    exact = 1 / safe - (a / 2).cos() / ((a / 2).sin() * 2 * a)
    f = torch.where(small, 1 / 12 + square / 720 + square * square / 30240, exact)[..., None, None]
    k = skew(v)
    return torch.eye(3, dtype=v.dtype, device=v.device) + k / 2 + f * (k @ k)


def posed_landmarks(p: Problem, s: Unknowns) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """World rotations [B, J, 3, 3], joints [B, J, 3] (root at the origin), landmarks [B, P, 3] and their derivative
    by the shape [B, P, 3, S]."""
    bone = p.model.bones + (p.model.bone_dirs @ s.betas.T).permute(2, 0, 1)
    world, joint, by_shape = (
        [s.rotations[:, 0]],
        [torch.zeros_like(bone[:, 0])],
        [torch.zeros_like(p.model.bone_dirs[0])],
    )
    by_shape[0] = by_shape[0].expand(len(s.betas), -1, -1)
    for j, parent in enumerate(p.model.parents[1:], 1):
        world.append(world[parent] @ s.rotations[:, j])
        joint.append(joint[parent] + (world[parent] @ bone[:, j, :, None])[..., 0])
        by_shape.append(by_shape[parent] + world[parent] @ p.model.bone_dirs[j])

    def at_landmarks(per_joint: list[Tensor]) -> Tensor:  # no index list: that would be a copy to the device
        return torch.stack([per_joint[j] for j in p.model.attach], 1)

    offset = p.model.offsets + (p.model.offset_dirs @ s.betas.T).permute(2, 0, 1)
    turn = at_landmarks(world)
    x = at_landmarks(joint) + (turn @ offset[..., None])[..., 0]
    return torch.stack(world, 1), torch.stack(joint, 1), x, at_landmarks(by_shape) + turn @ p.model.offset_dirs


def projected(p: Problem, s: Unknowns, x: Tensor) -> tuple[Tensor, Tensor]:
    """Landmarks in the image [B, P, 2] and the denominator [B, P]: (scale xy + shift) / (1 + scale z / focal)."""
    scale = s.camera[:, 0].exp()[:, None]
    depth = (1 + p.inv_focal[:, None] * scale * x[..., 2]).clamp(min=SMALL_DEPTH)
    return (scale[..., None] * x[..., :2] + s.camera[:, None, 1:3]) / depth[..., None], depth


def residuals(p: Problem, s: Unknowns, x: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled residuals of the image points [B, P, 2] and of the world points [B, P, 3]."""
    u, _ = projected(p, s, x)
    a, b = p.model.centre
    middle = (x[:, a : a + 1] + x[:, b : b + 1]) / 2
    return (u - p.points) / p.settings.sigma_point, (
        x - middle - s.camera[:, 3].exp()[:, None, None] * p.world
    ) / _world_sigma(p)


def _world_sigma(p: Problem) -> Tensor:
    sigma = p.points.new_full((3,), p.settings.sigma_xy)
    sigma[2] = p.settings.sigma_z
    return sigma


def limit_residuals(p: Problem, v: Tensor) -> Tensor:  # [B, J - 1, 3] -> [B, L]
    rows = [(sign * v[:, joint - 1, axis]).clamp(max=0) for joint, axis, sign in p.model.limits]
    return torch.stack(rows, 1) / p.settings.sigma_limit if rows else v.new_zeros(len(v), 0)


def cost_parts(p: Problem, s: Unknowns) -> tuple[Tensor, Tensor]:
    """[B, 7]: image points, world points, pose prior, shape, world scale, limits, anchor; and the landmarks."""
    k2 = 2 * p.settings.robust**2
    _, _, x, _ = posed_landmarks(p, s)
    r2, r3 = residuals(p, s, x)

    def robust(r: Tensor, w: Tensor) -> Tensor:
        return (k2 * torch.log1p((r * r).sum(-1) / k2) * w).sum(1)

    v = matrix_to_axis_angle(s.rotations[:, 1:])
    off = v.flatten(1) - p.model.prior_mean
    turned = matrix_to_axis_angle(p.anchor.mT @ s.rotations) / anchor_sigma(p, s)[:, None]
    parts = (
        robust(r2, p.weights[..., 0]),
        p.settings.world * robust(r3, p.weights[..., 1]),
        p.settings.prior * ((off @ p.model.prior_precision) * off).sum(1),
        p.settings.shape * (s.betas - p.anchor_betas).square().sum(1),
        (s.camera[:, 3] / p.settings.sigma_scale).square(),
        limit_residuals(p, v).square().sum(1),
        p.anchor_weight * turned.square().sum((1, 2)),
    )
    return torch.stack(parts, 1), x


def anchor_sigma(p: Problem, s: Unknowns) -> Tensor:  # [J]
    sigma = torch.full((s.rotations.shape[1],), p.settings.sigma_anchor, dtype=s.betas.dtype, device=s.betas.device)
    sigma[0] = p.settings.sigma_root
    return sigma


def normal_equations(p: Problem, s: Unknowns) -> tuple[Tensor, Tensor]:
    """Gauss-Newton matrix [B, N, N] and half the gradient [B, N] of the cost; N = 3 J + S + 4: a right-hand increment
    per joint, shape, camera."""
    batch, joints = s.rotations.shape[:2]
    shapes, count = s.betas.shape[1], len(p.model.attach)
    turns = 3 * joints
    n = turns + shapes + 4
    k2 = 2 * p.settings.robust**2
    w, joint, x, by_shape = posed_landmarks(p, s)
    r2, r3 = residuals(p, s, x)
    w2 = p.weights[..., 0] / (1 + (r2 * r2).sum(-1) / k2)
    w3 = p.settings.world * p.weights[..., 1] / (1 + (r3 * r3).sum(-1) / k2)

    # landmarks by turns: (axis of the joint) x (landmark - joint), for joints above the landmark
    above = _ancestors(p)
    arm = (x[:, :, None] - joint[:, None]) * above[..., None]
    axis = w.mT[:, None]  # [B, 1, J, 3 (which axis), 3]
    turned = torch.linalg.cross(axis.expand(-1, count, -1, -1, -1), arm[:, :, :, None].expand(-1, -1, -1, 3, -1))
    jac = torch.cat((turned.flatten(2, 3).mT, by_shape), -1)  # [B, P, 3, turns + S]

    scale = s.camera[:, 0].exp()[:, None]
    u, depth = projected(p, s, x)
    slope = torch.where(depth > SMALL_DEPTH, p.inv_focal[:, None] * scale, 0)  # d depth / d z
    j2 = x.new_zeros(batch, count, 2, n)
    near = depth[..., None, None]
    j2[..., : turns + shapes] = (
        scale[..., None, None] * jac[:, :, :2] - (u * slope[..., None])[..., None] * jac[:, :, 2:]
    ) / near
    j2[..., -4] = (scale[..., None] * x[..., :2] - u * (slope * x[..., 2])[..., None]) / near[..., 0]
    j2[..., 0, -3] = j2[..., 1, -2] = 1 / depth
    a, b = p.model.centre
    j3 = x.new_zeros(batch, count, 3, n)
    j3[..., : turns + shapes] = jac - (jac[:, a : a + 1] + jac[:, b : b + 1]) / 2
    j3[..., -1] = -s.camera[:, 3].exp()[:, None, None] * p.world
    j2 = j2 / p.settings.sigma_point
    j3 = j3 / _world_sigma(p)[:, None]
    rows = torch.cat(
        ((j2 * w2.sqrt()[..., None, None]).flatten(1, 2), (j3 * w3.sqrt()[..., None, None]).flatten(1, 2)), 1
    )
    res = torch.cat(((r2 * w2.sqrt()[..., None]).flatten(1), (r3 * w3.sqrt()[..., None]).flatten(1)), 1)
    h, g = rows.mT @ rows, (rows.mT @ res[..., None])[..., 0]

    v = matrix_to_axis_angle(s.rotations[:, 1:])
    by_turn = log_jacobian(v)  # [B, J - 1, 3, 3]
    off = v.flatten(1) - p.model.prior_mean
    precision = p.settings.prior * p.model.prior_precision
    blocks = precision.unflatten(0, (-1, 3)).unflatten(2, (-1, 3))  # [i, 3, j, 3]
    h[:, 3:turns, 3:turns] += (
        torch.einsum("biac,iajd,bjde->bicje", by_turn, blocks, by_turn).flatten(3, 4).flatten(1, 2)
    )
    pull = (off @ precision).unflatten(1, (-1, 3))
    g[:, 3:turns] += (by_turn.mT @ pull[..., None]).flatten(1)
    for k, (joint_k, axis_k, sign) in enumerate(p.model.limits):
        r = limit_residuals(p, v)[:, k]
        row = torch.where((r < 0)[:, None], sign * by_turn[:, joint_k - 1, axis_k] / p.settings.sigma_limit, 0)
        at = slice(3 * joint_k, 3 * joint_k + 3)
        h[:, at, at] += row[:, :, None] * row[:, None]
        g[:, at] += row * r[:, None]
    back = matrix_to_axis_angle(p.anchor.mT @ s.rotations)
    sigma = anchor_sigma(p, s)
    by_back = log_jacobian(back) * (p.anchor_weight.sqrt()[:, None] / sigma)[..., None, None]
    at_rest = back * (p.anchor_weight.sqrt()[:, None] / sigma)[..., None]
    for j in range(joints):
        at = slice(3 * j, 3 * j + 3)
        h[:, at, at] += by_back[:, j].mT @ by_back[:, j]
        g[:, at] += (by_back[:, j].mT @ at_rest[:, j, :, None])[..., 0]
    diagonal = torch.zeros(n, dtype=x.dtype, device=x.device)
    diagonal[turns : turns + shapes], diagonal[-1] = p.settings.shape, p.settings.sigma_scale**-2
    h += diagonal.diag()
    g[:, turns : turns + shapes] += p.settings.shape * (s.betas - p.anchor_betas)
    g[:, -1] += s.camera[:, 3] / p.settings.sigma_scale**2
    return h, g


def _ancestors(p: Problem) -> Tensor:  # [P, J]: 1 where the joint is the landmark's or above it
    eye = torch.eye(len(p.model.parents), dtype=p.points.dtype, device=p.points.device)
    rows = [eye[0]]
    for j, parent in enumerate(p.model.parents[1:], 1):
        rows.append(rows[parent] + eye[j])
    return torch.stack([rows[j] for j in p.model.attach])


def moved(p: Problem, s: Unknowns, step: Tensor) -> Unknowns:
    """The unknowns after a step [B, N], each part held within its bounds."""
    joints, shapes = s.rotations.shape[1], s.betas.shape[1]
    turn = step[:, : 3 * joints].unflatten(1, (joints, 3))
    turn = turn * (p.settings.max_turn / turn.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
    limit = p.settings.beta_limit
    camera = s.camera + torch.cat((step[:, -4:-3].clamp(-CAMERA_STEP, CAMERA_STEP), step[:, -3:]), 1)
    camera = torch.cat((camera[:, :3], camera[:, 3:].clamp(-SCALE_LIMIT, SCALE_LIMIT)), 1)
    betas = (s.betas + step[:, 3 * joints : 3 * joints + shapes]).clamp(-limit, limit)
    return Unknowns(s.rotations @ axis_angle_to_matrix(turn), betas, camera)


def starting_camera(p: Problem, x: Tensor) -> Tensor:  # [B, P, 3] -> [B, 4]
    """Least-squares weak perspective of the start pose; scale 0.02 .. 20 crop sides a metre."""
    w = p.weights[..., :1]
    total = w.sum(1, keepdim=True).clamp(min=1e-9)
    mean, target = (w * x[..., :2]).sum(1, keepdim=True) / total, (w * p.points).sum(1, keepdim=True) / total
    a, b = x[..., :2] - mean, p.points - target
    scale = ((w * a * b).sum((1, 2)) / (w * a * a).sum((1, 2)).clamp(min=1e-9)).clamp(0.02, 20)
    shift = (target - scale[:, None, None] * mean)[:, 0]
    return torch.cat((scale.log()[:, None], shift, torch.zeros_like(shift[:, :1])), 1)


def fit_landmarks_reference(
    inputs: LandmarkInputs, model: LandmarkModel, steps: int, settings: FitSettings
) -> tuple[Tensor, ...]:
    """Arguments and results as ops/fit_landmarks.py; any device, differentiable in nothing."""
    device, dtype = inputs.points.device.type, inputs.points.dtype
    with torch.no_grad(), torch.autocast(device if device != "meta" else "cpu", enabled=False):
        problem, person = prepare(inputs, model, settings)
        person, parts, x = iterate(problem, person, steps)
        return tuple(t.to(dtype) for t in (*person, x, parts))


def prepare(inputs: LandmarkInputs, model: LandmarkModel, settings: FitSettings) -> tuple[Problem, Unknowns]:
    """float64 problem and start; points that are not finite lose their weight."""
    points, weights, world = inputs.points.double(), inputs.weights.double(), inputs.world.double()
    usable = torch.stack((torch.isfinite(points).all(-1), torch.isfinite(world).all(-1)), -1)
    weights = torch.where(usable, torch.nan_to_num(weights, 0, 0, 0).clamp(min=0), 0)
    points, world = (
        torch.where(torch.isfinite(t).all(-1, keepdim=True), t, 0).clamp(-LARGEST, LARGEST) for t in (points, world)
    )

    def given(value: Tensor | None, default: Tensor) -> Tensor:
        return default if value is None else torch.nan_to_num(value.double(), 0, 0, 0)

    betas = given(inputs.betas, inputs.betas).clamp(-settings.beta_limit, settings.beta_limit)
    rotations = proper_rotations(inputs.rotations.double())
    zeros = points.new_zeros(points.shape[0])
    anchored = inputs.anchor is not None
    problem = Problem(
        points,
        weights,
        world,
        given(inputs.inv_focal, zeros),
        rotations if inputs.anchor is None else proper_rotations(inputs.anchor.double()),
        given(inputs.anchor_betas, torch.zeros_like(betas)),
        given(inputs.anchor_weight, torch.ones_like(zeros)).clamp(min=0) if anchored else zeros,
        in_float64(model),
        settings,
    )
    person = Unknowns(rotations, betas, points.new_zeros(points.shape[0], 4))
    camera = inputs.camera
    if camera is None:
        camera = starting_camera(problem, posed_landmarks(problem, person)[2])
    return problem, person._replace(camera=given(camera, zeros))


def iterate(p: Problem, s: Unknowns, steps: int) -> tuple[Unknowns, Tensor, Tensor]:
    parts, x = cost_parts(p, s)
    damping = torch.full((len(s.betas),), p.settings.damping, dtype=torch.float64, device=s.betas.device)
    for _ in range(steps):
        h, g = normal_equations(p, s)
        diagonal = h.diagonal(dim1=1, dim2=2)
        damped = h + (damping[:, None] * diagonal + 1e-6).diag_embed()
        factor, failed = torch.linalg.cholesky_ex(damped)
        step = -torch.cholesky_solve(g[..., None], factor)[..., 0]
        trial = moved(p, s, torch.where((failed == 0)[:, None], step, torch.nan))
        trial_parts, trial_x = cost_parts(p, trial)
        better = trial_parts.sum(1) <= parts.sum(1)  # false for NaN

        def keep(new: Tensor, old: Tensor, better: Tensor = better) -> Tensor:
            return torch.where(better.view(-1, *[1] * (new.dim() - 1)), new, old)

        s = Unknowns(*(keep(a, b) for a, b in zip(trial, s)))
        parts, x = keep(trial_parts, parts), keep(trial_x, x)
        damping = torch.where(better, damping * DOWN, damping * UP).clamp(MIN_DAMPING, MAX_DAMPING)
    return s, parts, x
