"""`tore-fast eval smpl`: errors of a regressor of body parameters, posed with its body; the run is eval_mesh.py's."""

from __future__ import annotations

from dataclasses import dataclass

from . import UsageError, eval_mesh
from .eval import registered_entry


@dataclass(kw_only=True)
class Args(eval_mesh.Args):
    """Errors of TCFormer's regressors, HMR2.0 and CameraHMR on a data set (docs/data.md lists formats) or on synthetic
    images.
    Under torchrun every process takes a share; the same command goes on after a kill."""

    model: str = ""
    """A registered name (tore-fast list; random weights), or a checkpoint folder."""


def run(args: Args) -> int:
    if not args.model and args.checkpoint is None:
        raise UsageError("--model or --checkpoint: expected a regressor of body parameters (tore-fast list --tag smpl)")
    entry = registered_entry(str(args.checkpoint or args.model))
    if entry is not None and entry.task != "smpl":
        raise UsageError(f"--model: {entry.name} regresses no body parameters; tore-fast eval mesh takes meshes")
    return eval_mesh.run(args)
