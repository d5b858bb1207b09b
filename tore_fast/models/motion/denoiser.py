"""One-step latent denoiser: per-frame features of a clip -> motion latents (stage 2 of FastHMR).

In: features [B, 243, 1024] (the decoder token of models/smpl/hmr2.py) and noise [B, 27, 512]; out: clean latents for
the decoder of models/motion/vae.py. `Diffusion` holds the zero-terminal-SNR schedule, losses and samplers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...layers.skip_transformer import LearnedPositions, SkipTransformer, TransformerConfig


@dataclass(frozen=True)
class DenoiserConfig:
    """Defaults: FastHMR Table 14. `time_dim` 512 gives the published 29.5 M (MLD uses the condition width)."""

    latent_tokens: int = 27
    latent_dim: int = 512
    condition_dim: int = 1024
    time_dim: int = 512
    ff_size: int = 1024
    layers: int = 5
    heads: int = 4
    dropout: float = 0.001
    activation: str = "gelu"
    pre_norm: bool = False
    skip: bool = True
    condition_relu: bool = False  # MLD has a ReLU before the condition's Linear
    flip_sin_to_cos: bool = True
    freq_shift: float = 0.0
    max_length: int = 500


def timestep_embedding(t: Tensor, dim: int, flip_sin_to_cos: bool = True, freq_shift: float = 0.0) -> Tensor:
    """Sinusoids [B, dim] of timesteps [B]; the cosine half first when flipped."""
    if dim % 2:
        raise ValueError(f"timestep_embedding: dim must be even, got {dim}")
    half = dim // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / (half - freq_shift)
    angle = t.float()[:, None] * exponent.exp()
    parts = (angle.cos(), angle.sin()) if flip_sin_to_cos else (angle.sin(), angle.cos())
    return torch.cat(parts, -1)


class _TimeEmbedding(nn.Module):
    def __init__(self, cin: int, cout: int):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(cin, cout), nn.Linear(cout, cout)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(nn.functional.silu(self.linear_1(x)))


class MotionDenoiser(nn.Module):
    """[latents, time token, condition tokens] + positions -> skip transformer -> the latent tokens' outputs."""

    def __init__(self, config: DenoiserConfig | None = None):
        super().__init__()
        self.config = config or DenoiserConfig()
        c = self.config
        self.time_embedding = _TimeEmbedding(c.time_dim, c.latent_dim)
        first: nn.Module = nn.ReLU() if c.condition_relu else nn.Identity()
        self.emb_proj = nn.Sequential(first, nn.Linear(c.condition_dim, c.latent_dim))
        self.query_pos = LearnedPositions(c.latent_dim, c.max_length)
        self.encoder = SkipTransformer(
            TransformerConfig(c.latent_dim, c.heads, c.ff_size, c.layers, c.dropout, c.activation, c.pre_norm, c.skip)
        )

    def forward(self, z: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """z [B, Nz, D], t [B] or [1] integer steps, condition [B, F, C] -> [B, Nz, D] (the velocity v)."""
        c = self.config
        if z.dim() != 3 or z.shape[-1] != c.latent_dim:
            raise ValueError(f"MotionDenoiser: z must be [B, Nz, {c.latent_dim}], got {list(z.shape)}")
        if condition.dim() != 3 or condition.shape[0] != z.shape[0] or condition.shape[-1] != c.condition_dim:
            raise ValueError(
                f"MotionDenoiser: condition must be [{z.shape[0]}, F, {c.condition_dim}], got {list(condition.shape)}"
            )
        time = timestep_embedding(t.expand(z.shape[0]), c.time_dim, c.flip_sin_to_cos, c.freq_shift).to(z.dtype)
        x = torch.cat((z, self.time_embedding(time)[:, None], self.emb_proj(condition)), 1)
        return self.encoder(self.query_pos(x))[:, : z.shape[1]]


class DiffusionLosses(NamedTuple):
    total: Tensor
    velocity: Tensor
    noise: Tensor
    clean: Tensor  # [B, Nz, D] the latents that the prediction amounts to


def scaled_linear_betas(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """(linspace(sqrt b0, sqrt b1))^2, float64."""
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2


def rescale_zero_terminal_snr(betas: Tensor) -> Tensor:
    """betas -> cumulative alphas whose last entry is exactly 0 (first one unchanged).

    Source: Lin et al. 2024, algorithm 1: s = sqrt(cumprod(1 - beta)); s <- (s - s_T) s_1 / (s_1 - s_T).
    """
    s = (1 - betas).cumprod(0).sqrt()
    s = (s - s[-1]) * (s[0] / (s[0] - s[-1]))
    return s * s


class Diffusion(nn.Module):
    """Forward process, losses and samplers; no trainable parts.

    Args:
        steps, beta_start, beta_end: scaled-linear schedule, rescaled to zero terminal SNR.
    """

    def __init__(self, steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012):
        super().__init__()
        alphas = rescale_zero_terminal_snr(scaled_linear_betas(steps, beta_start, beta_end))
        self.steps = steps
        self.signal: Tensor
        self.sigma: Tensor
        self.register_buffer("signal", alphas.sqrt().float(), persistent=False)  # sqrt(abar)
        self.register_buffer("sigma", (1 - alphas).sqrt().float(), persistent=False)

    def _at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.signal[t][:, None, None], self.sigma[t][:, None, None]

    def noisy(self, z0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """z_t = sqrt(abar) z0 + sqrt(1 - abar) eps; t [B] integers."""
        a, s = self._at(t)
        return a * z0 + s * noise

    def velocity(self, z0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """v = sqrt(abar) eps - sqrt(1 - abar) z0."""
        a, s = self._at(t)
        return a * noise - s * z0

    def clean(self, zt: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """z0 = sqrt(abar) z_t - sqrt(1 - abar) v; -v at the last step."""
        a, s = self._at(t)
        return a * zt - s * v

    def losses(
        self,
        denoiser: MotionDenoiser,
        z0: Tensor,
        condition: Tensor,
        generator: torch.Generator | None = None,
        last_step: float = 0.0,
    ) -> DiffusionLosses:
        """Stage 2: |v^ - v|^2 + |eps^ - eps|^2 with eps^ = sqrt(abar) v^ + sqrt(1 - abar) z_t, weights 1 and 1.

        Args:
            z0: frozen VAE latents [B, Nz, D]. condition: per-frame features [B, F, C].
            last_step: share of the clips at the last timestep (pure noise); the others are uniform.
        """
        b, device = z0.shape[0], z0.device
        t = torch.randint(0, self.steps, (b,), generator=generator, device=device)
        noise = torch.randn(z0.shape, generator=generator, dtype=z0.dtype, device=device)
        if last_step:
            t = torch.where(torch.rand(b, generator=generator, device=device) < last_step, self.steps - 1, t)
        zt = self.noisy(z0, noise, t)
        v = denoiser(zt, t, condition)
        a, s = self._at(t)
        loss_v = (v - self.velocity(z0, noise, t)).pow(2).mean()
        loss_noise = (a * v + s * zt - noise).pow(2).mean()
        return DiffusionLosses(loss_v + loss_noise, loss_v, loss_noise, a * zt - s * v)

    def sample(self, denoiser: MotionDenoiser, noise: Tensor, condition: Tensor, num_steps: int = 1) -> Tensor:
        """Latents from noise: one step at t = T - 1 (z0 = -v), or DDIM (eta 0) over trailing timesteps.

        Args:
            noise: [B, Nz, D]. condition: [B, F, C]. num_steps: denoiser calls, 1 as in the paper.
        """
        if not 1 <= num_steps <= self.steps:
            raise ValueError(f"Diffusion.sample: num_steps must be 1..{self.steps}, got {num_steps}")
        times = [round(self.steps * (num_steps - i) / num_steps) - 1 for i in range(num_steps)]
        z = noise
        for i, step in enumerate(times):
            t = torch.full((z.shape[0],), step, dtype=torch.long, device=z.device)
            v = denoiser(z, t, condition)
            a, s = self._at(t)
            clean = a * z - s * v
            if i + 1 == num_steps:
                return clean
            eps = a * v + s * z
            after = torch.full_like(t, times[i + 1])
            z = self.noisy(clean, eps, after)
        return z


def clip_noise(
    clips: int,
    tokens: int,
    dim: int,
    seed: int = 0,
    mode: str = "seeded",
    device: torch.device | str | None = None,
    first_clip: int = 0,
) -> Tensor:
    """Starting noise [clips, tokens, dim]: clip i has its own generator (seed, i), so batching does not change results.

    Args:
        mode: "seeded" or "zeros" (no randomness at all). first_clip: index of the first clip of this batch.
    """
    if mode not in ("seeded", "zeros"):
        raise ValueError(f"clip_noise: mode must be 'seeded' or 'zeros', got {mode!r}")
    if mode == "zeros":
        return torch.zeros(clips, tokens, dim, device=device)
    rows = []
    for i in range(first_clip, first_clip + clips):
        g = torch.Generator().manual_seed((seed * 1_000_003 + i) % 2**63)
        rows.append(torch.randn(tokens, dim, generator=g))
    out = torch.stack(rows) if rows else torch.zeros(0, tokens, dim)
    return out.to(device) if device is not None else out
