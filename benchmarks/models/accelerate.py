"""`tore_fast.accelerate` on somebody else's ViT: timm's DINOv3 ViT-H+ at 512 pixels, as in SAM 3D Body.

The two forms compute different things on purpose, so what is checked is that both answer. Weights are random: times do
not depend on them, errors do, and none is given. "one block" is a block beyond the merging ones (512 of 1024 patch
tokens, with their sizes), "whole" the whole ViT with all of its matching and merging.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tore_fast.accelerate import Handle, accelerate
from tore_fast.accelerate.macs import stack_macs
from tore_fast.layers.eclm import ECLMPlan

from ..harness import Case, Contender

FULL, SMALL = "vit_huge_plus_patch16_dinov3", "vit_small_patch16_dinov3"
PREFIX = 5


def cases(device: str, dtype: torch.dtype, quick: bool) -> Iterator[Case]:
    """ViT-H+ (with `quick`: ViT-S+ of 128 pixels) at batch 1."""
    if device == "cpu" and dtype != torch.float32:
        return
    name, side = (SMALL, 128) if quick else (FULL, 512)
    patches = (side // 16) ** 2
    yield _block(name, side, patches // 2, device, dtype)
    depth = 12 if quick else 32
    for blocks in (depth, depth * 7 // 8):
        for keep in (patches // 2, patches * 3 // 8):
            if keep == patches // 2 or blocks == depth:
                yield _whole(name, side, keep, (depth, blocks), device, dtype)


@functools.lru_cache(maxsize=1)  # ViT-H+ has 3.4 GB
def _model(name: str, side: int, device: str, dtype: torch.dtype) -> nn.Module:
    import timm

    torch.manual_seed(0)
    return timm.create_model(name, img_size=side, num_classes=0).to(device, dtype).eval().requires_grad_(False)


def _alike(got: Tensor, want: tuple[Tensor, ...]) -> float:
    return 0.0 if got.shape[-1] == want[0].shape[-1] and bool(got.isfinite().all()) else float("inf")


def _whole(name: str, side: int, keep: int, depth: tuple[int, int], device: str, dtype: torch.dtype) -> Case:
    layers = None
    if depth[0] != depth[1]:  # pairs from the second block on; the first ones merge tokens
        pairs = [(2 * i + 1, 2 * i + 2) for i in range(depth[0] - depth[1])]
        layers = ECLMPlan(((0,), *pairs, *((i,) for i in range(2 * len(pairs) + 1, depth[0]))))

    @functools.cache
    def twin() -> nn.Module:
        model = _model(name, side, device, dtype)
        model = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})  # the same weights
        accelerate(model, keep_tokens=keep, layers=layers, probe=False)
        return model

    with torch.device("meta"), accelerate(_outline(name, side, depth[1]), keep_tokens=keep, probe=False) as handle:
        macs = 1e9 * handle.report()["gmacs"][1]
    return Case(
        "accelerate",
        f"{name} {side} px, keep {keep}, {depth[1]} of {depth[0]} blocks",
        lambda g: (torch.randn(1, 3, side, side, generator=g, device=device).to(dtype),),
        [
            Contender("unmodified", lambda x: _model(name, side, device, dtype).forward_features(x)),
            Contender("accelerated", lambda x: twin().forward_features(x), ours=True),
        ],
        device=device,
        dtype=dtype,
        macs=macs,
        check=_alike,
        params={"model": name, "side": side, "keep": keep, "blocks": depth[1]},
    )


def _outline(name: str, side: int, depth: int) -> nn.Module:
    """The model without its weights."""
    import timm

    with torch.device("meta"):
        return timm.create_model(name, img_size=side, num_classes=0, depth=depth).eval()


def _block(name: str, side: int, keep: int, device: str, dtype: torch.dtype) -> Case:
    patches = (side // 16) ** 2

    @functools.cache
    def parts() -> tuple[nn.Module, Tensor, Handle, Tensor]:
        model = _model(name, side, device, dtype)
        table = model.rope.get_embed((side // 16, side // 16)).to(device, dtype)  # type: ignore[operator, union-attr]
        with accelerate(model, probe=False) as handle:
            size = torch.ones(1, PREFIX + keep, device=device)
            size[:, PREFIX:] = patches / keep
        return model.blocks[1], table, handle, size.log()  # type: ignore[index, return-value]

    def merged(x: Tensor) -> Tensor:
        block, table, handle, log_size = parts()
        family = handle.host.family
        assert family is not None
        rows = table[:keep].expand(1, -1, -1)
        return family.second(block, family.attend(block, x[:, : PREFIX + keep], rows, log_size)[0])

    whole: Callable[[Tensor], Tensor] = lambda x: parts()[0](x, parts()[1])
    outline: Any = _outline(name, side, 1)
    with accelerate(outline, probe=False) as handle:
        macs = stack_macs(outline.blocks, handle.host.family, PREFIX + keep, (0,))
    return Case(
        "accelerate",
        f"one block of {name}, {keep} of {patches} tokens",
        lambda g: (torch.randn(1, PREFIX + patches, outline.embed_dim, generator=g, device=device).to(dtype),),
        [Contender("unmodified", whole), Contender("accelerated", merged, ours=True)],
        device=device,
        dtype=dtype,
        macs=macs,
        check=_alike,
        params={"model": name, "tokens": patches, "keep": keep},
    )
