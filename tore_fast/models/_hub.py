"""Saving and loading our own checkpoint folders: `config.json` + `model.safetensors`, nothing executable.

A folder written by `save_pretrained` names the registered model and the config fields that differ from its default,
so `load_pretrained(folder)` rebuilds exactly that module and loads strictly. Official files go through _checkpoint.py.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ..io.atomic import replacing, write_text
from ..io.open_file import read_regular
from ..io.weights import read_safetensors
from ._registry import model_entry
from ._weights import NoInit, load_strict

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"
MAX_CONFIG = 4 << 20  # bytes
MAX_SIZE = 1 << 24  # no number in a config is larger
_BACKBONE = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")  # timm's own names; never "hf-hub:..." or a path


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
    with replacing(folder / WEIGHTS_NAME) as part:
        save_file(state, part)
    umask = os.umask(0)  # safetensors writes 0600 whatever the umask; a shared or installed folder must be readable
    os.umask(umask)
    os.chmod(folder / WEIGHTS_NAME, 0o666 & ~umask)
    config = {"model": name, "config": dataclasses.asdict(model.config), **extra}
    write_text(folder / CONFIG_NAME, json.dumps(config, indent=2) + "\n")
    return folder


def read_config(folder: str | Path) -> dict:
    """config.json of a checkpoint folder: {"model": registered name, "config": its fields, ...}.

    Raises:
        FileNotFoundError: no such file. ValueError: one that `save_pretrained` cannot have written.
    """
    path = Path(folder) / CONFIG_NAME
    if not path.exists():
        raise FileNotFoundError(f"{folder}: no {CONFIG_NAME}; expected a folder written by save_pretrained")
    try:
        meta = json.loads(read_regular(path, MAX_CONFIG, CONFIG_NAME).decode("utf-8-sig"))
    except (UnicodeDecodeError, RecursionError, json.JSONDecodeError) as e:
        raise ValueError(f"{path}: not readable as JSON ({str(e)[:100]})") from None
    fields = meta.get("config") if isinstance(meta, dict) else None
    if not isinstance(fields, dict) or not isinstance(meta.get("model"), str):
        raise ValueError(f"{path}: expected an object with the texts and fields {{'model': NAME, 'config': {{...}}}}")
    for name, value in fields.items():
        if name == "backbone" and not (value is None or (isinstance(value, str) and _BACKBONE.fullmatch(value))):
            raise ValueError(f"{path}: backbone: expected the plain name of a backbone, got {str(value)[:60]!r}")
        if isinstance(value, int) and abs(value) > MAX_SIZE:
            raise ValueError(f"{path}: {name[:60]}: {str(value)[:30]} is no size of a model")
    if fields.get("pretrained_backbone"):  # the weights are in the folder; nothing is ever downloaded for one
        fields["pretrained_backbone"] = False
    return meta


def load_pretrained(folder: str | Path, allow_nonfinite: bool = False, **overrides) -> nn.Module:
    """Model (float32, eval mode) from a folder written by `save_pretrained`; strict about keys and shapes.

    Args:
        allow_nonfinite: load weights that hold NaN or infinity, which are refused otherwise.

    Raises:
        FileNotFoundError, ValueError: one line that names the file, what was expected and what came.
    """
    meta = read_config(folder)
    config = {k: tuple(v) if isinstance(v, list) else v for k, v in meta["config"].items()}
    path = Path(folder) / WEIGHTS_NAME
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected a folder written by save_pretrained")
    try:
        entry = model_entry(meta["model"])
    except ValueError as e:
        raise ValueError(f"{Path(folder) / CONFIG_NAME}: {e}") from None
    state = read_safetensors(path)
    try:
        with NoInit():
            model = entry.build(**{**config, **overrides})
    except ValueError as e:
        raise ValueError(f"{Path(folder) / CONFIG_NAME}: {e}") from None
    except (TypeError, AttributeError, LookupError, ZeroDivisionError, RuntimeError, MemoryError) as e:
        raise ValueError(f"{Path(folder) / CONFIG_NAME}: no config of {meta['model']} ({str(e)[:160]})") from None
    dtypes = {k: v.dtype for k, v in model.state_dict().items()}
    state = {k: v.to(dtypes[k]) if _same_kind(v, dtypes.get(k)) else v for k, v in state.items()}
    load_strict(model, state, str(path), meta["model"], allow_nonfinite=allow_nonfinite)
    return model.eval()


def _same_kind(x: torch.Tensor, dtype: torch.dtype | None) -> bool:
    return dtype is not None and not x.is_complex() and x.is_floating_point() == dtype.is_floating_point
