"""`tore-fast eval [TASK]`: one module eval_TASK.py per task; without a TASK the model decides, for `default` the data.

A task has its own `Args` and `run`; what they share is in _report.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from . import UsageError

if TYPE_CHECKING:
    from ..models._registry import ModelEntry

SUBCOMMANDS = {
    "mesh": "body and hand meshes on TSV sets, tars, 3DPW, FreiHAND, own folders or synthetic images",
    "smpl": "body parameters (TCFormer, HMR2.0, CameraHMR) on the same data, posed with SMPL or the free body",
    "lifting": "video pose lifting (MixSTE, MotionBERT, MHFormer, HoT, TPC) on Human3.6M, 3DHP or motion capture",
    "keypoints": "heat-map models (TCFormer, PPT) on COCO-WholeBody, COCO, WFLW or synthetic people",
    "classify": "image classifiers (TCFormer) on folders of class folders (ImageNet)",
    "motion": "FastHMR's motion prior and denoiser on motion files",
}


def default_job(argv: list[str]) -> str:
    """The task that `tore-fast eval --model NAME --data D ...` means."""
    from ..models.default import BUILT_IN

    given = {}
    for flag, value in zip(argv, [*argv[1:], ""]):
        name, equals, after = flag.partition("=")
        given[name] = after if equals else value
    model = given.get("--model", "default")
    entries = [e for name in (model, given.get("--checkpoint", "")) if (e := registered_entry(name)) is not None]
    if not entries and model not in BUILT_IN and not Path(model).exists():
        raise UsageError(
            f"--model {model}: no such folder or file, and no registered model of that name (tore-fast list)"
        )
    if not entries and model in BUILT_IN and looks_like_motion(Path(given.get("--data", ""))):
        return "lifting"
    return next((e.task for e in entries if e.task in SUBCOMMANDS), "mesh")


def looks_like_motion(path: Path) -> bool:
    """Whether the data is of poses over time, told by file names."""
    if path.is_file():
        return path.suffix in (".bvh", ".amc") or "_3dhp" in path.name
    if (path / "data_3d_h36m.npz").is_file() or (path / "clips.npz").is_file() or any(path.glob("data_*_3dhp.npz")):
        return True
    return any(next(path.glob(p), None) for p in ("*.bvh", "*/*.bvh", "*.amc", "*/*.amc"))


def registered_entry(name: str) -> ModelEntry | None:
    """Registry entry of a registered name or of a checkpoint folder of ours; None where neither."""
    from ..models import model_entry
    from ..models._checkpoint import CONFIG_NAME, read_config

    try:
        if (Path(name) / CONFIG_NAME).is_file():
            name = read_config(name)["model"]
        return model_entry(name)
    except (ValueError, KeyError):
        return None
