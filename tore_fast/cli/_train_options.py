"""Flags that every `tore-fast train TASK` has, the model they mean, and the run (train/run.py) they start.

A train_TASK.py adds the flags of its data, makes a Task from them and calls `run_task`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..train.config import Task, TrainConfig
from . import UsageError, arguments

if TYPE_CHECKING:
    pass


@dataclass(kw_only=True)
class TrainArgs:
    """Model, start weights, run and result."""

    model: str = ""
    """Registered model (tore-fast list). Default: the one of the folder --checkpoint, else the task's smallest."""
    set: dict[str, str] = field(default_factory=dict)
    """Config fields of the model to change, NAME VALUE pairs: depth 4 qkv_bias false embed_dims 16,32,48,64 ..."""
    checkpoint: Path | None = None
    """Weights to start from: a checkpoint folder, an official file, `default` (built in), or the last.pt or best.pt of
    a run. Every tensor that fits by name and shape is taken; whether that was the whole model or its backbone is
    printed. A run that goes on has its
    own."""
    test: bool = False
    """When the training ends, measure the weights it exports on the test data; print it and write OUT/test.json."""
    export: Path | None = None
    """When the training ends, write the model here as a checkpoint folder; its config.json says how the checkpoint was
    chosen."""
    threads: int = 0
    """CPU threads of the training process (0: torch's choice)."""
    train: TrainConfig = field(default_factory=TrainConfig)


def model_name(args: TrainArgs, default: str, *tags: str) -> str:
    """The registered name that --model, or the folder --checkpoint, or else the task means.

    Args:
        tags: a folder's model must have one of them; the weights of another (an ImageNet classifier) start the default
            model.
    """
    from ..models import model_entry

    if args.model:
        return args.model
    name = folder_model(args.checkpoint)
    return name if name and (not tags or set(tags) & set(model_entry(name).tags)) else default


def folder_model(folder: Path | None) -> str:
    """Registered name of the model in a checkpoint folder of ours; "" for other paths."""
    from ..models._checkpoint import CONFIG_NAME, read_config

    if folder is None or not (folder / CONFIG_NAME).is_file():
        return ""
    return read_config(folder).get("model", "")


def build_model(args: TrainArgs, name: str, tags: tuple[str, ...] = (), **decided: Any) -> Any:
    """The registered model `name` with random weights (those of --checkpoint come when the run starts).

    Its config is the one of --checkpoint where that is a folder of the same model, then --set, then `decided`.

    Args:
        tags: of the registry, of which the model must have one.
        decided: fields that the data decides (number of classes or key points).

    Raises:
        ValueError: no such model, field or value, or a field that the data decides.
    """
    import torch

    from ..models import create_model, model_entry
    from ..models._checkpoint import read_config
    from ..models._overrides import config_type, parse_overrides
    from ._models import check_tags

    check_tags(model_entry(name), tags)
    both = sorted(decided.keys() & args.set.keys())
    if both:
        raise ValueError(f"--set {both[0]}: the data decides it ({decided[both[0]]})")
    base: dict[str, Any] = {}
    if args.checkpoint is not None and folder_model(args.checkpoint) == name:
        saved = read_config(args.checkpoint)["config"]
        base = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
        base.pop("pretrained_backbone", None)  # the folder's weights come instead
    chosen = parse_overrides(config_type(name), args.set) if args.set else {}
    torch.manual_seed(args.train.seed)
    return create_model(name, **{**base, **chosen, **decided})


def run_task(args: TrainArgs, task: Task, name: str, *, mesh_data: str | None = None, **more: Any) -> int:
    """Runs `task` as the flags say; `mesh_data` is for official mesh checkpoints, `more` as in train.run.run."""
    from ..train.resume import OtherRun
    from ..train.run import folder_of, run, start_from

    with arguments("--train.out: expected a folder that can be written"):
        folder_of(args.train, name).mkdir(parents=True, exist_ok=True)
    with arguments():
        if args.checkpoint is not None:
            start_from(task, args.train, name, args.checkpoint, mesh_data)
    try:
        run(task, args.train, name, test=args.test, export=args.export, **more)
    except OtherRun as e:
        raise UsageError(str(e)) from e
    return 0


def begin(args: TrainArgs) -> None:
    """What comes before everything else: --threads, and the folder behind a built-in name in --checkpoint."""
    import torch

    from ..models.default import BUILT_IN, default_folder

    if args.checkpoint is not None and str(args.checkpoint) in BUILT_IN and not args.checkpoint.exists():
        args.checkpoint = Path(default_folder(str(args.checkpoint)))
    if args.threads:
        torch.set_num_threads(args.threads)
