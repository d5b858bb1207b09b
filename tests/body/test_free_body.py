"""The shipped body and hand: counts, closed surface, nesting, exact rows, sensible anatomy, labels, loading errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tore_fast.body import assets, load_body
from tore_fast.geometry.skeleton import H36M17, H36M17_TO_J14, HAND21, J14, MANO16, SMPL24

from .meshes import facts


def test_body_counts_and_closedness(body):
    assert body.hierarchy.counts == (6890, 1723, 431)
    for level, count in enumerate(body.hierarchy.counts):
        faces = body.faces(level)
        assert faces.shape == (2 * (count - 2), 3)
        assert facts(faces) == {"vertices": count, "euler": 2, "border": 0}
    assert body.faces().shape == (13776, 3) and body.num_betas == 10
    assert body.joint_names == SMPL24.names and body.parents == SMPL24.parents


def test_hand_counts_and_border(hand):
    assert hand.hierarchy.counts == (778, 195)
    for level, count in enumerate(hand.hierarchy.counts):
        found = facts(hand.faces(level))
        assert found["vertices"] == count and found["euler"] == 1 and found["border"] >= 10
        assert len(hand.faces(level)) == 2 * count - 2 - found["border"]
    assert hand.joint_names == MANO16.names and hand.parents == MANO16.parents


@pytest.mark.parametrize("name", ["free", "free_hand"])
def test_up_matrices(name):
    h = load_body(name).hierarchy
    for level in range(h.num_levels - 1):
        up, pick = h.ups[level], h.picks[level]
        np.testing.assert_array_equal(up[pick].toarray(), np.eye(len(pick)))
        np.testing.assert_array_equal(np.asarray(up.sum(1)).ravel(), 1)
        width = np.diff(up.indptr)
        assert set(np.delete(width, pick)) == {12}
        assert np.sqrt(np.asarray(up.power(2).sum(1))).mean() < 0.9  # noise of coarse vertices does not grow


@pytest.mark.parametrize("name,limit_mm", [("free", 2.0), ("free_hand", 0.5)])
def test_up_sampling_error_on_new_poses(name, limit_mm):
    """Poses the fit never saw: within a quarter of the baked figure (1.57 and 0.29 mm with the fit's own spread)."""
    body = load_body(name)
    g = torch.Generator().manual_seed(11)
    pose, betas = 0.35 * torch.randn(20, body.num_joints, 3, generator=g), torch.randn(20, 10, generator=g)
    with torch.no_grad():
        fine = body(pose, betas).vertices.numpy()
    top = body.hierarchy.num_levels - 1
    up, index = body.hierarchy.up_matrix(top), body.hierarchy.vertex_index(top)
    error = 1e3 * np.mean([np.linalg.norm(up @ f[index] - f, axis=1).mean() for f in fine])
    assert 0.05 < error < limit_mm


@pytest.mark.parametrize("name,limit_mm", [("free", 20.0), ("free_hand", 3.5)])
def test_regressed_joints_follow_the_skeleton(name, limit_mm):
    body = load_body(name)
    g = torch.Generator().manual_seed(12)
    pose, betas = 0.3 * torch.randn(30, body.num_joints, 3, generator=g), torch.randn(30, 10, generator=g)
    with torch.no_grad():
        out = body(pose, betas)
        skeleton = body.regress({"free": "smpl24", "free_hand": "mano16"}[name], out.vertices)
        coarse = body.coarse(out.vertices, body.hierarchy.num_levels - 1)
        from_coarse = body.regress({"free": "smpl24", "free_hand": "mano16"}[name], coarse)
    for joints, slack in ((skeleton, 1.0), (from_coarse, 1.2)):
        error = 1e3 * (joints - out.joints).norm(dim=2).mean(0)  # worst joint: middle of the chest, the hand's root
        assert error.max() < slack * limit_mm and error.mean() < 0.45 * slack * limit_mm


def test_regressor_rows(body, hand):
    for topology, names in ((body.topology, ("smpl24", "h36m17", "j14")), (hand.topology, ("mano16", "hand21"))):
        for name in names:
            rows = topology.regressor(name)
            np.testing.assert_allclose(rows.sum(1), 1, atol=1e-6)
            assert (rows >= 0).all() and (rows > 0).sum(1).max() < 100
    assert body.topology.regressor("h36m17", 2).shape == (17, 431)
    np.testing.assert_array_equal(
        body.topology.regressor("j14"), body.topology.regressor("h36m17")[list(H36M17_TO_J14)]
    )
    assert (hand.topology.regressor("hand21")[[4, 8, 12, 16, 20]] == 1).sum() == 5  # fingertips are vertices
    with pytest.raises(ValueError, match="no joint regressor 'coco'; there is smpl24, h36m17"):
        body.topology.regressor("coco")


def test_body_stands_upright(body):
    """y up, facing +z, T-pose, metres, left at +x."""
    vertices = body.template.numpy()
    joints = dict(zip(SMPL24, body.joints.numpy()))
    assert 1.6 < np.ptp(vertices[:, 1]) < 1.75 and 1.6 < np.ptp(vertices[:, 0]) < 1.8
    np.testing.assert_allclose(joints["Pelvis"], 0, atol=1e-6)
    for side, x in (("L", 1), ("R", -1)):
        arm = [joints[f"{side}_{n}"] for n in ("Shoulder", "Elbow", "Wrist", "Hand")]
        for a, b in zip(arm, arm[1:]):
            direction = (b - a) / np.linalg.norm(b - a)
            np.testing.assert_allclose(direction, (x, 0, 0), atol=2e-3)
        leg = joints[f"{side}_Ankle"] - joints[f"{side}_Hip"]
        np.testing.assert_allclose(leg / np.linalg.norm(leg), (0, -1, 0), atol=2e-3)
        assert joints[f"{side}_Foot"][2] > joints[f"{side}_Ankle"][2] + 0.08  # toes point to +z
    h36m = dict(zip(H36M17, body.regress("h36m17", body.template[None])[0].numpy()))
    assert h36m["Nose"][2] > h36m["Neck"][2] + 0.08 and h36m["Head"][1] > h36m["Nose"][1] + 0.08
    mirrored = joints["R_Elbow"] * (-1, 1, 1)
    np.testing.assert_allclose(mirrored, joints["L_Elbow"], atol=2e-3)


def test_first_shape_coefficient_is_height(body):
    with torch.no_grad():
        pose = torch.zeros(2, 24, 3)
        betas = torch.zeros(2, 10)
        betas[0, 0], betas[1, 0] = -2, 2
        tall = body(pose, betas).vertices[..., 1]
    height = tall.amax(1) - tall.amin(1)
    assert height[1] - height[0] > 0.2


def test_volume_is_positive_in_every_level(body):
    """Faces look outwards: signed volume of a person."""
    for level in range(3):
        v = body.template.double().numpy()[body.hierarchy.vertex_index(level)]
        a, b, c = v[body.faces(level)].transpose(1, 0, 2)
        volume = (a * np.cross(b, c)).sum() / 6
        assert 0.05 < volume < 0.1  # cubic metres


def test_part_labels(body):
    names = body.part_names
    assert len(names) == 15 and set(body.part_labels.tolist()) == set(range(15))
    centre = {n: body.template[body.part_labels == i].mean(0) for i, n in enumerate(names)}
    assert centre["hair"][1] > centre["skin_head"][1] > centre["torso"][1] > centre["upper_leg_l"][1]
    assert centre["shoe_l"][1] < centre["lower_leg_l"][1] < centre["upper_leg_l"][1]
    assert centre["hand_l"][0] > centre["lower_arm_l"][0] > centre["upper_arm_l"][0] > 0 > centre["hand_r"][0]
    assert centre["hair"][2] < centre["skin_head"][2]


def test_weights_and_sizes(body, hand):
    for model in (body, hand):
        assert ((model.weights > 0).sum(1) <= 4).all()
        torch.testing.assert_close(model.weights.sum(1), torch.ones(len(model.weights)))
    size = sum(f.stat().st_size for f in assets.FOLDER.glob("*.npz"))
    assert size < 600_000


def test_names_of_derived_joint_sets(hand):
    tips = hand.regress("hand21", hand.template[None])[0]
    wrist = tips[HAND21.index("Wrist")]
    for finger in ("Index", "Middle", "Ring", "Pinky"):
        chain = [tips[HAND21.index(f"{finger}{k}")] for k in (1, 2, 3, 4)]
        reach = [float((p - wrist).norm()) for p in chain]
        assert reach == sorted(reach) and chain[3][0] < chain[0][0] < 0  # outwards along -x
    assert tips[HAND21.index("Index1")][2] > tips[HAND21.index("Pinky1")][2]  # thumb side towards +z
    assert J14.names[2] == "R_Hip" and len(J14) == 14


def test_state_dict_is_empty_and_device_moves(body, device):
    assert not body.state_dict()
    moved = load_body("free").to(device)
    out = moved(torch.zeros(1, 24, 3, device=device))
    assert out.vertices.device.type == device and moved.regress("j14", out.vertices).shape == (1, 14, 3)


def test_load_body_refuses(tmp_path):
    with pytest.raises(ValueError, match="name must be one of free, free_hand, smpl, mano"):
        load_body("smplx")
    with pytest.raises(ValueError, match="licensed and not shipped"):
        load_body("smpl")
    with pytest.raises(TypeError, match="no option num_betas"):
        load_body("free", num_betas=3)
    with pytest.raises(FileNotFoundError):
        load_body("free", tmp_path / "none.npz")
    np.savez(tmp_path / "old.npz", meta=np.frombuffer(json.dumps({"format": 0}).encode(), np.uint8))
    with pytest.raises(ValueError, match="format 0"):
        load_body("free", tmp_path / "old.npz")
