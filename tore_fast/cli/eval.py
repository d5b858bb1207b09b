"""`tore-fast eval`: errors of a model on a data set, as the papers count them; a stopped run goes on.

Meshes and joints here; key points (COCO-WholeBody, COCO, WFLW) and ImageNet classes through _eval_tasks.py.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

# exit codes: 0 all items, 1 some items could not be read, 2 nothing was evaluated
SOME_FAILED, NOTHING_DONE = 1, 2
_SHARES = ("_f_", "auc", "AP", "AR", "nme", "_fr_", "entropy")  # metrics between 0 and 1: four decimals
GENDER_FILES = {"male": "SMPL_MALE", "female": "SMPL_FEMALE"}


@dataclass
class Args:
    """Errors of a model on a data set (docs/data.md lists formats, docs say where files come from). Under torchrun every
    process takes a share; the same command goes on after a kill."""

    data: str
    """A TSV set's yaml, tars, npz, csv/json, or the folder of 3DPW or FreiHAND; `synth`: held-out synthetic images. With
    --format wholebody or coco: the annotation JSON; wflw: list_98pt_rect_attr_test.txt; imagenet: a folder of class folders."""
    model: str = "default"
    """`default`, a registered name (tore-fast list), or a folder written by save_pretrained."""
    checkpoint: str | None = None
    """Weights: a folder of ours, or an official file."""
    upstream: str | None = None
    """Project of an official file (fastmetro, metro, tore, graphormer, hmr2, ...) where its keys do not tell."""
    body: str = "auto"
    """auto (free body or hand), or a file/folder with the SMPL or MANO model that the data and the weights speak of."""
    mesh_data: str | None = None
    """Folder of the SMPL/MANO topology files (also $TORE_FAST_MESH_DATA)."""
    protocol: str = "auto"
    """body, hand, or auto (told by the first item)."""
    truth: str = "auto"
    """True joints: annotation, mesh (H36M regressor), mesh_j24 (METRO's own 3DPW labels), or auto."""
    gendered: bool = False
    """True meshes by gender (SMPL_MALE/FEMALE beside the neutral file); official numbers use the neutral body."""
    smpl_head: bool = False
    """Score the mesh of FastMETRO's SMPL parameter head."""
    format: str | None = None
    """Format of the data, where looking does not tell; wholebody, coco, wflw and imagenet must be named (wflw's .txt: not)."""
    options: dict[str, str] = field(default_factory=dict)
    """Further reader options as KEY VALUE pairs: split, images, box, ... Key points: images FOLDER, boxes detections.json,
    image_size 256,192, flip_test false, refine none|quarter|dark, half_pixel true."""
    json: Path | None = None
    """Write the metrics here."""
    pred_json: Path | None = None
    """Hands: write FreiHAND's pred.json here; wholebody and coco: the detections in COCO's result format."""
    work: Path | None = None
    """Folder of the rows so far (default: beside --json, else .tore_fast_eval)."""
    limit: int | None = None
    """Only the first items."""
    batch_size: int = 32
    device: str = "auto"
    """auto, cpu, cuda ...; under torchrun `auto` takes the process's own GPU."""
    precision: str = "fp32"
    """fp32, bf16 or fp16 (autocast)."""
    workers: int = 2
    """Processes that read and crop."""


def run(args: Args) -> int:
    try:
        from ._eval_tasks import task_of

        if task_of(args) is not None:
            return _evaluate_task(args)
        return _synthetic(args) if args.data == "synth" else _evaluate(args)
    except (ValueError, FileNotFoundError, RuntimeError, NotADirectoryError) as e:
        print(f"error: {e}", file=sys.stderr)
        return NOTHING_DONE


def _evaluate(args: Args) -> int:
    from ..data.readers import open_dataset
    from ..eval.evaluate import evaluate, process_rank
    from ..eval.protocols import HandProtocol, write_freihand_json

    reader = open_dataset(args.data, args.format, **args.options)
    hand = _is_hand(args, reader)
    protocol = _protocol(args, hand)
    model = _model(args, protocol.body)
    size = getattr(getattr(model, "config", None), "image_size", None) or (256 if args.upstream in ("hmr2", "camerahmr") else 224)
    result = evaluate(
        model, reader, protocol, _work(args), image_size=size, batch_size=args.batch_size, device=_device(args.device),
        precision=args.precision, workers=args.workers, limit=args.limit, smpl_head=args.smpl_head, label=_label(args),
    )  # fmt: skip
    if result is None:
        return 0  # rank 0 reports
    metrics, rows = result
    _report(metrics, args)
    if args.pred_json is not None:
        if not isinstance(protocol, HandProtocol):
            raise ValueError("--pred-json is for hands (FreiHAND)")
        if metrics["failed"]:
            raise ValueError(f"--pred-json: FreiHAND wants every item, {len(metrics['failed'])} failed")
        write_freihand_json(rows, args.pred_json)
        print(f"{args.pred_json}: {metrics['items']} hands for FreiHAND's evaluator (process {process_rank()[0]})")
    return SOME_FAILED if metrics["failed"] else 0


def _evaluate_task(args: Args) -> int:
    from ..eval.evaluate import evaluate_rows
    from ..eval.task_scoring import KeypointScoring, write_coco_results
    from ._eval_tasks import prepare

    model, items, scoring, limit = prepare(args)
    result = evaluate_rows(
        model, items, scoring, _work(args), batch_size=args.batch_size, device=_device(args.device), precision=args.precision,
        workers=args.workers, limit=limit, label=_label(args),
    )  # fmt: skip
    if result is None:
        return 0
    metrics, rows = result
    _report(metrics, args)
    if args.pred_json is not None:
        if not isinstance(scoring, KeypointScoring):
            raise ValueError("--pred-json: only for hands and key points")
        print(f"{args.pred_json}: {write_coco_results(scoring, rows, args.pred_json)} detections")
    return SOME_FAILED if metrics["failed"] else 0


def _work(args: Args) -> Path:
    return args.work or (args.json.with_suffix(".rows") if args.json else Path(".tore_fast_eval"))


def _label(args: Args) -> dict:
    return {"data": args.data, "model": args.checkpoint or args.model}


def _report(metrics: dict, args: Args) -> None:
    print(table(metrics))
    for index, reason in metrics["failed"].items():
        print(f"error: item {index}: {reason}", file=sys.stderr)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(metrics, indent=2) + "\n")


