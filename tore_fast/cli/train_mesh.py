"""`tore-fast train mesh`: image-to-mesh models on labelled data sets or synthetic images, and their export as a folder."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path

from ..train.config import TrainConfig
from ..train.mesh import MeshRecoveryConfig
from ..train.mesh_labels import LabelConfig
from . import UsageError, arguments
from ._sets import SetArgs, open_sets, validation


@dataclass(kw_only=True)
class Args(SetArgs):
    """Trains an image-to-mesh model, on synthetic images of the free body or hand or on data sets of yours (--data); the same
    command resumes a stopped run. --recipe NAME sets everything as a paper did (tore-fast train --list-recipes)."""

    model: str = "tore_default"
    """Registered model (tore-fast list); hand models train on hands."""
    pretrained_backbone: bool = False
    """Start from timm's ImageNet weights (fetched once), as all papers do."""
    train: TrainConfig = field(default_factory=TrainConfig)
    labels: LabelConfig = field(default_factory=LabelConfig)
    data: MeshRecoveryConfig = field(default_factory=MeshRecoveryConfig)
    """Synthetic images."""
    init: Path | None = None
    """Start from another run's last.pt or best.pt, a checkpoint folder or an official file: every tensor of the same name and
    shape is taken over."""
    threads: int = 0
    """CPU threads of the training process (0: torch's choice)."""
    export: Path | None = None
    """Write the averaged weights here when the run ends: a folder that `predict --model FOLDER` takes."""
    export_only: bool = False
    """Only write --export from the run's last weights."""


def run(args: Args) -> int:
    import torch

    from ..train.config import local_device
    from ..train.loop import train

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.train.seed)
    with arguments(f"--model {args.model}", also=(TypeError,)):
        model, protocol = _model(args)
    out = Path(args.train.out)
    if args.export_only and args.export is None:
        raise UsageError("--export-only needs --export: the folder to write")
    if args.export_only and not (out / "last.pt").is_file():
        raise UsageError(f"--export-only: no last.pt in {out}; expected the --train.out of a run")
    with arguments("--train.out: expected a folder that can be written"):
        out.mkdir(parents=True, exist_ok=True)
    if not args.export_only:
        with arguments():
            task = (
                _labelled(args, model, protocol)
                if args.sets
                else _synthetic(args, model, protocol.body, local_device())
            )
            if args.init is not None and not (out / "last.pt").exists():
                take_over(task.model, args.init, args.mesh_data)
        train(task, args.train)
    if args.export is not None and int(os.environ.get("RANK", 0)) == 0:
        _export(args, model, protocol)
    return 0


def _model(args: Args):
    """The model, and the protocol with the body it speaks of."""
    from ..models import create_model, model_entry
    from .mesh_body import protocol_of

    tags = model_entry(args.model).tags
    if not {"body", "hand"} & set(tags):
        raise ValueError("expected an image-to-mesh model (tore-fast list --tag body, or --tag hand)")
    hand = "hand" in tags
    options = {"pretrained_backbone": True} if args.pretrained_backbone else {}
    if not args.sets:
        options["image_size"] = args.data.image_size
    if args.body != "auto":
        options |= {"mesh": "mano" if hand else "smpl", "mesh_data": args.mesh_data}
    return create_model(args.model, **options), protocol_of(hand, args.body, args.mesh_data)


def _synthetic(args: Args, model, body, device: str):
    from ..train.mesh import MeshRecovery

    if args.body != "auto":
        raise ValueError("--body: synthetic images show the free body or hand; leave it at auto, or give --data")
    # no worker process may touch the GPU: they render on the CPU; without workers the training process renders on the GPU
    return MeshRecovery(
        model, body.to(device), args.data, args.train.steps, device, "cpu" if args.train.workers else device
    )


def _labelled(args: Args, model, protocol):
    from ..train.mesh_labels import LabelledMeshes

    readers, weights = open_sets(args.sets)
    validate = validation(
        args.val,
        protocol,
        image_size=model.config.image_size,
        batch_size=args.train.batch_size,
        items=args.val_items,
        smpl_head=getattr(model.config, "smpl_head", False),
    )
    return LabelledMeshes(model, protocol.body, readers, weights, args.labels, args.train.seed, validate)


def _export(args: Args, model, protocol) -> None:
    import torch

    from ..data.synth import held_out
    from ..eval.synthetic import evaluate_held_out
    from ..models import save_pretrained
    from ..train.checkpoint import read_run

    # the last averaged weights, not the best on the held-out set: choosing there would flatter the numbers
    last = read_run(Path(args.train.out) / "last.pt", ("model", "step", "ema"))
    state = last["ema"]["average"] if last["ema"] else last["model"]
    weights = {k.removeprefix("model."): v for k, v in state.items() if not k.startswith("head.")}
    model.load_state_dict(weights)
    model.cpu().eval()
    facts = {"step": last["step"], "training": dataclasses.asdict(args.train)}
    if args.sets:
        facts |= {"data": list(args.sets), "labels": dataclasses.asdict(args.labels)}
        metrics = {args.val: _labelled(args, model, protocol).evaluate(model)} if args.val else {}
    else:
        body = protocol.body.cpu()
        facts["data"] = dataclasses.asdict(args.data)
        metrics = {
            name: evaluate_held_out(model, body, name, image_size=args.data.image_size) for name in held_out(body)
        }
    save_pretrained(model, args.export, args.model, torch.float16, metrics=metrics, trained_on=facts)
    for name, values in metrics.items():
        print(f"{args.export} ({name}): " + "  ".join(f"{k} {v:.1f}" for k, v in values.items()))


def take_over(model, path: Path, mesh_data: str | None = None) -> None:
    """Copies the tensors of a run, a checkpoint folder or an official file that fit `model` by name and shape; says how many."""
    own = model.state_dict()
    prefix = "model." if any(k.startswith("model.") for k in own) else ""  # train-only heads around it
    state = _tensors_of(path, prefix, mesh_data)
    fit = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    if not fit:
        raise ValueError(f"--init {path}: none of its {len(state)} tensors fits the model")
    model.load_state_dict({**own, **fit})
    print(f"{path}: {len(fit)} of {len(own)} tensors taken over")


def _tensors_of(path: Path, prefix: str, mesh_data: str | None) -> dict:
    from ..io.weights import read_safetensors, read_weights
    from ..models import from_pretrained
    from ..models._hub import WEIGHTS_NAME

    if path.is_dir():
        return {prefix + k: v for k, v in read_safetensors(path / WEIGHTS_NAME).items()}
    if not path.is_file():
        raise FileNotFoundError(f"--init {path}: no such file or folder")
    state = read_weights(path)
    if isinstance(state, dict) and "model" in state and "step" in state:
        return state["model"]
    given = {"mesh_data": mesh_data} if mesh_data else {}
    return {prefix + k: v for k, v in from_pretrained(path, **given).state_dict().items()}
