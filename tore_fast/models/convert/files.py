"""The state dict of a weight file of any upstream: wrappers and prefixes taken off.

In: a path; out: a flat {name: tensor}. The file is read by io/weights.py, which executes nothing of it.
Next on the way: convert/__init__.py recognises the layout.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ...io.weights import Unknown, read_weights

WRAPPERS = ("state_dict", "model_state_dict", "model_pos", "model", "net", "network", "module")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
_PROFILER = ("total_ops", "total_params")  # buffers that thop leaves in every module


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name, without the prefixes that wrappers of a model leave and without profiler counters.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a weight file, or one without a state dict.
    """
    return clean_state_dict(read_weights(path), str(path))


def clean_state_dict(data: object, source: str = "checkpoint") -> dict[str, Tensor]:
    """The state dict inside what a training script saved; settings and counters beside the tensors are left out."""
    for wrapper in WRAPPERS:
        if isinstance(data, dict) and isinstance(data.get(wrapper), dict):
            data = data[wrapper]
            break
    state = {str(k): v for k, v in data.items() if isinstance(v, Tensor)} if isinstance(data, dict) else {}
    if not state:
        within = list(data.values()) if isinstance(data, dict) else [data]
        if unknown := next((v for v in within if isinstance(v, Unknown)), None):
            raise ValueError(
                f"{source}: not plain tensors but a Python object ({unknown.name}), which is never executed; use the file "
                "with the state dict (upstream trainings write it as state_dict.bin)"
            )
        kinds = sorted({type(v).__name__ for v in within}) or "nothing"
        raise ValueError(f"{source}: expected a state dict (name -> tensor) or one under {WRAPPERS}, got {kinds}")
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in state)), None):
        state = {k.removeprefix(prefix): v for k, v in state.items()}
    return {k: v for k, v in state.items() if k.rsplit(".", 1)[-1] not in _PROFILER}
