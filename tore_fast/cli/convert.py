"""`tore-fast convert IN OUT`: an official checkpoint as our folder of safetensors and config.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from . import UsageError


@dataclass
class Args:
    """Converts an official checkpoint (FastMETRO, METRO, Mesh Graphormer, TORE, TCFormer, HoT and its hosts, HMR2.0,
    CameraHMR, HumanFoV, DenseKP, MediaPipe's pose nets); only tensors of the file are read."""

    source: Positional[Path]
    """Official weight file (.bin, .ckpt, .pth, .pt, .safetensors, .tflite)."""
    out: Positional[Path]
    """Folder to write: commands take it as --model, Python as load(FOLDER)."""
    upstream: str | None = None
    """fastmetro, tore, metro, graphormer, tcformer, hot, hmr2, camerahmr, humanfov or densekp; found from the keys when
    not given."""
    fov_net: Path | None = None
    """HumanFoV's file, to go into the folder of a CameraHMR checkpoint."""
    allow_nonfinite: bool = False
    """Convert weights that hold NaN or infinity, which are refused otherwise."""
    mesh_data: Path | None = None
    """Folder with the SMPL/MANO topology files: a written image-to-mesh folder is loaded with them once, as a check."""
    json: bool = False
    """Print the summary as JSON."""


def run(args: Args) -> int:
    from ..models import load, model_entry
    from ..models._checkpoint import convert
    from ..models._layouts import upstreams

    for path in filter(None, (args.source, args.fov_net)):
        if not path.exists():
            raise UsageError(f"{path}: no such file")
    if args.out.exists() and not args.out.is_dir():
        raise UsageError(f"{args.out}: expected a folder to write, got a file")
    if args.upstream not in (None, *upstreams()):
        raise UsageError(f"--upstream: expected one of {', '.join(upstreams())}, got {args.upstream!r}")
    done = convert(args.source, args.out, args.upstream, args.fov_net, args.allow_nonfinite)
    of_mesh = model_entry(done.name).task == "mesh"
    if of_mesh and args.mesh_data is not None:
        load(args.out, mesh_data=args.mesh_data, allow_nonfinite=args.allow_nonfinite)
    lines = [f"{args.source}: {done.layout} layout, {done.keys} tensors kept"]
    if done.dropped:
        numbers = f"{done.dropped_params / 1e6:.1f} M numbers"
        lines.append(f"dropped {len(done.dropped)} tensors that no forward pass reads ({numbers})")
    lines.append(f"written: {args.out}/model.safetensors, config.json (model {done.name})")
    if of_mesh and args.mesh_data is not None:
        lines.append(f"checked: {args.out} loads with the topology files in {args.mesh_data}")
    if of_mesh:
        lines.append(
            "weights trained on SMPL or MANO stay under their licences; loading needs the topology files "
            "(--mesh-data or TORE_FAST_MESH_DATA)"
        )
    facts = {"model": done.name, "layout": done.layout, "tensors": done.keys, "dropped": [*done.dropped]}
    print(json.dumps({**facts, "out": str(args.out)}, indent=2) if args.json else "\n".join(lines))
    return 0
