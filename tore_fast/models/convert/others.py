"""Official files of the other families: whose they are by their keys, their loaders, the registered name that rebuilds them.

In: a path; out: a model of vpt.py, tcformer.py or fasthmr.py, for convert/__init__.py. Image-to-mesh layouts: hmr.py.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from . import keypoints as tcformer
from . import lifting as vpt
from . import smpl as fasthmr

OTHERS = ("tcformer", "hot", "hmr2", "camerahmr", "humanfov", "densekp")


def recognise_other(state: dict[str, Tensor]) -> str | None:
    """One of OTHERS whose files have keys like these; None for any other file."""
    if any(key in state for key in vpt.SIGNATURE_KEY.values()):
        return "hot"
    if any(key.removeprefix("backbone.").startswith("ctm1.") for key in state):
        return "tcformer"
    if "head.dec_kp.bias" in state:
        return "densekp"
    if "smpl_head.decpose.bias" in state:
        return "camerahmr" if "smpl_head.deckp.bias" in state else "hmr2"
    return "humanfov" if {"fc3.weight", "backbone.bn1.weight"} <= state.keys() else None


def load_other(path: str | Path, upstream: str, **overrides) -> nn.Module:
    """Model in eval mode of one of OTHERS, loaded strictly."""
    if upstream == "hot":
        return vpt.load_official(path, **overrides)
    return getattr(tcformer if upstream == "tcformer" else fasthmr, f"load_{upstream}")(path, **overrides)


def dropped_keys(state: dict[str, Tensor], upstream: str) -> tuple[str, ...]:
    """Keys that the loader leaves out: discriminators and body buffers beside the network."""
    return tuple(k for k in state if fasthmr.IGNORED.match(k)) if upstream not in ("hot", "tcformer") else ()
