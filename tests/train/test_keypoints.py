"""TCFormer's tasks: losses against their formulas, a few steps of each task lower its loss, metrics see the truth."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from made_up.command import command
from made_up.sets import body_label, image, write_3dpw, write_tsv_set
from PIL import Image

from tore_fast.body import load_body
from tore_fast.data import wflw, wholebody
from tore_fast.data.augment import AugmentConfig
from tore_fast.data.readers import open_dataset
from tore_fast.data.topdown import CropAugment, Instance, TopDownDataset
from tore_fast.eval.keypoint_metrics import LandmarkMetric, WholeBodyMetric
from tore_fast.geometry.camera import project_weak
from tore_fast.geometry.skeleton import H36M17_TO_J14, WHOLEBODY133
from tore_fast.models import create_model, load, save
from tore_fast.models.keypoints.tcformer_heads import BodyParameters
from tore_fast.train import keypoints as tasks
from tore_fast.train.mesh_labels import LabelledCrops
from tore_fast.train.stream import items_of_batch

TINY = dict(embed_dims=(16, 32, 48, 64), num_heads=(1, 2, 3, 4), mlp_ratios=(2, 2, 2, 2), depths=(1, 1, 1, 1))


def descend(task, steps, batch_size=4, lr=2e-3):
    """First and last loss of a few AdamW steps on one batch."""
    model = task.model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr)
    batch = task.batch(0, batch_size, 0)
    losses = []
    for step in range(steps):
        loss, parts = task.loss(model, batch, step)
        assert all(torch.isfinite(v).all() for v in parts.values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses[0], losses[-1]


def test_stream_is_shuffled_epochs():
    pairs = [p for i in range(6) for p in items_of_batch(i, 5, 10, seed=3)]
    assert [e for e, _ in pairs] == [0] * 10 + [1] * 10 + [2] * 10
    for epoch in range(3):
        assert sorted(i for e, i in pairs if e == epoch) == list(range(10))
    assert [i for _, i in pairs[:10]] != [i for _, i in pairs[10:20]]
    assert items_of_batch(1, 5, 10, seed=3) == pairs[5:10]


def test_joints_mse_formula():
    a, b = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    weight = torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    want = sum(((a[i, j] - b[i, j]) ** 2).mean() * weight[i, j] for i in range(2) for j in range(3)) / 6
    assert tasks.joints_mse(a, b, weight) == pytest.approx(float(want), rel=1e-5)


def test_classification(tmp_path):
    rng = np.random.default_rng(0)
    images = [(torch.from_numpy(rng.normal(c, 1, (3, 64, 64))).float(), c) for c in (0, 1, 2) * 4]
    task = tasks.Classification(create_model("tcformer_light", num_classes=3, **TINY), images, images[:6])
    first, last = descend(task, 12)
    assert last < 0.5 * first
    metrics = task.evaluate(task.model.eval())
    assert 0 <= metrics["top1_error"] <= 100 and metrics["top5_percent"] == 100
    assert torch.equal(task.batch(2, 4, 0)["image"], task.batch(2, 4, 0)["image"])


@pytest.fixture
def people(tmp_path):
    """Images with a bright dot at joint 0 and a dark one at joint 1."""
    rng = np.random.default_rng(0)
    out = []
    for n in range(4):
        image = np.full((80, 80, 3), 120, np.uint8)
        points = np.concatenate([rng.uniform(20, 60, (133, 2)), np.full((133, 1), 2.0)], 1).astype(np.float32)
        for joint, value in ((0, 255), (1, 0)):
            x, y = points[joint, :2].astype(int)
            image[y - 3 : y + 4, x - 3 : x + 4] = value
        Image.fromarray(image).save(tmp_path / f"{n}.png")
        out.append(Instance(tmp_path / f"{n}.png", n, (5, 5, 70, 70), points, 4900.0, 1.0, n))
    return out


def test_keypoints_learn_and_are_scored(people):
    model = create_model("tcformer_light_wholebody", neck_channels=32, **TINY)
    data = wholebody.wholebody_dataset(people, (64, 64))
    task = tasks.Keypoints(model, data, data, WholeBodyMetric(), flip_test=True)
    first, last = descend(task, 15)
    assert last < 0.9 * first
    metrics = task.evaluate(model.eval())
    assert {"whole_AP", "body_AP", "left_hand_AR", "whole_AP_missing"} <= metrics.keys()
    assert metrics["whole_AP"] + metrics["whole_AP_missing"] == pytest.approx(1.0)


def test_ppt_prunes_by_its_schedule(people):
    """Everything is kept for ten epochs, 0.85 at epoch 60, 0.7 from 110 on; evaluation prunes to 0.7 at once."""
    small = dict(
        image_size=(64, 48),
        dim=16,
        depth=2,
        heads=2,
        mlp_dim=16,
        pruning_layers=(0,),
        stem_channels=8,
        heatmap_hidden=8,
    )
    model = create_model("ppt_s", num_keypoints=133, **small)
    data = wholebody.wholebody_dataset(people, (64, 48))
    task = tasks.Keypoints(model, data, data, WholeBodyMetric())
    task.steps_per_epoch, kept = 2.0, []
    model.transformer.register_forward_hook(lambda m, args, out: kept.append(out.patch_tokens.shape[1]))
    batch = task.batch(0, 2, 0)
    for step in (19, 120, 220):
        task.loss(model.train(), batch, step)
    model.eval()(batch["image"])
    task.loss(model.train(), batch, 0)
    assert kept == [16, 14, 12, 12, 16]  # of 16 patches: all, ceil(13.6), ceil(11.2)


class Oracle(torch.nn.Module):
    """Returns the targets of a data set, in order."""

    def __init__(self, data):
        super().__init__()
        self.data, self.unused = data, torch.nn.Parameter(torch.zeros(1))
        self.next = 0

    def forward(self, image):
        self.next += len(image)
        return torch.stack([self.data[i]["target"] for i in range(self.next - len(image), self.next)])


def test_perfect_heatmaps_score_perfectly(people):
    """The way target -> decode -> image -> OKS loses no more than the rounding of the targets."""
    big = [p._replace(box=(0, 0, 80, 80), area=6400.0 * 400, points=p.points) for p in people]
    data = wholebody.wholebody_dataset(big, (256, 192))
    points, scores = tasks.predict_keypoints(Oracle(data), data, flip_test=False, refine="none")
    metrics = WholeBodyMetric()(big, points, scores)
    assert metrics["body_AP"] == pytest.approx(1.0) and metrics["whole_AP"] == pytest.approx(1.0)
    wrong = WholeBodyMetric()(big, points + 300, scores)
    assert wrong["whole_AP"] == 0.0


def test_detector_boxes_are_scored_against_annotations(people):
    found = [p._replace(points=np.zeros_like(p.points), score=0.9) for p in people for _ in range(2)]
    points = np.stack([p.points[:, :2] for p in people for _ in range(2)])
    scores = np.full(points.shape[:2], 0.8)
    metrics = WholeBodyMetric(annotations=people)(found, points, scores)
    assert metrics["whole_AP"] == pytest.approx(1.0)  # OKS-NMS removes the second copy of each person


def test_landmarks_metric(people):
    faces = [p._replace(points=p.points[:98]) for p in people]
    attributes = np.zeros((4, 6), bool)
    attributes[0, 1] = True
    metric = LandmarkMetric(attributes, wflw.SUBSETS)
    points = np.stack([f.points[:, :2] for f in faces])
    assert metric(faces, points, np.ones((4, 98)))["nme"] == 0
    off = metric(faces, points + 3.0, np.ones((4, 98)))
    eyes = [np.linalg.norm(f.points[60, :2] - f.points[72, :2]) for f in faces]
    assert off["nme"] == pytest.approx(np.mean([np.sqrt(18) / e for e in eyes]), rel=1e-5)
    assert off["nme_expression"] == pytest.approx(np.sqrt(18) / eyes[0], rel=1e-5)


def test_augmented_training_batches_repeat(people):
    data = TopDownDataset(people, (64, 64), WHOLEBODY133.mirror, CropAugment())
    task = tasks.Keypoints(torch.nn.Identity(), data, data, WholeBodyMetric())
    a, b, c = task.batch(3, 4, 0), task.batch(3, 4, 0), task.batch(4, 4, 0)
    assert torch.equal(a["image"], b["image"]) and not torch.equal(a["image"], c["image"])


def body_batch(body, images=2):
    g = torch.Generator().manual_seed(0)
    angle = 0.3 * torch.randn(images, 24, 3, generator=g)
    shape = torch.randn(images, 10, generator=g)
    vertices = body(angle, shape, level=2).vertices
    joints = body.regress("h36m17", vertices)
    camera = torch.tensor([[0.8, 0.05, -0.1]]).expand(images, -1)
    centred = joints - joints[:, :1]
    joints2d = torch.cat([project_weak(centred, camera), torch.ones(images, joints.shape[1], 1)], 2)
    from tore_fast.geometry.rotation import axis_angle_to_matrix

    rotations = axis_angle_to_matrix(angle)
    batch = {
        "image": torch.rand(images, 3, 64, 64, generator=g),
        "rotations": rotations,
        "shape": shape,
        "joints3d": joints,
        "joints2d": joints2d,
    }
    return batch, BodyParameters(rotations, shape, camera, rotations[..., :2].flatten(2))


def test_hmr_losses_vanish_at_the_truth(body):
    batch, truth = body_batch(body)
    losses = tasks.hmr_losses(truth, batch, body)
    assert losses.keys() == {"joints2d", "joints3d", "pose", "shape", "camera"}
    assert all(float(losses[k]) < 1e-10 for k in ("joints2d", "joints3d", "pose", "shape"))
    moved = truth._replace(shape=truth.shape + 1)
    assert float(tasks.hmr_losses(moved, batch, body)["joints3d"]) > 1e-5
    only = tasks.hmr_losses(truth, {"joints2d": batch["joints2d"]}, body)
    assert only.keys() == {"joints2d", "camera"}


def test_body_recovery_learns(body):
    batch, _ = body_batch(body)
    model = create_model("tcformer_light_hmr", **TINY)
    task = tasks.BodyRecovery(model, body, lambda *_: batch, [batch])
    model.regressor.drop.p = 0.0
    before = task.evaluate(model.eval())
    first, last = descend(task, 15, lr=5e-4)
    after = task.evaluate(model.eval())
    assert last < 0.5 * first and after["mpjpe_mm"] < before["mpjpe_mm"]


def test_synthetic_sources(body):
    """Rendered joints lie where their heat-maps peak, and rendered parameters give zero losses with their own
    camera."""
    from tore_fast.train.tcformer_synth import SynthKeypoints, synth_body_batch

    task = SynthKeypoints(torch.nn.Identity(), body, 64, difficulty=0.2, eval_images=32)
    batch = task.batch(0, 2, 0)
    assert batch["target"].shape == (2, 14, 16, 16) and torch.equal(batch["image"], task.batch(0, 2, 0)["image"])
    made = task.training.batch(0, 2)
    labelled = batch["weight"] > 0
    assert labelled.any()
    at = batch["target"].flatten(2).argmax(2)
    peak = 4.0 * torch.stack([at % 16, at // 16], 2)
    assert (peak - task.points(made))[labelled].abs().max() <= 2.0
    truth = synth_body_batch(made, body)
    out = BodyParameters(truth["rotations"], truth["shape"], made["camera"], truth["rotations"][..., :2].flatten(2))
    losses = tasks.hmr_losses(out, truth, body)
    assert all(float(losses[k]) < 1e-9 for k in ("pose", "shape", "joints3d", "joints2d"))


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A TSV set with all labels, one with 2D joints only, and 3DPW."""
    root, rng = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    for name, changes in (("full", {}), ("flat", {"has_smpl": 0, "has_3d_joints": 0})):
        write_tsv_set(root / name, [body_label(rng, **changes) for _ in range(4)], [image(rng) for _ in range(4)])
        (root / name / "t.yaml").write_text("img: test.img.tsv\nlabel: test.label.tsv\nhw: test.hw.tsv\n")
    write_3dpw(root / "3dpw", load_body("free"), people=1, frames=2)
    return root


