"""FastHMR's motion decoder: one denoising step, VAE decoder, inverse kinematics.

In: per-frame features [B, 243, 1024] of a host (models/smpl/hmr2.py, models/smpl/camerahmr.py) and rest joints of the
shaped body; out: smooth joints, twists and 24 rotations per frame. The per-frame hosts with merged layers and tokens
are `fasthmr_hmr2` and `fasthmr_camerahmr`; pipelines/video.py joins both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...geometry.windows import Clip, fade_weight, resample, split_clips
from ...layers.host_motion import HostMotion
from ...layers.ik import hybrik_ik, split_features
from .._config import make_config
from .._registry import PaperRow, model_facts, register_models
from .denoiser import DenoiserConfig, Diffusion, MotionDenoiser, clip_noise
from .vae import MotionDecoder, MotionEncoder, MotionVAE, MotionVAEConfig

JOINT_NUMBERS = 87  # 29 joints x 3 lead the 133 features


@dataclass(frozen=True)
class FastHMRMotionConfig:
    """Sizes; decoder_layers 5 gives the 29.5 M of the paper's Table 12, 9 is its Table 15."""

    frames: int = 243
    num_features: int = 133
    condition_dim: int = 1024
    latent_tokens: int = 27
    latent_dim: int = 512
    ff_size: int = 1024
    heads: int = 4
    denoiser_layers: int = 5
    decoder_layers: int = 9
    diffusion_steps: int = 1000
    correct_host: bool = (
        False  # not in the paper: latents are differences to the host's own motion (layers/host_motion.py)
    )
    encoder_layers: int = 9  # of the VAE encoder that correct_host needs
    dist_mlp: bool = False

    def denoiser(self) -> DenoiserConfig:
        return DenoiserConfig(
            self.latent_tokens,
            self.latent_dim,
            self.condition_dim + self.correct_host * self.num_features,
            self.latent_dim,
            self.ff_size,
            self.denoiser_layers,
            self.heads,
            max_length=self.frames + self.latent_tokens + 1,
        )

    def vae(self, encoder_layers: int | None = None) -> MotionVAEConfig:
        return MotionVAEConfig(
            num_features=self.num_features,
            latent_tokens=self.latent_tokens,
            latent_dim=self.latent_dim,
            ff_size=self.ff_size,
            encoder_layers=encoder_layers or self.encoder_layers,
            decoder_layers=self.decoder_layers,
            heads=self.heads,
            dist_mlp=self.dist_mlp,
            max_length=self.frames + 2 * self.latent_tokens,
        )


class JointsAndTwists(NamedTuple):
    """Root-relative joints in camera axes and twists about the bones."""

    joints: Tensor  # [..., 29, 3] metres
    twists: Tensor  # [..., 23, 2] (cos, sin), unit length


class Stage2Losses(NamedTuple):
    total: Tensor
    velocity: Tensor
    noise: Tensor
    decoded: Tensor


