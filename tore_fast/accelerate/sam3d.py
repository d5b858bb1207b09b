"""SAM 3D Body: which pass runs (body or hands), person coverage of its crops, and its exact speed-ups.

In: the user's own `SAM3DBody` object; out: overrides on that instance, undone by `remove`. Written from the published
interface (attribute names and shapes); nothing of that project is part of this one. Its weights and code have their own
licence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.mask_tome import mask_coverage
from .blocks import Refused
from .hosts import Host
from .runtime import Runtime

MASKS = ("auto", "model", "box", "none")
HAND_PART = 1 / 1.2  # of the crop's side that a hand's box takes


def is_sam3d(model: Any) -> bool:
    return isinstance(model, nn.Module) and hasattr(model, "forward_pose_branch") and hasattr(model, "backbone")


def rectangle(part: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes in the middle of crops: part [P, 2] of width and height -> [P, H, W] 0/1."""
    height, width = size
    y = ((torch.arange(height, device=part.device) + 0.5) / height * 2 - 1).abs()
    x = ((torch.arange(width, device=part.device) + 0.5) / width * 2 - 1).abs()
    return ((y[None, :, None] <= part[:, 1, None, None]) & (x[None, None] <= part[:, 0, None, None])).float()


class Branch:
    """Stands in for `model.forward_pose_branch`: sets budget and coverage of the pass, then calls the original."""

    def __init__(
        self, model: Any, host: Host, runtime: Runtime, masks: str | Callable[[dict], Tensor], keep: tuple
    ) -> None:
        if not callable(masks) and masks not in MASKS:
            raise ValueError(f"accelerate: masks must be one of {MASKS} or a function of the batch, got {masks!r}")
        self.model, self.host, self.runtime, self.masks = model, host, runtime, masks
        self.keep = keep
        self.original = model.forward_pose_branch

    def __call__(self, batch: dict, *args: Any, **kwargs: Any) -> Any:
        hand = len(getattr(self.model, "hand_batch_idx", ())) > 0
        body = len(getattr(self.model, "body_batch_idx", ())) > 0
        if hand and body and self.keep[0] != self.keep[1]:
            raise Refused(
                "accelerate: bodies and hands share one batch here, so they need one budget: "
                "keep_tokens=N, not (body, hand)"
            )
        self.runtime.keep = self.keep[1] if hand and not body else self.keep[0]
        self.runtime.coverage = None if self.runtime.keep is None else self.coverage(batch, hand and not body)
        try:
            return self.original(batch, *args, **kwargs)
        finally:
            self.runtime.coverage = None

    def coverage(self, batch: dict, hand: bool) -> Tensor | None:
        """[P, N0] of a batch; None is plain ToMe."""
        if self.masks == "none":
            return None
        crops = batch["img"].flatten(0, 1) if batch["img"].dim() == 5 else batch["img"]
        size = (int(crops.shape[-2]), int(crops.shape[-1]))
        if callable(self.masks):
            found = self.masks(batch)
        else:
            found = self._box(batch, hand, size, crops)
            mask = batch.get("mask")
            if self.masks != "box" and mask is not None and not hand:
                mask = mask.reshape(len(crops), *mask.shape[-2:]).float().clamp(0, 1)  # 0/1 or 0/255
                score = batch.get("mask_score")
                given = torch.ones(len(crops), device=mask.device) if score is None else score.reshape(-1)
                found = torch.where((given > 0)[:, None, None], mask, found)
            elif self.masks == "model":
                return None
        found = found.reshape(len(crops), *found.shape[-2:])
        width = getattr(getattr(self.host.vit, "patch_embed", None), "img_size", None)
        if isinstance(width, tuple | list) and len(width) == 2 and width[1] < found.shape[-1]:
            cut = (found.shape[-1] - int(width[1])) // 2  # the ViT-H variant drops columns left and right
            found = found[..., cut : found.shape[-1] - cut]
        return mask_coverage(found, *self.host.window)

    def _box(self, batch: dict, hand: bool, size: tuple[int, int], crops: Tensor) -> Tensor:
        people = len(crops)
        if hand:
            part = crops.new_full((people, 2), HAND_PART)
        elif "bbox" in batch and "bbox_scale" in batch:
            box, scale = batch["bbox"].reshape(people, 4).float(), batch["bbox_scale"].reshape(people, 2).float()
            part = ((box[:, 2:] - box[:, :2]) / scale).clamp(0, 1)
        else:
            part = crops.new_full((people, 2), 1 / 1.25)
        return rectangle(part.float(), size)


class _Remembered:
    """A module's forward that keeps its result for the last few (arguments, weights) in eval mode."""

    def __init__(self, module: Any, most: int = 8) -> None:
        self.module, self.original, self.most = module, module.forward, most
        self.kept: dict[tuple, Any] = {}

    def __call__(self, **sizes: int) -> Any:
        if self.module.training or torch.compiler.is_compiling():
            return self.original(**sizes)
        state = tuple((t.data_ptr(), t._version, t.dtype, t.device) for t in self.module.buffers())
        state += tuple((t.data_ptr(), t._version, t.dtype, t.device) for t in self.module.parameters())
        key = (tuple(sorted(sizes.items())), state, torch.is_inference_mode_enabled())
        if key not in self.kept:
            if len(self.kept) >= self.most:
                self.kept.clear()
            self.kept[key] = self.original(**sizes)
        return self.kept[key]


class _FoldedBias:
    """A product whose bias is multiplied by a 0/1 buffer in every call, with that done once."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.bias: Tensor | None = None
        self.made_of: tuple = ()

    def __call__(self, x: Tensor) -> Tensor:
        module = self.module
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and module.bias.requires_grad):
            return nn.functional.linear(x, module.weight, module.bias * module.bias_mask.to(module.bias.dtype))
        parts = (module.bias, module.bias_mask)
        made_of = (*((id(t), t._version, t.dtype, t.device) for t in parts), torch.is_inference_mode_enabled())
        if self.bias is None or self.made_of != made_of:
            self.bias, self.made_of = module.bias * module.bias_mask.to(module.bias.dtype), made_of
        return nn.functional.linear(x, module.weight, self.bias)


EXACT = ("rope_table", "k_bias")


def speed_up(host: Host, names: tuple[str, ...]) -> list[tuple[nn.Module, str]]:
    """Exact speed-ups by name, on the modules themselves; returns (module, name) of what was overridden, for `undo`.

    "rope_table": the rotation table of a grid is computed once instead of before every block. "k_bias": the masked bias
    of the qkv product is folded once. Both leave every bit of the output as it is.
    """
    if unknown := set(names) - set(EXACT):
        raise ValueError(f"accelerate: exact speed-ups are {EXACT}, got {sorted(unknown)}")
    done: list[tuple[nn.Module, str]] = []
    rope = getattr(host.vit, "rope_embed", None)
    if "rope_table" in names and isinstance(rope, nn.Module):
        rope.forward = _Remembered(rope)
        done.append((rope, "rope_table"))
    if "k_bias" in names and host.family is not None and host.family.name == "dinov3":
        for block in host.blocks:
            qkv = block.attn.qkv
            if isinstance(getattr(qkv, "bias_mask", None), Tensor) and qkv.bias is not None:
                qkv.forward = _FoldedBias(qkv)
                done.append((qkv, "k_bias"))
    return done


def undo(done: list[tuple[nn.Module, str]]) -> None:
    for module, _ in done:
        module.__dict__.pop("forward", None)
