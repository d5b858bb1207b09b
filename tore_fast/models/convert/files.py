"""Reads weight files of any upstream: tensors only, nothing of the file is executed; wrappers and prefixes taken off.

In: a path; out: a flat {name: tensor}. Next on the way: convert/hmr.py recognises the layout.
"""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import torch
from torch import Tensor

from .._weights import read_safetensors, unreadable

_WRAPPERS = ("state_dict", "model_state_dict", "model", "model_pos")
_PROFILER = ("total_ops", "total_params")  # buffers that thop leaves in every module


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name, without `module.` in front and without profiler counters.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a weight file, or one that holds Python objects instead of plain tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    if path.suffix == ".safetensors":
        return clean_state_dict(read_safetensors(path), str(path))
    try:
        with warnings.catch_warnings():  # torch warns of the pickle protocol before it refuses the file
            warnings.simplefilter("ignore")
            data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        with path.open("rb") as f:
            if f.read(1) not in (b"P", b"\x80"):  # neither a zip nor a pickle
                raise unreadable(path, e) from None
        raise ValueError(
            f"{path}: not plain tensors: a whole pickled model or a damaged file is never executed; use the file with the "
            "state dict (upstream trainings write it as state_dict.bin)"
        ) from None
    except (
        Exception
    ) as e:  # the unpickler fails with whatever the bytes lead it to: KeyError, IndexError, struct.error ...
        raise unreadable(path, e) from None
    return clean_state_dict(data, str(path))


def clean_state_dict(data: object, source: str = "checkpoint") -> dict[str, Tensor]:
    """The state dict inside what a training script saved."""
    for wrapper in _WRAPPERS:
        if isinstance(data, dict) and isinstance(data.get(wrapper), dict):
            data = data[wrapper]
            break
    if not isinstance(data, dict) or not data or not all(isinstance(v, Tensor) for v in data.values()):
        kinds = {type(v).__name__ for v in data.values()} if isinstance(data, dict) else {type(data).__name__}
        raise ValueError(
            f"{source}: expected a state dict (name -> tensor) or one under {_WRAPPERS}, got {sorted(kinds)}"
        )
    state = {str(k): v for k, v in data.items()}
    while all(k.startswith("module.") for k in state):
        state = {k.removeprefix("module."): v for k, v in state.items()}
    return {k: v for k, v in state.items() if k.rsplit(".", 1)[-1] not in _PROFILER}
