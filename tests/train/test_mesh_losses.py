"""Loss terms and totals of the image-to-mesh family against direct formulas, labels that are missing, masks."""

from __future__ import annotations

import pytest
import torch

from tore_fast.eval.metrics import mpjpe, pa_mpjpe
from tore_fast.models._outputs import MeshOutput
from tore_fast.train import losses
from tore_fast.train.mesh_loss import PRESETS, MeshLoss, MeshTargets, draw_query_mask

FACES = torch.tensor([[0, 1, 2], [1, 3, 2], [2, 3, 4], [4, 5, 3]])
EDGES = torch.tensor([[0, 1], [1, 2], [0, 2], [1, 3], [2, 3], [3, 4], [2, 4], [4, 5], [3, 5]])


def test_items_without_labels_do_not_count():
    pred, target = torch.randn(3, 6, 3, requires_grad=True), torch.randn(3, 6, 3)
    target[1] = float("nan")
    has = torch.tensor([1, 0, 1])
    loss = losses.vertices_loss(pred, target, has)
    torch.testing.assert_close(loss, (pred - target)[[0, 2]].abs().mean())
    loss.backward()
    assert pred.grad[1].abs().sum() == 0 and pred.grad.isfinite().all()
    assert losses.vertices_loss(pred, target, torch.zeros(3)) == 0


def test_joint_loss_ignores_translation_and_weighs_by_confidence():
    pred, target = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    conf = torch.tensor([[1.0, 1, 0, 1, 0]]).expand(2, -1)
    a = losses.joints_3d_loss(pred, target, conf)
    torch.testing.assert_close(a, losses.joints_3d_loss(pred + 3, target - 1, conf))
    centred = (pred - pred[:, 2:4].mean(1, keepdim=True)) - (target - target[:, 2:4].mean(1, keepdim=True))
    torch.testing.assert_close(a, (centred.abs() * conf[..., None]).mean())


def test_normal_loss_is_zero_for_the_truth_and_one_along_the_normal():
    flat = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])[None]
    faces = torch.tensor([[0, 1, 2]])
    assert losses.normal_loss(flat, flat, faces) < 1e-6
    upright = torch.tensor([[0.0, 0, 0], [0, 0, 1], [0, 0, 2]])[None]
    torch.testing.assert_close(losses.normal_loss(upright, flat, faces), torch.tensor(1.0))


def test_grid_occupancy_and_itp_loss():
    points = torch.tensor([[[-0.99, -0.99], [0.99, 0.0], [5.0, 0.0]]])
    grid = losses.grid_occupancy(points, (2, 4))
    assert grid.tolist() == [[[1, 0, 0, 0], [0, 0, 0, 1]]]
    heatmap = torch.rand(1, 3, 8).softmax(-1).requires_grad_()
    loss = losses.itp_loss(heatmap, points, (2, 4))
    stretched = losses.min_max_heatmap(heatmap)
    torch.testing.assert_close(loss, stretched[:, :, [1, 2, 3, 4, 5, 6]].sum())
    assert losses.itp_loss(heatmap, points, (2, 4), torch.zeros(1)) == 0


def batch(levels: int, dtype=torch.float64):
    sizes = (4, 5, 6)[-levels:] if levels == 3 else (4, 6)
    vertices = tuple(torch.randn(2, n, 3, dtype=dtype) for n in sizes)
    regressor = torch.rand(6, 6, dtype=dtype)
    regressor = regressor / regressor.sum(1, keepdim=True)
    joints, camera = torch.randn(2, 5, 3, dtype=dtype), torch.rand(2, 3, dtype=dtype)
    heat = torch.rand(2, 3, 49, dtype=dtype).softmax(-1)
    out = MeshOutput(camera, joints, vertices[0], vertices[1] if levels == 3 else None, vertices[-1], heat)
    one = torch.ones(2)
    target = MeshTargets(
        torch.randn(2, 5, 3),
        torch.ones(2, 5),
        torch.randn(2, 5, 2),
        torch.ones(2, 5),
        tuple(torch.randn(2, n, 3) for n in sizes),
        one,
        one,
    )
    return out, target, regressor.float()


@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets_run_and_their_parts_add_up(preset):
    out, target, regressor = batch(2 if preset.endswith("hand") else 3)
    loss = MeshLoss(preset, regressor, FACES % 5, EDGES % 5)
    total, parts = loss(out, target, epoch=4.0)
    torch.testing.assert_close(total, sum(parts.values()))
    assert total > 0 and all(v.isfinite() for v in parts.values())
    assert ("itp" in parts) == ("tore_fastmetro" in preset)


def test_fastmetro_total_by_hand():
    out, target, regressor = batch(3)
    total, _ = MeshLoss("fastmetro", regressor, FACES % 5, EDGES % 5)(out, target)
    fine = out.vertices.float()
    regressed = regressor @ fine
    pelvis, joints = regressed[:, :1], regressed[:, 1:]
    hip = lambda x: x - x[:, 2:4].mean(1, keepdim=True)
    flat = lambda x: out.camera.float()[:, None, :1] * (x[..., :2] + out.camera.float()[:, None, 1:])
    l3d = sum((hip(j) - hip(target.joints_3d)).abs().mean() for j in (out.joints.float(), joints))
    l2d = sum((flat(j) - target.joints_2d).abs().mean() for j in (out.joints.float(), joints - pelvis))
    levels = (out.vertices_coarse.float(), out.vertices_intermediate.float(), fine)
    lv = sum(w * (v - pelvis - t).abs().mean() for w, v, t in zip((0.25, 0.5, 0.25), levels, target.vertices))
    length = lambda v: ((v[:, EDGES[:, 0] % 5] - v[:, EDGES[:, 1] % 5]).square().sum(-1) + 1e-8).sqrt()
    edge = (length(levels[1]) - length(target.vertices[1])).abs().mean()
    normal = losses.normal_loss(levels[1], target.vertices[1], FACES % 5)
    want = 1000 * l3d + 100 * lv + 100 * l2d + 100 * (5 * edge + 1e-4 * length(levels[1]).mean() + 0.1 * normal)
    torch.testing.assert_close(total, want)


def test_loss_errors():
    out, target, regressor = batch(3)
    with pytest.raises(ValueError, match="preset must be one of"):
        MeshLoss("fastmeter", regressor)
    with pytest.raises(ValueError, match="faces"):
        MeshLoss("fastmetro", regressor)
    with pytest.raises(ValueError, match="mesh levels"):
        MeshLoss("metro_hand", regressor)(out, target)


def test_query_mask_counts():
    mask = draw_query_mask(200, 14, 431, generator=torch.Generator().manual_seed(0))
    masked_joints, masked_vertices = (mask[:, :14] == 0).sum(1), (mask[:, 14:] == 0).sum(1)
    assert masked_joints.max() <= 4 and masked_vertices.max() <= 129
    assert masked_joints.float().mean().sub(1.6).abs() < 0.3 and masked_vertices.float().mean().sub(64).abs() < 6
    assert draw_query_mask(2, 14, 0).shape == (2, 14)


def test_metrics():
    joints = torch.randn(4, 14, 3)
    q, _ = torch.linalg.qr(torch.randn(3, 3))
    q = q * torch.det(q).sign()
    moved = 1.7 * joints @ q + 0.3
    assert pa_mpjpe(moved, joints).max() < 1e-5
    assert pa_mpjpe(joints * torch.tensor([-1.0, 1, 1]), joints).min() > 0.01  # a mirror image must not align
    assert mpjpe(joints + 5, joints).max() < 1e-5
