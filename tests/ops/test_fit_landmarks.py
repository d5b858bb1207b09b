"""fit_landmarks: analytic derivatives against autograd, implementations against the float64 reference, refusals."""

from __future__ import annotations

import pytest
import torch

from tore_fast.body import load_body
from tore_fast.body.fit.landmarks import landmark_model
from tore_fast.geometry.rotation import axis_angle_to_matrix, matrix_to_axis_angle
from tore_fast.ops._fit_args import FitSettings, LandmarkInputs, LandmarkModel
from tore_fast.ops.fit_landmarks import BACKENDS, fit_landmarks, why_not
from tore_fast.ops.reference import fit_landmarks as reference

PARENTS = (-1, 0, 1, 1, 3)
ATTACH = (0, 1, 2, 3, 4, 4, 2, 1)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small_model(shapes: int = 3) -> LandmarkModel:
    joints, count = len(PARENTS), len(ATTACH)
    root = normal(3 * (joints - 1), 3 * (joints - 1), seed=4)
    return LandmarkModel(
        PARENTS, ATTACH, 0.3 * normal(count, 3, seed=1), 0.02 * normal(count, 3, shapes, seed=2),
        0.4 * normal(joints, 3, seed=3), 0.02 * normal(joints, 3, shapes, seed=5),
        0.1 * normal(3 * (joints - 1), seed=6),
        root @ root.T + torch.eye(len(root)), ((2, 0, 1), (4, 1, -1)), (1, 2),
    )  # fmt: skip


def person(batch: int = 3, seed: int = 10) -> dict:
    joints, count = len(PARENTS), len(ATTACH)
    return {
        "points": 0.3 * normal(batch, count, 2, seed=seed),
        "weights": normal(batch, count, 2, seed=seed + 1).abs(),
        "world": 0.5 * normal(batch, count, 3, seed=seed + 2),
        "rotations": axis_angle_to_matrix(0.7 * normal(batch, joints, 3, seed=seed + 3)),
        "betas": 0.5 * normal(batch, 3, seed=seed + 4),
        "camera": torch.cat((normal(batch, 1, seed=seed + 5) * 0.2 - 1, 0.1 * normal(batch, 3, seed=seed + 6)), 1),
        "inv_focal": torch.linspace(0, 0.6, batch, dtype=torch.float64),
        "anchor": axis_angle_to_matrix(0.7 * normal(batch, joints, 3, seed=seed + 7)),
        "anchor_betas": 0.3 * normal(batch, 3, seed=seed + 8),
        "anchor_weight": torch.linspace(0.5, 2, batch, dtype=torch.float64),
    }


def prepared(p: dict):
    return reference.prepare(LandmarkInputs(**p), small_model(), FitSettings())


def test_gradient_against_autograd():
    """Half the gradient of the cost by a right-hand increment of every rotation, the shape, the camera."""
    problem, state = prepared(person())
    _, g = reference.normal_equations(problem, state)
    joints = len(PARENTS)
    step = torch.zeros_like(g).requires_grad_()
    moved = reference.moved(problem, state, step)
    total = reference.cost_parts(problem, moved)[0].sum()
    (want,) = torch.autograd.grad(total, step)
    torch.testing.assert_close(2 * g, want, rtol=1e-9, atol=1e-9)
    assert (want.abs().amax(0) > 1e-6).sum() > 3 * joints  # not trivially zero
    assert (reference.limit_residuals(problem, matrix_to_axis_angle(state.rotations[:, 1:])) < 0).any()


