"""Stage 1 and stage 2 tasks: readers, augmentations, determinism, and a short run of both through the training loop."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tore_fast.body import load_body
from tore_fast.geometry.rotation import axis_angle_to_matrix, geodesic_angle
from tore_fast.layers.ik import pose_to_features
from tore_fast.models import create_model
from tore_fast.models.motion.vae import MotionVAE, MotionVAEConfig
from tore_fast.pipelines.hosts import RestSkeleton
from tore_fast.pipelines.video import VideoPipeline
from tore_fast.train.config import TrainConfig
from tore_fast.train.loop import train
from tore_fast.train.motion import (
    MotionClip,
    MotionDenoiserTask,
    MotionVAETask,
    Stage2Config,
    hold_out,
    mirror_rotations,
    read_motion,
    read_motion_folder,
)

VAE = MotionVAEConfig(
    latent_tokens=2, latent_dim=16, ff_size=32, encoder_layers=1, decoder_layers=1, heads=2, dropout=0.0
)
MOTION = dict(
    frames=16,
    condition_dim=12,
    latent_tokens=2,
    latent_dim=16,
    ff_size=32,
    heads=2,
    denoiser_layers=1,
    decoder_layers=1,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("motion")
    rng = np.random.RandomState(0)
    for i in range(3):
        t = np.linspace(0, 6, 61)[:, None]
        poses = (0.3 * np.sin(t * rng.rand(72) + rng.rand(72) * 6)).astype(np.float32)
        tokens = poses[:, :12] * 3
        np.savez(
            folder / f"{i}.npz",
            poses=poses,
            betas=rng.randn(10).astype(np.float32) * 0.5,
            mocap_framerate=60.0,
            tokens=tokens,
        )
    return sorted(folder.glob("*.npz"))


@pytest.fixture(scope="module")
def clips(files):
    return [read_motion(p, 30.0, "camera") for p in files]


@pytest.fixture(scope="module")
def rest():
    return RestSkeleton(load_body("free"))


def test_reader_resamples_and_turns_z_up(files, clips, tmp_path):
    assert clips[0].rotations.shape == (31, 24, 3, 3) and clips[0].tokens.shape == (31, 12)
    with np.load(files[0]) as data:
        poses = torch.from_numpy(data["poses"]).reshape(-1, 24, 3)
    ends = axis_angle_to_matrix(poses[[0, -1]])
    assert geodesic_angle(clips[0].rotations[[0, -1]], ends).max() < 1e-3
    up = read_motion(files[0], 60.0, "z")
    head = (up.rotations[0, 0] @ axis_angle_to_matrix(poses[0, 0]).T) @ torch.tensor([0.0, 0, 1.0])  # world up
    torch.testing.assert_close(head, torch.tensor([0.0, -1.0, 0.0]), atol=1e-5, rtol=0)  # camera up: -y
    np.savez(tmp_path / "smplh.npz", poses=np.zeros((4, 156), np.float32))
    assert read_motion(tmp_path / "smplh.npz").rotations.shape == (4, 24, 3, 3)
    np.savez(tmp_path / "bad.npz", trans=np.zeros((4, 3)))
    with pytest.raises(ValueError, match="needs poses"):
        read_motion(tmp_path / "bad.npz")


def test_a_folder_as_amass_lays_it_out(tmp_path):
    """Subjects in folders, shape files between the motions, both spellings of the frame rate."""
    (tmp_path / "s1").mkdir()
    np.savez(tmp_path / "s1" / "shape.npz", betas=np.zeros(16), gender=np.array("female"))
    old = dict(
        poses=np.zeros((9, 156)),
        betas=np.ones(16),
        trans=np.zeros((9, 3)),
        gender=np.array("male"),
        mocap_framerate=120.0,
    )
    np.savez(tmp_path / "s1" / "walk_poses.npz", **old)
    np.savez(tmp_path / "s1" / "run_stageii.npz", poses=np.zeros((9, 165)), betas=np.ones(16), mocap_frame_rate=60.0)
    with pytest.warns(UserWarning, match="1 of 3 .npz files hold no `poses`"):
        clips = read_motion_folder(tmp_path)
    assert [len(c.rotations) for c in clips] == [5, 3] and all(len(c.betas) == 10 for c in clips)
    (tmp_path / "s1" / "run_stageii.npz").write_bytes(b"cut off")
    with pytest.raises(ValueError, match="run_stageii.npz: not an .npz file"):
        read_motion_folder(tmp_path)


def test_mirror_is_an_involution_and_mirrors_the_joints(clips, rest):
    task = MotionVAETask(MotionVAE(VAE), clips[:2], clips[2:], rest, frames=16)
    rotations = clips[0].rotations
    torch.testing.assert_close(mirror_rotations(mirror_rotations(rotations)), rotations)
    skeleton = rest(torch.zeros(1, 10))[0]
    left, right = task.features(rotations, torch.zeros(10)), task.features(mirror_rotations(rotations), torch.zeros(10))
    wrist_left, wrist_right = left[:, 3 * 20 : 3 * 20 + 3], right[:, 3 * 21 : 3 * 21 + 3]
    asymmetry = (skeleton[20] * torch.tensor([-1.0, 1, 1]) - skeleton[21]).norm() + 0.02
    assert (wrist_left * torch.tensor([-1.0, 1, 1]) - wrist_right).norm(dim=-1).max() < asymmetry + 0.02


def test_batches_follow_from_the_index(clips, rest):
    task = MotionVAETask(MotionVAE(VAE), clips[:2], clips[2:], rest, frames=16, seed=5)
    a, b, c = task.batch(3, 4, 0), task.batch(3, 4, 9), task.batch(4, 4, 0)
    assert torch.equal(a["features"], b["features"]) and not torch.equal(a["features"], c["features"])
    assert a["features"].shape == (4, 16, 133)


@pytest.mark.parametrize(
    "loss, correct",
    [(Stage2Config(), False), (Stage2Config(last_step=1.0, joints=1.0), False), (Stage2Config(1.0, 1.0), True)],
)
def test_both_stages_through_the_loop(clips, rest, tmp_path, loss, correct):
    torch.manual_seed(0)
    quiet = lambda text: None
    config = dict(steps=40, batch_size=8, lr=3e-3, warmup=2, ema=0.0, clip_norm=1.0, eval_every=40, weight_decay=0.0)
    vae = MotionVAE(VAE)
    stage1 = MotionVAETask(vae, clips[:2], clips[2:], rest, frames=16)
    before = stage1.evaluate(vae.eval())["joints_mm"]
    after = train(stage1, TrainConfig(out=str(tmp_path / "1"), **config), quiet)["joints_mm"]
    assert after < before
    motion = create_model("fasthmr_motion", encoder_layers=1, correct_host=correct, **MOTION).use_vae(
        vae.cpu(), stage1.mean, stage1.std
    )
    decoder = {k: v.clone() for k, v in motion.motion_decoder.state_dict().items()}
    stage2 = MotionDenoiserTask(
        motion, vae, clips[:2], clips[:2], rest, loss=loss
    )  # three clips cannot show more than memory
    batch = stage2.batch(10**6, 32, 0)
    before, _ = stage2.loss(motion.eval(), batch, 0)
    train(stage2, TrainConfig(out=str(tmp_path / "2"), **config), quiet)
    after, logs = stage2.loss(motion.eval(), batch, 0)
    assert after < before and ("decoded" in logs) == bool(loss.joints)
    assert all(torch.equal(v, decoder[k]) for k, v in motion.motion_decoder.state_dict().items())
    with pytest.raises(ValueError, match="tokens"):
        MotionDenoiserTask(motion, vae, [clips[0].__class__(clips[0].rotations, clips[0].betas)], clips[2:], rest)


def test_renderings_of_a_motion_are_held_out_together():
    clips = [MotionClip(torch.zeros(1), torch.zeros(10), None, m) for m in ("a", "b", "c", "a", "b", "c", "d")]
    kept, away = hold_out(clips, 3)
    assert [c.motion for c in kept] == ["b", "c", "b", "c"] and [c.motion for c in away] == ["a", "a", "d"]


def test_correcting_a_host_starts_at_the_hosts_own_motion(rest):
    """An untrained denoiser corrects nothing: what comes out is the host's motion through the VAE."""
    torch.manual_seed(0)
    host = create_model("hmr2_vitt").eval()
    torch.nn.init.normal_(host.smpl_head.decpose.weight, std=0.1)  # it starts at nearly one pose for all
    vae = MotionVAE(VAE).eval()
    skeleton = rest(torch.zeros(1, 10))[0]
    motion = create_model(
        "fasthmr_motion", encoder_layers=1, correct_host=True, **{**MOTION, "condition_dim": host.config.decoder_dim}
    )
    motion.use_vae(vae, torch.full((133,), 0.1), torch.full((133,), 0.7)).host_motion.use_head(host.smpl_head, skeleton)
    crops = torch.randn(16, 3, host.config.img_size[0], host.config.img_size[0])
    with torch.no_grad():
        seen = host(crops)
        own = pose_to_features(seen.rotations, skeleton)
        latent, _ = vae.encode((own - 0.1)[None] / 0.7)
        want = vae.decode(latent, 16)[0] * 0.7 + 0.1
        got = motion.eval()(seen.token[None])
    assert own.std(0).max() > 1e-3
    torch.testing.assert_close(got.joints[0].flatten(1), want[:, :87], atol=1e-4, rtol=1e-4)
    body = load_body("free")
    assert VideoPipeline(host, body, motion).motion is motion
    with pytest.raises(ValueError, match="corrects the poses of another host"):
        VideoPipeline(create_model("hmr2_vitt"), body, motion)
    aa = create_model("hmr2_vitt", joint_rep="aa")
    with pytest.raises(ValueError, match="joint_rep '6d'"):
        motion.host_motion.use_head(aa.smpl_head, skeleton)


