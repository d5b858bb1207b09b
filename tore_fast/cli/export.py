"""`tore-fast export MODEL OUT`: a model as a file for onnxruntime, torch.export, AOTInductor or TorchScript."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from . import UsageError, arguments
from ._options import ModelArgs


@dataclass
class Args:
    """Writes a model as a file that runs without this package; what goes in and comes out stands in OUT.json and in the
    file's metadata."""

    model: Positional[str]
    """`default` (built in), a registered name (tore-fast list), or a checkpoint folder."""
    out: Positional[Path]
    """File to write: .onnx (onnxruntime), .pt2 (torch.export), .aoti (AOTInductor, compiled for this machine) or .ts
    (TorchScript)."""
    checkpoint: Path | None = None
    """Weights: a folder of ours, or an official file of the model that MODEL names."""
    set: dict[str, str] = field(default_factory=dict)
    """Fields of the model's config as NAME VALUE pairs, e.g. --set keep_tokens 90."""
    mesh_data: Path | None = None
    """Folder with the SMPL/MANO topology files, for models of those meshes (else $TORE_FAST_MESH_DATA)."""
    dynamic_batch: bool = False
    """Any batch size instead of 1."""
    precision: Literal["fp32", "fp16"] = "fp32"
    """Of the weights and products; input and outputs stay float32."""
    check: bool = False
    """Run the file on random input and compare it with the model."""
    json: bool = False
    """Print the summary as JSON."""


def run(args: Args) -> int:
    from ..engine.export import KINDS, check_exportable, export

    if args.out.suffix not in KINDS:
        raise UsageError(f"OUT: expected a file name that ends in {', '.join(KINDS)}, got {args.out.name!r}")
    chosen = ModelArgs(model=args.model, checkpoint=args.checkpoint, set=args.set, mesh_data=args.mesh_data)
    with arguments():
        network = chosen.network()
        check_exportable(network, args.model)
    chosen.note_random("outputs of the file")
    name = args.model if args.checkpoint is None else f"{args.model} ({args.checkpoint.name})"
    done = export(
        network, args.out, dynamic_batch=args.dynamic_batch, precision=args.precision, check=args.check, name=name
    )
    facts: dict[str, Any] = {"file": str(done.path), "bytes": done.path.stat().st_size, "contract": done.contract}
    if done.differences is not None:
        facts["differences"] = done.differences
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    given = done.contract["input"]
    print(f"{done.path}: {facts['bytes'] / 1e6:.1f} MB, {args.precision}")
    print(f"  input   {given['shape']} {given.get('layout', '')}".rstrip())
    for output in done.contract["outputs"]:
        apart = (done.differences or {}).get(output["name"])
        told = "" if apart is None else f"  (largest difference {apart:.1e} of its mean size)"
        print(f"  output  {output['name']} {output['shape']}{told}")
    print(f"  contract in {done.path.name}.json")
    return 0
