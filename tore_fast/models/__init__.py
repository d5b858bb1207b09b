"""Models by name: `create_model("fastmetro_s_r50")`, `list_models("*tore*")`, or import the classes directly.

One file per family; `_registry.py` holds the names, `_hub.py` our checkpoint folders, `convert/` the official layouts.
"""

from ._hub import load_pretrained, save_pretrained
from ._registry import create_model, list_models, model_entry

__all__ = ["create_model", "list_models", "load_pretrained", "model_entry", "save_pretrained"]
