"""Official checkpoints -> our models: `from_pretrained(path, upstream=...)` and `convert(path, folder)`.

Layouts are recognised from their keys, dead weights dropped, everything else loaded strictly. Per family: hmr.py
(FastMETRO, METRO, Mesh Graphormer, TORE); others.py chooses among vpt.py, fasthmr.py and tcformer.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from .._hub import CONFIG_NAME, load_pretrained, save_pretrained
from .._registry import model_entry, nearest_name
from .._weights import load_strict
from . import mediapipe
from . import mesh as hmr
from .files import clean_state_dict, read_state_dict
from .others import OTHERS, dropped_keys, load_other, recognise_other

__all__ = ["Conversion", "clean_state_dict", "convert", "from_pretrained", "read_state_dict", "to_native"]

to_native = hmr.to_native
UPSTREAMS = (*hmr.UPSTREAMS, *OTHERS)


class Conversion(NamedTuple):
    layout: str
    name: str  # registered name that rebuilds it
    keys: int
    dropped: tuple[str, ...]  # official keys that no forward pass reads
    dropped_params: int


def from_pretrained(
    path: str | Path,
    upstream: str | None = None,
    *,
    model: str | None = None,
    mesh=None,
    mesh_data: str | Path | None = None,
    **overrides,
) -> nn.Module:
    """Model in eval mode from our checkpoint folder or an official file.

    Args:
        path: a folder written by `save_pretrained` or `convert`, or an official weight file (.bin, .pth, .pt,
            .safetensors, or .tflite of MediaPipe's pose nets). Only tensors are read.
        upstream: "fastmetro", "metro", "tore", "graphormer", "tcformer", "hot" (video pose), "hmr2", "camerahmr", "humanfov",
            "densekp"; None recognises the layout by its keys.
        model: a registered name instead: the file must fit that model exactly. Its mesh is then the free one unless `mesh`
            or `mesh_data` (SMPL, or MANO for a hand) say otherwise.
        mesh, mesh_data: mesh of image-to-mesh models (models/mesh/_topology.py); official files mean SMPL or MANO, whose topology
            files lie in `mesh_data` or $TORE_FAST_MESH_DATA.
        **overrides: config fields that the weights do not tell (heads, ...).

    Raises:
        FileNotFoundError, ValueError: one line that names the file, what was expected and what came.

    Example:
        >>> from_pretrained("FastMETRO-L-H64_h36m_state_dict.bin", mesh_data="topology")  # doctest: +SKIP
    """
    path = Path(path)
    given = {k: v for k, v in (("mesh", mesh), ("mesh_data", mesh_data)) if v is not None}
    if path.is_dir() or (path.name == "model.safetensors" and (path.parent / CONFIG_NAME).is_file()):
        return load_pretrained(path if path.is_dir() else path.parent, **given, **overrides)
    if mediapipe.is_tflite(path):
        return mediapipe.load_tflite(path)[0]
    if upstream is not None and upstream not in UPSTREAMS:
        raise ValueError(f"from_pretrained: upstream must be one of {', '.join(UPSTREAMS)}, got {upstream!r}")
    if upstream in OTHERS:
        return load_other(path, upstream, **overrides)
    state = read_state_dict(path)
    if model is None and upstream is None and (other := recognise_other(state)):
        return load_other(path, other, **overrides)
    if model is not None:
        if mesh is None and mesh_data is not None:
            given["mesh"] = "mano" if "hand" in model_entry(model).tags else "smpl"
        if mesh_data is not None and not {"body", "hand"} & set(model_entry(model).tags):
            raise ValueError(f"from_pretrained: {model} regresses no mesh, mesh_data cannot be given")
        built = model_entry(model).build(**given, **overrides)
    else:
        name = hmr.recognise(state, str(path), upstream)
        config = hmr.config_of(state, name, str(path), **overrides)
        built = hmr.LAYOUTS[name].model(config, mesh, mesh_data)
    load_strict(built, hmr.to_native(state), str(path))
    return built.eval()


def convert(
    path: str | Path, folder: str | Path, upstream: str | None = None, fov_net: str | Path | None = None, **overrides
) -> Conversion:
    """Writes an official file as our checkpoint folder (safetensors + config.json).

    The topology files of SMPL or MANO are not needed here: only the keys are checked. They are when the folder is loaded.

    Args:
        upstream: as `from_pretrained`; None recognises the layout by its keys.
        fov_net: HumanFoV's own file, to become part of a CameraHMR checkpoint.
        **overrides: config fields that the weights do not tell.
    """
    if mediapipe.is_tflite(path):
        model, name = mediapipe.load_tflite(path)
        save_pretrained(model, folder, name, torch.float16, converted_from=Path(path).name, **mediapipe.card(name))
        return Conversion("mediapipe", name, len(model.state_dict()), (), 0)
    if upstream is not None and upstream not in UPSTREAMS:
        raise ValueError(f"convert: upstream must be one of {', '.join(UPSTREAMS)}, got {upstream!r}")
    state = read_state_dict(path)
    other = upstream if upstream in OTHERS else recognise_other(state) if upstream is None else None
    if fov_net is not None:
        if other != "camerahmr":
            raise ValueError(
                f"convert: a field-of-view net belongs to CameraHMR files, {path} is {other or upstream or 'another'}"
            )
        overrides["fov_path"] = fov_net
    if other is not None:
        model = load_other(path, other, **overrides)
        dropped = dropped_keys(state, other)
        name, keys = nearest_name(model), len(model.state_dict())
        save_pretrained(model, folder, name, converted_from=Path(path).name, layout=other)
        return Conversion(other, name, keys, dropped, sum(state[k].numel() for k in dropped))
    layout = hmr.recognise(state, str(path), upstream)
    config = hmr.config_of(state, layout, str(path), **overrides)
    model = hmr.LAYOUTS[layout].model(config, hmr.stand_in_mesh(config))
    native = hmr.to_native(state)
    load_strict(model, native, str(path))
    name = nearest_name(model)
    facts = {"converted_from": Path(path).name, "layout": layout}
    save_pretrained(model, folder, name, **facts)
    dropped = tuple(k for k in state if hmr.native_key(k) is None)
    return Conversion(layout, name, len(native), dropped, sum(state[k].numel() for k in dropped))
