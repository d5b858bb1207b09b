"""`tore-fast eval motion`: joint errors of FastHMR's motion prior or denoiser on motion files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ._report import device_of, guarded, rows_table, write_json


@dataclass(kw_only=True)
class Args:
    """Mean distance of root-relative joints over windows. Prior: the motion that comes back; denoiser: the motion it
    makes
    of the files' tokens. Give motions that were not trained on."""

    data: Path
    """Folder of motions as for `train motion`; those of the denoiser hold tokens [F, C]."""
    model: Path
    """Checkpoint folder of the prior or the denoiser."""
    up: str = "z"
    """z for AMASS world axes, camera for motions in camera axes."""
    body: str = "free"
    """Body for the rest skeleton: free, or a SMPL model file."""
    frames: int = 243
    """Frames of a window; the denoiser has its own."""
    device: str = "auto"
    """auto, cpu, cuda ..."""
    json: Path | None = None
    """Write the metrics here."""


def run(args: Args) -> int:
    return guarded(lambda: _evaluate(args))


def _evaluate(args: Args) -> int:
    from ..models import load
    from ..models._checkpoint import read_config
    from ..pipelines.hosts import RestSkeleton, load_named_body
    from ..train.motion import read_motion_folder, read_prior, window_errors_mm, windows_of

    if not args.model.is_dir():
        raise FileNotFoundError(f"--model {args.model}: no such folder")
    if not read_config(args.model)["model"].startswith("fasthmr_motion"):
        raise ValueError(
            f"--model {args.model}: expected a motion prior or denoiser, got {read_config(args.model)['model']}"
        )
    model = load(args.model)
    prior = read_prior(args.model)[1:] if read_config(args.model)["model"] == "fasthmr_motion_vae" else None
    clips = read_motion_folder(args.data, 30.0, args.up)
    rest = RestSkeleton(load_named_body(args.body))
    frames = args.frames if prior is not None else model.config.frames
    model = model.to(device_of(args.device)).eval()
    per_motion: dict[str, list[float]] = {}
    for clip in clips:
        per_motion.setdefault(clip.motion, []).extend(window_errors_mm(model, windows_of(clip, rest, frames), prior))
    windows = [error for found in per_motion.values() for error in found]
    mean = sum(windows) / len(windows)
    errors = {name: sum(found) / len(found) for name, found in per_motion.items()}
    rows = {name: {"joints_mm": value} for name, value in {**errors, "mean over windows": mean}.items()}
    print(rows_table("motion", rows, ["joints_mm"]))
    write_json({"joints_mm": mean, "per_motion": errors, "data": str(args.data), "model": str(args.model)}, args.json)
    return 0