def test_both_stages_by_command(files, tmp_path):
    from tore_fast.cli import UsageError, eval_motion
    from tore_fast.cli import train_motion as command
    from tore_fast.models import load

    small = dict(latent_tokens="2", latent_dim="16", ff_size="32", heads="2", decoder_layers="1", encoder_layers="1")
    loop = dict(steps=2, batch_size=2, eval_every=2)
    first = command.Args(
        data=files[0].parent,
        up="camera",
        held_out=3,
        frames=16,
        set=small,
        export=tmp_path / "1" / "model",
        train=TrainConfig(out=str(tmp_path / "1"), **loop),
    )
    assert command.run(first) == 0
    second = command.Args(
        data=files[0].parent,
        motion_prior=tmp_path / "1" / "model",
        up="camera",
        held_out=3,
        frames=16,
        set={"denoiser_layers": "1"},
        export=tmp_path / "2" / "model",
        train=TrainConfig(out=str(tmp_path / "2"), **loop),
    )
    assert command.run(second) == 0
    motion = load(tmp_path / "2" / "model")
    stats = torch.load(tmp_path / "1" / "model" / "statistics.pt", weights_only=True)
    torch.testing.assert_close(motion.feature_mean, stats["mean"])
    assert motion(torch.zeros(1, 16, 12)).joints.shape == (1, 16, 29, 3)
    for number, name in (("1", "last averaged weights (step 2)"), ("2", "last averaged weights (step 2)")):
        card = json.loads((tmp_path / number / "model" / "config.json").read_text())
        assert card["selection"] == name and card["metrics"]["joints_mm"] > 0
        asked = eval_motion.Args(
            data=files[0].parent, model=tmp_path / number / "model", up="camera", frames=16, json=tmp_path / "e.json"
        )
        assert eval_motion.run(asked) == 0
        found = json.loads((tmp_path / "e.json").read_text())
        assert len(found["per_motion"]) == 3 and found["joints_mm"] > 0
    with pytest.raises(UsageError, match="AMASS-like .npz, .bvh or .amc"):
        command.run(command.Args(data=tmp_path))
