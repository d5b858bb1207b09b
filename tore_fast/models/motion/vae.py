"""Motion VAE: clips of pose features <-> a few latent tokens (stage 1 of FastHMR).

In: z-scored features [B, F, 133] of layers/ik.py:pose_to_features; out: latent mean and log variance [B, 27, 512] and
clips decoded from latents. The decoder alone is what models/motion/denoiser.py needs at inference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...layers.skip_transformer import LearnedPositions, SkipTransformer, TransformerConfig
from .._config import make_config
from .._registry import model_facts, register_models


@dataclass(frozen=True)
class MotionVAEConfig:
    """Defaults: FastHMR Table 15. arch "encoder_decoder" cross-attends to the latents, "all_encoder" concatenates
    them."""

    arch: str = "encoder_decoder"
    num_features: int = 133
    latent_tokens: int = 27
    latent_dim: int = 512
    ff_size: int = 1024
    encoder_layers: int = 9
    decoder_layers: int = 9
    heads: int = 4
    dropout: float = 0.1
    activation: str = "gelu"
    pre_norm: bool = False
    dist_mlp: bool = False  # mean and variance from one Linear instead of twice the tokens
    max_length: int = 500

    def __post_init__(self) -> None:
        if self.arch not in ("encoder_decoder", "all_encoder"):
            raise ValueError(f"MotionVAEConfig: arch must be 'encoder_decoder' or 'all_encoder', got {self.arch!r}")

    def transformer(self, layers: int) -> TransformerConfig:
        return TransformerConfig(
            self.latent_dim, self.heads, self.ff_size, layers, self.dropout, self.activation, self.pre_norm
        )


class VAELosses(NamedTuple):
    total: Tensor
    reconstruction: Tensor
    kl: Tensor
    velocity: Tensor


class MotionDecoder(nn.Module):
    """Latents [B, Nz, D] -> features [B, F, 133]: zero queries + positions through a skip transformer.

    Attributes are named as in MLD; the VAE below spreads them over its own namespace so that its files load as they
    are.
    """

    def __init__(self, cfg: MotionVAEConfig):
        super().__init__()
        self.cfg = cfg
        self.query_pos_decoder = LearnedPositions(cfg.latent_dim, cfg.max_length)
        self.decoder = SkipTransformer(cfg.transformer(cfg.decoder_layers), cross=cfg.arch == "encoder_decoder")
        self.final_layer = nn.Linear(cfg.latent_dim, cfg.num_features)

    def forward(self, z: Tensor, frames: int) -> Tensor:
        return decode_latents(self, z, frames)


def decode_latents(model: Any, z: Tensor, frames: int) -> Tensor:
    """Shared by MotionDecoder and MotionVAE (both own query_pos_decoder, decoder, final_layer)."""
    cfg = model.cfg
    if z.dim() != 3 or z.shape[1:] != (cfg.latent_tokens, cfg.latent_dim):
        raise ValueError(f"motion decoder: z must be [B, {cfg.latent_tokens}, {cfg.latent_dim}], got {list(z.shape)}")
    queries = z.new_zeros(z.shape[0], frames, cfg.latent_dim)
    if cfg.arch == "all_encoder":
        x = model.decoder(model.query_pos_decoder(torch.cat((z, queries), 1)))[:, z.shape[1] :]
    else:
        x = model.decoder(model.query_pos_decoder(queries), memory=z)
    return model.final_layer(x)


START_LOG_VAR = (
    -4.0
)  # of the latents with dist_mlp: at 0 the noise is as large as the latent, and a short training sees little else


class MotionEncoder(nn.Module):
    """Features [B, F, 133] -> the mean of their latents [B, Nz, D]; parameters named as in MotionVAE."""

    def __init__(self, cfg: MotionVAEConfig):
        super().__init__()
        self.cfg = c = cfg
        self.global_motion_token = _latent_queries(c)
        self.query_pos_encoder = LearnedPositions(c.latent_dim, c.max_length)
        self.encoder = SkipTransformer(c.transformer(c.encoder_layers))
        self.skel_embedding = nn.Linear(c.num_features, c.latent_dim)
        if c.dist_mlp:
            self.dist_layer = _distribution(c)

    def forward(self, features: Tensor) -> Tensor:
        return encode_features(self, features)[0]


def _latent_queries(c: MotionVAEConfig) -> nn.Parameter:
    return nn.Parameter(torch.randn(c.latent_tokens * (1 if c.dist_mlp else 2), c.latent_dim))


def _distribution(c: MotionVAEConfig) -> nn.Linear:
    layer = nn.Linear(c.latent_dim, 2 * c.latent_dim)
    nn.init.constant_(layer.bias[c.latent_dim :], START_LOG_VAR)
    return layer


def encode_features(model: Any, features: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Shared by MotionEncoder and MotionVAE (both own global_motion_token, query_pos_encoder, encoder,
    skel_embedding)."""
    c = model.cfg
    if features.dim() != 3 or features.shape[-1] != c.num_features:
        raise ValueError(f"motion encoder: features must be [B, F, {c.num_features}], got {list(features.shape)}")
    b, n = features.shape[0], model.global_motion_token.shape[0]
    x = torch.cat((model.global_motion_token.expand(b, -1, -1), model.skel_embedding(features)), 1)
    if keep is not None:
        keep = torch.cat((keep.new_ones(b, n), keep), 1)
    out = model.encoder(model.query_pos_encoder(x), keep=keep)[:, :n]
    if c.dist_mlp:
        mean, log_var = model.dist_layer(out).chunk(2, -1)
        return mean, log_var
    return out[:, : c.latent_tokens], out[:, c.latent_tokens :]


