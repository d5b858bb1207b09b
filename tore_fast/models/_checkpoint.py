"""Every way to a model with weights and back: `load(source)`, `save(model, folder)`, `convert(file, folder)`.

In: the name of built-in weights, a registered name, a checkpoint folder of ours (config.json + model.safetensors,
nothing executable) or an official file, which is read once (_weights.py), recognised by its keys and built by its
family's `layouts.py`. Out: a model in eval mode, strictly loaded.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import nn

from ..io.atomic import replacing, write_text
from ..io.open_file import read_regular
from ..io.weights import read_safetensors
from ._config import make_config
from ._layouts import recognise
from ._registry import ModelEntry, model_entry, nearest_name
from ._weights import NoInit, load_strict, read_state_dict
from .default import BUILT_IN, default_folder

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"
MAX_CONFIG = 4 << 20  # bytes
MAX_SIZE = 1 << 24  # no number in a config is larger
FILES = (".bin", ".ckpt", ".pth", ".pt", ".safetensors", ".tflite")
_BACKBONE = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")  # timm's own names; never "hf-hub:..." or a path


class Conversion(NamedTuple):
    layout: str
    name: str  # registered name that rebuilds it
    keys: int
    dropped: tuple[str, ...]  # official keys that no forward pass reads
    dropped_params: int


def load(
    source: str | Path,
    upstream: str | None = None,
    *,
    model: str | None = None,
    mesh: Any = None,
    mesh_data: str | Path | None = None,
    allow_nonfinite: bool = False,
    **overrides: Any,
) -> Any:
    """Model in eval mode from a built-in name, a registered name, a checkpoint folder of ours or an official file.

    Args:
        source: "default" or another built-in name; a folder written by `save` or `convert`; an official weight file
            (.bin, .pth, .pt, .ckpt, .safetensors, or .tflite of MediaPipe's pose nets), of which only tensors are read;
            a registered name, which has random weights, the same ones in every run.
        upstream: the project an official file is of (`tore-fast convert --help` names them); None: by its keys.
        model: the registered name that the weights belong to; None, "default" or the source again: told by them. An
            official file must fit that model exactly, and its mesh is the free one unless `mesh` or `mesh_data` (SMPL,
            or MANO for a hand) say otherwise. A folder must hold weights of that class; fields that change no weight
            (`Facts.free_fields`: the pruning of lifting models) are the name's.
        mesh, mesh_data: mesh of image-to-mesh models (models/mesh/_topology.py); official files mean SMPL or MANO,
            whose topology files lie in `mesh_data` or $TORE_FAST_MESH_DATA. Models of other tasks need none.
        allow_nonfinite: load weights that hold NaN or infinity, which are refused otherwise.
        **overrides: config fields that the weights do not tell (heads, ...).

    Raises:
        FileNotFoundError, ValueError: one line that names the file, what was expected and what came.

    Example:
        >>> load("default").config.image_size
        112
        >>> load("FastMETRO-L-H64_h36m_state_dict.bin", mesh_data="topology")  # doctest: +SKIP
    """
    from .keypoints import _mediapipe as mediapipe

    given = {k: v for k, v in (("mesh", mesh), ("mesh_data", mesh_data)) if v is not None} | overrides
    if model in ("default", str(source)):
        model = None
    if str(source) in BUILT_IN:
        return _load_folder(default_folder(str(source)), model, allow_nonfinite, given)
    path = Path(source)
    if path.is_dir() or (path.name == WEIGHTS_NAME and (path.parent / CONFIG_NAME).exists()):
        return _load_folder(path if path.is_dir() else path.parent, model, allow_nonfinite, given)
    if not path.exists():
        if isinstance(source, Path) or path.suffix in FILES or "/" in source or "\\" in source:
            raise FileNotFoundError(f"{source}: no such file or folder")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # random, but the same when an interrupted run goes on
            return model_entry(source).build(**_for_task(model_entry(source), given)).eval()
    if mediapipe.is_tflite(path):
        return mediapipe.load_tflite(path)[0]
    state = read_state_dict(path)
    if model is not None:
        return _load_named(state, str(path), model_entry(model), allow_nonfinite, given)
    return recognise(state, str(path), upstream).load(state, str(path), allow_nonfinite=allow_nonfinite, **given)


def _load_named(
    state: dict[str, torch.Tensor], source: str, entry: ModelEntry, allow_nonfinite: bool, given: dict[str, Any]
) -> nn.Module:
    """The registered model with the weights of an official file."""
    from .lifting.layouts import named_model
    from .mesh.layouts import to_native

    if "mesh_data" in given and entry.task != "mesh":
        raise ValueError(f"load: {entry.name} regresses no mesh, mesh_data cannot be given")
    if entry.task == "lifting":
        return named_model(state, source, entry, allow_nonfinite, given)
    if "mesh_data" in given and "mesh" not in given:
        given["mesh"] = "mano" if "hand" in entry.tags else "smpl"
    built = entry.build(**given)
    load_strict(built, to_native(state), source, allow_nonfinite=allow_nonfinite)
    return built.eval()


def _load_folder(folder: Path, name: str | None, allow_nonfinite: bool, given: dict[str, Any]) -> nn.Module:
    """Float32 model of a checkpoint folder; strict about keys and shapes."""
    meta = read_config(folder)
    where, path = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected a folder written by `save`")
    try:
        entry = model_entry(meta["model"])
    except ValueError as e:
        raise ValueError(f"{where}: {e}") from None
    state = read_safetensors(path)
    try:
        free = {} if name in (None, meta["model"]) else _free_fields(folder, entry, meta["config"], model_entry(name))
        with NoInit():
            model = entry.build(**{**meta["config"], **free, **_for_task(entry, given)})
    except ValueError as e:
        raise ValueError(f"{where}: {e}") from None
    except (TypeError, AttributeError, LookupError, ZeroDivisionError, RuntimeError, MemoryError) as e:
        raise ValueError(f"{where}: no config of {meta['model']} ({str(e)[:160]})") from None
    dtypes = {k: v.dtype for k, v in model.state_dict().items()}
    state = {k: v.to(dtypes[k]) if _same_kind(v, dtypes.get(k)) else v for k, v in state.items()}
    load_strict(model, state, str(path), meta["model"], allow_nonfinite=allow_nonfinite)
    return model.eval()


def _for_task(entry: ModelEntry, given: dict[str, Any]) -> dict[str, Any]:
    return given if entry.task == "mesh" else {k: v for k, v in given.items() if k != "mesh_data"}


def _free_fields(folder: Path, held: ModelEntry, fields: Mapping[str, Any], named: ModelEntry) -> dict[str, Any]:
    """Config fields of the named model for the weights of a folder, as far as they change no weight."""
    own, other = make_config(held.model, None, {**held.fields, **fields}), named.config
    frames = getattr(own, "frames", None)
    if held.model is not named.model or frames != getattr(other, "frames", None):
        what = held.family if frames is None else f"{held.family} for {frames} frames"
        raise ValueError(f"{folder}: holds weights of {what}, --model is {named.name}")
    return {name: getattr(other, name) for name in named.facts.free_fields}


def _same_kind(x: torch.Tensor, dtype: torch.dtype | None) -> bool:
    return dtype is not None and not x.is_complex() and x.is_floating_point() == dtype.is_floating_point


def registered_name(source: str | Path) -> str | None:
    """Registered name of what `load(source)` gives, without loading it; None for official files."""
    if str(source) in BUILT_IN:
        return str(read_config(default_folder(str(source)))["model"])
    if Path(source).is_dir():
        return str(read_config(source)["model"])
    return None if Path(source).exists() else model_entry(str(source)).name


def save(
    model: nn.Module, folder: str | Path, name: str | None = None, dtype: torch.dtype | None = None, **extra: Any
) -> Path:
    """Writes `folder`/config.json and model.safetensors.

    Args:
        model: a registered model; `model.config` is its frozen dataclass.
        name: its registered name; None: the nearest one of its class.
        dtype: floating weights are cast to this (float16 halves the file); None keeps them.
        **extra: JSON-able facts to keep beside the config (training data, metrics, licence).
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"save: {folder}: expected a folder to write, got a file")
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    if dtype is not None:
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    with replacing(folder / WEIGHTS_NAME) as part:
        save_file(state, part)
    umask = os.umask(0)  # safetensors writes 0600 whatever the umask; a shared or installed folder must be readable
    os.umask(umask)
    os.chmod(folder / WEIGHTS_NAME, 0o666 & ~umask)
    config: Any = model.config
    meta = {"model": name or nearest_name(model), "config": dataclasses.asdict(config), **extra}
    write_text(folder / CONFIG_NAME, json.dumps(meta, indent=2) + "\n")
    return folder