def test_hmr_losses_on_labelled_sets(sets, body):
    """True parameters cost nothing where labels agree; items without a label count in the 2D term alone."""
    crops = LabelledCrops(
        [open_dataset(sets / n / "t.yaml") for n in ("full", "flat")], None, AugmentConfig(flip=0, upright=1.0), 64
    )
    task = tasks.labelled_body_recovery(torch.nn.Identity(), body, crops)
    batch = task.batch(0, 8, 0)
    assert task.items_per_epoch == 8 and batch["has_smpl"].sum() == batch["has_3d"].sum() == 4
    vertices = body(batch["rotations"], batch["shape"], level=2).vertices
    joints = body.regress("h36m17", vertices)
    camera = torch.tensor([[0.8, 0.05, -0.1]]).expand(8, -1)
    batch["joints3d"][..., :3] = joints[:, list(H36M17_TO_J14)] + torch.randn(8, 1, 3)
    batch["joints2d"][..., :2] = project_weak(joints - joints[:, :1], camera)[:, list(H36M17_TO_J14)]
    truth = BodyParameters(batch["rotations"], batch["shape"], camera, batch["rotations"][..., :2].flatten(2))
    losses = tasks.hmr_losses(truth, batch, body, "j14")
    assert all(float(losses[k]) < 1e-8 for k in ("joints2d", "joints3d", "pose", "shape"))
    off = truth._replace(
        rotations=torch.where(batch["has_smpl"][:, None, None, None] > 0, truth.rotations, torch.eye(3))
    )
    losses = tasks.hmr_losses(off, batch, body, "j14")
    assert all(float(losses[k]) < 1e-8 for k in ("joints3d", "pose", "shape"))
    far = truth._replace(shape=truth.shape + 1)
    assert float(tasks.hmr_losses(far, batch, body, "j14")["shape"]) == pytest.approx(1.0, rel=1e-5)


