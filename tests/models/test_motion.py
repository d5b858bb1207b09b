"""Motion prior, one-step denoiser, clips: sampling identities, windows, and that both training stages learn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tore_fast.geometry.rotation import axis_angle_to_matrix
from tore_fast.geometry.windows import Clip, fade_weight, fill_gaps, resample, split_clips, track_spans
from tore_fast.layers.ik import SMPL_TREE, hybrik_ik, pose_to_features, split_features
from tore_fast.models import create_model, load, save
from tore_fast.models.motion.denoiser import Diffusion, clip_noise
from tore_fast.models.motion.fasthmr import OnlineMotion, feature_statistics, motion_rotations
from tore_fast.models.motion.vae import MotionVAE, MotionVAEConfig, vae_losses

SMALL = dict(
    frames=24,
    condition_dim=20,
    latent_tokens=3,
    latent_dim=32,
    ff_size=48,
    heads=2,
    denoiser_layers=3,
    decoder_layers=3,
)


def small_motion(**fields):
    return create_model("fasthmr_motion", **{**SMALL, **fields}).eval()


class Oracle(torch.nn.Module):
    """A denoiser that knows the clean latents: v = sqrt(abar) eps - sqrt(1 - abar) z0, with eps read off z_t."""

    def __init__(self, diffusion: Diffusion, z0: torch.Tensor):
        super().__init__()
        self.d, self.z0, self.calls = diffusion, z0, 0

    def forward(self, z, t, condition):
        self.calls += 1
        a, s = self.d._at(t)
        return a * ((z - a * self.z0) / s) - s * self.z0


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_sampling_with_a_perfect_denoiser_returns_the_clean_latents(steps):
    diffusion, z0 = Diffusion(), torch.randn(2, 3, 8)
    oracle = Oracle(diffusion, z0)
    got = diffusion.sample(oracle, torch.randn(2, 3, 8), torch.zeros(2, 4, 1), steps)
    assert oracle.calls == steps
    torch.testing.assert_close(got, z0, atol=1e-4, rtol=1e-4)


def test_one_step_is_minus_v():
    class Fixed(torch.nn.Module):
        def forward(self, z, t, condition):
            assert torch.all(t == 999)
            return torch.full_like(z, 0.3)

    got = Diffusion().sample(Fixed(), torch.randn(1, 2, 4), torch.zeros(1, 3, 1))
    torch.testing.assert_close(got, torch.full((1, 2, 4), -0.3), atol=0, rtol=0)


def test_process_identities():
    d, z0, noise = Diffusion(), torch.randn(4, 3, 8), torch.randn(4, 3, 8)
    t = torch.tensor([0, 10, 600, 999])
    zt, v = d.noisy(z0, noise, t), d.velocity(z0, noise, t)
    torch.testing.assert_close(d.clean(zt, v, t), z0, atol=1e-5, rtol=1e-4)
    a, s = d._at(t)
    torch.testing.assert_close(a * v + s * zt, noise, atol=1e-5, rtol=1e-4)
    assert d.signal[-1] == 0 and d.sigma[-1] == 1


def test_noise_of_a_clip_does_not_depend_on_the_batch():
    together = clip_noise(4, 3, 5, seed=7)
    apart = torch.cat([clip_noise(1, 3, 5, seed=7, first_clip=i) for i in range(4)])
    assert torch.equal(together, apart) and not torch.equal(together, clip_noise(4, 3, 5, seed=8))
    assert clip_noise(2, 3, 5, mode="zeros").abs().sum() == 0


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 1200), overlap=st.integers(0, 100))
def test_clips_cover_every_frame_once_as_new(n, overlap):
    clips = split_clips(n, 243, overlap)
    owned = [f for c in clips for f in range(c.new, c.start + c.length)]
    assert owned == list(range(n))
    assert all(c.length == min(n, 243) and 0 <= c.start <= c.new for c in clips)
    assert clips[-1].start + clips[-1].length == n


def test_fade_goes_from_the_old_clip_to_the_new_one():
    w = fade_weight(Clip(10, 20, 15), 3)
    assert w[:2].eq(0).all() and w[5:].eq(1).all() and torch.all(w[2:5].diff() > 0)


def test_resample_keeps_ends_and_lines():
    line = torch.linspace(0, 9, 10)[:, None]
    up = resample(line, 37)
    torch.testing.assert_close(up[:, 0], torch.linspace(0, 9, 37))
    torch.testing.assert_close(resample(up, 10), line)
    assert resample(line[:1], 4).shape == (4, 1)


def test_missing_frames_are_filled_or_cut():
    ids = torch.tensor([3, 4, 8, 40, 41])
    assert [tuple(s) for s in track_spans(ids, 15)] == [(3, 8), (40, 41)]
    filled = fill_gaps(ids[:3, None].float() * 2, ids[:3], 3, 8)
    torch.testing.assert_close(filled[:, 0], torch.arange(3, 9) * 2.0)
    with pytest.raises(ValueError, match="must rise"):
        track_spans(torch.tensor([3, 3]))


@pytest.mark.parametrize("n", [1, 7, 24, 25, 70])
@pytest.mark.parametrize("overlap", [0, 5])
def test_tracks_of_any_length_and_batching_does_not_matter(n, overlap):
    model, tokens = small_motion(), torch.randn(n, 20)
    one = model.decode_track(tokens, overlap=overlap, batch_size=1)
    many = model.decode_track(tokens, overlap=overlap, batch_size=8)
    assert one.joints.shape == (n, 29, 3) and one.twists.shape == (n, 23, 2)
    torch.testing.assert_close(one.joints, many.joints, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one.twists.norm(dim=-1), torch.ones(n, 23))
    if overlap and n > 24:
        hard = model.decode_track(tokens, overlap=0)
        assert not torch.allclose(hard.joints, one.joints)
    rotations = motion_rotations(one, torch.randn(29, 3))
    assert rotations.shape == (n, 24, 3, 3)


def test_online_is_the_window_that_ends_now():
    model, tokens = small_motion(), torch.randn(30, 20)
    live = OnlineMotion(model)
    seen = [live.push(t) for t in tokens]
    for n in (2, 9, 24, 30):
        want = model.decode_track(tokens[max(0, n - 24) : n], noise="zeros")
        torch.testing.assert_close(seen[n - 1].joints, want.joints[-1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(seen[n - 1].twists, want.twists[-1], atol=1e-5, rtol=1e-4)
    assert len(live._window) == 24
    with pytest.raises(ValueError, match=r"token must be \[20\]"):
        live.push(torch.zeros(3))


def test_motion_checkpoint_and_errors(tmp_path):
    model, tokens = small_motion(), torch.randn(1, 24, 20)
    model.feature_mean.normal_()
    save(model, tmp_path, "fasthmr_motion")
    again = load(tmp_path)
    torch.testing.assert_close(again(tokens).joints, model(tokens).joints, atol=0, rtol=0)
    with pytest.raises(ValueError, match="tokens must be"):
        model(torch.randn(1, 23, 20))


def random_clips(count: int, frames: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth random motions of a made-up skeleton: features [count, frames, 133] and its rest joints."""
    rest = torch.zeros(29, 3)
    offsets = torch.randn(29, 3, generator=generator) * 0.1 + torch.tensor([0.0, 0.15, 0.0])
    for i in range(1, 29):
        rest[i] = rest[SMPL_TREE.parents[i]] + offsets[i]
    phase = torch.rand(count, 1, 24, 3, generator=generator) * 6.3
    swing = torch.randn(count, 1, 24, 3, generator=generator) * 0.3
    time = torch.linspace(0, 6.3, frames)[None, :, None, None]
    angles = swing * torch.sin(time + phase)
    features = pose_to_features(axis_angle_to_matrix(angles.reshape(-1, 24, 3)), rest)
    return features.reshape(count, frames, -1), rest


