"""Skinning: against an independent vertex loop, against smplx, rotation inputs, gradients, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.spatial.transform as sst
import torch

from tore_fast.body import load_body
from tore_fast.body.lbs import ancestor_table, forward_kinematics, skin_vertices
from tore_fast.geometry.rotation import axis_angle_to_matrix


def slow_forward(template, joints, weights, parents, rotvecs):
    """One body by walking the tree with 4x4 matrices and looping over vertices (numpy, float64)."""
    world = []
    for j, p in enumerate(parents):
        local = np.eye(4)
        local[:3, :3] = sst.Rotation.from_rotvec(rotvecs[j]).as_matrix()
        local[:3, 3] = joints[j] - (joints[p] if p >= 0 else 0)
        world.append(local if p < 0 else world[p] @ local)
    out = []
    for v, w in zip(template, weights):
        m = np.zeros((4, 4))
        for j in np.flatnonzero(w):
            home = np.eye(4)
            home[:3, 3] = -joints[j]
            m += w[j] * world[j] @ home
        out.append((m @ [*v, 1])[:3])
    return np.array(out), np.array([m[:3, 3] for m in world])


@pytest.mark.parametrize("name", ["free", "free_hand"])
def test_against_a_vertex_loop(name, device):
    body = load_body(name).to(device)
    g = torch.Generator().manual_seed(1)
    pose = torch.randn(2, body.num_joints, 3, generator=g)
    betas, transl = torch.randn(2, 10, generator=g), torch.randn(2, 3, generator=g)
    out = body(pose.to(device), betas.to(device), transl.to(device))
    some = np.arange(0, len(body.template), 37)
    for b in range(2):
        beta = betas[b].double().numpy()
        rest = body.template.double().cpu().numpy() + body.shape_dirs.double().cpu().numpy() @ beta
        joints = body.joints.double().cpu().numpy() + body.joint_dirs.double().cpu().numpy() @ beta
        weights = body.weights.double().cpu().numpy()
        v, j = slow_forward(rest[some], joints, weights[some], body.parents, pose[b].double().numpy())
        np.testing.assert_allclose(out.vertices[b, some].cpu(), v + transl[b].numpy(), atol=5e-6)
        np.testing.assert_allclose(out.joints[b].cpu(), j + transl[b].numpy(), atol=5e-6)


def test_against_smplx():
    lbs = pytest.importorskip("smplx.lbs").lbs
    rng = np.random.default_rng(0)
    body = _random_smpl(rng)
    betas, pose = torch.randn(3, 10).double(), torch.randn(3, 72).double()
    body = body.double()
    # joints of a random body have no regressor: hand smplx one that picks dedicated vertices
    template = torch.cat([body.template, body.joints])
    dirs = torch.cat([body.shape_dirs, body.joint_dirs])
    weights = torch.cat([body.weights, torch.eye(24).double()])
    pose_dirs = torch.cat([body.pose_dirs.unflatten(1, (-1, 3)), torch.zeros(207, 24, 3).double()], 1).flatten(1)
    regressor = torch.zeros(24, len(template)).double()
    regressor[torch.arange(24), len(body.template) + torch.arange(24)] = 1
    parents = torch.tensor(body.parents)
    v, j = lbs(betas, pose, template, dirs, pose_dirs, regressor, parents, weights)
    out = body(pose, betas)
    # smplx adds 1e-8 to every component before taking the angle: not exact itself
    torch.testing.assert_close(out.vertices, v[:, : len(body.template)], atol=1e-6, rtol=0)
    torch.testing.assert_close(out.joints, j, atol=1e-6, rtol=0)


def _random_smpl(rng):
    from tore_fast.body import Body, BodyTopology, MeshHierarchy
    from tore_fast.geometry.skeleton import SMPL24

    faces = np.stack([np.arange(40), (np.arange(40) + 1) % 42, (np.arange(40) + 2) % 42], 1).astype(np.int32)
    weights = rng.random((42, 24)) ** 8
    return Body(
        BodyTopology("random", MeshHierarchy((faces,), (), ())),
        template=rng.normal(size=(42, 3)),
        shape_dirs=rng.normal(size=(42, 3, 10)) * 0.1,
        weights=weights / weights.sum(1, keepdims=True),
        joints=rng.normal(size=(24, 3)),
        joint_dirs=rng.normal(size=(24, 3, 10)) * 0.1,
        joint_names=SMPL24.names,
        parents=SMPL24.parents,
        pose_dirs=rng.normal(size=(207, 42 * 3)) * 0.01,
    )


def test_three_pose_layouts_and_levels_agree():
    body = load_body("free")
    pose, betas = torch.randn(3, 24, 3), torch.randn(3, 4)
    matrices = torch.from_numpy(sst.Rotation.from_rotvec(pose.reshape(-1, 3).numpy()).as_matrix()).float()
    want = body(pose, betas)
    for other in (pose.flatten(1), matrices.reshape(3, 24, 3, 3)):
        torch.testing.assert_close(body(other, betas).vertices, want.vertices, atol=2e-5, rtol=0)
    for level in (1, 2):
        got = body(pose, betas, level=level).vertices
        torch.testing.assert_close(got, body.coarse(want.vertices, level), atol=1e-6, rtol=0)


def test_chunked_path_equals_grad_path():
    body = load_body("free")
    pose = torch.randn(5, 24, 3)
    with torch.no_grad():
        fast = body(pose).vertices
    slow = body(pose.requires_grad_()).vertices
    torch.testing.assert_close(fast, slow.detach(), atol=1e-6, rtol=0)
    slow.sum().backward()
    assert pose.grad.isfinite().all() and pose.grad.abs().max() > 0


def test_rotations_are_exact_and_smooth_at_zero():
    aa = torch.cat([torch.randn(50, 3), torch.randn(20, 3) * 1e-5, torch.zeros(1, 3)]).double()
    want = sst.Rotation.from_rotvec(aa.numpy()).as_matrix()
    np.testing.assert_allclose(axis_angle_to_matrix(aa), want, atol=1e-12)
    for scale in (0.0, 1e-6, 1e-3, 1.0, 3.1):
        x = (scale * torch.tensor([[0.6, -0.64, 0.48]])).double().requires_grad_()
        assert torch.autograd.gradcheck(axis_angle_to_matrix, (x,), eps=1e-7, atol=1e-5)


def test_gradcheck_small_body():
    body = _random_smpl(np.random.default_rng(3)).double()
    pose, betas = torch.randn(1, 24, 3).double() * 0.5, torch.randn(1, 3).double()
    transl = torch.randn(1, 3).double()
    inputs = tuple(x.requires_grad_() for x in (pose, betas, transl))
    assert torch.autograd.gradcheck(lambda *a: tuple(body(*a)), inputs, atol=1e-6)


def test_kinematics_on_odd_trees():
    for parents in ((-1,), (-1, 0), (-1, 0, 1, 2, 3, 4), (-1, 0, 0, 0)):
        n = len(parents)
        r = torch.from_numpy(sst.Rotation.random(n, random_state=0).as_matrix())[None]
        rest = torch.randn(1, n, 3).double()
        world, place = forward_kinematics(r, rest, ancestor_table(parents))
        for j, p in enumerate(parents):
            if p < 0:
                torch.testing.assert_close(world[:, j], r[:, j])
                torch.testing.assert_close(place[:, j], rest[:, j])
            else:
                torch.testing.assert_close(world[:, j], world[:, p] @ r[:, j])
                step = (world[:, p] @ (rest[:, j] - rest[:, p])[..., None])[..., 0]
                torch.testing.assert_close(place[:, j], place[:, p] + step)
    with pytest.raises(ValueError, match="parents must be -1, then earlier joints"):
        ancestor_table((-1, 2, 0))


def test_rigid_motion_moves_rigidly():
    """Turning only the root turns everything about the root joint; identity does nothing."""
    body = load_body("free")
    with torch.no_grad():
        still = body(torch.zeros(1, 24, 3)).vertices[0]
        torch.testing.assert_close(still, body.template, atol=1e-6, rtol=0)
        pose = torch.zeros(1, 24, 3)
        pose[0, 0] = torch.tensor([0.3, -1.1, 0.7])
        turned = body(pose).vertices[0]
    r = torch.from_numpy(sst.Rotation.from_rotvec(pose[0, 0].numpy()).as_matrix()).float()
    torch.testing.assert_close(turned, body.template @ r.T, atol=1e-5, rtol=0)  # the root joint is the origin


def test_empty_batch():
    out = load_body("free")(torch.zeros(0, 24, 3), torch.zeros(0, 10))
    assert out.vertices.shape == (0, 6890, 3) and out.joints.shape == (0, 24, 3)


def test_whole_graph_compiles():
    torch._dynamo.reset()
    body = load_body("free")
    pose, betas = torch.randn(2, 24, 3), torch.randn(2, 10)

    def joints(p, b):
        return body.regress("j14", body(p, b, level=2).vertices)

    compiled = torch.compile(joints, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(pose, betas), joints(pose, betas))


@pytest.mark.parametrize(
    "args,words",
    [
        ({"pose": torch.zeros(2, 23, 3)}, r"pose must be \[B, 72\] or \[B, 24, 3\]"),
        ({"betas": torch.zeros(2, 11)}, r"betas must be \[2, <= 10\], got \[2, 11\]"),
        ({"betas": torch.zeros(3, 10)}, r"betas must be \[2, <= 10\], got \[3, 10\]"),
        ({"transl": torch.zeros(3)}, r"transl must be \[2, 3\]"),
        ({"level": 3}, r"level must be 0..2, got 3"),
    ],
)
def test_refuses(args, words):
    with pytest.raises(ValueError, match=words):
        load_body("free")(**({"pose": torch.zeros(2, 24, 3)} | args))


def test_skin_vertices_keeps_dtype():
    v = skin_vertices(
        *(torch.zeros(s, dtype=torch.float64) for s in ((1, 4, 3), (4, 2), (1, 2, 3, 3), (1, 2, 3), (1, 2, 3)))
    )
    assert v.dtype == torch.float64