def test_train_smpl_on_data_sets_from_an_imagenet_backbone(sets, tmp_path, capsys):
    """The paper's way: classifier -> backbone of the regressor -> labelled sets -> validation; eval cuts the same
    crops."""
    pytest.importorskip("accelerate")
    torch.manual_seed(3)
    Image.fromarray(image(np.random.default_rng(1))).save(tmp_path / "p.png")
    classifier = create_model("tcformer_light", num_classes=5, **TINY)
    save(classifier, tmp_path / "classifier", "tcformer_light")
    small = ["--set", *(t for k, v in TINY.items() for t in (k, ",".join(map(str, v)))), "--image-size", 64]
    train = ["--train.batch-size", 4, "--train.out", tmp_path / "run", "--train.eval-every", 1, "--train.lr", 1e-9]
    data = ["--data", sets / "full" / "t.yaml", sets / "flat" / "t.yaml", "--val", sets / "3dpw"]
    export = ["--checkpoint", tmp_path / "classifier", "--export", tmp_path / "model"]
    assert command("train", "smpl", *small, *data, *export, *train, "--train.epochs", 1) == 0
    out = capsys.readouterr().out
    assert "taken: the backbone; the rest starts anew" in out and "pa_mpjpe_mm" in out
    model = load(tmp_path / "model")
    torch.testing.assert_close(model.backbone.ctm1.conv.weight, classifier.ctm1.conv.weight, atol=1e-6, rtol=0)
    assert model.config.image_size == 64
    assert (
        command(
            "eval",
            "--data",
            sets / "3dpw",
            "--checkpoint",
            tmp_path / "model",
            "--json",
            tmp_path / "e.json",
            "--workers",
            0,
        )
        == 0
    )
    assert json.loads((tmp_path / "e.json").read_text())["identity"]["image_size"] == 64
    assert (
        command(
            "predict",
            *(tmp_path / "p.png", "--model", tmp_path / "model"),
            *("--boxes", "full", "--out", tmp_path / "o", "--format", "png,npz"),
        )
        == 0
    )
    with np.load(tmp_path / "o" / "p.npz") as found:
        assert found["vertices"].shape[1:] == (6890, 3) and np.isfinite(found["vertices"]).all()
    # without a set to test on the last weights are exported
    assert (
        command(
            "train",
            "smpl",
            *small,
            *data[:3],
            "--train.steps",
            1,
            *train[:2],
            "--train.out",
            tmp_path / "b",
            "--export",
            tmp_path / "m",
        )
        == 0
    )
    assert load(tmp_path / "m").config.image_size == 64
    capsys.readouterr()
    for arguments, words in (
        (["--val", sets / "3dpw"], "synthetic images show the free body and have their own held-out ones"),
        (["--data", sets / "full" / "t.yaml", "--test"], "--test: give --val"),
        (["--model", "tcformer_base_hmr", "--checkpoint", tmp_path / "classifier"], "tensors fit the model"),
    ):
        assert command("train", "smpl", *arguments, "--train.out", tmp_path / "c") == 2
        assert words in capsys.readouterr().err


