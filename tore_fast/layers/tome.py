"""Token merging for models that were not built with it: `patch_token_merging(model, ...)` on our hosts and on timm
ViTs.

In: a model; out: a handle to change the token count, give person masks, or take everything off again. Weights and state
dict keys stay as they are. timm blocks keep their modules and only change class, so hooks and copies go on working.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from .mask_tome import MergeConfig, TokenState, mask_coverage, merge_tokens
from .proportional import proportional_attention


class _Shared:
    """One per patched timm model: settings, and the token state of the running forward pass."""

    def __init__(self, merging: MergeConfig, depth: int, prefix: int):
        self.merging, self.depth, self.prefix = merging, depth, prefix
        self.coverage: Tensor | None = None
        self.state = TokenState()
        self.schedule: tuple[int, ...] = ()

    def start(self, x: Tensor) -> None:
        coverage = self.coverage
        if coverage is not None:
            if coverage.shape != (x.shape[0], x.shape[1] - self.prefix):
                raise ValueError(
                    f"patch_token_merging: the mask gives coverage {list(coverage.shape)}, the model has "
                    f"[{x.shape[0]}, {x.shape[1] - self.prefix}] patch tokens"
                )
            coverage = torch.cat((coverage.new_zeros(x.shape[0], self.prefix), coverage), 1)
        self.state = TokenState(coverage)
        own, skip = self.merging, self.skip
        if skip and own.keep is not None:
            own = dataclasses.replace(own, keep=max(1, own.keep - skip))
        self.schedule = own.schedule(x.shape[1] - skip, self.depth)

    @property
    def skip(self) -> int:
        """Prefix tokens beyond what the matching itself sets aside (class, distillation): registers."""
        return self.prefix if self.prefix > 2 else 0


def _attention(attn: Any, x: Tensor, log_size: Tensor | None) -> tuple[Tensor, Tensor]:
    """timm's attention with log sizes; returns output and keys."""
    q, k, v = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q, k = attn.q_norm(q), attn.k_norm(k)
    if attn.training and attn.attn_drop.p:
        bias = None if log_size is None else log_size[:, None, None].to(q.dtype)
        out = nn.functional.scaled_dot_product_attention(q, k, v, bias, attn.attn_drop.p, scale=attn.scale)
    else:
        out = proportional_attention(q, k, v, log_size, scale=attn.scale)
    out = out.transpose(1, 2).flatten(2)
    out = getattr(attn, "norm", nn.Identity())(out)
    if getattr(attn, "gate", None) is not None:
        out = out * attn.gate(x).sigmoid()
    return attn.proj_drop(attn.proj(out)), k


@functools.cache
def _merging_block(base: Any) -> type:
    class MergingBlock(base):  # type: ignore[misc]  # a class of timm, known at run time
        def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
            if attn_mask is not None or is_causal:
                raise ValueError("patch_token_merging: attention masks do not go with token merging")
            shared: _Shared = self.token_merging
            if self.token_merging_index == 0:
                shared.start(x)
            r, merging, state = shared.schedule[self.token_merging_index], shared.merging, shared.state
            out, k = _attention(self.attn, self.norm1(x), state.log_size if merging.prop_attn else None)
            x = x + self.drop_path1(self.ls1(out))
            x = merge_tokens(x, k.mean(1), r, state, merging, shared.skip)
            return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))

    MergingBlock.__name__ = MergingBlock.__qualname__ = f"Merging{base.__name__}"
    return MergingBlock


@functools.cache
def _merging_vit(base: Any) -> type:
    class MergingViT(base):  # type: ignore[misc]  # a class of timm, known at run time
        def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
            kind = self.global_pool if pool_type is None else pool_type
            size = self.blocks[0].token_merging.state.size
            if kind != "avg" or size is None or getattr(self, "attn_pool", None) is not None:
                return super().pool(x, pool_type)
            first = 0 if getattr(self, "pool_include_prefix", False) else self.num_prefix_tokens
            weight = (size / size[:, first:].sum(1, keepdim=True)).to(x.dtype)
            return (x * weight[..., None])[:, first:].sum(1)  # the mean over original tokens

    MergingViT.__name__ = MergingViT.__qualname__ = f"Merging{base.__name__}"
    return MergingViT