def test_features_return_the_pose_through_ik():
    g = torch.Generator().manual_seed(3)
    features, rest = random_clips(2, 5, g)
    joints, twists = split_features(features.reshape(-1, 133).double())
    for mode in ("adaptive", "naive"):
        rotations = hybrik_ik(joints, twists, rest.double(), mode, root="svd")
        again = pose_to_features(rotations, rest.double())
        torch.testing.assert_close(again[:, :87], joints.flatten(1), atol=2e-4, rtol=1e-3)


def test_both_training_stages_learn_and_the_vae_decoder_moves_over():
    g = torch.Generator().manual_seed(0)
    features, _ = random_clips(16, 24, g)
    mean, std = feature_statistics(features.reshape(-1, 133))
    assert torch.all(mean[87:] == 0) and torch.all(std[87:] == 1)
    scaled = (features - mean) / std
    vae = MotionVAE(
        MotionVAEConfig(
            latent_tokens=3, latent_dim=32, ff_size=48, encoder_layers=3, decoder_layers=3, heads=2, dropout=0.0
        )
    )
    optimiser = torch.optim.Adam(vae.parameters(), 3e-3)
    history = []
    for _ in range(110):
        recon, mu, log_var = vae(scaled)
        losses = vae_losses(scaled, recon, mu, log_var)
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
        history.append(losses.reconstruction.item())
    assert history[-1] < 0.6 * history[0]
    motion = small_motion().use_vae(vae, mean, std)
    vae.eval().zero_grad()
    z = vae.encode(scaled)[0]
    want = vae.decode(z, 24) * std + mean
    torch.testing.assert_close(motion.decode(z, 24).joints.flatten(2), want[..., :87], atol=1e-5, rtol=1e-4)

    tokens = scaled[..., :20].contiguous()  # a condition that tells the clip
    motion.train()
    optimiser = torch.optim.AdamW(motion.denoiser.parameters(), 2e-3)
    first = last = 0.0
    for step in range(40):
        loss = motion.stage2_losses(vae, features, tokens, torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        first = loss.total.item() if step == 0 else first
        last = loss.total.item()
    assert last < 0.75 * first
    assert all(p.grad is None for p in (*vae.parameters(), *motion.motion_decoder.parameters()))  # both frozen
