"""Official files of the other families: whose they are by their keys, their loaders, the registered name that rebuilds them.

In: a path; out: a model of vpt.py, tcformer.py or fasthmr.py, for convert/__init__.py. Image-to-mesh layouts: hmr.py.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from .._registry import create_model, list_models
from . import keypoints as tcformer
from . import lifting as vpt
from . import smpl as fasthmr

OTHERS = ("tcformer", "hot", "hmr2", "camerahmr", "humanfov", "densekp")
_NAMES = {  # class -> registered names among which the nearest is looked for
    "TCFormer": "tcformer_*",
    "TCFormerPose": "tcformer_*",
    "Mixste": "*mixste_*",
    "Motionbert": "*motionbert_*",
    "Mhformer": "*mhformer_*",
    "Motionagformer": "*motionagformer_*",
    "HMR2": "hmr2_*",
    "CameraHMR": "camerahmr_*",
    "HumanFoV": "humanfov",
    "DenseKP": "densekp_*",
}


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


def nearest_name(model: nn.Module) -> str:
    """Registered name of the same class that shares most config fields; the saved config says the rest."""
    found = {}
    for name in list_models(_NAMES[type(model).__name__]):
        with torch.device("meta"):
            other = create_model(name)
        if type(other) is type(model):
            found[name] = shared_fields(model.config, other.config)
    return max(found, key=found.get)


def shared_fields(config, other) -> int:
    """In how many fields two configs of one class agree."""
    return sum(getattr(config, f.name) == getattr(other, f.name) for f in dataclasses.fields(config))