@model_facts(task="motion", family="fasthmr", pixels="")
class FastHMRMotion(nn.Module):
    """Denoiser + VAE decoder + the feature statistics of the training set."""

    config_class = FastHMRMotionConfig

    def __init__(self, config: FastHMRMotionConfig | None = None, **fields: Any):
        super().__init__()
        self.config = c = make_config(type(self), config, fields)
        self.denoiser = MotionDenoiser(c.denoiser())
        self.motion_decoder = MotionDecoder(dataclasses.replace(c.vae(), max_length=c.frames))
        self.diffusion = Diffusion(c.diffusion_steps)
        self.feature_mean: Tensor
        self.feature_std: Tensor
        self.register_buffer("feature_mean", torch.zeros(c.num_features))
        self.register_buffer("feature_std", torch.ones(c.num_features))
        if c.correct_host:
            self.motion_encoder = MotionEncoder(c.vae())
            self.host_motion = HostMotion(c.condition_dim)
            nn.init.zeros_(self.denoiser.encoder.norm.weight)  # starts as the host's own motion, corrected by nothing

    @torch.no_grad()
    def use_vae(self, vae: MotionVAE, mean: Tensor | None = None, std: Tensor | None = None) -> FastHMRMotion:
        """Copies a trained VAE's decoder (stage 1) and the statistics its features were scaled with. Returns self.

        The VAE's position table may be longer than needed (MLD: 500 rows); the first rows are taken.
        """
        state = vae.state_dict()
        for part in self._vae_parts():
            own = part.state_dict()
            for table in ("query_pos_decoder.pe", "query_pos_encoder.pe"):
                if table in own:
                    state[table] = state[table][: own[table].shape[0]]
            part.load_state_dict({k: state[k] for k in own})
        if mean is not None:
            assert std is not None
            self.feature_mean.copy_(mean)
            self.feature_std.copy_(std)
        return self

    def freeze_vae(self) -> None:
        """Stage 2 trains the denoiser alone: the VAE's parts get no gradients and no dropout from now on."""
        for part in self._vae_parts():
            part.requires_grad_(False).eval()

    def _vae_parts(self) -> list[nn.Module]:
        return [self.motion_decoder, *([self.motion_encoder] if self.config.correct_host else [])]

    def train(self, mode: bool = True) -> FastHMRMotion:
        super().train(mode)
        for part in self._vae_parts():
            if not any(p.requires_grad for p in part.parameters()):
                part.eval()
        return self

    def decode(self, z: Tensor, frames: int) -> JointsAndTwists:
        """Latents [B, 27, 512] -> motion in metres."""
        features = self.motion_decoder(z, frames) * self.feature_std + self.feature_mean
        joints, twists = split_features(features)
        return JointsAndTwists(joints, nn.functional.normalize(twists, dim=-1))

    def forward(self, tokens: Tensor, noise: Tensor | None = None, num_steps: int = 1) -> JointsAndTwists:
        """Clips of per-frame features -> motion.

        Args:
            tokens: [B, frames, condition_dim].
            noise: [B, latent_tokens, latent_dim]; None is the deterministic zero noise.
            num_steps: denoiser calls (the paper uses one).
        """
        c = self.config
        if tokens.dim() != 3 or tokens.shape[1:] != (c.frames, c.condition_dim):
            raise ValueError(
                f"FastHMRMotion: tokens must be [B, {c.frames}, {c.condition_dim}], got {list(tokens.shape)}"
            )
        if noise is None:
            noise = tokens.new_zeros(tokens.shape[0], c.latent_tokens, c.latent_dim)
        condition, start = self.condition(tokens)
        z = self.diffusion.sample(self.denoiser, noise.to(tokens.dtype), condition, num_steps)
        return self.decode(z if start is None else z + start, c.frames)

    def condition(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the denoiser reads [B, frames, condition_dim (+ num_features)] and the latent that it corrects, if
        any."""
        if not self.config.correct_host:
            return tokens, None
        with torch.no_grad():
            own = (self.host_motion(tokens) - self.feature_mean) / self.feature_std
            return torch.cat((tokens, own), -1), self.motion_encoder(own)

    @torch.no_grad()
    def decode_stream(
        self,
        read: Callable[[int, int], Tensor],
        num_frames: int,
        overlap: int = 0,
        seed: int = 0,
        noise: str = "seeded",
        num_steps: int = 1,
        batch_size: int = 16,
    ) -> Iterator[tuple[int, JointsAndTwists]]:
        """Motion of a long track piece by piece; memory depends on batch_size, not on the track.

        Args:
            read: (first, last) -> per-frame features [last - first, C] on this module's device.
            num_frames: frames of the track; fewer than a clip are resampled to one and back.
            overlap: frames shared by neighbouring clips, cross-faded (27 hides seams); 0 as in the paper.
            noise: "seeded" (by seed and clip number, so batching changes nothing) or "zeros". batch_size: clips per
                call.

        Yields:
            (first frame, Motion of the next frames), in order, every frame once.
        """
        c, device = self.config, self.feature_mean.device
        clips = split_clips(num_frames, c.frames, overlap)
        start, joints, twists = 0, None, None  # frames that a later clip may still change
        for first in range(0, len(clips), batch_size):
            part = clips[first : first + batch_size]
            batch = torch.stack([resample(read(k.start, k.start + k.length), c.frames) for k in part])
            z = clip_noise(len(part), c.latent_tokens, c.latent_dim, seed, noise, device, first)
            out = self(batch, z, num_steps)
            for i, clip in enumerate(part):
                joints = _blend(joints, start, resample(out.joints[i], clip.length), clip, overlap)
                twists = _blend(twists, start, resample(out.twists[i], clip.length), clip, overlap)
                after = first + i + 1
                end = clips[after].start if after < len(clips) else num_frames
                done = end - start
                yield start, JointsAndTwists(joints[:done], nn.functional.normalize(twists[:done], dim=-1))
                start, joints, twists = end, joints[done:], twists[done:]

    def decode_track(self, tokens: Tensor, **options: Any) -> JointsAndTwists:
        """Per-frame features of a whole track [n, C] -> motion of every frame; options of `decode_stream`."""
        pieces = [m for _, m in self.decode_stream(lambda a, b: tokens[a:b], tokens.shape[0], **options)]
        return JointsAndTwists(*(torch.cat(p) for p in zip(*pieces)))

    def stage2_losses(
        self,
        vae: MotionVAE,
        features: Tensor,
        tokens: Tensor,
        generator: torch.Generator | None = None,
        last_step: float = 0.0,
        joints_weight: float = 0.0,
    ) -> Stage2Losses:
        """Training of the denoiser: latents of the frozen VAE for `features` [B, frames, 133] in metres (not z-scored),
        conditioned on the frozen host's `tokens` [B, frames, C].

        Args:
            last_step: share of the clips trained at the last timestep, the one that a single step uses; others are
                uniform.
            joints_weight: of the decoded clip's error (`decoded_error`); both are 0 in the paper.
        """
        scaled = (features - self.feature_mean) / self.feature_std
        condition, start = self.condition(tokens)
        with torch.no_grad():
            latent, _ = vae.encode(scaled)
        made = self.diffusion.losses(
            self.denoiser, latent if start is None else latent - start, condition, generator, last_step
        )
        if not joints_weight:
            return Stage2Losses(made.total, made.velocity, made.noise, made.total.new_zeros(()))
        clean = made.clean if start is None else made.clean + start
        error = self.decoded_error(self.motion_decoder(clean, self.config.frames), scaled)
        return Stage2Losses(made.total + joints_weight * error, made.velocity, made.noise, error)

    def decoded_error(self, got: Tensor, want: Tensor) -> Tensor:
        """Mean distance of the joints in decimetres + squared error of the twists, of z-scored features [B, F, 133].

        Distances, not squares: the hard frames of a few clips would be most of the loss.
        """
        off = got - want
        joints, _ = split_features(off * self.feature_std)
        return 10 * joints.norm(dim=-1).mean() + off[..., JOINT_NUMBERS:].pow(2).mean()


class OnlineMotion:
    """Live use: the pose of every new frame, from the window of features that ends with it.

    Args:
        motion: motion decoder (eval mode). noise: [latent_tokens, latent_dim] for every window; None is zeros.
            num_steps: denoiser calls.

    Example:
        >>> live = OnlineMotion(FastHMRMotion(decoder_layers=1).eval())
        >>> live.push(torch.zeros(1024)).joints.shape
        torch.Size([29, 3])

    Source: FastHMR (a sliding window; short ones are resampled as short videos are).
    """

    def __init__(self, motion: FastHMRMotion, noise: Tensor | None = None, num_steps: int = 1):
        self.motion, self.noise, self.num_steps = motion, noise, num_steps
        self._window: list[Tensor] = []

    @torch.no_grad()
    def push(self, token: Tensor) -> JointsAndTwists:
        """The feature [C] of the next frame -> its Motion (joints [29, 3], twists [23, 2])."""
        c = self.motion.config
        if token.shape != (c.condition_dim,):
            raise ValueError(f"OnlineMotion: token must be [{c.condition_dim}], got {list(token.shape)}")
        self._window = [*self._window, token][-c.frames :]
        tokens = resample(torch.stack(self._window), c.frames)[None]
        out = self.motion(tokens, None if self.noise is None else self.noise[None], self.num_steps)
        return JointsAndTwists(out.joints[0, -1], out.twists[0, -1])


def _blend(held: Tensor | None, start: int, piece: Tensor, clip: Clip, overlap: int) -> Tensor:
    """Joins a clip's result to the frames held back, `held` [m, ...] from frame `start` (= clip.start) on."""
    if held is None or not len(held):
        return piece
    w = fade_weight(clip, overlap).to(piece)[: len(held)].reshape(-1, *[1] * (piece.dim() - 1))
    return torch.cat((held * (1 - w) + piece[: len(held)] * w, piece[len(held) :]))


def motion_rotations(motion: JointsAndTwists, rest_joints: Tensor, mode: str = "adaptive") -> Tensor:
    """Motion of n frames and rest joints [29, 3] or [n, 29, 3] -> local rotations [n, 24, 3, 3]."""
    return hybrik_ik(motion.joints.float(), motion.twists.float(), rest_joints.float(), mode)


def feature_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel of [N, 133]; twist channels (cos and sin) keep 0 and 1: not scaled."""
    mean, std = features.mean(0), features.std(0).clamp_min(1e-3)  # the root's own channels are constant zero
    mean[JOINT_NUMBERS:], std[JOINT_NUMBERS:] = 0, 1
    return mean, std


# FastHMR's Table 15 (nine decoder layers) and the size of its Table 12 (five)
MODELS = {"fasthmr_motion": {}, "fasthmr_motion_d5": {"decoder_layers": 5}}
PAPERS = {
    "fasthmr_motion_d5": PaperRow(
        29.5, 6.8, "FastHMR Table 12", "five decoder layers give the printed size; per clip of 243 frames"
    )
}
register_models(FastHMRMotion, MODELS, PAPERS, input_shape=(243, 1024))
