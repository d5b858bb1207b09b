"""Host forward passes: the layer-merged, token-merged form and the full host, eager and (on request) compiled.

The two compute different things on purpose (fewer layers and tokens), so a `fasthmr_host` case compares equal models:
official-style (explicit softmax attention, nothing folded; only for full hosts, upstream merges nothing), eager,
folded, compiled; on a GPU each also inside a CUDA graph (`graph_ms`). `fasthmr_reduction` is the merged against the
full host, both folded: what reduction alone brings.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from tore_fast.models import create_model, model_entry
from tore_fast.models._count import count_host

from ..baselines import torch_products
from ..harness import Case, Contender

# name, model, config overrides; the merged form follows its host
SIZES = {
    "vits": ("hmr2_vits", {}),
    "vits merged 10 blocks 90 tokens": ("hmr2_vits", {"depth": 10, "keep_tokens": 90}),
    "vith": ("hmr2_vith", {}),
    "vith merged 28 blocks 90 tokens": ("fasthmr_hmr2", {}),
}
FULL = {merged: full for full, merged in zip(list(SIZES)[::2], list(SIZES)[1::2])}
BATCHES = (1, 16, 64)


def _names(device: str, quick: bool) -> list[str]:
    return list(SIZES) if device.startswith("cuda") and not quick else list(SIZES)[:2]


def _room_for_vith() -> bool:
    """A full and a merged ViT-H, both with packed weights, and the official-style one take 16 GB."""
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return any(line.startswith("MemAvailable:") and int(line.split()[1]) > 17 << 20 for line in lines)


def cases(device: str, dtype: torch.dtype, quick: bool) -> Iterator[Case]:
    """Hosts at batch 1, 16 and 64; ViT-S everywhere, ViT-H on a GPU and, where there is memory, at batch 1 on a CPU."""
    names = _names(device, quick)
    big = list(SIZES)[2:] if device == "cpu" and not quick and _room_for_vith() else []
    for name in [*names, *big]:
        for batch in BATCHES[:1] if quick or name in big else BATCHES:
            if not (name in big and name in FULL):  # it would need one more ViT-H in memory
                yield _case(name, batch, device, dtype)
            if name in FULL:
                yield _reduction(name, batch, device, dtype)


def sized(device: str, dtype: torch.dtype, quick: bool) -> list[Callable[[int], Case]]:
    """The same cases as functions of the batch."""
    return [functools.partial(_case, name, device=device, dtype=dtype) for name in _names(device, quick)]


class _ExplicitAttention(torch.nn.Module):
    """Attention as 4D-Humans writes it: scores, softmax, weighted sum, each a tensor of its own."""

    def __init__(self, own: torch.nn.Module):
        super().__init__()
        self.qkv, self.proj, self.num_heads = own.qkv, own.proj, own.num_heads

    def forward(
        self,
        x: torch.Tensor,
        log_size: None = None,
        residual: torch.Tensor | None = None,
        norm: torch.nn.Module | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = x if norm is None else norm(x)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c), residual), k


def _official_style(model: torch.nn.Module) -> torch.nn.Module:
    for block in model.backbone.blocks:
        block.attn = _ExplicitAttention(block.attn)
    return model


@functools.lru_cache(maxsize=6)  # the variants of one host and its merged form; a ViT-H has 2.6 GB
def _model(variant: str, name: str, device: str, dtype: torch.dtype) -> torch.nn.Module:
    model_name, overrides = SIZES[name]
    torch.manual_seed(0)
    model = create_model(model_name, **overrides).to(device, dtype).eval()
    if variant == "official":
        return _official_style(model)
    if variant == "eager":
        return model
    model = model.requires_grad_(False).prepare()
    return model if variant == "folded" else torch.compile(model)


def _contender(label: str, variant: str, name: str, device: str, dtype: torch.dtype, **facts) -> Contender:
    def run(x: torch.Tensor) -> torch.Tensor:
        with torch_products() if variant == "official" else contextlib.nullcontext():
            return _model(variant, name, device, dtype)(x).pose

    return Contender(label, run, **facts)


def _case(name: str, batch: int, device: str, dtype: torch.dtype) -> Case:
    contenders = [
        _contender("eager", "eager", name, device, dtype, note="all weights, no folding"),
        _contender(
            "folded",
            "folded",
            name,
            device,
            dtype,
            ours=True,
            note="constant query, dead q/k dropped, weights packed",
            headline=True,
        ),
        _contender("folded + compile", "compiled", name, device, dtype, ours=True, heavy=True),
    ]
    if device == "cpu" and name == "vith":
        del contenders[0]  # one more copy of 2.6 GB that says nothing new
    if name not in FULL:
        note = "explicit softmax attention, no folding"
        contenders.insert(0, _contender("official-style", "official", name, device, dtype, note=note))
    return _host_case("fasthmr_host", name, batch, device, dtype, contenders)


def _reduction(name: str, batch: int, device: str, dtype: torch.dtype) -> Case:
    """Merged against full host. They answer differently, so what is checked is that both answer at all."""
    contenders = [
        _contender("full host", "folded", FULL[name], device, dtype, note="all blocks and tokens, folded"),
        _contender(
            "merged host",
            "folded",
            name,
            device,
            dtype,
            ours=True,
            note="another model on purpose: errors in docs/smpl.md",
        ),
    ]
    case = _host_case("fasthmr_reduction", name, batch, device, dtype, contenders)
    case.check = lambda got, want: 0.0 if got.shape == want[0].shape and bool(got.isfinite().all()) else float("inf")
    return case


def _host_case(op: str, name: str, batch: int, device: str, dtype: torch.dtype, contenders: list[Contender]) -> Case:
    model_name, overrides = SIZES[name]
    config, weights = _facts(name)
    shape = model_entry(model_name).input_shape
    return Case(
        op=op,
        name=f"{name} batch {batch}",
        make_inputs=lambda g: (torch.randn(batch, *shape, generator=g, device=device).to(dtype),),
        contenders=contenders,
        device=device,
        dtype=dtype,
        bytes=weights * torch.finfo(dtype).bits / 8,
        macs=sum(count_host(config)) * batch,
        items=batch,
        params={"model": model_name, **overrides, "batch": batch},
        error_limit=1e-4 if dtype == torch.float32 else 3e-2,
    )


@functools.cache
def _facts(name: str) -> tuple[object, int]:
    """Configuration and number of weights, without making them."""
    model_name, overrides = SIZES[name]
    with torch.device("meta"):
        model = create_model(model_name, **overrides)
    return model.config, sum(p.numel() for p in model.parameters())
