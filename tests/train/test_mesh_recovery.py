"""The synthetic image-to-mesh task: curriculum, dense targets, losses that fall, export that predicts the same."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("skimage", reason="background photographs come from scikit-image (extra: train)")

from tore_fast.body import load_body  # noqa: E402
from tore_fast.models import create_model, load_pretrained, save_pretrained  # noqa: E402
from tore_fast.train.dense_supervision import heatmap_target, part_target  # noqa: E402
from tore_fast.train.mesh_recovery import MeshRecovery, MeshRecoveryConfig  # noqa: E402


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    return MeshRecovery(create_model("tore_default"), load_body("free"), MeshRecoveryConfig(curriculum=0.5), 100)


def test_curriculum(task):
    assert task.difficulty(0) == pytest.approx(0.2)
    assert task.difficulty(25) == pytest.approx(0.6)
    assert task.difficulty(50) == task.difficulty(99) == pytest.approx(1.0)


def test_batches_are_functions_of_the_index(task):
    a, b, c = task.batch(3, 4, 10), task.batch(3, 4, 10), task.batch(4, 4, 10)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["images"], c["images"])


def test_loss_falls_on_one_batch(task):
    batch = task.batch(0, 8, 0)
    optimiser = torch.optim.AdamW(task.model.parameters(), lr=1e-3)
    losses = []
    task.model.train()
    for step in range(12):
        loss, parts = task.loss(task.model, batch, step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert {"joints", "mesh", "2d", "heatmaps", "parts"} <= set(parts)


def test_export_keeps_the_model_alone(task, tmp_path):
    save_pretrained(task.model.model, tmp_path, "tore_default")
    loaded = load_pretrained(tmp_path)
    images = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        want = task.model.model.eval()(images)
        got = loaded(images)
    torch.testing.assert_close(got.vertices, want.vertices, rtol=1e-4, atol=1e-5)
    assert not any(k.startswith("head.") for k in loaded.state_dict())


def test_dense_targets():
    points = torch.tensor([[[-1 + 1 / 8, 1 - 1 / 8], [3.0, 0.0]]])  # centre of the bottom-left cell of 8; outside
    maps = heatmap_target(points, 8)
    assert maps[0, 0].argmax() == 56 and maps[0, 0].max() == pytest.approx(1.0)
    assert maps[0, 1].max() < 1e-3
    mask = torch.zeros(1, 16, 16, dtype=torch.uint8)
    mask[:, :8] = 5
    assert part_target(mask, 4)[0].tolist() == [[5] * 4] * 2 + [[0] * 4] * 2