def test_gauss_newton_matrix_against_autograd():
    """J^T J of the weighted residuals, their weights held still."""
    problem, state = prepared(person())
    h, g = reference.normal_equations(problem, state)
    _, x = reference.cost_parts(problem, state)
    s = problem.settings
    weights = []
    for r, w, share in zip(reference.residuals(problem, state, x), problem.weights.unbind(-1), (1.0, s.world)):
        weights.append((share * w / (1 + (r * r).sum(-1) / (2 * s.robust**2))).sqrt()[..., None])
    lower = torch.linalg.cholesky(problem.model.prior_precision)

    def residuals(step):
        m = reference.moved(problem, state, step)
        pieces = reference.residuals(problem, m, reference.posed_landmarks(problem, m)[2])
        v = matrix_to_axis_angle(m.rotations[:, 1:])
        sigma = reference.anchor_sigma(problem, m)[:, None]
        turned = matrix_to_axis_angle(problem.anchor.mT @ m.rotations) / sigma
        rows = [(r * w).flatten(1) for r, w in zip(pieces, weights)]
        rows += [s.prior**0.5 * (v.flatten(1) - problem.model.prior_mean) @ lower]
        rows += [s.shape**0.5 * (m.betas - problem.anchor_betas), m.camera[:, 3:] / s.sigma_scale]
        rows += [
            reference.limit_residuals(problem, v),
            (problem.anchor_weight.sqrt()[:, None, None] * turned).flatten(1),
        ]
        return torch.cat(rows, 1)

    zero = torch.zeros_like(g)
    jac = torch.autograd.functional.jacobian(residuals, zero)  # [B, M, B, N]
    jac = torch.stack([jac[b, :, b] for b in range(len(g))])
    torch.testing.assert_close(h, jac.mT @ jac, rtol=1e-9, atol=1e-7)
    torch.testing.assert_close(g, (jac.mT @ residuals(zero)[..., None])[..., 0], rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-3, 0.0099, 0.0101, 1.0, 3.1, torch.pi - 1e-9])
def test_log_jacobian(angle):
    axis = torch.tensor([0.6, -0.64, 0.48], dtype=torch.float64)
    v = angle * axis
    got = reference.log_jacobian(v)
    e = 1e-6
    for i in range(3):
        d = torch.zeros(3, dtype=torch.float64)
        d[i] = e
        ends = [matrix_to_axis_angle(axis_angle_to_matrix(v) @ axis_angle_to_matrix(s * d)) for s in (1, -1)]
        if angle > 3.1:  # a half turn has two logs
            ends = [x if x @ axis > 0 else x * (1 - 2 * torch.pi / x.norm()) for x in ends]
        torch.testing.assert_close(got[:, i], (ends[0] - ends[1]) / (2 * e), rtol=0, atol=3e-5)


def run(p: dict, impl: str, **more):
    inputs = dict(p)
    first = [inputs.pop(n) for n in ("points", "weights", "world")]
    return fit_landmarks(
        *first, small_model(), inputs.pop("rotations"), inputs.pop("betas"), **inputs, impl=impl, **more
    )


def impls(x: torch.Tensor) -> list[str]:
    return ["reference", *(b for b in BACKENDS if why_not(b, x) is None)]


def test_cost_never_grows_and_converges():
    p = person(5)
    costs = torch.stack([run(p, "reference", steps=n).cost.sum(1) for n in (0, 1, 2, 4, 8, 60)])
    assert (costs.diff(dim=0) <= 1e-9).all() and (costs[-1] < 0.9 * costs[0]).all()
    end = run(p, "reference", steps=60)
    problem, state = prepared(p)
    state = reference.Unknowns(end.rotations, end.betas, end.camera)
    g = reference.normal_equations(problem, state)[1]
    inside = torch.cat(
        (torch.ones(5, 15), (end.betas.abs() < 2.99), end.camera[:, :3] * 0 + 1, end.camera[:, 3:].abs() < 0.299), 1
    )
    assert (g * inside).abs().max() < 0.05  # a stationary point, where no bound holds it


@pytest.mark.parametrize("without", [(), ("camera",), ("inv_focal", "anchor_weight"), ("anchor", "anchor_betas")])
@pytest.mark.parametrize("steps", [0, 1, 8])
def test_implementations_agree(without, steps):
    """One step shows the normal equations, eight the accepting and refusing; all compute in float64."""
    p = person(7, seed=30) | dict.fromkeys(without)
    want = run(p, "reference", steps=steps)
    for impl in impls(p["points"])[1:]:
        for a, b in zip(run(p, impl, steps=steps), want):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)
        single = run({n: t if t is None else t.float() for n, t in p.items()}, impl, steps=steps)
        assert all(t.dtype == torch.float32 for t in single)


def test_agree_on_the_body():
    """The 33 landmarks of the free body from a bad start: many refused steps, bounds reached."""
    m = landmark_model(load_body("free")).model
    start = axis_angle_to_matrix(1.5 * normal(6, 24, 3, seed=50))
    data = [0.5 * normal(6, 33, 2, seed=51), normal(6, 33, 2, seed=52).abs(), 0.5 * normal(6, 33, 3, seed=53), m, start]
    want = fit_landmarks(*data, 2 * normal(6, 10, seed=54), steps=12, impl="reference")
    for impl in impls(start)[1:]:
        got = fit_landmarks(*data, 2 * normal(6, 10, seed=54), steps=12, impl=impl)
        for a, b in zip(got, want):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert want.betas.abs().max() <= 3


