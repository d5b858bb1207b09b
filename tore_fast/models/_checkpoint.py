"""Every way to a model with weights: `from_pretrained(source)`, and `convert(file, folder)` from official layouts to ours.

In: the name of built-in weights, a registered name, a checkpoint folder of ours or an official file, which is read once
(_weights.py), recognised by its keys and built by its family's `layouts.py`. Out: a model in eval mode, strictly loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ._hub import CONFIG_NAME, WEIGHTS_NAME, load_pretrained, save_pretrained
from ._layouts import recognise
from ._registry import create_model, list_models, model_entry, nearest_name
from ._weights import load_strict, read_state_dict
from .default import BUILT_IN, default_folder


class Conversion(NamedTuple):
    layout: str
    name: str  # registered name that rebuilds it
    keys: int
    dropped: tuple[str, ...]  # official keys that no forward pass reads
    dropped_params: int


def from_pretrained(
    source: str | Path,
    upstream: str | None = None,
    *,
    model: str | None = None,
    mesh: Any = None,
    mesh_data: str | Path | None = None,
    allow_nonfinite: bool = False,
    **overrides: Any,
) -> nn.Module:
    """Model in eval mode from a built-in name, a registered name, a checkpoint folder of ours or an official file.

    Args:
        source: "default" or another built-in name; a folder written by `save_pretrained` or `convert`; an official weight
            file (.bin, .pth, .pt, .ckpt, .safetensors, or .tflite of MediaPipe's pose nets), of which only tensors are read;
            a registered name, which has random weights.
        upstream: the project an official file is of (`tore-fast convert --help` names them); None: by its keys.
        model: a registered name: an official file must fit that model exactly. Its mesh is then the free one unless `mesh`
            or `mesh_data` (SMPL, or MANO for a hand) say otherwise.
        mesh, mesh_data: mesh of image-to-mesh models (models/mesh/_topology.py); official files mean SMPL or MANO, whose
            topology files lie in `mesh_data` or $TORE_FAST_MESH_DATA.
        allow_nonfinite: load weights that hold NaN or infinity, which are refused otherwise.
        **overrides: config fields that the weights do not tell (heads, ...).

    Raises:
        FileNotFoundError, ValueError: one line that names the file, what was expected and what came.

    Example:
        >>> from_pretrained("default").config.image_size
        112
        >>> from_pretrained("FastMETRO-L-H64_h36m_state_dict.bin", mesh_data="topology")  # doctest: +SKIP
    """
    from .keypoints import _mediapipe as mediapipe

    given = {k: v for k, v in (("mesh", mesh), ("mesh_data", mesh_data)) if v is not None}
    if str(source) in BUILT_IN:
        return load_pretrained(default_folder(str(source)), allow_nonfinite, **given, **overrides)
    path = Path(source)
    if path.is_dir() or (path.name == WEIGHTS_NAME and (path.parent / CONFIG_NAME).exists()):
        return load_pretrained(path if path.is_dir() else path.parent, allow_nonfinite, **given, **overrides)
    if not path.suffix and not path.exists() and list_models(str(source)) == [str(source)]:
        return create_model(str(source), **given, **overrides).eval()
    if mediapipe.is_tflite(path):
        return mediapipe.load_tflite(path)[0]
    if model is not None:
        return _fitting(path, model, mesh, mesh_data, allow_nonfinite, overrides)
    state = read_state_dict(path)
    layout = recognise(state, str(path), upstream)
    return layout.load(state, str(path), allow_nonfinite=allow_nonfinite, **given, **overrides)


def _fitting(path: Path, name: str, mesh: Any, mesh_data: Any, allow_nonfinite: bool, overrides: dict) -> nn.Module:
    """The registered model `name` with the weights of an official file."""
    from .mesh.layouts import to_native

    entry, given = model_entry(name), {k: v for k, v in (("mesh", mesh), ("mesh_data", mesh_data)) if v is not None}
    if mesh_data is not None and entry.task != "mesh":
        raise ValueError(f"from_pretrained: {name} regresses no mesh, mesh_data cannot be given")
    if mesh is None and mesh_data is not None:
        given["mesh"] = "mano" if "hand" in entry.tags else "smpl"
    state = read_state_dict(path)
    built = entry.build(**given, **overrides)
    load_strict(built, to_native(state), str(path), allow_nonfinite=allow_nonfinite)
    return built.eval()


def convert(
    path: str | Path,
    folder: str | Path,
    upstream: str | None = None,
    fov_net: str | Path | None = None,
    allow_nonfinite: bool = False,
    **overrides: Any,
) -> Conversion:
    """Writes an official file as our checkpoint folder (safetensors + config.json).

    The topology files of SMPL or MANO are not needed here: only the keys are checked. They are when the folder is loaded.

    Args:
        upstream, allow_nonfinite: as `from_pretrained`.
        fov_net: HumanFoV's own file, to become part of a CameraHMR checkpoint.
        **overrides: config fields that the weights do not tell.
    """
    from .keypoints import _mediapipe as mediapipe

    if mediapipe.is_tflite(path):
        model, name = mediapipe.load_tflite(path)
        save_pretrained(model, folder, name, torch.float16, converted_from=Path(path).name, **mediapipe.card(name))
        return Conversion("mediapipe", name, len(model.state_dict()), (), 0)
    state = read_state_dict(path)
    layout = recognise(state, str(path), upstream)
    if fov_net is not None:
        if layout.upstream != "camerahmr":
            raise ValueError(
                f"convert: a field-of-view net belongs to CameraHMR files, {path} is of {layout.upstream or 'another project'}"
            )
        overrides["fov_net_file"] = fov_net
    model = layout.load(state, str(path), without_topology=True, allow_nonfinite=allow_nonfinite, **overrides)
    name = nearest_name(model)
    save_pretrained(model, folder, name, converted_from=Path(path).name, layout=layout.name)
    dropped = tuple(k for k in state if layout.dropped(k))
    return Conversion(layout.name, name, len(model.state_dict()), dropped, sum(state[k].numel() for k in dropped))
