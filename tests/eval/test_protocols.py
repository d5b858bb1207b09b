"""The papers' numbers against plain loops: bodies, hands, acceleration, F-score, areas. The evaluation itself:
test_evaluate.py."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_up.sets import write_freihand
from made_up.smpl_files import write_smpl, write_topology
from scipy.linalg import orthogonal_procrustes

from tore_fast.body import load_body
from tore_fast.data.readers import Record, open_dataset
from tore_fast.eval.protocols import (
    BodyProtocol,
    HandProtocol,
    acceleration_error,
    area_under_pck,
    f_score,
    write_freihand_json,
)
from tore_fast.geometry.skeleton import H36M17_TO_J14, J24_TO_J14


def stack(protocol, records):
    rows = [protocol.truth(r) for r in records]
    return {k: torch.from_numpy(np.stack([r[k] for r in rows])) for k in rows[0]}


def posed(rng, set_name="j24", **changes):
    """A record with pose, betas and annotated joints that do not follow from them."""
    joints = np.concatenate([rng.normal(0, 0.4, (24, 3)), np.ones((24, 1))], 1).astype(np.float32)
    base = Record(
        "r",
        keypoints_3d=joints,
        keypoints_3d_set=set_name,
        pose=rng.normal(0, 0.3, 72),
        betas=rng.normal(0, 0.5, 10),
        has_smpl=True,
    )
    return replace(base, **changes)


def align(x, y):
    """Similarity Procrustes by scipy, for sets that need no reflection."""
    xc, yc = x - x.mean(0), y - y.mean(0)
    rotation, s = orthogonal_procrustes(xc, yc)
    assert np.linalg.det(rotation) > 0
    return s / (xc**2).sum() * xc @ rotation + y.mean(0)


def distance(x, y):
    return 1000 * np.linalg.norm(x - y, axis=1).mean()


def test_body_numbers_against_numpy(body):
    rng = np.random.default_rng(0)
    records = [
        posed(rng),
        posed(rng, keypoints_3d=None),
        posed(rng, has_smpl=False),
        posed(rng, keypoints_3d=None, has_smpl=False),
    ]
    truth_mesh = body(
        torch.tensor(np.stack([r.pose for r in records])).float(),
        torch.tensor(np.stack([r.betas for r in records])).float(),
    ).vertices
    pred = (truth_mesh + 0.03 * torch.randn(truth_mesh.shape) + 5.0).detach()  # far away: everything is centred
    pred[0] = pred[0] * 1.3
    # annotated joints near the truth, so that the alignment needs no reflection
    regressor = body.topology.regressor("h36m17")[list(H36M17_TO_J14)]
    for i in (0, 2):
        records[i].keypoints_3d[list(J24_TO_J14), :3] = (
            regressor @ truth_mesh[i].numpy() + 0.02 * rng.normal(size=(14, 3)) + [1, 2, 3]
        )
    protocol = BodyProtocol({"neutral": body})
    rows = {k: v.numpy() for k, v in protocol.rows(pred, stack(protocol, records)).items()}
    h36m = body.topology.regressor("h36m17")
    for i, record in enumerate(records):
        mesh, guess = truth_mesh[i].double().numpy(), pred[i].double().numpy()
        joints = record.keypoints_3d[list(J24_TO_J14), :3] if i in (0, 2) else regressor @ mesh
        mine = regressor @ guess
        if i == 3:
            assert all(np.isnan(rows[k][i]).all() for k in protocol.metrics)
            continue
        hips = lambda x: x - x[[2, 3]].mean(0)
        assert rows["mpjpe_mm"][i] == pytest.approx(distance(hips(mine), hips(joints)), rel=1e-4)
        assert rows["pa_mpjpe_mm"][i] == pytest.approx(distance(align(mine, joints), joints), rel=1e-4)
        if i == 2:
            assert np.isnan(rows["mpvpe_mm"][i])
            continue
        centred = lambda x: x - (h36m @ x)[0]
        assert rows["mpvpe_mm"][i] == pytest.approx(distance(centred(guess), centred(mesh)), rel=1e-4)
        assert rows["pa_mpvpe_mm"][i] == pytest.approx(distance(align(guess, mesh), mesh), rel=1e-4)
    result = protocol.summary(rows, [""] * 4, [-1] * 4)
    assert result["counts"] == {"mpjpe_mm": 3, "pa_mpjpe_mm": 3, "mpvpe_mm": 2, "pa_mpvpe_mm": 2}
    assert (
        result["mpjpe_mm"] == pytest.approx(np.nanmean(rows["mpjpe_mm"])) and result["true_joints_from_annotation"] == 2
    )


def test_truth_choices(body):
    rng = np.random.default_rng(1)
    records = [posed(rng), posed(rng, keypoints_3d=None)]
    pose, betas = (torch.tensor(np.stack([getattr(r, k) for r in records])).float() for k in ("pose", "betas"))
    exact = body(pose, betas).vertices.detach()
    mesh = BodyProtocol({"neutral": body}, truth="mesh")
    assert mesh.rows(exact, stack(mesh, records))["mpjpe_mm"].max() < 1e-3
    annotation = BodyProtocol({"neutral": body}, truth="annotation")
    values = annotation.rows(exact, stack(annotation, records))["mpjpe_mm"]
    assert values[0] > 50 and values[1].isnan()
    # one hidden joint among the 14: the annotation is not used
    hidden = posed(rng)
    hidden.keypoints_3d[18, 3] = 0
    auto = BodyProtocol({"neutral": body})
    assert [float(auto.truth(r)["has_joints"]) for r in (*records, hidden)] == [1, 0, 0]
    with pytest.raises(ValueError, match="no joint regressor 'j24'"):
        BodyProtocol({"neutral": body}, truth="mesh_j24")
    with pytest.raises(ValueError, match="no male and female body"):
        BodyProtocol({"neutral": body}, gendered=True)


def test_gendered_bodies(body, tmp_path):
    write_topology(tmp_path)
    for gender, stretch in (("NEUTRAL", 1.0), ("MALE", 1.1), ("FEMALE", 0.9)):
        write_smpl(tmp_path, gender, stretch)
    bodies = {
        g: load_body("smpl", tmp_path / f"SMPL_{g.upper()}.pkl", topology=tmp_path)
        for g in ("neutral", "male", "female")
    }
    rng = np.random.default_rng(2)
    records = [replace(posed(rng, keypoints_3d=None), gender=g) for g in ("female", "neutral", "male", "female")]
    pose, betas = (torch.tensor(np.stack([getattr(r, k) for r in records])).float() for k in ("pose", "betas"))
    exact = torch.cat(
        [bodies[r.gender](pose[i : i + 1], betas[i : i + 1]).vertices for i, r in enumerate(records)]
    ).detach()
    by_gender, neutral = BodyProtocol(bodies, gendered=True), BodyProtocol(bodies)
    assert by_gender.rows(exact, stack(by_gender, records))["mpvpe_mm"].max() < 1e-3
    errors = neutral.rows(exact, stack(neutral, records))["mpvpe_mm"]
    assert errors[1] < 1e-3 and errors[[0, 2, 3]].min() > 10


def test_acceleration_error():
    t = np.arange(6.0)
    true = np.zeros((6, 2, 3))
    pred = np.zeros((6, 2, 3))
    pred[:, 0, 0] = 0.5 * t**2  # acceleration 1 per frame^2 in one of two joints
    frames = list(range(6))
    assert acceleration_error(pred, true, ["a"] * 6, frames) == (pytest.approx(0.5), 4)
    # a gap and a border between sequences are not differentiated across; the order of the rows does not matter
    order = [3, 0, 5, 1, 4, 2]
    frames = [0, 1, 2, 7, 8, 9]
    names = ["a", "a", "a", "a", "b", "b"]
    error, count = acceleration_error(pred[order], true[order], [names[i] for i in order], [frames[i] for i in order])
    assert count == 1 and error == pytest.approx(0.5)
    true[1] = np.nan
    assert acceleration_error(pred, true, names, frames)[1] == 0
    assert acceleration_error(pred, true, [""] * 6, [-1] * 6)[1] == 0


def test_f_score_and_area():
    rng = np.random.default_rng(0)
    pred, true = rng.random((2, 60, 3)) * 0.05, rng.random((2, 50, 3)) * 0.05
    got = f_score(torch.from_numpy(pred), torch.from_numpy(true), (0.005, 0.015))
    for b in range(2):
        d = np.linalg.norm(pred[b, :, None] - true[b, None], axis=-1)
        for i, threshold in enumerate((0.005, 0.015)):
            r, p = (d.min(1) < threshold).mean(), (d.min(0) < threshold).mean()
            assert got[b, i] == pytest.approx(2 * r * p / (r + p), rel=1e-5)
    assert f_score(torch.zeros(1, 3, 3), torch.ones(1, 4, 3), (0.005,)).item() == 0
    # all errors 2 cm: the curve jumps from 0 to 1 at 2 cm of 5
    assert area_under_pck(np.full((7, 3), 0.02)) == pytest.approx(0.6, abs=0.006)
    assert area_under_pck(np.zeros((7, 3))) == pytest.approx(1.0)


def test_hand_protocol(hand, tmp_path):
    write_freihand(tmp_path, hand)
    records = list(open_dataset(tmp_path))
    protocol = HandProtocol(hand)
    truth = stack(protocol, records)
    pred = truth["vertices"] * 1.2 + torch.tensor([0.0, 0.1, -0.5])
    rows = protocol.rows(pred, truth)
    assert rows["pa_mpvpe_mm"].max() < 1e-2 and rows["pa_f_5mm"].min() == 1 and rows["mpvpe_mm"].min() > 1
    assert rows["joints_pred"][:, 0].abs().max() == 0  # wrist
    wrist = hand.regress("hand21", pred)[:, :1]
    torch.testing.assert_close(rows["vertices_pred"], pred - wrist)
    own = protocol.rows(pred, truth, torch.randn(3, 21, 3))  # joints of averaged views, not of this mesh
    assert own["pa_mpjpe_mm"].min() > 10 and own["pa_mpvpe_mm"].max() < 1e-2
    noisy = protocol.rows(pred + 0.01 * torch.randn(pred.shape), truth)
    aligned = align((pred[0] * 0 + noisy["vertices_pred"][0]).double().numpy(), truth["vertices"][0].double().numpy())
    assert noisy["pa_mpvpe_mm"][0] == pytest.approx(distance(aligned, truth["vertices"][0].double().numpy()), rel=1e-3)
    arrays = {k: v.numpy() for k, v in noisy.items()}
    result = protocol.summary(arrays, [""] * 3, [-1] * 3)
    assert 0.5 < result["pa_vertex_auc_50mm"] < 1 and result["f_5mm"] < result["f_15mm"]
    write_freihand_json(arrays, tmp_path / "pred.json")
    joints, vertices = json.loads((tmp_path / "pred.json").read_text())
    np.testing.assert_allclose(joints, arrays["joints_pred"], atol=1e-6)
    assert np.shape(vertices) == (3, 778, 3)
    # with the pose alone the mesh is made from it; without both there is no number
    posed_only = [replace(r, vertices=None, keypoints_3d=None) for r in records]
    np.testing.assert_allclose(
        protocol.rows(pred, stack(protocol, posed_only))["mpvpe_mm"], rows["mpvpe_mm"], rtol=1e-3
    )
    blind = [replace(r, vertices=None, keypoints_3d=None, has_smpl=False) for r in records]
    assert protocol.rows(pred, stack(protocol, blind))["pa_mpjpe_mm"].isnan().all()
