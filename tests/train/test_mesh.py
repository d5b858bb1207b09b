"""The synthetic image-to-mesh task: curriculum, dense targets, losses that fall, export that predicts the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("skimage", reason="background photographs come from scikit-image (extra: train)")

from tore_fast.body import load_body  # noqa: E402
from tore_fast.eval.synthetic import evaluate_held_out  # noqa: E402
from tore_fast.models import create_model, load, save  # noqa: E402
from tore_fast.models._outputs import MeshOutput  # noqa: E402
from tore_fast.train.dense_supervision import heatmap_target, part_target  # noqa: E402
from tore_fast.train.mesh import MeshRecovery, MeshRecoveryConfig  # noqa: E402


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
    save(task.model.model, tmp_path, "tore_default")
    loaded = load(tmp_path)
    images = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        want = task.model.model.eval()(images)
        got = loaded(images)
    torch.testing.assert_close(got.vertices, want.vertices, rtol=1e-4, atol=1e-5)
    assert not any(k.startswith("head.") for k in loaded.state_dict())


def test_hands_train_by_the_same_task():
    """Two mesh levels, 21 joints, the wrist as origin; the truth put in costs nothing."""
    torch.manual_seed(0)
    hand = load_body("free_hand")
    task = MeshRecovery(create_model("tore_default_hand"), hand, MeshRecoveryConfig(edge_weight=200.0), 10)
    batch = task.batch(0, 4, 0)
    total, parts = task.loss(task.model, batch, 0)
    total.backward()
    assert torch.isfinite(total) and {"joints", "mesh", "edges", "parts"} <= set(parts)
    truth = batch["vertices"]
    joints = hand.regress("hand21", truth)
    perfect = MeshOutput(batch["camera"], joints, hand.coarse(truth, 1), None, truth)
    _, parts = task.loss(lambda images: perfect, batch, 0)
    assert max(float(parts[k]) for k in ("joints", "mesh", "edges")) < 1e-6 < float(parts["2d"]) < 0.1  # perspective
    metrics = evaluate_held_out(task.model.model.eval(), hand, "easy", image_size=112, images=8)
    assert metrics["pa_mpjpe_mm"] > 1 and metrics["mean_pose_pa_mpjpe_mm"] > 1 and metrics["images"] == 8


def test_built_in_hand_by_name(tmp_path, monkeypatch, capsys):
    """`--model tore_default_hand` takes the shipped weights: here random ones in their place; 21 joints come out."""
    from tore_fast.cli import main
    from tore_fast.models import default, load

    monkeypatch.setitem(default.BUILT_IN, "tore_default_hand", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="no trained weights of tore_default_hand"):
        load("tore_default_hand")
    model = create_model("tore_default_hand")
    save(model, tmp_path / "hand", "tore_default_hand", torch.float16)
    assert (tmp_path / "hand" / "model.safetensors").stat().st_size < 3_000_000
    monkeypatch.setitem(default.BUILT_IN, "tore_default_hand", str(tmp_path / "hand"))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8)).save(tmp_path / "hand.jpg")
    with pytest.raises(SystemExit) as e:
        main(
            [
                "predict",
                str(tmp_path / "hand.jpg"),
                "--model",
                "tore_default_hand",
                "--out",
                str(tmp_path / "out"),
                "--device",
                "cpu",
            ]
        )
    assert e.value.code == 0, capsys.readouterr()
    with np.load(next((tmp_path / "out").rglob("*.npz"))) as made:
        assert made["joints_3d"].shape[-2:] == (21, 3) and made["vertices"].shape[-2:] == (778, 3)


def test_eval_synth(tmp_path, capsys):
    from tore_fast.cli import main

    with pytest.raises(SystemExit) as e:
        main(["eval", "--data", "synth", "--limit", "4", "--device", "cpu", "--json", str(tmp_path / "m.json")])
    assert e.value.code == 0 and "pa_mpjpe_mm" in capsys.readouterr().out
    assert json.loads((tmp_path / "m.json").read_text())["easy"]["images"] == 4


def test_dense_targets():
    points = torch.tensor([[[-1 + 1 / 8, 1 - 1 / 8], [3.0, 0.0]]])  # centre of the bottom-left cell of 8; outside
    maps = heatmap_target(points, 8)
    assert maps[0, 0].argmax() == 56 and maps[0, 0].max() == pytest.approx(1.0)
    assert maps[0, 1].max() < 1e-3
    mask = torch.zeros(1, 16, 16, dtype=torch.uint8)
    mask[:, :8] = 5
    assert part_target(mask, 4)[0].tolist() == [[5] * 4] * 2 + [[0] * 4] * 2


def test_shipped_weights_are_not_called_random(tmp_path, capfd):
    from tore_fast.cli import main

    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "hand.jpg")
    with pytest.raises(SystemExit):
        main(
            [
                "predict",
                str(tmp_path / "hand.jpg"),
                "--model",
                "tore_default_hand",
                "--boxes",
                "full",
                "--out",
                str(tmp_path / "o"),
            ]
        )
    assert "random weights" not in capfd.readouterr().err


def test_the_shipped_hand_weights_beat_the_mean_pose():
    from tore_fast.models import load

    found = evaluate_held_out(
        load("tore_default_hand").eval(), load_body("free_hand"), "easy", image_size=112, images=60
    )
    assert found["pa_mpjpe_mm"] < 0.75 * found["mean_pose_pa_mpjpe_mm"]
    assert found["mpjpe_mm"] < 0.6 * found["constant_mean_mpjpe_mm"]