def test_opcheck():
    p = person(2)
    if impls(p["points"]) == ["reference"]:
        pytest.skip(f"no compiled kernel: {why_not(BACKENDS[-1], p['points'])}")
    m = small_model()
    limits = [v for limit in m.limits for v in limit]
    tables = (m.offsets, m.offset_dirs, m.bones, m.bone_dirs, m.prior_mean, m.prior_precision)
    numbers = (list(m.parents), list(m.attach), limits, list(m.centre), 2, list(FitSettings()))
    torch.library.opcheck(torch.ops.tore_fast.fit_landmarks, (*p.values(), *tables, *numbers))
    for k, text in ((0, "parents"), (1, "attach"), (2, "limits"), (3, "centre"), (5, "settings")):
        wrong = list(numbers)
        wrong[k] = [99, *wrong[k][1:]] if k < 4 else wrong[k][1:]
        with pytest.raises(RuntimeError, match=text):
            torch.ops.tore_fast.fit_landmarks(*p.values(), *tables, *wrong)
    with pytest.raises(RuntimeError, match="world: size 1 must be 8"):
        torch.ops.tore_fast.fit_landmarks(*(p | {"world": p["world"][:, 1:]}).values(), *tables, *numbers)


def test_bad_numbers_stay_with_their_row():
    p = person(4)
    want = run(p, "reference")
    for impl in impls(p["points"]):
        for bad in (torch.nan, torch.inf, -torch.inf, 1e300):
            q = {n: t.clone() for n, t in p.items()}
            for n in q:
                q[n][1] = bad
            got = run(q, impl)
            for a, b in zip(got, want):
                torch.testing.assert_close(a[[0, 2, 3]], b[[0, 2, 3]], rtol=1e-6, atol=1e-6)
            assert torch.isfinite(got.rotations).all() and torch.isfinite(got.betas).all()


def test_unseen_points_are_not_read():
    p = person(2)
    p["weights"][:, 3:5] = 0
    for impl in impls(p["points"]):
        want = run(p, impl)
        q = {n: t.clone() for n, t in p.items()}
        q["points"][:, 3:5], q["world"][:, 3:5] = torch.nan, 7.0
        for a, b in zip(run(q, impl), want):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_errors():
    p = person(2)
    with pytest.raises(ValueError, match=r"fit_landmarks: world must be \[2, 8, 3\], got \[2, 8, 2\]"):
        run(p | {"world": p["points"]}, "auto")
    with pytest.raises(ValueError, match="not differentiable, but points requires grad"):
        run(p | {"points": p["points"].clone().requires_grad_()}, "auto")
    with pytest.raises(ValueError, match="steps must be"):
        run(p, "auto", steps=-1)
    with pytest.raises(ValueError, match="settings must be positive"):
        run(p, "auto", settings=FitSettings(sigma_z=0.0))
    with pytest.raises(TypeError, match="points must be float32 or float64"):
        run(p | {"points": p["points"].half()}, "auto")
    with pytest.raises(ValueError, match="impl must be one of"):
        run(p, "fast")
    q = dict(p)
    first = [q.pop(n) for n in ("points", "weights", "world")]
    start = [q.pop("rotations"), q.pop("betas")]
    for change, text in (
        ({"parents": (-1, 2, 1, 1, 3)}, "model.parents"),
        ({"attach": (*ATTACH[:-1], 5)}, "model.attach"),
        ({"centre": (0, 8)}, "model.centre"),
        ({"limits": ((0, 0, 1),)}, "model.limits"),
    ):
        with pytest.raises(ValueError, match=text):
            fit_landmarks(*first, small_model()._replace(**change), *start)


def test_reference_makes_nothing_on_another_device():
    """A tensor on the CPU among meta tensors would be refused, as it would among CUDA tensors."""
    p = {n: t.to("meta") for n, t in person(2).items()}
    model = small_model()
    model = model._replace(**{k: t.to("meta") for k, t in model._asdict().items() if isinstance(t, torch.Tensor)})
    q = dict(p)
    first = [q.pop(n) for n in ("points", "weights", "world")]
    for without in ((), q):
        kwargs = {n: t for n, t in q.items() if n not in ("rotations", "betas") and n not in without}
        out = fit_landmarks(*first, model, q["rotations"], q["betas"], **kwargs)
        assert all(t.device.type == "meta" for t in out) and out.cost.shape == (2, 7)
