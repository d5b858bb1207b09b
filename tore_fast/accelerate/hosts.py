"""Where the blocks of an object are: estimators, models and backbones of several projects, by what they have.

In: anything with a ViT inside; out: a `Host`. SAM 3D Body's estimator leads through `model`, `backbone` and `encoder`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .blocks import Family, Refused, family_of, probe

_DOWN = ("model", "backbone", "encoder", "dinov2", "vit", "trunk", "module")
_LISTS = (("blocks",), ("layer",), ("encoder", "layer"), ("model", "layer"), ("encoder", "blocks"))


@dataclass
class Host:
    """A ViT found in an object. `owner`.`attribute` is the list of its blocks; `native`: one of this package's
    hosts."""

    vit: Any
    owner: Any
    attribute: str
    family: Family | None
    prefix: int | None  # class, storage and register tokens; None: told by the rotation table
    root: Any = None  # what was given
    model: Any | None = None  # the largest module on the way down
    path: tuple[str, ...] = field(default=())

    @property
    def native(self) -> bool:
        return self.family is None

    @property
    def blocks(self) -> Any:
        return getattr(self.owner, self.attribute)

    @property
    def device(self) -> torch.device:
        return next(self.vit.parameters()).device

    @property
    def window(self) -> tuple[int, int, int]:
        """Kernel, stride and padding of the patch embedding."""
        embed = getattr(self.vit, "patch_embed", None)
        if embed is not None and hasattr(embed, "backbone"):  # timm's hybrids: a convolutional trunk in front
            return embed.feat_ratio(), embed.feat_ratio(), 0
        conv = next((m for m in self.vit.modules() if isinstance(m, nn.Conv2d)), None)
        if conv is None:
            raise ValueError("accelerate: no patch embedding found, so masks cannot be laid on tokens")
        return conv.kernel_size[0], conv.stride[0], int(conv.padding[0])


def _list_in(module: Any) -> tuple[nn.Module, str] | None:
    for path in _LISTS:
        owner = module
        for name in path[:-1]:
            owner = getattr(owner, name, None)
        found = getattr(owner, path[-1], None)
        if isinstance(owner, nn.Module) and isinstance(found, nn.ModuleList | nn.Sequential) and len(found):
            return owner, path[-1]
    return None


def find_host(obj: Any, check: bool = True) -> Host:
    """The ViT inside an object.

    Args:
        check: prove the family by a numerical probe of every block.

    Raises:
        Refused: no ViT, or one that cannot be accelerated as it is; the message says why.
    """
    if _compiled(obj):
        raise Refused("accelerate: the model is compiled or runs in TensorRT; accelerate it before compiling")
    model = obj if isinstance(obj, nn.Module) else None
    here: Any = obj
    path: list[str] = []
    for _ in range(6):
        if hasattr(here, "run_blocks") and hasattr(here, "merging"):  # models/backbones/vit.py merges by itself
            return Host(here, here, "blocks", None, 0, obj, model, tuple(path))
        found = _list_in(here)
        if found is not None:
            return _checked(Host(here, *found, None, None, obj, model, tuple(path)), check)
        name = next(
            (n for n in _DOWN if getattr(here, n, None) is not None and not callable_only(getattr(here, n))), None
        )
        if name is None:
            break
        here = getattr(here, name)
        if _compiled(here):
            raise Refused("accelerate: the model is compiled or runs in TensorRT; accelerate it before compiling")
        path.append(name)
        model = here if model is None and isinstance(here, nn.Module) else model
    raise Refused(
        f"accelerate: no ViT in {type(obj).__name__}: expected a list of blocks as `blocks` or `layer` under one of "
        f"{', '.join(_DOWN)}"
    )


def callable_only(thing: Any) -> bool:
    """A method or function, not something with parts."""
    return callable(thing) and not isinstance(thing, nn.Module) and not hasattr(thing, "__dict__")


def _compiled(thing: Any) -> bool:
    return (
        hasattr(thing, "_orig_mod")
        or bool(getattr(thing, "_compiled", False))
        or bool(getattr(thing, "_use_tensorrt", 0))
    )


def _checked(host: Host, check: bool) -> Host:
    vit, blocks = host.vit, host.blocks
    if hasattr(blocks[0], "token_runtime"):
        raise Refused("accelerate: the model is accelerated already; use its handle, or remove() first")
    if getattr(vit, "rope_mixed", False):
        raise Refused("accelerate: positions that differ between heads or blocks (mixed RoPE) cannot be merged")
    if getattr(vit, "shared_rel_pos", None) is not None or getattr(vit, "rel_pos_bias", None) is not None:
        raise Refused("accelerate: a table of relative positions in the attention cannot be merged")
    if any(m.training for m in blocks):
        raise Refused("accelerate: the model is in training mode; call eval() first")
    if any(
        getattr(m, "grad_checkpointing", False) or getattr(m, "gradient_checkpointing", False) for m in _stack(host)
    ):
        raise Refused("accelerate: gradient checkpointing runs blocks twice; switch it off first")
    stages, last = getattr(vit, "out_features", None), (getattr(vit, "stage_names", None) or [None])[-1]
    if isinstance(stages, list) and stages and set(stages) != {last}:
        raise Refused(f"accelerate: only the last block's map can be had while tokens merge, not {', '.join(stages)}")
    if any(getattr(b, "window_size", 0) for b in blocks):
        raise Refused("accelerate: windowed attention needs the whole grid in every block")
    host.family = family_of(blocks)
    host.prefix = _prefix(vit, host)
    if check:
        probe(host.family, blocks, 1 if host.prefix is None else host.prefix, rotary(host))
    return host


def _stack(host: Host) -> tuple[nn.Module, ...]:
    return host.vit, host.owner, host.blocks[0]


def rotary(host: Host) -> bool:
    names = ("rope", "rope_embed", "rope_embeddings")
    return any(getattr(host.vit, n, None) is not None for n in names) or any(
        getattr(host.owner, n, None) is not None for n in names
    )


def _prefix(vit: Any, host: Host) -> int | None:
    assert host.family is not None
    if host.family.name in ("timm", "eva"):
        return int(getattr(vit, "num_prefix_tokens", 0))
    if host.family.name == "transformers":
        return 1 + int(getattr(getattr(vit, "config", None), "num_register_tokens", 0) or 0)
    if host.family.name == "dinov3":
        return None if rotary(host) else 1 + int(getattr(vit, "n_storage_tokens", 0))
    return int(getattr(vit, "cls_token", None) is not None)


def fingerprint(host: Host) -> dict[str, Any]:
    """What a plan is bound to: classes, depth, width, heads, prefix, and a hash of the blocks' keys and shapes."""
    block = host.blocks[0]
    keys = "\n".join(
        f"{i}.{k} {tuple(v.shape)}" for i, b in enumerate(host.blocks) for k, v in sorted(b.state_dict().items())
    )
    name = type(block).__name__.removeprefix("Accelerated")
    attn = getattr(block, "attn", None) or getattr(block, "attention", None)
    heads = getattr(attn, "num_heads", None) or getattr(attn, "num_attention_heads", None)
    return {
        "vit": type(host.vit).__name__,
        "block": name,
        "family": "native" if host.family is None else host.family.name,
        "depth": len(host.blocks),
        "width": int(block.norm1.weight.shape[0]),
        "heads": int(heads or 0),
        "prefix": host.prefix,
        "rotary": rotary(host),
        "keys": hashlib.sha256(keys.encode()).hexdigest()[:16],
    }
