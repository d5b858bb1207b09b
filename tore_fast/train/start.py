"""Weights to start a training from: every tensor of a file or folder that fits the model, by name and shape.

In: a model and the path of a run's last.pt or best.pt, of a folder of ours, or of an official file. Out: the model with
these weights, and a line that says whether that was the whole model, its backbone, or what starts anew. Called by
run.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

from ..io.weights import read_weights

WRAPPERS = ("", "model.", "host.", "host.model.")  # prefixes of models inside what is trained (heads of the training)
NAMED = 8  # tensors that start anew and are named


def take_weights(model: nn.Module, path: str | Path, mesh_data: str | None = None) -> str:
    """Copies what fits of `path` into `model`; returns the line to print.

    The weights of a classifier become the backbone of a larger model. Of several readings of the names the one that
    fits most tensors counts.

    Args:
        mesh_data: folder of the SMPL or MANO topology files, which official mesh checkpoints need.

    Raises:
        FileNotFoundError: nothing there. ValueError: no weight file, or less than half of its tensors fit.
    """
    own, given = model.state_dict(), tensors_of(Path(path), mesh_data)
    fits = max(
        ({k: v for k, v in named.items() if k in own and own[k].shape == v.shape} for named in _readings(given)),
        key=len,
    )
    if 2 * len(fits) < len(given):
        wrong = next((k for k in given if k not in fits), "")
        raise ValueError(
            f"--checkpoint {path}: {len(fits)} of its {len(given)} tensors fit the model (first that does not: "
            f"{wrong}); give a checkpoint of this model or of its backbone, or name the model it belongs to (--model)"
        )
    model.load_state_dict({**own, **fits})
    return f"{path}: {_what(own, fits)}"


def _readings(given: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors under the names they may have in the model."""
    for cut in WRAPPERS:
        if any(k.startswith(cut) for k in given):
            short = {k.removeprefix(cut): v for k, v in given.items()}
            for into in (*WRAPPERS, *(w + "backbone." for w in WRAPPERS)):
                yield {into + k: v for k, v in short.items()}


def _what(own: dict[str, Tensor], fits: dict[str, Tensor]) -> str:
    count = f"{len(fits)} of {len(own)} tensors"
    fresh = [k for k in own if k not in fits]
    if not fresh:
        return f"{count} taken: the whole model"
    if all("backbone." in k for k in fits) and not any("backbone." in k for k in fresh):
        return f"{count} taken: the backbone; the rest starts anew"
    more = f" and {len(fresh) - NAMED} more" if len(fresh) > NAMED else ""
    return f"{count} taken; {', '.join(fresh[:NAMED])}{more} start{'s' if len(fresh) == 1 else ''} anew"


def tensors_of(path: Path, mesh_data: str | None = None) -> dict[str, Tensor]:
    """Tensors of a run's last.pt (averaged, where it has averages) or best.pt, a folder of ours, or an official
    file."""
    from ..models import load

    if not path.exists():
        raise FileNotFoundError(f"--checkpoint {path}: no such file or folder")
    state = None
    if path.is_file():
        state = read_weights(path)
    if isinstance(state, dict) and "model" in state and "step" in state:
        return {**state["model"], **(state.get("ema") or {}).get("average", {})}
    return load(path, mesh_data=mesh_data or None).state_dict()
