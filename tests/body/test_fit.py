"""The landmark fit: recovers bodies from simulated landmarks, refuses what it cannot know, treats people alone."""

from __future__ import annotations

import math

import pytest
import torch

from body.simulated import simulate, to
from tore_fast.body import Body, BodyTopology, load_body
from tore_fast.body.fit import FittedBody, Landmarks, fit_body, landmarks_to_h36m17, pose_from_joints
from tore_fast.body.fit.fit import fit_device
from tore_fast.body.fit.landmarks import landmark_model
from tore_fast.body.fit.prior import gaussian, load_pose_prior
from tore_fast.geometry.camera import intrinsics
from tore_fast.geometry.procrustes import similarity_align
from tore_fast.ops import FitSettings
from tore_fast.ops._dispatch import backend_reason


def errors(fitted: FittedBody, joints: torch.Tensor) -> tuple[float, float]:
    """Mean joint error in mm as it stands, and after a similarity."""
    got, want = fitted.joints.double(), joints.double()
    aligned = similarity_align(got, want)
    return tuple(1000 * float((a - want).norm(dim=-1).mean()) for a in (got, aligned))


def test_clean_landmarks_give_the_body_back():
    s = simulate(32, seed=1)
    fitted = fit_body(s.landmarks)
    assert all(fitted.believed) and not any(fitted.reasons)
    plain, aligned = errors(fitted, s.joints)
    assert aligned < 42 and plain < 55  # the prior and the size still pull
    assert fitted.error_px.mean() < 2
    torch.testing.assert_close(fitted.camera, s.camera, rtol=0.15, atol=4)
    eye = torch.eye(3, dtype=torch.float64).expand(32, 24, 3, 3)
    torch.testing.assert_close(fitted.rotations @ fitted.rotations.mT, eye, rtol=0, atol=1e-9)
    assert fitted.vertices.shape == (32, 6890, 3) and fitted.axis_angle.shape == (32, 24, 3)
    assert set(fitted.cost) == {"points", "world", "prior", "shape", "scale", "limits", "anchor"}


def test_better_than_its_start_and_than_the_world_points():
    s = simulate(48, seed=2, noise_px=2.0, noise_m=0.03, flatten=0.7)
    start, fitted = fit_body(s.landmarks, steps=0), fit_body(s.landmarks)
    assert errors(fitted, s.joints)[1] < 0.75 * errors(start, s.joints)[1]
    seen, true = (landmarks_to_h36m17(p) for p in (s.landmarks.world, simulate(48, seed=2).landmarks.world))
    raw = 1000 * float((similarity_align(seen, true) - true).norm(dim=-1).mean())
    assert errors(fitted, s.joints)[1] < raw
    more = fit_body(s.landmarks, steps=25)
    assert abs(errors(more, s.joints)[1] - errors(fitted, s.joints)[1]) < 2  # 8 steps are enough
    total, later = (sum(f.cost.values()) for f in (fitted, more))
    assert (later <= total + 1e-9).all()


def test_pinhole_camera():
    s = simulate(24, seed=3, focal=500.0)  # 4 to 5 m away
    k = intrinsics(torch.tensor([500.0]), torch.tensor([[640.0, 480.0]]))[0].double()
    weak_prior = {"settings": FitSettings(prior=0.02, sigma_point=0.004), "steps": 20}
    fitted, flat = fit_body(s.landmarks, k, **weak_prior), fit_body(s.landmarks, **weak_prior)
    assert all(fitted.believed)
    assert fitted.error_px.mean() < 0.7 * flat.error_px.mean()
    assert errors(fitted, s.joints)[1] < errors(flat, s.joints)[1]
    off = (fitted.translation - s.translation).abs()
    assert off[:, :2].mean() < 0.05 and (off[:, 2] / s.translation[:, 2]).mean() < 0.06
    # the same place said as weak perspective
    torch.testing.assert_close(fitted.translation, fitted.full_translation(500.0, k[:2, 2]), rtol=1e-9, atol=1e-9)
    seen = fitted.landmarks + fitted.translation[:, None]
    drawn = 500 * seen[..., :2] / seen[..., 2:] + k[:2, 2]
    assert (drawn - s.landmarks.points).norm(dim=-1).mean() < 1.5
    oblong = k.clone()
    oblong[1, 1], stretched = 1000.0, s.landmarks.points.clone()
    stretched[..., 1] = (stretched[..., 1] - 240) * 2 + 240
    marks = Landmarks(stretched, s.landmarks.world, s.landmarks.visibility, None, s.landmarks.side)
    torch.testing.assert_close(
        fit_body(marks, oblong, **weak_prior).translation, fitted.translation, rtol=1e-6, atol=1e-6
    )


