"""Transformers of the motion models: post- or pre-norm layers with long skip connections (MLD).

In: sequences [B, N, D] of models/motion/vae.py and models/motion/denoiser.py; out: the same shape. Parameters carry
the names of nn.MultiheadAttention (in_proj_weight, out_proj) so that MLD files load; attention is
layers/attention.py's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attention import MultiheadAttention
from .linear import Linear


@dataclass(frozen=True)
class TransformerConfig:
    dim: int = 512
    heads: int = 4
    ff_size: int = 1024
    layers: int = 9
    dropout: float = 0.1
    activation: str = "gelu"
    pre_norm: bool = False
    skip: bool = True

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"TransformerConfig: dim {self.dim} must be a multiple of heads {self.heads}")
        if self.skip and self.layers % 2 == 0:
            raise ValueError(f"TransformerConfig: layers must be odd with skip connections, got {self.layers}")
        if self.activation not in ("gelu", "relu"):
            raise ValueError(f"TransformerConfig: activation must be 'gelu' or 'relu', got {self.activation!r}")


class Layer(nn.Module):
    """Self-attention, optional cross-attention to a memory, feed-forward."""

    norm1: nn.LayerNorm
    norm2: nn.LayerNorm
    norm3: nn.LayerNorm  # with cross-attention

    def __init__(self, cfg: TransformerConfig, cross: bool):
        super().__init__()
        self.pre_norm, self.activation = cfg.pre_norm, cfg.activation
        self.self_attn = MultiheadAttention(cfg.dim, cfg.heads, cfg.dropout)
        if cross:
            self.multihead_attn = MultiheadAttention(cfg.dim, cfg.heads, cfg.dropout)
        self.linear1 = Linear(cfg.dim, cfg.ff_size, drop=cfg.dropout)
        self.linear2 = Linear(cfg.ff_size, cfg.dim, drop=cfg.dropout)
        self.cross = cross
        for i in range(3 if cross else 2):
            setattr(self, f"norm{i + 1}", nn.LayerNorm(cfg.dim))

    def feed_forward(self, x: Tensor, residual: Tensor, norm: nn.LayerNorm | None = None) -> Tensor:
        return self.linear2(self.linear1(x, act=self.activation, norm=norm), residual)

    def attend(self, x: Tensor, residual: Tensor, keep: Tensor | None) -> Tensor:
        attn, mask = self.self_attn, None if keep is None else keep[:, None, None, :]
        return attn.attend(*attn.qkv(x), residual=residual, mask=mask)

    def read(self, x: Tensor, memory: Tensor, residual: Tensor) -> Tensor:
        attn = self.multihead_attn
        k, v = (attn.split(t) for t in attn.project(memory, 1, 3).chunk(2, -1))
        return attn.attend(attn.query(x), k, v, residual=residual)

    def forward(self, x: Tensor, memory: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        last = self.norm3 if self.cross else self.norm2
        if self.pre_norm:
            x = self.attend(self.norm1(x), x, keep)
            if self.cross:
                assert memory is not None
                x = self.read(self.norm2(x), memory, x)
            return self.feed_forward(x, x, last)
        x = self.norm1(self.attend(x, x, keep))
        if self.cross:
            assert memory is not None
            x = self.norm2(self.read(x, memory, x))
        return last(self.feed_forward(x, x))


class SkipTransformer(nn.Module):
    """(n-1)/2 input blocks, a middle block, (n-1)/2 output blocks; output block i first reads the concatenation with
    the
    output of its mirror input block (Linear 2D -> D). `cfg.skip = False` is a plain stack (`layers.*`)."""

    def __init__(self, cfg: TransformerConfig, cross: bool = False):
        super().__init__()
        self.cfg = cfg
        half = (cfg.layers - 1) // 2
        if cfg.skip:
            self.input_blocks = nn.ModuleList(Layer(cfg, cross) for _ in range(half))
            self.middle_block = Layer(cfg, cross)
            self.output_blocks = nn.ModuleList(Layer(cfg, cross) for _ in range(half))
            self.linear_blocks = nn.ModuleList(nn.Linear(2 * cfg.dim, cfg.dim) for _ in range(half))
        else:
            self.layers = nn.ModuleList(Layer(cfg, cross) for _ in range(cfg.layers))
        self.norm = nn.LayerNorm(cfg.dim)

    def forward(self, x: Tensor, memory: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """x [B, N, D]; memory [B, M, D] for cross layers; keep [B, N] True where a token exists."""
        if not self.cfg.skip:
            for layer in self.layers:
                x = layer(x, memory, keep)
            return self.norm(x)
        kept = []
        for layer in self.input_blocks:
            x = layer(x, memory, keep)
            kept.append(x)
        x = self.middle_block(x, memory, keep)
        for layer, linear in zip(self.output_blocks, self.linear_blocks):
            x = layer(linear(torch.cat((x, kept.pop()), -1)), memory, keep)
        return self.norm(x)


class LearnedPositions(nn.Module):
    """Adds the first N rows of a learned table (`pe` [rows, 1, D], MLD's layout) to x [B, N, D]."""

    def __init__(self, dim: int, rows: int = 500):
        super().__init__()
        self.pe = nn.Parameter(torch.empty(rows, 1, dim).uniform_())

    def forward(self, x: Tensor) -> Tensor:
        n, rows = x.shape[1], self.pe.shape[0]
        if n > rows:
            raise ValueError(f"LearnedPositions: the sequence has {n} tokens, the table {rows} rows")
        return x + self.pe[:n, 0]
