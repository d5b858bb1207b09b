"""`tore-fast eval [JOB]`: one module eval_JOB.py per kind of truth; without a JOB the family of --model decides (else `mesh`).

A job has its own `Args` and `run`. A family that cannot be scored as a mesh adds one line to each table below.
"""

from __future__ import annotations

import json
from pathlib import Path

SUBCOMMANDS = {
    "mesh": "body and hand meshes (HMR families) on TSV sets, tars, 3DPW, FreiHAND, own folders or synthetic images",
    "lift": "video pose lifting (MixSTE, MotionBERT, MHFormer, HoT, TPC) on Human3.6M, 3DHP or motion capture",
}
JOB_OF_FAMILY: dict[str, str] = {}
"""Family of the registry (models/_registry.py) -> job, where it is not `mesh`."""


def default_job(argv: list[str]) -> str:
    """The job that `tore-fast eval --model NAME --data D ...` means: by the model's family, for the default model by the data."""
    from .eval_lift import is_lifting

    given = {}
    for flag, value in zip(argv, [*argv[1:], ""]):
        name, equals, after = flag.partition("=")
        given[name] = after if equals else value
    model = given.get("--model", "default")
    if is_lifting(model, given.get("--data", "")):
        return "lift"
    return JOB_OF_FAMILY.get(_family(model), "mesh")


def _family(name: str) -> str:
    """Family of a registered name or of a checkpoint folder of ours; "" where neither."""
    from ..models import model_entry
    from ..models._hub import CONFIG_NAME, read_config

    try:
        if (Path(name) / CONFIG_NAME).is_file():
            name = read_config(name)["model"]
        return model_entry(name).family
    except (ValueError, KeyError):
        return ""


def write_json(metrics: dict, path: Path | None) -> None:
    """Metrics to --json, where one is given; its folder is made."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(metrics, indent=2) + "\n")
