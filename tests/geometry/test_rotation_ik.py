"""Rotations against scipy; HybrIK's inverse kinematics against the pose it came from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from tore_fast.geometry import rotation
from tore_fast.layers import ik


def random_matrices(*shape: int, seed: int = 0) -> torch.Tensor:
    m = Rotation.random(int(np.prod(shape)), random_state=seed).as_matrix().reshape(*shape, 3, 3)
    return torch.from_numpy(m)


def test_conversions_agree_with_scipy():
    m = random_matrices(50)
    r = Rotation.from_matrix(m.numpy())
    torch.testing.assert_close(rotation.matrix_to_axis_angle(m), torch.from_numpy(r.as_rotvec()))
    torch.testing.assert_close(rotation.axis_angle_to_matrix(torch.from_numpy(r.as_rotvec())), m)
    q = torch.from_numpy(r.as_quat(canonical=True))[:, [3, 0, 1, 2]]
    torch.testing.assert_close(rotation.matrix_to_quaternion(m), q)
    torch.testing.assert_close(rotation.quaternion_to_matrix(3 * q), m)
    torch.testing.assert_close(rotation.rot6d_to_matrix(rotation.matrix_to_rot6d(m)), m)
    angle = rotation.geodesic_angle(m[:-1], m[1:])
    torch.testing.assert_close(angle, torch.from_numpy((r[:-1].inv() * r[1:]).magnitude()))


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, np.pi - 1e-7, np.pi])
def test_axis_angle_near_zero_and_pi(angle):
    v = torch.tensor([[0.6, 0.0, -0.8]], dtype=torch.float64) * angle
    m = rotation.axis_angle_to_matrix(v)
    torch.testing.assert_close(m, torch.from_numpy(Rotation.from_rotvec(v.numpy()).as_matrix()))
    torch.testing.assert_close(rotation.axis_angle_to_matrix(rotation.matrix_to_axis_angle(m)), m, atol=1e-7, rtol=0)


def test_axis_angle_has_a_gradient_at_zero():
    v = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rotation.axis_angle_to_matrix, v)


def test_swing_twist_multiplies_back():
    m, bone = random_matrices(30), torch.randn(30, 3, dtype=torch.float64)
    swing, twist = rotation.swing_twist(m, bone)
    unit = bone / bone.norm(dim=-1, keepdim=True)
    again = swing @ rotation.rodrigues(unit, twist[:, 0], twist[:, 1])
    torch.testing.assert_close(again, m, atol=1e-6, rtol=0)
    # the swing has no turn about the bone's own axis beyond the minimal one: its axis is orthogonal to the bone
    axis = rotation.matrix_to_axis_angle(swing)
    assert (axis * unit).sum(-1).abs().max() < 1e-5


@pytest.mark.parametrize("mode", ["adaptive", "naive"])
def test_ik_returns_noise_free_rotations(mode):
    g = torch.Generator().manual_seed(0)
    rest = torch.zeros(29, 3, dtype=torch.float64)
    for i in range(1, 29):
        rest[i] = rest[ik.SMPL_TREE.parents[i]] + torch.randn(3, generator=g, dtype=torch.float64) * 0.2
    want = rotation.axis_angle_to_matrix(torch.randn(6, 24, 3, generator=g, dtype=torch.float64) * 0.6)
    joints, twists = ik.split_features(ik.pose_to_features(want, rest))
    got = ik.hybrik_ik(joints, twists, rest, mode, root="svd")
    assert rotation.geodesic_angle(got, want).max() < 1e-4


def test_adaptive_mode_stops_errors_from_adding_up():
    g = torch.Generator().manual_seed(0)
    rest = torch.zeros(29, 3)
    for i in range(1, 29):
        step = torch.randn(3, generator=g)
        rest[i] = rest[ik.SMPL_TREE.parents[i]] + 0.25 * step / step.norm()
    want = rotation.axis_angle_to_matrix(torch.randn(64, 24, 3, generator=g) * 0.4)
    joints, twists = ik.split_features(ik.pose_to_features(want, rest))
    noisy = joints + 0.003 * torch.randn(joints.shape, generator=g)
    errors = {}
    for mode in ("adaptive", "naive"):
        posed = ik.forward_kinematics(ik.hybrik_ik(noisy, twists, rest, mode, root="svd"), rest)
        errors[mode] = float((posed - posed[:, :1] - joints).norm(dim=-1).mean())
    assert errors["adaptive"] < errors["naive"]


def test_ik_errors():
    with pytest.raises(ValueError, match="joints must be"):
        ik.hybrik_ik(torch.zeros(1, 24, 3), torch.zeros(1, 23, 2), torch.zeros(29, 3))
    with pytest.raises(ValueError, match="mode must be"):
        ik.hybrik_ik(torch.zeros(1, 29, 3), torch.zeros(1, 23, 2), torch.zeros(29, 3), "exact")
    with pytest.raises(ValueError, match="tree order"):
        ik.IKTree((-1, 2, 0), (1, -1, -1))