def test_commands(tmp_path, capsys, monkeypatch):
    """`train keypoints` on WFLW files: one step on a made-up face, then the exported folder is evaluated."""
    monkeypatch.chdir(tmp_path)  # evaluations keep their rows in the current folder
    pytest.importorskip("accelerate")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (80, 80, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    line = " ".join(f"{v:.2f}" for v in rng.uniform(15, 65, 196)) + " 10 10 70 70 1 0 0 0 0 1 a.jpg\n"
    (tmp_path / "list.txt").write_text(line * 2)
    model = create_model("tcformer_light_wflw", neck_channels=32, **TINY)
    save(model, tmp_path / "start", "tcformer_light_wflw")
    files = ["--data", tmp_path / "list.txt", "--val", tmp_path / "list.txt", "--image-size", 64, 64]
    steps = ["--train.steps", 1, "--train.batch-size", 2, "--train.out", tmp_path / "run", "--train.ema", 0]
    more = ["--checkpoint", tmp_path / "start", "--export", tmp_path / "out"]
    assert command("train", "keypoints", *files, *steps, *more) == 0
    out = capsys.readouterr().out
    assert "taken: the whole model" in out and "nme_blur" in out
    card = json.loads((tmp_path / "out" / "config.json").read_text())
    assert card["selection"] == "last weights (step 1)" and card["metrics"]["nme"] > 0
    assert card["trained_on"]["image_size"] == [64, 64]
    assert command("eval", "keypoints", "--checkpoint", tmp_path / "out", *files[:2], "--workers", 0) == 0
    assert command("train", "keypoints", "--data", tmp_path / "list.txt", "--model", "tcformer_light_wflw") == 2
    assert "needs --val" in capsys.readouterr().err