class TokenMergingHandle:
    """Control over a patched model."""

    def __init__(self, model: nn.Module, vit: Any, shared: _Shared | None):
        self._model, self._vit, self._shared = model, vit, shared

    @property
    def merging(self) -> MergeConfig | None:
        return self._vit.merging if self._shared is None else self._shared.merging

    def set(self, merging: MergeConfig) -> None:
        """Other token counts from the next call on."""
        if self._shared is None:
            self._vit.merging = merging
        else:
            self._shared.merging = _for_prefix(merging, self._shared.prefix)

    def set_mask(self, mask: Tensor | None) -> None:
        """Person mask [B, H, W] of the next inputs (timm models; our hosts take it as an argument)."""
        if self._shared is None:
            raise ValueError("set_mask: this model takes the person mask as the argument `mask` of its forward")
        if mask is None:
            self._shared.coverage = None
            return
        embed = self._vit.patch_embed
        if hasattr(embed, "backbone"):  # timm's hybrids: a convolutional trunk before the projection
            window = (embed.feat_ratio(), embed.feat_ratio(), 0)
        else:
            window = (embed.proj.kernel_size[0], embed.proj.stride[0], embed.proj.padding[0])
        self._shared.coverage = mask_coverage(mask, *window)

    @property
    def size(self) -> Tensor | None:
        """Sizes [B, N] of the tokens that the last forward pass ended with (timm models)."""
        return None if self._shared is None else self._shared.state.size

    @property
    def source(self) -> Tensor | None:
        """Membership [B, N_out, N] of the last pass (timm models, with track_source)."""
        return None if self._shared is None else self._shared.state.source

    def remove(self) -> None:
        """Back to the model as it was."""
        if self._shared is None:
            self._vit.merging = None
            return
        for block in self._vit.blocks:
            block.__class__ = type(block).__bases__[0]
            del block.token_merging, block.token_merging_index
        if type(self._vit).__name__.startswith("Merging"):
            self._vit.__class__ = type(self._vit).__bases__[0]


def _for_prefix(merging: MergeConfig, prefix: int) -> MergeConfig:
    return dataclasses.replace(merging, class_token=prefix in (1, 2), distill_token=prefix == 2)


def patch_token_merging(model: nn.Module, merging: MergeConfig | None = None, **fields: Any) -> TokenMergingHandle:
    """Makes a ViT merge tokens, in place.

    Args:
        model: one of our hosts (HMR2, CameraHMR, or anything with a ViT as `.backbone`), our ViT, or a timm
            VisionTransformer. timm's class, distillation and register tokens are never merged.
        merging: settings; or give the fields of MergeConfig directly (keep counts prefix tokens too).

    Returns:
        A handle: `set` (token count), `set_mask` (person masks), `remove`.

    Raises:
        ValueError: not such a model.

    Example:
        >>> import timm
        >>> vit = timm.create_model("vit_tiny_patch16_224").eval()
        >>> handle = patch_token_merging(vit, r=(16,) * 12, order="tome")
        >>> vit.forward_features(torch.rand(1, 3, 224, 224)).shape
        torch.Size([1, 11, 192])

    Source: ToMe, section 3; timm patching as its authors do, without touching the weights.
    """
    merging = merging or MergeConfig(**fields)
    vit = getattr(model, "backbone", model)
    if hasattr(vit, "run_blocks") and hasattr(vit, "merging"):  # models/backbones/vit.py merges by itself
        vit.merging = merging
        return TokenMergingHandle(model, vit, None)
    blocks = getattr(vit, "blocks", None)
    needed = ("norm1", "attn", "norm2", "mlp", "ls1", "ls2", "drop_path1", "drop_path2")
    if blocks is None or not len(blocks) or any(not hasattr(b, n) for b in blocks for n in needed):
        raise ValueError(f"patch_token_merging: expected one of our hosts or a timm ViT, got {type(model).__name__}")
    if hasattr(blocks[0], "token_merging"):
        raise ValueError("patch_token_merging: the model is patched already; use its handle, or remove() first")
    if any(not hasattr(b.attn, n) for b in blocks for n in ("qkv", "q_norm", "k_norm", "proj", "num_heads", "scale")):
        raise ValueError(f"patch_token_merging: attention {type(blocks[0].attn).__name__} of timm is not supported")
    if getattr(vit, "grad_checkpointing", False):
        raise ValueError("patch_token_merging: switch timm's grad_checkpointing off; it would merge twice")
    known = {"self", "x", "attn_mask", "is_causal"}
    if extra := {p for b in blocks for p in inspect.signature(type(b).forward).parameters} - known:
        raise ValueError(
            f"patch_token_merging: blocks {type(blocks[0]).__name__} with {', '.join(sorted(extra))} are not supported"
        )
    prefix = int(getattr(vit, "num_prefix_tokens", 0))
    shared = _Shared(_for_prefix(merging, prefix), len(blocks), prefix)
    for i, block in enumerate(blocks):
        block.__class__ = _merging_block(type(block))  # type: ignore[arg-type]  # classes are hashable
        block.token_merging, block.token_merging_index = shared, i
    if hasattr(vit, "pool"):
        vit.__class__ = _merging_vit(type(vit))  # type: ignore[arg-type]  # ditto
    return TokenMergingHandle(model, vit, shared)
