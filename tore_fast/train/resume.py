"""Whether the run in a folder is the one that is asked for: another model or seed is refused, another rate is told.

In: the state in OUT/last.pt and what is asked for; out: nothing, one line, or an OtherRun of one line.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .config import Task, TrainConfig

# settings that do not change the curve, or that may be changed on the way without a word
FREE = {
    "out", "epochs", "eval_every", "log_every", "checkpoint_minutes", "max_minutes", "workers", "memory_report",
    "checkpoint_activations",
}  # fmt: skip
# the state of the optimiser, or every batch, would mean something else
FIXED = ("seed", "optimiser", "decay_all")


class OtherRun(ValueError):
    """The folder holds a run of another model, seed or optimiser."""


def identity_of(task: Task, name: str = "") -> dict[str, Any]:
    """What a run trains, JSON-able: the model's name and the fields of its config."""
    model = task.model_to_export()
    config = getattr(model, "config", None)
    fields = dataclasses.asdict(config) if dataclasses.is_dataclass(config) and not isinstance(config, type) else {}
    return {"model": name or type(model).__name__, **json.loads(json.dumps(fields, default=str))}


def check_same_run(
    out: Path, state: dict[str, Any], identity: dict[str, Any], config: TrainConfig, say: Callable[[str], None]
) -> None:
    """Compares a saved run with the one that is asked for.

    Raises:
        OtherRun: it trains another model, or with another seed or optimiser.
    """
    before, now = state["config"], json.loads(json.dumps(dataclasses.asdict(config)))
    before = json.loads(json.dumps(before))
    was = state.get("identity", identity)
    different = [(k, was.get(k), identity.get(k)) for k in (*identity, *was) if was.get(k) != identity.get(k)]
    different += [(k, before.get(k), now[k]) for k in FIXED if before.get(k) != now[k]]
    if bool(before.get("ema")) != bool(now["ema"]):
        different.append(("ema", before.get("ema"), now["ema"]))
    if different:
        key, old, new = different[0]
        raise OtherRun(
            f"--train.out {out}: holds a run with {key} {old!r}, this one has {new!r}; give another folder or delete it"
        )
    changed = [k for k in now if k not in FREE and k not in FIXED and before.get(k) != now[k]]
    if changed:
        say(
            f"note: {out} was trained with {', '.join(f'{k} {before.get(k)}' for k in changed)}; "
            f"it goes on with {', '.join(f'{k} {now[k]}' for k in changed)}"
        )


def load_weights(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """All weights of a saved run.

    Raises:
        OtherRun: names or shapes of another model.
    """
    own = model.state_dict()
    bad = sorted(
        k for k in own.keys() | state.keys() if k not in own or k not in state or own[k].shape != state[k].shape
    )
    if bad:
        raise OtherRun(
            f"{path}: holds another model ({len(bad)} of {len(own)} tensors differ, first: {bad[0]}); give "
            "another --train.out"
        )
    model.load_state_dict(state)
