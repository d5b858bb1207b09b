"""`tore-fast eval mesh`: errors of a mesh model on a data set, as the papers count them; a stopped run goes on."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ._body import protocol_of
from ._report import EvalArgs, device_of, guarded, number, report, unit_of, work_folder, write_json
from .eval import registered_entry


@dataclass(kw_only=True)
class Args(EvalArgs):
    """Errors of a model on a data set (docs/data.md lists formats, docs say where files come from). Under torchrun
    every
    process takes a share; the same command goes on after a kill."""

    data: str
    """A TSV set's yaml, tars, npz, csv/json, or the folder of 3DPW or FreiHAND; `synth`: held-out synthetic images."""
    model: str = "default"
    """`default`, a registered name (tore-fast list; random weights), or a checkpoint folder."""
    checkpoint: str | None = None
    """Weights: a folder of ours, or an official file."""
    upstream: str | None = None
    """Project of an official file (fastmetro, metro, tore, graphormer, hmr2, ...) where its keys do not tell."""
    body: str = "auto"
    """auto (free body or hand), or a file/folder with the SMPL or MANO model that the data and the weights speak of."""
    mesh_data: str | None = None
    """Folder of the SMPL/MANO topology files (also $TORE_FAST_MESH_DATA)."""
    image_size: int = 0
    """Side of the square crops in pixels; 0: as the model's config says (224 where it says nothing)."""
    protocol: str = "auto"
    """body, hand, or auto (told by the first item)."""
    truth: str = "auto"
    """True joints: annotation, mesh (H36M regressor), mesh_j24 (METRO's own 3DPW labels), or auto."""
    gendered: bool = False
    """True meshes by gender (SMPL_MALE/FEMALE beside the neutral file); official numbers use the neutral body."""
    smpl_head: bool = False
    """Score the mesh of FastMETRO's SMPL parameter head."""
    multiscale: bool = False
    """Hands: METRO's test-time augmentation, 5 scales x 19 turns aligned and averaged (95 passes an item)."""
    format: str | None = None
    """Format of the data, where looking does not tell."""
    options: dict[str, str] = field(default_factory=dict)
    """Further reader options as KEY VALUE pairs: split, images, box, ..."""
    pred_json: Path | None = None
    """Hands: write FreiHAND's pred.json here."""


def run(args: Args) -> int:
    return guarded(lambda: _synthetic(args) if args.data == "synth" else _evaluate(args))


def _evaluate(args: Args) -> int:
    from ..data.readers import evaluation_crop, open_dataset
    from ..eval.evaluate import MeshScoring, evaluate, process_rank
    from ..eval.multiscale import VIEWS, MultiScale, view_crops
    from ..eval.parameter_models import CameraScoring, takes_camera
    from ..eval.protocols import HandProtocol, write_freihand_json

    reader = open_dataset(args.data, args.format, **args.options)
    hand = _is_hand(args, reader)
    protocol = protocol_of(hand, args.body, args.mesh_data, args.truth, args.gendered)
    model, size = _model(args)
    scoring = CameraScoring if takes_camera(model) else MeshScoring
    work = work_folder(args)
    label: dict[str, Any] = {"data": args.data, "model": args.checkpoint or args.model}
    crop: Any = evaluation_crop
    if args.multiscale:
        if not hand:
            raise ValueError("--multiscale is for hands: turned crops mean nothing for un-aligned errors of bodies")
        joints = functools.partial(protocol.body.regress, "hand21")
        model, crop, label = MultiScale(model, joints), view_crops, {**label, "views": len(VIEWS)}
    result = evaluate(
        model,
        reader,
        protocol,
        work,
        image_size=size,
        batch_size=args.batch_size,
        device=device_of(args.device),
        precision=args.precision,
        workers=args.workers,
        limit=args.limit,
        smpl_head=args.smpl_head,
        crop=crop,
        scoring=scoring,
        label=label,
    )
    if result is None:
        return 0  # rank 0 reports
    metrics, rows = result
    code = report(metrics, args.json, unlabelled=args.pred_json is not None)
    if args.pred_json is not None:
        if not isinstance(protocol, HandProtocol):
            raise ValueError("--pred-json is for hands (FreiHAND)")
        if metrics["failed"]:
            raise ValueError(f"--pred-json: FreiHAND wants every item, {len(metrics['failed'])} failed")
        write_freihand_json(rows, args.pred_json)
        print(f"{args.pred_json}: {metrics['items']} hands for FreiHAND's evaluator (process {process_rank()[0]})")
    return code


def _is_hand(args: Args, reader: Any) -> bool:
    if args.protocol not in ("auto", "body", "hand"):
        raise ValueError(f"--protocol: expected auto, body or hand, got {args.protocol!r}")
    if args.protocol != "auto":
        return args.protocol == "hand"
    if not len(reader):
        raise ValueError(f"--data {args.data}: no item")
    return reader[0].is_hand


def _model(args: Args) -> Any:
    """The model and the size of its crops."""
    from ..eval.parameter_models import crop_size, is_scored
    from ..models import load

    source = args.checkpoint or args.model
    entry = registered_entry(source)
    if entry is not None and entry.name == source:
        print("note: random weights (no --checkpoint)", file=sys.stderr)
    model = load(source, args.upstream, model=args.model or None, mesh_data=args.mesh_data)
    if entry is not None and not is_scored(model):
        raise ValueError(f"{source}: expected a model of meshes or body parameters, got {type(model).__name__}")
    return model, args.image_size or crop_size(model)


def _synthetic(args: Args) -> int:
    from ..body import load_body
    from ..data.synth import held_out
    from ..eval.synthetic import evaluate_held_out

    model, size = _model(args)
    model = model.to(device_of(args.device)).eval()
    # models of body parameters have no mesh of their own: theirs is the body they are posed with
    name = getattr(getattr(model, "mesh", None), "name", "free")
    if name not in ("free", "free_hand"):
        raise ValueError(f"--data synth shows the free body or hand, the model speaks of {name!r}")
    body = load_body(name).to(device_of(args.device))
    side = size if isinstance(size, int) else size[0]
    metrics = {
        name: evaluate_held_out(model, body, name, image_size=side, images=args.limit) for name in held_out(body)
    }
    print(f"{'held-out synthetic images':28}" + "".join(f"{name:>10}" for name in metrics) + "  unit")
    for key in next(iter(metrics.values())):
        unit = "" if key == "images" else unit_of(key)
        print(f"{key:28}" + "".join(f"{number(key, values[key]):>10}" for values in metrics.values()) + f"  {unit}")
    write_json(metrics, args.json)
    return 0
