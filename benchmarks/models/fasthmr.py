"""Host forward passes: the layer-merged, token-merged form against the full host, eager and (on request) compiled.

The two compute different things on purpose (fewer layers and tokens), so a case compares equal models (eager, folded,
compiled, official-style attention without folding); the reduction itself shows across cases, in `macs` and time per crop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from tore_fast.layers.mask_tome import MergeConfig
from tore_fast.models import create_model

from ..harness import Case, Contender

# name, model, config overrides
SIZES = {
    "vits": ("hmr2_vits", {}),
    "vits merged 10 blocks 90 tokens": ("hmr2_vits", {"depth": 10, "keep_tokens": 90}),
    "vith": ("hmr2_vith", {}),
    "vith merged 28 blocks 90 tokens": ("fasthmr_hmr2", {}),
}


def host_macs(model, merging: MergeConfig | None) -> float:
    """Multiply-adds of one crop: linears and attention products of the blocks, patch embedding, decoder (spec section 9)."""
    c = model.config
    d, n = c.embed_dim, model.backbone.num_tokens
    schedule = merging.schedule(n, c.depth) if merging is not None else (0,) * c.depth
    total = 768.0 * d * n
    for r in schedule:
        total += 4 * d * d * n + 2 * n * n * d
        n -= r
        total += 2 * d * int(d * c.mlp_ratio) * n
    inner = c.decoder_heads * c.decoder_dim_head
    per_layer = 4 * inner * c.decoder_dim + 2 * c.decoder_dim * c.decoder_mlp_dim + 2 * d * inner * n
    return total + c.decoder_depth * per_layer


def cases(device: str, dtype: torch.dtype, quick: bool) -> list[Case]:
    """Hosts at batch 1, 16 and 64 (CPU: ViT-S at batch 1 and 4)."""
    on_gpu = device.startswith("cuda")
    names = list(SIZES) if on_gpu and not quick else list(SIZES)[:2]
    batches = ((1, 16, 64) if on_gpu else (1, 4)) if not quick else (1,)
    return [_case(name, batch, device, dtype) for name in names for batch in batches]


def sized(device: str, dtype: torch.dtype, quick: bool) -> list[Callable[[int], Case]]:
    """The same cases as functions of the batch."""
    names = list(SIZES) if device.startswith("cuda") and not quick else list(SIZES)[:2]
    return [functools.partial(_case, name, device=device, dtype=dtype) for name in names]


def _case(name: str, batch: int, device: str, dtype: torch.dtype) -> Case:
    model_name, overrides = SIZES[name]

    def build():
        torch.manual_seed(0)
        return create_model(model_name, **overrides).to(device, dtype).eval()

    plain, folded, compiled = build(), build().fold(), torch.compile(build().fold())
    return Case(
        op="fasthmr_host",
        name=f"{name} batch {batch}",
        make_inputs=lambda g: (torch.randn(batch, 3, 256, 256, generator=g, device=device).to(dtype),),
        contenders=[
            Contender("eager", lambda x: plain(x).pose, note="all weights, no folding"),
            Contender("folded", lambda x: folded(x).pose, ours=True, note="constant query, dead q/k dropped", headline=True),
            Contender("folded + compile", lambda x: compiled(x).pose, ours=True, heavy=True),
        ],
        device=device,
        dtype=dtype,
        bytes=sum(p.numel() * p.element_size() for p in plain.parameters()),
        macs=host_macs(plain, plain.backbone.merging) * batch,
        items=batch,
        params={"model": model_name, **overrides, "batch": batch},
        error_limit=1e-4 if dtype == torch.float32 else 3e-2,
    )
