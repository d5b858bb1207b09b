"""Host training on synthetic crops, clips of real motion, tokens for stage 2, the component table."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from studies.smpl_motion.component_table import ComponentTable, JointErrors, markdown, smooth
from tore_fast.cli import UsageError, synth_clips, train_motion, train_smpl
from tore_fast.cli import accelerate as accelerate_cli
from tore_fast.cli import list as list_cli
from tore_fast.data.mocap import Motion
from tore_fast.data.synth.clips import ClipCrops
from tore_fast.data.synth.motion import motion_rotations
from tore_fast.data.synth.poses import PoseBank
from tore_fast.data.synth.rendered import read_clip, render_clip, write_clips, write_tokens, write_view_tokens
from tore_fast.layers.mask_tome import MergeConfig
from tore_fast.models import create_model, load
from tore_fast.models._count import count_host
from tore_fast.models.smpl.hmr2 import HMR2Config
from tore_fast.train.config import TrainConfig
from tore_fast.train.motion import Stage2Config, read_motion, read_motion_folder
from tore_fast.train.pose_discriminator import PoseDiscriminator, adversarial_losses
from tore_fast.train.smpl import HMRConfig, HMRTask

HOST = dict(img_size=(64, 48), embed_dim=32, depth=3, num_heads=2, decoder_depth=1, decoder_heads=2, decoder_dim=32)


def walk(name: str, frames: int, split: str) -> Motion:
    """17 joints of somebody swinging the arms, 60 frames a second."""
    rest = np.array(
        [
            [0, 0, 1],
            [-0.1, 0, 1],
            [-0.1, 0, 0.55],
            [-0.1, 0, 0.1],
            [0.1, 0, 1],
            [0.1, 0, 0.55],
            [0.1, 0, 0.1],
            [0, 0, 1.2],
            [0, 0, 1.4],
            [0, 0, 1.5],
            [0, 0, 1.7],
            [0.2, 0, 1.4],
            [0.25, 0, 1.15],
            [0.25, 0, 0.9],
            [-0.2, 0, 1.4],
            [-0.25, 0, 1.15],
            [-0.25, 0, 0.9],
        ],
        np.float32,
    )
    joints = np.repeat(rest[None], frames, 0)
    swing = np.sin(np.arange(frames) / 12)
    joints[:, 13, 1] += 0.2 * swing
    joints[:, 16, 1] -= 0.2 * swing
    return Motion(name, name, "walk", split, joints, 60.0)


@pytest.fixture(scope="module")
def clips(body, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    crops = ClipCrops(body, 64, 3, 0.2, margin=1.15, backgrounds="noise")
    return write_clips([walk("a", 60, "train"), walk("b", 40, "train")], crops, folder)


def test_loss_reaches_every_weight_and_truth_lies_on_the_person(body):
    poses = PoseBank(motion_rotations(walk("a", 40, "train")))
    task = HMRTask(create_model("hmr2_vitt", **HOST), body, HMRConfig(adversarial=0.0005, eval_images=8), poses)
    batch = task.batch(3, 8, 0)
    _, joints, seen = task.truth(batch)
    assert joints.shape == (8, 24, 3)
    at = ((seen[:, [0, 3, 6]] + 1) * 32).round().long().clamp(0, 63)  # pelvis and spine are inside the body
    hits = [batch["mask"][i, y, x] > 0 for i in range(8) for x, y in at[i].tolist()]
    assert np.mean([bool(h) for h in hits]) > 0.8
    total, parts = task.loss(task.model, batch, 0)
    assert set(parts) >= {
        "2d",
        "3d",
        "root",
        "pose",
        "betas",
        "heatmap",
        "parts",
        "adversarial",
        "critic",
        "train_mpjpe_mm",
    }
    total.backward()
    # with one query token its q and k are dead
    silent = {n for n, p in task.model.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    assert not {n for n in silent if "to_qkv" not in n and "to_token_embedding.weight" not in n}, silent
    same = task.batch(3, 8, 0)
    assert all(torch.equal(batch[k], same[k]) for k in batch)


def test_adversarial_gradients_stay_apart():
    critic = PoseDiscriminator()
    rotations, betas = torch.randn(4, 23, 3, 3, requires_grad=True), torch.randn(4, 10)
    fool, judge = adversarial_losses(critic, (rotations, betas), (torch.randn(4, 23, 3, 3), betas))
    assert critic(rotations, betas).shape == (4, 25)
    fool.backward()
    assert rotations.grad.abs().sum() > 0 and all(p.grad is None for p in critic.parameters())
    rotations.grad = None
    judge.backward()
    assert rotations.grad is None and all(p.grad.abs().sum() > 0 for p in critic.parameters())


def test_a_clip_is_one_person_in_one_place(body, clips):
    clip = read_clip(clips[0])
    assert clip.images.shape == (30, 3, 64, 64) and clip.masks.shape == (30, 64, 64) and clip.fps == 30
    corner = clip.images[:, :, :4, :4].float()
    assert (corner.mean((2, 3)) - corner[0].mean((1, 2))).abs().max() < 3  # the backdrop stays; pixel noise is fresh
    crops = ClipCrops(body, 64, 3, 0.2, backgrounds="noise", tracker_noise=0.0)
    rotations = motion_rotations(walk("a", 20, ""))
    whole, pieces = (crops.clip(rotations, 5, chunk=n) for n in (20, 7))
    assert torch.equal(whole["betas"], pieces["betas"]) and torch.equal(whole["mask"], pieces["mask"])
    assert all(torch.equal(b, whole["betas"][0]) for b in whole["betas"])


def test_clips_that_are_there_stay(body, clips):
    before = clips[0].stat().st_mtime_ns
    write_clips([walk("a", 60, "train")], None, clips[0].parent)
    assert clips[0].stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="not a rendered clip"):
        np.savez(clips[0].with_name("other.npy.npz"), poses=np.zeros(3))
        read_clip(clips[0].with_name("other.npy.npz"))
    clips[0].with_name("other.npy.npz").unlink()


def test_tokens_are_what_the_denoiser_reads(clips, tmp_path):
    torch.manual_seed(0)
    host = create_model("hmr2_vitt", **HOST, merge_r=(2,)).eval()
    path = write_tokens(host, clips[:1], tmp_path)[0]
    motion = read_motion(path, 30.0, up="camera")
    clip = read_clip(clips[0])
    with torch.no_grad():
        from tore_fast.geometry.warp import normalise_image

        want = host(normalise_image(clip.images[:4]), clip.masks[:4]).token
    torch.testing.assert_close(motion.tokens[:4], want, atol=1e-5, rtol=1e-4)
    assert motion.rotations.shape == (30, 24, 3, 3)


def test_more_renderings_of_a_motion(body, clips, tmp_path):
    """View 0 is the clip of write_clips; others show other people, odd ones the mirror image; what is there stays."""
    torch.manual_seed(0)
    host = create_model("hmr2_vitt", **HOST).eval()
    motion, crops = walk("a", 60, "train"), ClipCrops(body, 64, 3, 0.2, margin=1.15, backgrounds="noise")
    paths = write_view_tokens(host, [motion], crops, tmp_path / "views", 3)
    assert [p.name for p in paths] == ["a.npz", "a.v01.npz", "a.v02.npz"]
    first = read_motion(write_tokens(host, clips[:1], tmp_path / "one")[0], up="camera")
    seen = [read_motion(p, up="camera") for p in paths]
    torch.testing.assert_close(seen[0].tokens, first.tokens)
    assert [m.motion for m in seen] == ["a"] * 3 and not torch.equal(seen[1].betas, seen[2].betas)
    swing = [
        (m.rotations[:, 16] - m.rotations[:1, 16]).norm() for m in seen
    ]  # left shoulder; the arms do not swing alike
    right = [(m.rotations[:, 17] - m.rotations[:1, 17]).norm() for m in seen]
    torch.testing.assert_close(swing[1], right[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(swing[2], swing[0], atol=1e-4, rtol=1e-4)
    before = paths[2].stat().st_mtime_ns
    write_view_tokens(host, [motion], crops, tmp_path / "views", 3)
    assert paths[2].stat().st_mtime_ns == before
    parts = [render_clip(walk("long", 200, "train"), crops, 0, frames=10, view=v).poses[:, 3:] for v in (0, 2, 4)]
    assert not np.allclose(parts[0], parts[1], atol=1e-3) and not np.allclose(parts[1], parts[2], atol=1e-3)


def test_component_table_rows(body, clips):
    torch.manual_seed(0)
    host = create_model("hmr2_vitt", **HOST).eval()
    made = ComponentTable(body, clips)
    made.baseline()
    seen = made.host("host", host, smoothed="smoothed")
    host.set_merging(MergeConfig(keep=8, per_block=2))
    for masks in ("given", "ellipse", "none"):
        made.host(masks, host, masks)
    with pytest.raises(ValueError, match="masks must be given, ellipse or none"):
        made.host("no row", host, masks="user")
    motion = create_model(
        "fasthmr_motion", frames=12, condition_dim=32, latent_tokens=2, latent_dim=16, ff_size=16, heads=2
    )
    host.set_merging(None)
    made.motion("motion", host, seen, motion.eval())
    made.motion("motion, 4 steps", host, seen, motion, num_steps=4)
    rows = {r["name"]: r for r in made.rows}
    assert list(rows) == ["mean pose", "host", "smoothed", "given", "ellipse", "none", "motion", "motion, 4 steps"]
    assert all(np.isfinite(r["mpjpe_mm"]) and r["frames"] == 50 for r in made.rows)
    assert (
        rows["motion, 4 steps"]["gmacs"]
        > rows["motion"]["gmacs"]
        > rows["host"]["gmacs"]
        == sum(count_host(host.config)) / 1e9
    )
    assert rows["motion"]["mpjpe_mm"] != rows["motion, 4 steps"]["mpjpe_mm"]
    assert len({rows[m]["mpjpe_mm"] for m in ("given", "ellipse", "none")}) == 3 and rows["given"]["tokens"] == 8
    assert markdown(made.rows).count("\n") == 9


def test_errors_of_known_offsets():
    errors = JointErrors()
    truth = torch.randn(9, 24, 3)
    moved = truth.clone()
    moved[:, 1:, 0] += 0.01
    errors.add(moved, truth)
    result = errors.result()
    assert result["mpjpe_mm"] == pytest.approx(10 * 23 / 24, rel=1e-4) and result["accel_mm_per_frame2"] < 1e-3
    line = torch.linspace(0, 1, 30)[:, None, None].expand(30, 2, 3)
    torch.testing.assert_close(smooth(line)[8:-8], line[8:-8], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("blocks", "keep", "linear", "both"), [(32, None, 122.5, 125.5), (28, 90, 52.8, 53.5), (26, 64, 37.1, 37.5)]
)
def test_macs_of_the_specs_table(blocks, keep, linear, both):
    a, b = count_host(HMR2Config(depth=blocks, keep_tokens=keep, merge_rounds="paper"))
    assert a / 1e9 == pytest.approx(linear, abs=0.05) and (a + b) / 1e9 == pytest.approx(both, abs=0.06)


def test_list_prints_the_reduction_table():
    rows = {(r["blocks"], r["tokens"]): r for r in list_cli.reductions()}
    assert rows[28, 90]["linear_gmacs"] == pytest.approx(52.9, abs=0.05)
    assert rows[28, 90]["paper_gmacs"] == 52.8  # in three rounds; ours takes four
    assert rows[24, 90]["factor"] == pytest.approx(2.70, abs=0.005) and "2.34x" in list_cli.reduction_table(
        list(rows.values())
    )


def test_commands_from_motion_to_merged_host(tmp_path, capsys):
    """clips -> host -> ECLM against labels -> tokens, as studies/smpl_motion/run.py runs them, in the smallest
    sizes."""
    data = tmp_path / "mocap"
    data.mkdir()
    motions = [walk("one", 24, "train"), walk("two", 24, "train"), walk("three", 24, "test")]
    np.savez(data / "clips.npz", **{m.id: m.joints for m in motions})
    rows = [{"id": m.id, "subject": m.subject, "split": m.split, "fps": 60, "description": "walk"} for m in motions]
    (data / "index.json").write_text(json.dumps({"clips": rows}))
    made = dict(data=data, out=tmp_path / "clips", image_size=128)
    assert synth_clips.run(synth_clips.Args(**made)) == 0
    assert sorted(p.name for p in (tmp_path / "clips").iterdir()) == ["one.npz", "two.npz"]
    train = TrainConfig(out=str(tmp_path / "host"), steps=2, batch_size=4, eval_every=2, log_every=1)
    args = train_smpl.Args(
        model="hmr2_vitt",
        poses=data,
        hmr=HMRConfig(eval_images=8),
        set={"depth": "4"},
        train=train,
        export=tmp_path / "host" / "model",
    )
    assert train_smpl.run(args) == 0
    card = json.loads((tmp_path / "host" / "model" / "config.json").read_text())
    assert card["selection"] == "last averaged weights (step 2)" and card["metrics"]["mpjpe_mm"] > 0
    host = load(tmp_path / "host" / "model")
    assert host.config.depth == 4 and host.config.img_size == (128, 96)
    search = accelerate_cli.Args(
        search_layers=True,
        model=str(tmp_path / "host" / "model"),
        data=[tmp_path / "clips"],
        out=tmp_path / "eclm",
        tau=1e6,
        limit=8,
        device="cpu",
    )
    assert accelerate_cli.run(search) == 0
    assert "4 -> 1 blocks" in capsys.readouterr().out
    trace = tmp_path / "eclm" / "trace.jsonl"
    plan, lines = (tmp_path / "eclm" / "plan.json").read_text(), trace.read_text().splitlines(keepends=True)
    trace.write_text("".join(lines[:2]) + '{"low": 1, "hi')  # killed while writing
    for _ in range(2):
        assert accelerate_cli.run(search) == 0 and (tmp_path / "eclm" / "plan.json").read_text() == plan
        assert [json.loads(line) for line in trace.read_text().splitlines()] == [json.loads(line) for line in lines]
    tokens = dict(model=tmp_path / "eclm" / "model", tokens=tmp_path / "tokens", keep_tokens=24, merge_per_block=24)
    assert synth_clips.run(synth_clips.Args(**made, **tokens)) == 0
    assert np.load(tmp_path / "tokens" / "one.npz")["tokens"].shape == (12, 128)
    two = read_motion_folder(data)  # the archive itself is stage 1's data; its test split stays out
    assert [len(c.rotations) for c in two] == [12, 12]
    up = two[0].rotations[0, 0, :, 1]  # the pelvis' y axis in camera axes: upwards is -y
    torch.testing.assert_close(up, torch.tensor([0.0, -1, 0]), atol=1e-3, rtol=0)
    sizes = {"latent_tokens": 2, "latent_dim": 16, "ff_size": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1}
    sizes = {k: str(v) for k, v in sizes.items()}
    stage1 = TrainConfig(out=str(tmp_path / "vae"), steps=2, batch_size=2, eval_every=2)
    prior = tmp_path / "vae" / "model"
    args = train_motion.Args(data=data, frames=8, set=sizes, held_out=2, train=stage1, export=prior)
    assert train_motion.run(args) == 0
    stage2 = TrainConfig(out=str(tmp_path / "denoiser"), steps=2, batch_size=2, eval_every=2)
    args = train_motion.Args(
        data=tmp_path / "tokens",
        motion_prior=prior,
        frames=8,
        up="camera",
        held_out=2,
        train=stage2,
        export=tmp_path / "denoiser" / "model",
    )
    assert train_motion.run(args) == 0
    motion = load(tmp_path / "denoiser" / "model")
    assert motion(torch.zeros(1, 8, 128)).joints.shape == (1, 8, 29, 3)
    only = dict(data=data, image_size=128, model=tmp_path / "eclm" / "model", tokens=tmp_path / "views")
    assert synth_clips.run(synth_clips.Args(**only, views=2)) == 0
    args = dataclasses.replace(
        args,
        data=tmp_path / "views",
        regressor=tmp_path / "eclm" / "model",
        export=tmp_path / "corrector" / "model",
        loss=Stage2Config(1.0, 1.0),
        train=dataclasses.replace(stage2, out=str(tmp_path / "corrector")),
    )
    assert train_motion.run(args) == 0
    motion = load(tmp_path / "corrector" / "model")
    torch.testing.assert_close(motion.host_motion.weight, load(tmp_path / "eclm" / "model").smpl_head.decpose.weight)
    assert motion(torch.zeros(1, 8, 128)).joints.shape == (1, 8, 29, 3)
    for wrong, words in (
        (dict(views=2, out=tmp_path), "1 with --out"),
        (dict(model=None, tokens=None), "give --out for the images"),
    ):
        with pytest.raises(UsageError, match=words):
            synth_clips.run(synth_clips.Args(**{**only, **wrong}))
    with pytest.raises(UsageError, match="is not a motion VAE"):
        train_motion.run(dataclasses.replace(args, motion_prior=tmp_path / "host" / "model"))
    with pytest.raises(UsageError, match="--model and --tokens belong together"):
        synth_clips.run(synth_clips.Args(**made, model=tmp_path))
