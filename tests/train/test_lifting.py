"""Training of pose lifting: losses by hand, windows by index, resume, evaluation of centred and full models."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from tore_fast.data.mocap import Motion, film
from tore_fast.data.pose_clip import PoseClip
from tore_fast.eval import pose as metrics
from tore_fast.eval.lifting import evaluate_clips
from tore_fast.geometry.skeleton import H36M17, mirror_points
from tore_fast.models import create_model
from tore_fast.models.lifting._base import lift_windows
from tore_fast.train.config import TrainConfig
from tore_fast.train.lifting import PoseDataConfig, PoseLifting, lifting_loss
from tore_fast.train.loop import train
from tore_fast.train.optim import learning_rate
from tore_fast.train.pose_losses import mixste_loss, position_loss

SMALL = dict(frames=9, channels=16, depth=2, heads=2, mlp_hidden=16)


def motion(subject: str, seed: int, frames: int = 60) -> Motion:
    """A stick figure whose joints swing smoothly, z up, about a metre tall."""
    rng = np.random.default_rng(seed)
    rest = rng.normal(0, 0.3, (17, 3)) + [0, 0, 1]
    phase, size = rng.uniform(0, 6, (17, 3)), rng.uniform(0.02, 0.1, (17, 3))
    t = np.arange(frames)[:, None, None] / 8
    return Motion(
        f"{subject}{seed}",
        subject,
        f"act{seed % 2}",
        "train",
        (rest + size * np.sin(t + phase)).astype(np.float32),
        50.0,
    )


def task(name="hot_mixste_27", **fields) -> PoseLifting:
    torch.manual_seed(0)
    fields = {**SMALL, "prune_block": 1, "keep_frames": 3, **fields}
    model = create_model(name, **fields)
    return PoseLifting(model, [motion("a", i) for i in range(4)], [motion("b", i) for i in (7, 8)], PoseDataConfig())


def config(out, **changes) -> TrainConfig:
    base = TrainConfig(
        out=str(out), steps=6, batch_size=4, lr=3e-3, warmup=1, log_every=1, eval_every=3, ema=0.9, clip_norm=1.0
    )
    return dataclasses.replace(base, **changes)


def curve(out) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [r["loss"] for r in rows if "loss" in r]


def test_a_killed_run_continues_on_the_same_curve(tmp_path):
    pytest.importorskip("accelerate")
    train(task(), config(tmp_path / "whole"), log=lambda _: None)
    for _ in range(6):  # every process start ends after one step, as if killed
        train(task(), config(tmp_path / "parts", max_minutes=1e-9), log=lambda _: None)
    whole, parts = curve(tmp_path / "whole"), curve(tmp_path / "parts")
    assert len(whole) == 6 and whole == parts
    best = torch.load(tmp_path / "whole" / "best.pt", weights_only=True)
    assert best["metrics"]["mpjpe"] > 0 and list((tmp_path / "whole").glob("events.out.tfevents.*"))


def test_it_learns_a_fixed_pose(tmp_path):
    t = task("tpc_mixste_27", keep_center=True)
    before = evaluate_clips(t.model, t.held_out, stride=9).result()["mpjpe"]
    optimiser = torch.optim.AdamW(t.model.parameters(), 3e-3)
    t.model.train()
    for step in range(60):
        value, _ = t.loss(t.model, t.batch(step, 8, step), step)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    after = evaluate_clips(t.model, film([motion("a", 0)], 5.0, seed=3), stride=9).result()["mpjpe"]
    assert after < 0.75 * before


def test_windows_depend_on_the_index_alone():
    t = task()
    a, b = t.window(17), t.window(17)
    assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])
    assert not np.array_equal(a[0], t.window(18)[0])
    batch = t.batch(3, 4, 0)
    assert torch.equal(batch["x"][2], torch.from_numpy(t.window(14)[0])) and batch["y"].shape == (4, 9, 17, 3)


def test_short_motions_are_padded():
    t = task()
    t.train_items, t.share = [motion("a", 1, frames=5)], np.ones(1)
    t.config = dataclasses.replace(t.config, flip=False)
    x, y = t.window(0)
    assert x.shape == (9, 17, 2) and np.array_equal(y[0], y[2]) and np.array_equal(y[6], y[8])


def test_subjects_must_not_leak():
    with pytest.raises(ValueError, match=r"subjects \['a'\] are in both"):
        PoseLifting(create_model("mixste_9", **SMALL), [motion("a", 0)], [motion("a", 1)], PoseDataConfig())


def test_target_follows_the_kept_frames():
    model = create_model("tpc_mixste_27", **SMALL, prune_block=1, keep_frames=4, keep_center=True).eval()
    x, y = torch.randn(2, 9, 17, 2), torch.randn(2, 9, 17, 3)
    with torch.no_grad():
        lifted, parts = model(x), lifting_loss(model, x, y, position_loss)
    target = torch.stack([y[b, lifted.index[b]] - y[b, lifted.index[b]][:, :1] for b in range(2)])
    assert parts["total"] == pytest.approx(float((lifted.pose - target).norm(dim=-1).mean()), rel=1e-6)


def test_mixste_loss_by_hand():
    p, g = torch.zeros(1, 2, 17, 3), torch.zeros(1, 2, 17, 3)
    p[0, 1, 12, 0] = 2.0  # a left elbow, weight 4, that jumps by 2
    parts = mixste_loss(p, g)
    assert parts["position"] == pytest.approx(4 * 2 / 34)
    assert parts["consistency"] == pytest.approx(4 * 4 / (17 * 3))
    assert parts["velocity"] == pytest.approx(2 / 17)
    assert parts["total"] == pytest.approx(8 / 34 + 0.5 * 16 / 51 + 2 * 2 / 17)
    assert mixste_loss(p[:, :1], g[:, :1])["velocity"] == 0


def clips(frames=30) -> list[PoseClip]:
    rng = np.random.default_rng(0)
    make = lambda: rng.normal(size=(frames, 17, 3)).astype(np.float32)
    poses = [make(), make()]
    return [
        PoseClip("s", f"act{i}", "", rng.normal(size=(frames, 17, 2)).astype(np.float32), p - p[:, :1])
        for i, p in enumerate(poses)
    ]


@pytest.mark.parametrize("name, centered", [("mixste_27", False), ("tpc_mixste_27", True)])
def test_evaluation_is_the_mean_of_frame_errors(name, centered):
    fields = dict(prune_block=1, keep_frames=4) if centered else {}
    model = create_model(name, **SMALL, **fields).eval()
    data = clips()
    got = evaluate_clips(model, data, flip=True, stride=9).per_action()
    from tore_fast.geometry.windows import window_indices

    for clip in data:
        slots = window_indices(30, 9, 1)[::9] if centered else window_indices(30, 9, 9)
        errors = []
        for s in slots:
            lifted = lift_windows(model, torch.from_numpy(clip.keypoints[s])[None], flip=True)
            pose, target = lifted.pose[0], torch.from_numpy(clip.pose[s])
            if centered:
                pose, target = pose[lifted.index[0] == 4], target[4:5]
            pose, target = (v - v[:, :1] for v in (pose, target))
            errors.append((pose - target).norm(dim=-1).mean(dim=-1) * 1000)
        assert got[clip.action]["mpjpe"] == pytest.approx(float(torch.cat(errors).mean()), rel=1e-5)


def test_flip_test_of_a_mirrored_input_is_the_mirrored_output():
    model = create_model("hot_mixste_27", **SMALL, prune_block=1, keep_frames=9).eval()
    x = torch.randn(1, 9, 17, 2)
    a, b = lift_windows(model, x, True).pose, lift_windows(model, mirror_points(x, H36M17), True).pose
    torch.testing.assert_close(mirror_points(a, H36M17), b, rtol=1e-4, atol=1e-5)


def test_invalid_frames_do_not_count():
    model = create_model("mixste_9", **SMALL).eval()
    good = clips(9)[0]
    broken = good.pose.copy()
    broken[3:] = 1e6
    valid = np.arange(9) < 3
    a = evaluate_clips(model, [dataclasses.replace(good, valid=valid)], flip=False).result()["mpjpe"]
    b = evaluate_clips(model, [dataclasses.replace(good, pose=broken, valid=valid)], flip=False).result()["mpjpe"]
    assert a == b


def test_aligned_errors():
    g = torch.Generator().manual_seed(0)
    target = torch.randn(5, 17, 3, generator=g, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64)).Q
    turn = turn * turn.det().sign()
    moved = 3.0 * target @ turn + torch.tensor([1.0, -2.0, 0.5])
    assert metrics.p_mpjpe(moved, target).max() < 1e-9
    assert metrics.p_mpjpe(moved * torch.tensor([-1.0, 1, 1]), target).min() > 0.1  # a mirror image is not a turn
    assert metrics.n_mpjpe(2.5 * target, target).max() < 1e-9
    with pytest.raises(ValueError, match="must both be"):
        metrics.mpjpe(target, target[:, :5])


def test_pck_is_strict():
    errors = torch.tensor([0.0, 149.9, 150.0, 1000.0])
    assert metrics.pck(errors) == 50.0
    thresholds = range(0, 151, 5)
    assert metrics.auc(errors) == pytest.approx(np.mean([100 * np.mean([e < t for e in errors]) for t in thresholds]))


def test_exponential_schedule():
    c = TrainConfig(steps=101, warmup=1, lr=1.0, min_lr=0.01, schedule="exponential")
    assert learning_rate(c, 1) == pytest.approx(1.0) and learning_rate(c, 51) == pytest.approx(0.1)
