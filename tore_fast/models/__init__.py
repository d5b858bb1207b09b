"""Models by name: `create_model("fastmetro_s_r50")`, `list_models("*tore*")`, or import the classes directly.

One file per family; `_registry.py` holds the names, `_checkpoint.py` every way to weights, each room's `layouts.py` its
official files.
"""

import importlib
from typing import Any

from ._checkpoint import load, save
from ._registry import create_model, list_models, model_entry

# Classes are imported when asked for, so that `import tore_fast.models` stays light.
_CLASSES = {
    "FastMETRO": "mesh.fastmetro",
    "FastMETROConfig": "mesh.fastmetro",
    "FastMETRO_TORE": "mesh.tore",
    "FastMETROToreConfig": "mesh.tore",
    "METRO": "mesh.metro",
    "METROConfig": "mesh.metro",
    "METRO_TORE": "mesh.metro_tore",
    "METROToreConfig": "mesh.metro_tore",
    "MeshGraphormer": "mesh.graphormer",
    "MeshGraphormerConfig": "mesh.graphormer",
    "PersonDetector": "keypoints.blazepose",
    "BodyLandmarks": "keypoints.blazepose",
}

__all__ = ["create_model", "list_models", "load", "model_entry", "save", *_CLASSES]


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return getattr(importlib.import_module(f".{_CLASSES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
