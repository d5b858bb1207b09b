"""Host forward passes: the layer-merged, token-merged form against the full host, eager and (on request) compiled.

The two compute different things on purpose (fewer layers and tokens), so a case compares equal models: official-style
(explicit softmax attention, nothing folded; only for full hosts, upstream merges nothing), eager, folded, compiled; on a
GPU each also inside a CUDA graph (`graph_ms`). The reduction itself shows across cases, in `macs` and time per crop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from tore_fast.models import create_model
from tore_fast.models.hmr2 import host_macs

from ..harness import Case, Contender

# name, model, config overrides
SIZES = {
    "vits": ("hmr2_vits", {}),
    "vits merged 10 blocks 90 tokens": ("hmr2_vits", {"depth": 10, "keep_tokens": 90}),
    "vith": ("hmr2_vith", {}),
    "vith merged 28 blocks 90 tokens": ("fasthmr_hmr2", {}),
}


def cases(device: str, dtype: torch.dtype, quick: bool) -> list[Case]:
    """Hosts at batch 1, 16 and 64 (CPU: ViT-S at batch 1, 4 and 16)."""
    on_gpu = device.startswith("cuda")
    names = list(SIZES) if on_gpu and not quick else list(SIZES)[:2]
    batches = ((1, 16, 64) if on_gpu else (1, 4, 16)) if not quick else (1,)
    return [_case(name, batch, device, dtype) for name in names for batch in batches]


def sized(device: str, dtype: torch.dtype, quick: bool) -> list[Callable[[int], Case]]:
    """The same cases as functions of the batch."""
    names = list(SIZES) if device.startswith("cuda") and not quick else list(SIZES)[:2]
    return [functools.partial(_case, name, device=device, dtype=dtype) for name in names]


class _ExplicitAttention(torch.nn.Module):
    """Attention as 4D-Humans writes it: scores, softmax, weighted sum, each a tensor of its own."""

    def __init__(self, own: torch.nn.Module):
        super().__init__()
        self.qkv, self.proj, self.num_heads = own.qkv, own.proj, own.num_heads

    def forward(self, x: torch.Tensor, log_size: None = None) -> tuple[torch.Tensor, torch.Tensor]:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c)), k


def _official_style(model: torch.nn.Module) -> torch.nn.Module:
    for block in model.backbone.blocks:
        block.attn = _ExplicitAttention(block.attn)
    return model


def _case(name: str, batch: int, device: str, dtype: torch.dtype) -> Case:
    model_name, overrides = SIZES[name]

    def build():
        torch.manual_seed(0)
        return create_model(model_name, **overrides).to(device, dtype).eval()

    plain, folded, compiled = build(), build().fold(), torch.compile(build().fold())
    base = []
    if plain.backbone.merging is None:
        official = _official_style(build())
        base = [Contender("official-style", lambda x: official(x).pose, note="explicit softmax attention, no folding")]
    return Case(
        op="fasthmr_host",
        name=f"{name} batch {batch}",
        make_inputs=lambda g: (torch.randn(batch, 3, 256, 256, generator=g, device=device).to(dtype),),
        contenders=[
            *base,
            Contender("eager", lambda x: plain(x).pose, note="all weights, no folding"),
            Contender("folded", lambda x: folded(x).pose, ours=True, note="constant query, dead q/k dropped", headline=True),
            Contender("folded + compile", lambda x: compiled(x).pose, ours=True, heavy=True),
        ],
        device=device,
        dtype=dtype,
        bytes=sum(p.numel() * p.element_size() for p in plain.parameters()),
        macs=sum(host_macs(plain.config)) * batch,
        items=batch,
        params={"model": model_name, **overrides, "batch": batch},
        error_limit=1e-4 if dtype == torch.float32 else 3e-2,
    )
