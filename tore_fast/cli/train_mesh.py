"""`tore-fast train mesh`: an image-to-mesh model on synthetic images, and its export as a checkpoint folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from ..train.loop import TrainConfig
from ..train.mesh_recovery import MeshRecoveryConfig
from . import UsageError, arguments


@dataclass
class Args:
    """Trains an image-to-mesh model on synthetic images of the free body; the same command resumes a stopped run."""

    model: str = "tore_default"
    """Registered model (tore-fast list)."""
    train: TrainConfig = field(default_factory=TrainConfig)
    data: MeshRecoveryConfig = field(default_factory=MeshRecoveryConfig)
    init: Path | None = None
    """Start from another run's last.pt or best.pt, or a checkpoint folder: every tensor of the same name and shape is taken
    over."""
    threads: int = 0
    """CPU threads of the training process (0: torch's choice)."""
    export: Path | None = None
    """Write the averaged weights here when the run ends: a folder that `predict --model FOLDER` takes."""
    export_only: bool = False
    """Only write --export from the run's last weights."""


def run(args: Args) -> int:
    import torch

    from ..body import load_body
    from ..data.synth import held_out
    from ..eval.synthetic import evaluate_held_out
    from ..models import create_model, model_entry, save_pretrained
    from ..train.loop import train
    from ..train.mesh_recovery import MeshRecovery

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.train.seed)
    with arguments("--model"):
        if not {"body", "hand"} & set(model_entry(args.model).tags):
            raise ValueError(f"{args.model}: expected an image-to-mesh model (tore-fast list --tag body, or hand)")
        model = create_model(args.model, image_size=args.data.image_size)
    out = Path(args.train.out)
    if args.export_only and args.export is None:
        raise UsageError("--export-only needs --export: the folder to write")
    if args.export_only and not (out / "last.pt").is_file():
        raise UsageError(f"--export-only: no last.pt in {out}; expected the --train.out of a run")
    with arguments("--train.out: expected a folder that can be written"):
        out.mkdir(parents=True, exist_ok=True)
    body = load_body(model.mesh.name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not args.export_only:
        task = MeshRecovery(model, body.to(device), args.data, args.train.steps, device)
        if args.init is not None and not (out / "last.pt").exists():
            with arguments("--init"):
                take_over(task.model, args.init)
        train(task, args.train)
    if args.export is not None:
        # the last averaged weights, not the best on the held-out set: choosing there would flatter the numbers
        last = torch.load(out / "last.pt", map_location="cpu", weights_only=True)
        state = last["ema"]["average"] if last["ema"] else last["model"]
        weights = {k.removeprefix("model."): v for k, v in state.items() if not k.startswith("head.")}
        model.load_state_dict(weights)
        model.cpu().eval()
        body.cpu()
        metrics = {name: evaluate_held_out(model, body, name, image_size=args.data.image_size) for name in held_out(body)}
        facts = {"step": last["step"], "data": dataclasses.asdict(args.data), "training": dataclasses.asdict(args.train)}
        save_pretrained(model, args.export, args.model, torch.float16, metrics=metrics, trained_on=facts)
        for name, values in metrics.items():
            print(f"{args.export} ({name}): " + "  ".join(f"{k} {v:.1f}" for k, v in values.items()))
    return 0


def take_over(model, path: Path) -> None:
    """Copies the tensors of a run's file or of a checkpoint folder that fit `model` by name and shape, and says how many."""
    from ..models._hub import WEIGHTS_NAME
    from ..models.convert import read_state_dict

    own = model.state_dict()
    if path.is_dir():
        prefix = "model." if any(k.startswith("model.") for k in own) else ""  # train-only heads around it
        state = {prefix + k: v for k, v in read_state_dict(path / WEIGHTS_NAME).items()}
    else:
        state = read_state_dict(path)
    fit = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    if not fit:
        raise ValueError(f"{path}: none of its {len(state)} tensors fits the model")
    model.load_state_dict({**own, **fit})
    print(f"{path}: {len(fit)} of {len(own)} tensors taken over")
