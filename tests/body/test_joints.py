"""Joint tables and projection: the maps name the same joints, trees are trees, s * (xy + t)."""

from __future__ import annotations

import pytest
import torch

from tore_fast.body import joints, project


def test_maps_name_the_same_joints():
    assert len(joints.J24) == len(joints.SMPL24) == 24 and len(joints.H36M17) == 17 and len(joints.HAND21) == 21
    picked = [joints.H36M17[i] for i in joints.H36M17_TO_J14]
    assert picked == list(joints.J14)
    assert joints.J14[-2:] == ("Neck", "Head") and [joints.J14[i] for i in joints.J14_HIPS] == ["R_Hip", "L_Hip"]
    mano = [*joints.MANO16, "Thumb4", "Index4", "Middle4", "Ring4", "Pinky4"]
    assert [mano[i] for i in joints.MANO21_TO_HAND21] == list(joints.HAND21)
    named = [joints.SMPL24[i] for i in joints.SMPL38_TO_J24 if i < 24]  # those J24 takes from SMPL itself
    own = [joints.J24[k] for k, i in enumerate(joints.SMPL38_TO_J24) if i < 24]
    assert named == own
    assert len(set(joints.SMPL38_TO_J24)) == 24 and max(joints.SMPL38_TO_J24) == 37


@pytest.mark.parametrize(
    "names,parents",
    [
        ("SMPL24", "SMPL24_PARENTS"),
        ("J14", "J14_PARENTS"),
        ("H36M17", "H36M17_PARENTS"),
        ("MANO16", "MANO16_PARENTS"),
        ("HAND21", "HAND21_PARENTS"),
    ],
)
def test_trees(names, parents):
    parents, count = getattr(joints, parents), len(getattr(joints, names))
    assert len(parents) == count and parents.count(-1) == 1
    for j in range(count):
        seen = set()
        while j >= 0:
            assert j not in seen
            seen.add(j)
            j = parents[j]


def test_limbs_connect_neighbours():
    for names, parents in (
        (joints.SMPL24, joints.SMPL24_PARENTS),
        (joints.H36M17, joints.H36M17_PARENTS),
        (joints.J14, joints.J14_PARENTS),
    ):
        above = {n: names[p] for n, p in zip(names, parents) if p >= 0}
        for side in "LR":
            assert above[f"{side}_Ankle"] == f"{side}_Knee" and above[f"{side}_Knee"] == f"{side}_Hip"
            assert above[f"{side}_Wrist"] == f"{side}_Elbow" and above[f"{side}_Elbow"] == f"{side}_Shoulder"
    above = {n: joints.HAND21[p] for n, p in zip(joints.HAND21, joints.HAND21_PARENTS)}
    assert above["Ring4"] == "Ring3" and above["Thumb1"] == "Wrist"


@pytest.mark.parametrize("names", [joints.SMPL24, joints.J24, joints.H36M17, joints.J14])
def test_mirror_index(names):
    index = joints.mirror_index(names)
    assert [index[i] for i in index] == list(range(len(names)))
    assert names[index[names.index("R_Knee")]] == "L_Knee" and index[names.index("Neck")] == names.index("Neck")


def test_project():
    points = torch.tensor([[[1.0, 2.0, 9.0]], [[0.5, -1.0, 3.0]]])
    camera = torch.tensor([[2.0, 0.1, -0.2], [0.5, 0.0, 1.0]])
    torch.testing.assert_close(project(points, camera), torch.tensor([[[2.2, 3.6]], [[0.25, 0.0]]]))
    with pytest.raises(ValueError, match=r"camera must be \[2, 3\]"):
        project(points, camera[:1])
    with pytest.raises(ValueError, match=r"points must be \[B, N, 3\]"):
        project(points[0], camera)
