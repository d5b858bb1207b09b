"""`tore-fast train mesh`: image-to-mesh models on labelled data sets or synthetic images, and their export as a
folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..train.config import TrainConfig, local_device
from ..train.mesh import MeshRecoveryConfig
from ..train.mesh_labels import LabelConfig
from . import arguments
from ._sets import SYNTH, SetArgs, check_given, open_sets, validation
from ._train_options import begin, build_model, model_name, run_task

if TYPE_CHECKING:
    from torch import nn

    from ..eval.protocols import BodyProtocol, HandProtocol
    from ..train.config import Task

DEFAULT_MODEL = "tore_default"


@dataclass(kw_only=True)
class Args(SetArgs):
    """Trains an image-to-mesh model, on synthetic images of the free body or hand or on data sets of yours (--data);
    the same
    command resumes a stopped run. --recipe NAME sets everything as a paper did (tore-fast train --list-recipes)."""

    imagenet_backbone: bool = False
    """Start the backbone from timm's ImageNet weights (fetched once), as all papers do."""
    train: TrainConfig = field(default_factory=TrainConfig)
    labels: LabelConfig = field(default_factory=LabelConfig)
    """Labelled data sets."""
    synth: MeshRecoveryConfig = field(default_factory=MeshRecoveryConfig)
    """Synthetic images."""


def run(args: Args) -> int:
    import torch

    begin(args)
    with arguments():
        check_given(args)
    name = model_name(args, DEFAULT_MODEL, "body", "hand")
    with arguments(f"--model {name}", also=(TypeError,)):
        model, protocol = _model(args, name)
    with arguments():
        task: Task = _synthetic(args, model, protocol.body) if args.data == SYNTH else _labelled(args, model, protocol)
    facts: dict[str, Any] = {"data": list(args.data)}
    if args.data == SYNTH:
        facts["synth"] = dataclasses.asdict(args.synth)
    else:
        facts |= {"val": args.val, "labels": dataclasses.asdict(args.labels)}
    return run_task(args, task, name, mesh_data=args.mesh_data, dtype=torch.float16, facts=facts)


def _model(args: Args, name: str) -> tuple[nn.Module, BodyProtocol | HandProtocol]:
    """The model, and the protocol with its body."""
    from ..models import model_entry
    from ._body import protocol_of

    tags = model_entry(name).tags
    if not {"body", "hand"} & set(tags):
        raise ValueError("expected an image-to-mesh model (tore-fast list --tag body, or --tag hand)")
    hand = "hand" in tags
    decided: dict[str, Any] = {"pretrained_backbone": True} if args.imagenet_backbone else {}
    if args.data == SYNTH:
        decided["image_size"] = args.synth.image_size
    if args.body != "auto":
        decided |= {"mesh": "mano" if hand else "smpl", "mesh_data": args.mesh_data}
    return build_model(args, name, **decided), protocol_of(hand, args.body, args.mesh_data)


def _synthetic(args: Args, model: nn.Module, body: Any) -> Task:
    from ..train.mesh import MeshRecovery

    if args.body != "auto":
        raise ValueError("--body: synthetic images show the free body or hand; leave it at auto, or give --data")
    device = local_device()
    # no worker process may touch the GPU: they render on the CPU; without workers the training process renders on the
    # GPU
    return MeshRecovery(
        model, body.to(device), args.synth, args.train.steps, device, "cpu" if args.train.workers else device
    )


def _labelled(args: Args, model: Any, protocol: BodyProtocol | HandProtocol) -> Task:
    from ..train.mesh_labels import LabelledMeshes

    readers, weights = open_sets(args.data)
    validate = validation(
        args.val,
        protocol,
        image_size=model.config.image_size,
        batch_size=args.train.batch_size,
        items=args.val_items,
        smpl_head=getattr(model.config, "smpl_head", False),
    )
    return LabelledMeshes(model, protocol.body, readers, weights, args.labels, args.train.seed, validate)
