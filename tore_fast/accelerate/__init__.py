"""`tore_fast.accelerate(obj, ...)`: token and layer merging on a model that somebody else built, undone by one call.

In: a SAM 3D Body estimator or model, a DINOv3 hub model, a 4D-Humans or CameraHMR model, timm's VisionTransformer or
Eva, transformers' Dinov2 or DINOv3, or a host of this package; out: a `Handle`. Nothing of those projects is part of
this
one:
blocks are known by what they have and proved by running them. docs/accelerate.md says when it pays.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..layers.eclm import ECLMPlan
from .blocks import Refused
from .handle import Handle, start
from .hosts import find_host
from .plan import Plan
from .stack import search_layers

__all__ = ["Handle", "Plan", "Refused", "accelerate", "find_host", "search_layers"]


def accelerate(
    obj: Any,
    keep_tokens: int | float | tuple | None = None,
    *,
    per_block: int | None = None,
    layers: ECLMPlan | str | Path | None = None,
    layerscale: str = "fold",
    masks: str | Callable[[dict], Tensor] = "auto",
    unmerge: str = "copy",
    prop_attn: bool = True,
    attention: str = "keep",
    dtype: torch.dtype | None = None,
    graph: bool = False,
    exact_speedups: bool | Sequence[str] = True,
    near_exact: str | Sequence[str] = (),
    plan: str | Path | None = None,
    probe: bool = True,
) -> Handle:
    """Makes a ViT merge tokens and layers, in place; weights and state-dict keys stay as they are.

    Args:
        obj: an estimator, a model or its backbone, in eval mode.
        keep_tokens: patch tokens left after merging: a number, a fraction below 1, None for all, or (body, hand) for
        SAM 3D
            Body. Class and register tokens come on top and never merge.
        per_block: most merges in one block; default 40 / 192 of the patches.
        layers: which blocks to merge (an `ECLMPlan` or its file; `search_layers` finds one).
        layerscale: "fold" merges scale times weights, "separate" each by itself; for groups of three and more.
        masks: SAM 3D Body: "auto" (its own mask, else the box), "model", "box", "previous" (hull of the last frame's
            vertices, else the box; for video, see `Handle.new_clip`), "none", or a function of the batch
            -> masks [P, H, W] of the crops. For other models see `Handle.set_mask`.
        unmerge: "copy" gives every token its group's row at the end, "residual" adds its own difference to the group.
        prop_attn: a merged token counts as many times as it has members.
        attention: "keep" runs the original blocks while nothing merges, "sdpa" fused attention everywhere.
        dtype: run the ViT under autocast in this dtype; outputs come back in float32.
        graph: CUDA graph of the ViT (needs CUDA).
        exact_speedups: all, none, or some of "rope_table", "k_bias" (models of the dinov3 repository), "prompt_table",
            "ray_features" (SAM 3D Body); see `speedups.exact`.
        near_exact: none, or some of "correctives", "keypoint_rows", "decoder_autocast", "fov" (SAM 3D Body); see
            `speedups.near_exact`. Their error is measured by `compare` like that of merging.
        plan: a file of `Handle.save`; takes the place of all merging options.
        probe: check every block's arithmetic first.

    Raises:
        Refused: (a ValueError) the object cannot be accelerated; one sentence says why.
        ValueError: an option, or a plan for another model.

    Example:
        >>> import timm, torch, tore_fast
        >>> vit = timm.create_model("vit_tiny_patch16_224").eval()
        >>> with tore_fast.accelerate(vit, keep_tokens=0.5) as handle:
        ...     vit.forward_features(torch.rand(1, 3, 224, 224)).shape, handle.report()["tokens"]
        (torch.Size([1, 197, 192]), [196, 155, 119, 101, 98])

    Source: FastHMR (arXiv 2510.10868) sections 3.1 and 3.2; ToMe.
    """
    if plan is not None and (keep_tokens is not None or layers is not None):
        raise ValueError("accelerate: plan= holds budgets and layers; give it alone")
    host = find_host(obj, probe)
    fields = {
        "per_block": per_block,
        "layerscale": layerscale,
        "unmerge": unmerge,
        "prop_attn": prop_attn,
        "masks": masks if isinstance(masks, str) else "function",
        "attention": attention,
    }
    rest = {"masks": masks, "dtype": dtype, "graph": graph, "exact": exact_speedups, "near": near_exact}
    return start(host, layers, plan, keep_tokens, fields, rest)


class _Callable(ModuleType):
    """The package itself can be called: `tore_fast.accelerate(obj)`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Handle:
        return accelerate(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