def read_config(folder: str | Path) -> dict:
    """config.json of a checkpoint folder: {"model": registered name, "config": its fields, ...}.

    Raises:
        FileNotFoundError: no such file. ValueError: one that `save` cannot have written.
    """
    path = Path(folder) / CONFIG_NAME
    if not path.exists():
        raise FileNotFoundError(f"{folder}: no {CONFIG_NAME}; expected a folder written by `save`")
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


def convert(
    path: str | Path,
    folder: str | Path,
    upstream: str | None = None,
    fov_net: str | Path | None = None,
    allow_nonfinite: bool = False,
    **overrides: Any,
) -> Conversion:
    """Writes an official file as our checkpoint folder (safetensors + config.json).

    The topology files of SMPL or MANO are not needed here: only the keys are checked. They are when the folder is
    loaded.

    Args:
        upstream, allow_nonfinite: as `load`.
        fov_net: HumanFoV's own file, to become part of a CameraHMR checkpoint.
        **overrides: config fields that the weights do not tell.
    """
    from .keypoints import _mediapipe as mediapipe

    if mediapipe.is_tflite(path):
        model, name = mediapipe.load_tflite(path)
        save(model, folder, name, torch.float16, converted_from=Path(path).name, **mediapipe.card(name))
        return Conversion("mediapipe", name, len(model.state_dict()), (), 0)
    state = read_state_dict(path)
    layout = recognise(state, str(path), upstream)
    if fov_net is not None:
        if layout.upstream != "camerahmr":
            raise ValueError(
                f"convert: a field-of-view net belongs to CameraHMR files, {path} is of "
                f"{layout.upstream or 'another project'}"
            )
        overrides["fov_net_file"] = fov_net
    model = layout.load(state, str(path), without_topology=True, allow_nonfinite=allow_nonfinite, **overrides)
    name = nearest_name(model)
    save(model, folder, name, converted_from=Path(path).name, layout=layout.name)
    dropped = tuple(k for k in state if layout.dropped(k))
    return Conversion(layout.name, name, len(model.state_dict()), dropped, sum(state[k].numel() for k in dropped))