def table(metrics: dict) -> str:
    """Metrics as text: one line per number with the count behind it, then one line per sequence."""
    counts = metrics["counts"]
    names = [k for k, v in metrics.items() if isinstance(v, float) and k not in ("images_per_s",)]
    lines = [f"{'metric':22}{'value':>10}  items"]
    for name in names:
        decimals = 4 if any(word in f"_{name}" for word in _SHARES) else 2
        lines.append(f"{name:22}{metrics[name]:10.{decimals}f}  {counts.get(name, metrics['items'])}")
    per_sequence = metrics.get("per_sequence", {})
    if len(per_sequence) > 1:
        columns = [m for m in names if any(m in row for row in per_sequence.values())]
        width = max(map(len, per_sequence))
        lines += ["", f"{'sequence':{width}}" + "".join(f"{m:>14}" for m in columns)]
        for name, row in per_sequence.items():
            lines.append(f"{name:{width}}" + "".join(f"{row[m]:14.2f}" if m in row else f"{'-':>14}" for m in columns))
    identity = metrics["identity"]
    lines += ["", f"{metrics['items']} items of {identity.get('data', '?')}, {identity['protocol']} protocol, "
              f"weights {identity['weights']}, {metrics['images_per_s']:.1f} images/s in this run"]  # fmt: skip
    return "\n".join(lines)


def _is_hand(args: Args, reader) -> bool:
    if args.protocol not in ("auto", "body", "hand"):
        raise ValueError(f"--protocol: expected auto, body or hand, got {args.protocol!r}")
    if args.protocol != "auto":
        return args.protocol == "hand"
    if not len(reader):
        raise ValueError(f"--data {args.data}: no item")
    first = reader[0]
    return "hand21" in (first.keypoints_2d_set, first.keypoints_3d_set) or (first.pose is not None and len(first.pose) == 48)


def _protocol(args: Args, hand: bool):
    from ..body import load_body
    from ..eval.protocols import BodyProtocol, HandProtocol

    if hand:
        body = load_body("free_hand") if args.body == "auto" else load_body("mano", args.body, topology=args.mesh_data)
        return HandProtocol(body)
    if args.body == "auto":
        if args.gendered:
            raise ValueError("--gendered needs --body: the folder with SMPL_NEUTRAL, SMPL_MALE and SMPL_FEMALE")
        return BodyProtocol({"neutral": load_body("free")}, args.truth)
    topology = _topology(args)
    bodies = {"neutral": load_body("smpl", args.body, topology=topology)}
    if args.gendered:
        folder = Path(args.body) if Path(args.body).is_dir() else Path(args.body).parent
        for gender, stem in GENDER_FILES.items():
            file = next((folder / f"{stem}{s}" for s in (".pkl", ".npz") if (folder / f"{stem}{s}").is_file()), None)
            if file is None:
                raise FileNotFoundError(f"--gendered: no {stem}.pkl or .npz in {folder}; SMPL is licensed, get it from its site")
            bodies[gender] = load_body("smpl", file, topology=topology)
    return BodyProtocol(bodies, args.truth, args.gendered)


def _topology(args: Args):
    """SMPL's public topology files: the H36M regressor, which the model file lacks, is among them."""
    import os

    from ..body import load_topology

    folder = args.mesh_data or os.environ.get("TORE_FAST_MESH_DATA")
    if not folder:
        raise ValueError("--body with an SMPL file needs --mesh-data: the folder with J_regressor_h36m_correct.npy and mesh files")
    return load_topology("smpl", folder)


def _model(args: Args, body):
    from ..pipelines.image_to_mesh import load_model

    if args.checkpoint is None:
        return load_model(args.model)
    from ..models import from_pretrained

    given = {"mesh_data": args.mesh_data} if args.mesh_data else {}
    registered = None if args.model == "default" else args.model
    return from_pretrained(args.checkpoint, args.upstream, model=registered, **given)


def _device(name: str) -> str:
    import os

    import torch

    from ..pipelines.image_to_mesh import pick_device

    device = pick_device(name)
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    return device


def _synthetic(args: Args) -> int:
    from ..body import load_body
    from ..data.synth import HELD_OUT
    from ..eval.synthetic import evaluate_held_out

    body = load_body("free")
    model = _model(args, body).to(_device(args.device)).eval()
    size = getattr(getattr(model, "config", None), "image_size", 224)
    metrics = evaluate_held_out(model, body.to(_device(args.device)), image_size=size, images=args.limit or HELD_OUT.images)
    for name, value in metrics.items():
        print(f"{name:28}{value:10.2f}")
    if args.json is not None:
        args.json.write_text(json.dumps(metrics, indent=2) + "\n")
    return 0
