"""Official checkpoints -> our models: key maps, dropped dead weights, strict otherwise."""

from __future__ import annotations

from torch import Tensor, nn

from .backbones import efficientnet_key

DEAD_SUFFIXES = ("backbone.classifier.weight", "backbone.classifier.bias", "backbone.fc.weight", "backbone.fc.bias")


def to_native(state: dict[str, Tensor], model: nn.Module | None = None) -> dict[str, Tensor]:
    """An official state dict under our names, without weights that no forward pass reads."""
    out = {}
    for key, value in state.items():
        new = native_key(key)
        if new is not None:
            out[new] = value
    return out


def native_key(key: str) -> str | None:
    """Our name of an official key; None if the weight is never used."""
    if key in DEAD_SUFFIXES:
        return None
    if key.startswith("backbone._"):
        name = efficientnet_key(key.removeprefix("backbone."))
        return None if name is None else f"backbone.{name}"
    if ".bert.embeddings." in key or ".bert.pooler." in key or ".graph_conv.skip_conv." in key:
        return None
    return key