@model_facts(task="motion", family="fasthmr", pixels="")
class MotionVAE(nn.Module):
    """Transformer VAE of MLD / ACTOR."""

    config_class = MotionVAEConfig

    def __init__(self, config: MotionVAEConfig | None = None, **fields: Any):
        super().__init__()
        self.config = self.cfg = make_config(type(self), config, fields)
        c = self.config
        self.global_motion_token = _latent_queries(c)
        self.query_pos_encoder = LearnedPositions(c.latent_dim, c.max_length)
        self.query_pos_decoder = LearnedPositions(c.latent_dim, c.max_length)
        self.encoder = SkipTransformer(c.transformer(c.encoder_layers))
        self.decoder = SkipTransformer(c.transformer(c.decoder_layers), cross=c.arch == "encoder_decoder")
        self.skel_embedding = nn.Linear(c.num_features, c.latent_dim)
        self.final_layer = nn.Linear(c.latent_dim, c.num_features)
        if c.dist_mlp:
            self.dist_layer = _distribution(c)

    def encode(self, features: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[B, F, 133] (keep [B, F] True where a frame exists) -> mean, log variance, each [B, Nz, D]."""
        return encode_features(self, features, keep)

    def decode(self, z: Tensor, frames: int) -> Tensor:
        """Latents [B, Nz, D] -> features [B, frames, 133]."""
        return decode_latents(self, z, frames)

    def forward(self, features: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, mean and log variance; the latent is sampled in training, the mean in eval mode."""
        mean, log_var = self.encode(features)
        z = mean
        if self.training:
            noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
            z = mean + (0.5 * log_var).exp() * noise
        return self.decode(z, features.shape[1]), mean, log_var


def vae_losses(
    features: Tensor,
    reconstruction: Tensor,
    mean: Tensor,
    log_var: Tensor,
    kl_weight: float = 1e-4,
    velocity_weight: float = 0.0,
    num_joint_numbers: int = 87,
) -> VAELosses:
    """Stage 1: MSE + kl_weight * KL(N(mean, var) || N(0, 1)) (+ MSE of the joints' frame differences).

    Args:
        features, reconstruction: [B, F, 133] z-scored. mean, log_var: [B, Nz, D].
        num_joint_numbers: leading feature channels that are joint coordinates.

    Source: MLD's loss terms; the weights are this project's choice, FastHMR prints none.
    """
    mse = (features - reconstruction).pow(2).mean()
    kl = 0.5 * (mean.pow(2) + log_var.exp() - 1 - log_var).mean()
    d = num_joint_numbers
    velocity = (
        features[:, 1:, :d] - features[:, :-1, :d] - reconstruction[:, 1:, :d] + reconstruction[:, :-1, :d]
    ).pow(2)
    velocity = velocity.mean()
    return VAELosses(mse + kl_weight * kl + velocity_weight * velocity, mse, kl, velocity)


# the sizes of FastHMR's Table 15
register_models(MotionVAE, {"fasthmr_motion_vae": {}}, input_shape=(243, 133))