def test_people_do_not_see_each_other():
    s = simulate(6, seed=4, noise_px=1.5, noise_m=0.02)
    together = fit_body(s.landmarks)
    again = fit_body(s.landmarks)
    assert torch.equal(together.rotations, again.rotations)
    alone = fit_body(Landmarks(*(t[2:3] if t is not None else None for t in vars(s.landmarks).values())))
    torch.testing.assert_close(alone.rotations, together.rotations[2:3], rtol=0, atol=1e-9)
    spoiled = to(s.landmarks, torch.float64)
    spoiled.points[3], spoiled.world[3] = torch.nan, torch.inf
    other = fit_body(spoiled)
    assert torch.isfinite(other.rotations).all() and torch.isfinite(other.vertices).all()
    kept = [0, 1, 2, 4, 5]
    torch.testing.assert_close(other.rotations[kept], together.rotations[kept], rtol=0, atol=1e-9)
    assert other.believed.tolist() == [True, True, True, False, True, True]
    assert other.reasons[3] == "no landmark is finite" and torch.isnan(other.camera[3]).all()


def test_not_known_is_said():
    s = simulate(8, seed=5).landmarks
    visible = s.visibility.clone()
    visible[0] = 0
    visible[1, 1:] = 0
    points, world = s.points.clone(), s.world.clone()
    points[2], world[3] = 100.0, 0.0
    points[4, ::2] += 60 * torch.randn(17, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flag = torch.tensor([1, 1, 1, 1, 1, 0.3, 1, 1], dtype=torch.float64)
    points[6, 20:] = torch.nan
    fitted = fit_body(Landmarks(points, world, visible, flag))
    r = fitted.reasons
    assert r[0] == "0 of 33 landmarks are visible, 4 are needed"
    assert r[1] == "1 of 33 landmarks are visible, 4 are needed"
    assert r[2] == "all landmarks lie on one point" and torch.isnan(fitted.camera[2]).all()
    assert r[3] == ""  # image points alone
    assert r[4].startswith("the body misses the landmarks by")
    assert r[5].startswith("the landmark net is 0.30 sure")
    assert r[6] == r[7] == ""  # half of the points are enough
    assert fitted.believed.tolist() == [not x for x in r]
    for t in (fitted.rotations, fitted.betas, fitted.vertices, fitted.joints):
        assert torch.isfinite(t).all()


def test_missing_hips():
    s = simulate(4, seed=13).landmarks
    points, world = s.points.clone(), s.world.clone()
    points[:, 23:25], world[:, 23:25] = torch.nan, torch.nan  # the net's world origin is the middle of the hips
    k = intrinsics(torch.tensor([700.0]), torch.tensor([[640.0, 480.0]]))[0].double()
    for camera in (None, k):
        fitted = fit_body(Landmarks(points, world, s.visibility), camera)
        assert all(fitted.believed) and errors(fitted, simulate(4, seed=13).joints)[1] < 60


def test_where_the_steps_run():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    compiled = backend_reason("cpu") is None
    assert fit_device(cuda, 4, "auto") == (cpu if compiled else cuda)
    assert fit_device(cuda, 4, "reference") == fit_device(cuda, 10_000, "auto") == cuda
    assert fit_device(cpu, 4, "auto") == cpu


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_cuda(impl):
    s = simulate(6, seed=14, noise_px=1.0).landmarks
    want, got = fit_body(s), fit_body(s.to("cuda"), impl=impl)
    for name in ("rotations", "camera", "vertices", "error_px"):
        value = getattr(got, name)
        assert value.device.type == "cuda"
        torch.testing.assert_close(value.cpu(), getattr(want, name), rtol=1e-4, atol=1e-4)
    assert got.reasons == want.reasons


def test_degenerate_world_points_start_upright():
    for world in (torch.zeros(2, 33, 3), torch.full((2, 33, 3), torch.nan), torch.ones(2, 33, 3)):
        s = simulate(2, seed=6, difficulty=0.0).landmarks
        fitted = fit_body(Landmarks(s.points, world.double(), s.visibility, None, s.side))
        assert torch.isfinite(fitted.rotations).all() and fitted.error_px.max() < 5
    bones = torch.zeros(3, 17, 3)
    assert torch.isfinite(pose_from_joints(bones)).all()


def test_video_warm_start_and_anchor():
    first, second = (simulate(8, seed=7, noise_px=n).landmarks for n in (0.0, 1.0))
    cold = fit_body(first)
    warm = fit_body(second, start=cold, steps=3)
    full = fit_body(second)
    assert (warm.error_px - full.error_px).abs().max() < 0.4
    held = fit_body(second, start=cold, steps=3, temporal=20.0)
    turn = lambda f: (f.rotations.mT @ cold.rotations).diagonal(dim1=-2, dim2=-1).sum(-1)  # noqa: E731  3 = no turn
    assert (3 - turn(held)).mean() < 0.5 * (3 - turn(warm)).mean()
    assert held.cost["anchor"].min() >= 0 and warm.cost["anchor"].abs().max() == 0
    lost = fit_body(Landmarks(first.points * torch.nan, first.world, first.visibility))
    after = fit_body(second, start=lost)  # nothing believed: starts afresh
    torch.testing.assert_close(after.rotations, full.rotations, rtol=0, atol=1e-9)


def test_a_users_smpl():
    """Any body with SMPL's skeleton under that name; here the free body's numbers, its joints lengthened by a tenth."""
    free = load_body("free")
    topology = BodyTopology("smpl", free.hierarchy)
    tables = {n: getattr(free, n) for n in ("template", "shape_dirs", "weights", "joints", "joint_dirs")}
    tables |= {n: 1.1 * tables[n] for n in ("template", "joints")}
    smpl = Body(topology, joint_names=free.joint_names, parents=free.parents, **tables)
    counts = landmark_model(smpl).counts
    assert [k for k in range(33) if counts[k] == 0] == [1, 3, 4, 6, 9, 10]  # eye corners and mouth: no public vertex
    s = simulate(8, seed=12, body=smpl)
    fitted = fit_body(s.landmarks, body=smpl)
    assert all(fitted.believed) and errors(fitted, s.joints)[1] < 60
    spoiled = s.landmarks.points.clone()
    spoiled[:, [1, 3, 4, 6, 9, 10]] += 50  # not used
    again = fit_body(Landmarks(spoiled, *list(vars(s.landmarks).values())[1:]), body=smpl)
    torch.testing.assert_close(again.rotations, fitted.rotations, rtol=0, atol=1e-9)


def test_dtype_and_shape_errors():
    s = simulate(2, seed=8).landmarks
    single, double = fit_body(to(s, torch.float32)), fit_body(s)
    assert single.rotations.dtype == torch.float32
    torch.testing.assert_close(single.rotations.double(), double.rotations, rtol=0, atol=2e-3)
    empty = fit_body(Landmarks(s.points[:0], s.world[:0], s.visibility[:0]))
    assert len(empty) == 0 and empty.reasons == () and empty.vertices.shape == (0, 6890, 3)
    with pytest.raises(ValueError, match=r"Landmarks: world must be \[B, 33, 3\], got \[2, 32, 3\]"):
        Landmarks(s.points, s.world[:, :32], s.visibility)
    with pytest.raises(ValueError, match="camera must be"):
        fit_body(s, torch.eye(4))
    with pytest.raises(ValueError, match="positive focal"):
        fit_body(s, -torch.eye(3))
    with pytest.raises(ValueError, match="start has 1 people"):
        fit_body(s, start=fit_body(Landmarks(s.points[:1], s.world[:1], s.visibility[:1])))
    with pytest.raises(ValueError, match="body must be 'free'"):
        fit_body(s, body="smpl")
    with pytest.raises(ValueError, match="SMPL's 24 joints"):
        fit_body(s, body=load_body("free_hand"))


def test_crop_side_from_the_points():
    s = simulate(4, seed=9).landmarks
    side = Landmarks(s.points, s.world, s.visibility).crop_side()
    far = (s.points - s.points[:, 23:25].mean(1, keepdim=True)).norm(dim=-1).amax(1)
    torch.testing.assert_close(side, 2.5 * far)


def test_prior_asset():
    mean, precision = load_pose_prior()
    assert mean.shape == (69,) and torch.equal(precision, precision.T)
    assert torch.linalg.eigvalsh(precision).min() > 0
    assert torch.rad2deg(mean).abs().max() < 60
    # nothing is narrower than the 4 degrees that were added
    assert torch.linalg.eigvalsh(precision).max() < 1.01 / math.radians(4) ** 2
    x = torch.randn(5000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.2 + 1
    m, lower = gaussian(x, 0.0)
    torch.testing.assert_close(m, torch.ones(4, dtype=torch.float64), atol=0.02, rtol=0)
    torch.testing.assert_close(lower @ lower.T, 25 * torch.eye(4, dtype=torch.float64), atol=2.5, rtol=0)
