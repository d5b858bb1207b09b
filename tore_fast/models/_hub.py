"""Saving and loading our own checkpoint folders: `config.json` + `model.safetensors`, nothing executable.

A folder written by `save_pretrained` names the registered model and the config fields that differ from its default,
so `load_pretrained(folder)` rebuilds exactly that module and loads strictly. Official files go through models/convert.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ._registry import create_model
from ._weights import load_strict, read_safetensors

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"


def save_pretrained(model: nn.Module, folder: str | Path, name: str, dtype: torch.dtype | None = None, **extra) -> Path:
    """Writes `folder`/config.json and model.safetensors.

    Args:
        model: a registered model; `model.config` is its frozen dataclass.
        name: its registry name.
        dtype: floating weights are cast to this (float16 halves the file); None keeps them.
        **extra: JSON-able facts to keep beside the config (training data, metrics, licence).
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"save_pretrained: {folder}: expected a folder to write, got a file")
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    if dtype is not None:
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    save_file(state, folder / WEIGHTS_NAME)
    umask = os.umask(0)  # safetensors writes 0600 whatever the umask; a shared or installed folder must be readable
    os.umask(umask)
    os.chmod(folder / WEIGHTS_NAME, 0o666 & ~umask)
    config = {"model": name, "config": dataclasses.asdict(model.config), **extra}
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
    return folder


def read_config(folder: str | Path) -> dict:
    """config.json of a checkpoint folder as a dict."""
    path = Path(folder) / CONFIG_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no {CONFIG_NAME}; expected a folder written by save_pretrained")
    return json.loads(path.read_text())


def load_pretrained(folder: str | Path, **overrides) -> nn.Module:
    """Model (float32, eval mode) from a folder written by `save_pretrained`; strict about keys and shapes."""
    meta = read_config(folder)
    config = {k: tuple(v) if isinstance(v, list) else v for k, v in meta["config"].items()}
    model = create_model(meta["model"], **{**config, **overrides})
    path = Path(folder) / WEIGHTS_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a folder written by save_pretrained")
    state = read_safetensors(path)
    dtypes = {k: v.dtype for k, v in model.state_dict().items()}
    state = {k: v.to(dtypes.get(k, v.dtype)) for k, v in state.items()}
    load_strict(model, state, str(path), meta["model"])
    return model.eval()
