"""Skeletons: the maps name the same joints, trees are trees, mirror images exchange left and right."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tore_fast.geometry import skeleton
from tore_fast.geometry.skeleton import BLAZEPOSE33, COCO17, H36M17, HAND21, J14, J24, MANO16, SMPL24, WHOLEBODY133

SETS = {name: s for name, s in vars(skeleton).items() if isinstance(s, skeleton.Skeleton)}


def test_maps_name_the_same_joints():
    assert {name: len(s) for name, s in SETS.items()} == {
        name: int(name[-2:]) if name != "WHOLEBODY133" else 133 for name in SETS
    }
    assert [H36M17.names[i] for i in skeleton.H36M17_TO_J14] == list(J14)
    assert J14.names[-2:] == ("Neck", "Head") and [J14.names[i] for i in skeleton.J14_HIPS] == ["R_Hip", "L_Hip"]
    mano = [*MANO16, "Thumb4", "Index4", "Middle4", "Ring4", "Pinky4"]
    assert [mano[i] for i in skeleton.MANO21_TO_HAND21] == list(HAND21)
    to_j24 = skeleton.SMPL38_TO_J24
    named = [SMPL24.names[i] for i in to_j24 if i < 24]  # those J24 takes from SMPL itself
    assert named == [J24.names[k] for k, i in enumerate(to_j24) if i < 24]
    assert len(set(to_j24)) == 24 and max(to_j24) == 37


@pytest.mark.parametrize("name", [n for n, s in SETS.items() if s.parents])
def test_trees(name):
    parents = SETS[name].parents
    assert parents.count(-1) == 1 or name == "WHOLEBODY133"  # whose face has lines of its own
    for j in range(len(parents)):
        seen = set()
        while j >= 0:
            assert j not in seen
            seen.add(j)
            j = parents[j]


@pytest.mark.parametrize(
    "name", ["SMPL24", "SMPL29", "H36M17", "J14", "COCO17", "WHOLEBODY133", "BLAZEPOSE33", "OPENPOSE25"]
)
def test_limbs_connect_neighbours(name):
    joints = SETS[name]
    above = {joints.names[child]: joints.names[parent] for parent, child in joints.bones}
    for side in "LR":
        assert above[f"{side}_Ankle"] == f"{side}_Knee" and above[f"{side}_Knee"] == f"{side}_Hip"
        assert above[f"{side}_Wrist"] == f"{side}_Elbow" and above[f"{side}_Elbow"] == f"{side}_Shoulder"


def test_hands_and_feet_of_the_whole_body_hang_on_the_body():
    above = {WHOLEBODY133.names[c]: WHOLEBODY133.names[p] for p, c in WHOLEBODY133.bones}
    for side in "LR":
        assert above[f"{side}_HandWrist"] == f"{side}_Wrist" and above[f"{side}_HandRing4"] == f"{side}_HandRing3"
        assert above[f"{side}_Heel"] == f"{side}_Ankle"
    assert WHOLEBODY133.mirror[:17] == COCO17.mirror


@pytest.mark.parametrize("name", SETS)
def test_mirror_images(name):
    joints = SETS[name]
    assert {joints.mirror[i] for i in joints.left} == set(joints.right)
    for i in joints.left:
        assert joints.names[joints.mirror[i]] == "R" + joints.names[i][1:]
    points = np.random.default_rng(0).normal(size=(2, len(joints), 4))
    mirrored = skeleton.mirror_points(points, joints)
    assert mirrored.base is None or not np.shares_memory(mirrored, points)
    np.testing.assert_array_equal(mirrored[:, 0, 0], -points[:, joints.mirror[0], 0])
    np.testing.assert_array_equal(skeleton.mirror_points(mirrored, joints), points)
    other = skeleton.mirror_points(torch.from_numpy(points), joints)
    np.testing.assert_array_equal(other.numpy(), mirrored)


def test_blazepose_numbers():
    at = {
        "Nose": 0,
        "L_Eye": 2,
        "R_EyeOuter": 6,
        "R_Ear": 8,
        "L_Mouth": 9,
        "L_Shoulder": 11,
        "R_Wrist": 16,
        "L_FootIndex": 31,
    }
    assert {n: BLAZEPOSE33.index(n) for n in at} == at
    assert all((i % 2 == 1) == (i in BLAZEPOSE33.left) for i in range(11, 33))


def test_refusals():
    with pytest.raises(ValueError, match="names must differ"):
        skeleton.Skeleton.of("a a")
    with pytest.raises(ValueError, match="parents must be 2 rows"):
        skeleton.Skeleton.of("a b", (-1, 1))
    with pytest.raises(ValueError, match="mirror must exchange pairs"):
        skeleton.Skeleton(("a", "b", "c"), (), (1, 2, 0))
    with pytest.raises(ValueError, match=r"points must be \[..., 17, D\]"):
        skeleton.mirror_points(np.zeros((16, 3)), H36M17)
