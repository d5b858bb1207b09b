"""`tore-fast accelerate MODEL --data IMAGES`: what fewer tokens and layers cost and save on your model and images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro
from tyro.conf import Positional

from . import UsageError, arguments
from ._options import ModelArgs, OutArgs, RunArgs

LIMIT = 32  # images, when only errors and times are wanted
LIMIT_LAYERS = 1360  # crops of the paper's calibration
ELSEWHERE = ("timm:", "transformers:")


@dataclass(kw_only=True)
class Args(ModelArgs, RunArgs, OutArgs):
    """Measures a model with fewer tokens, with merged layers, and with smaller crops, beside the unmodified one.

    Without labels: the error is the distance to the unmodified model's own outputs, in mm where it has joints, else
    relative. Writes pareto.json and, with --plot, pareto.png. --search-layers looks for layers to merge instead (ECLM)
    and writes plan.json, and for HMR2.0 and CameraHMR the smaller checkpoint.
    """

    model: Positional[str] = field()
    """A registered name or checkpoint folder (hmr2_*, camerahmr_*), timm:NAME, transformers:FOLDER, or
    MODULE:FUNCTION of yours that returns a loaded model or a SAM 3D Body estimator (takes no arguments)."""
    data: Annotated[list[Path], tyro.conf.arg(metavar="IMAGE|FOLDER ...")] = field(default_factory=list)
    """Images or folders of images, one person each unless --boxes is given; with --search-layers also one folder of
    rendered clips (`tore-fast synth clips`), whose labels then give the error (MPJPE)."""
    boxes: str | None = None
    """JSON or CSV with boxes per image (image,x0,y0,x1,y1)."""
    keep: list[float] = field(default_factory=lambda: [0.75, 0.625, 0.5, 0.375])
    """Patch tokens to keep, one row each: fractions below 1, or numbers."""
    crops: list[float] = field(default_factory=lambda: [0.875, 0.75])
    """Smaller crops to measure beside them, as parts of the side."""
    layers: Path | None = None
    """plan.json of --search-layers: rows with merged layers too. With --search-layers: applied instead of a search."""
    side: int | None = None
    """Side of the crops in pixels, where the model does not tell."""
    repeats: int = 3
    """Timed runs per row; the median counts."""
    plot: bool = False
    """Also draw pareto.png (needs matplotlib)."""
    random_weights: bool = False
    """timm: do not fetch trained weights (times only; the errors then mean little)."""
    search_layers: bool = False
    """Find layers to merge while the error stays within --tau."""
    tau: float = 0.1
    """--search-layers: allowed rise of the error: mm for joints, degrees for angle, else a part of the output."""
    measure: Literal["joints", "angle"] = "joints"
    """--search-layers: joints (mm, needs a body) or angle (degrees between rotations)."""
    body: str = "free"
    """Body for the joints: free, or a SMPL model file."""
    fov: float = 55.0
    """Vertical field of view in degrees, for CameraHMR."""
    kappa: float | None = None
    """--search-layers: skip windows whose outputs have linear CKA below this."""
    cka: bool = False
    """--search-layers: also write cka.npy and, with matplotlib, cka.png (the paper's figure 2)."""
    as_printed: bool = False
    """--search-layers: follow the printed algorithm, which forgets the last open window."""
    out: Path = Path("out_accelerate")
    """Folder for the results."""

    def is_elsewhere(self) -> bool:
        """A model of another project."""
        return self.model.startswith(ELSEWHERE) or (":" in self.model and not Path(self.model).exists())


class Subject(NamedTuple):
    """A loaded model with its inputs as `Handle.compare` takes them."""

    obj: Any
    images: Any
    boxes: Any = None
    read: Callable[[Any], Any] | None = None


def run(args: Args) -> int:
    if args.search_layers and not args.is_elsewhere():
        from ._layers import run as search

        return search(args)
    with arguments():
        args.check_limit()
        if not args.data:
            raise ValueError("--data: give images or folders of images")
        if args.repeats < 1 or any(k <= 0 for k in args.keep) or any(not 0 < c < 1 for c in args.crops):
            raise ValueError("--repeats, --keep: expected positive numbers; --crops: parts of the side below 1")
        subject = load_elsewhere(args) if args.is_elsewhere() else load_host(args)
    if args.search_layers:
        from ._layers import search_elsewhere

        return search_elsewhere(args, subject)
    import contextlib

    import torch

    from .._device import PRECISIONS
    from ..accelerate import accelerate
    from ..layers.eclm import ECLMPlan

    keep: list[Any] = [k if k < 1 else int(k) for k in args.keep]
    options: dict[str, Any] = {"boxes": subject.boxes, "read": subject.read, "repeats": args.repeats}
    with arguments():
        plan = None if args.layers is None else ECLMPlan.load(args.layers)
        handle = accelerate(subject.obj)
    dtype, device = PRECISIONS[args.precision], handle.host.device.type
    cast = contextlib.nullcontext() if dtype is None else torch.autocast(device, dtype)
    with args.progress(2 - (plan is None), "pass", "measuring") as bar, cast:
        with handle:
            rows = handle.pareto(subject.images, keep, crops=args.crops, **options)
            bar.update()
        if plan is not None:
            with arguments("--layers"):
                handle = accelerate(subject.obj, layers=plan)
            with handle:
                more = handle.pareto(subject.images, [None, *keep], **options)[1:]
                bar.update()
            rows += [{**row, "faster": rows[0]["ms"] / row["ms"]} for row in more]
    from ..io.atomic import write_json

    unit = "mm" if _in_mm(subject) else "relative"
    with args.folder() as out:
        facts = {"model": args.model, "unit": unit, "rows": rows, "json": str(out / "pareto.json")}
        write_json(out / "pareto.json", facts)
        if args.plot:
            _plot(rows, unit, args.model, out / "pareto.png")
            facts["plot"] = str(out / "pareto.png")
    text = "\n".join([_head(unit), *map(_line, rows), f"wrote {', '.join(map(str, _files(facts)))}"])
    args.say(facts, text)
    return 0


def _in_mm(subject: Subject) -> bool:
    return subject.read is not None or hasattr(subject.obj, "process_one_image")


def _files(facts: dict[str, Any]) -> list[str]:
    return [facts[k] for k in ("json", "plot") if k in facts]


def _name(row: dict[str, Any]) -> str:
    if row["kind"] == "crop":
        return f"crop of {row['part']:g} of the side"
    if row["kind"] == "unmodified":
        return "unmodified"
    return f"keep {'all' if row['keep_tokens'] is None else row['keep_tokens']}, {row['blocks']} blocks"


def _head(unit: str) -> str:
    return f"{'':32} {'error ' + unit:>15} {'worst':>9} {'ms':>9} {'faster':>7}"


def _line(row: dict[str, Any]) -> str:
    if "refused" in row:
        return f"{_name(row):32} refused: {row['refused']}"
    return f"{_name(row):32} {row['error']:15.4g} {row['worst']:9.4g} {row['ms']:9.1f} {row['faster']:6.2f}x"


def _plot(rows: list[dict[str, Any]], unit: str, title: str, path: Path) -> None:
    """Error over speed: one line per number of blocks, one for the smaller crops."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise UsageError("--plot needs matplotlib: pip install matplotlib") from None
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if "ms" in row and row["kind"] != "unmodified":
            name = "smaller crops" if row["kind"] == "crop" else f"fewer tokens, {row['blocks']} blocks"
            lines.setdefault(name, []).append(row)
    fig, ax = plt.subplots(figsize=(6, 4.2))
    ax.plot([1], [0], "k*", label="unmodified")
    for name, points in lines.items():
        points = sorted(points, key=lambda r: r["faster"])
        ax.plot([r["faster"] for r in points], [r["error"] for r in points], "o-", label=name)
        for r in points:
            text = f"{r['part']:g}" if r["kind"] == "crop" else str(r["keep_tokens"] or "all")
            ax.annotate(text, (r["faster"], r["error"]), textcoords="offset points", xytext=(4, 4), fontsize=8)
    ax.set_xlabel("times faster")
    ax.set_ylabel(f"difference from the unmodified model ({unit})")
    ax.set_title(title, fontsize=9)
    ax.legend(fontsize=8)
    fig.tight_layout()
    fig.savefig(path, dpi=120)
    plt.close(fig)


def load_host(args: Args) -> Subject:
    """An HMR2.0 or CameraHMR model of this package and crops for it; the error is that of its joints."""
    import math

    from .._device import pick_device
    from ..geometry import camera
    from ..pipelines import hosts

    device = pick_device(args.device)
    _, model = hosts.load_host(str(args.checkpoint or args.model), overrides=args.config_fields())
    args.note_random("errors")
    model = model.to(device).eval()
    model.set_merging(None)
    sources = [str(p) for p in args.data]
    found = hosts.image_crops(
        sources, args.boxes, args.limit or LIMIT, model.config.img_size[0], model.config.box_margin
    )
    joints = hosts.body_joints(args.body, device)

    def read(out: Any) -> Any:
        points = joints(out.rotations, out.betas)
        return points - points[:, :1]

    batches: list[Any] = []
    for i in range(0, len(found.crops), args.batch_size):
        part = slice(i, i + args.batch_size)
        crops = found.crops[part].to(device)
        if hasattr(model, "cam_model"):
            size = found.image_size[part]
            focal = camera.focal_from_fov(math.radians(args.fov), size[:, 1])
            more = (found.box_center[part], found.box_size[part], size, focal)
            batches.append((crops, None, *(t.to(device) for t in more)))
        else:
            batches.append(crops)
    return Subject(model, batches, read=read)


def load_elsewhere(args: Args) -> Subject:
    """A model of timm, transformers or the user's own function, and images as it takes them."""
    import torch

    from .._device import pick_device

    device = pick_device(args.device)
    torch.manual_seed(args.seed)
    kind, _, name = args.model.partition(":")
    side = args.side
    obj: Any
    if kind == "timm":
        import timm

        try:
            obj = timm.create_model(name, pretrained=not args.random_weights, num_classes=0)
        except RuntimeError as e:
            raise ValueError(f"{args.model}: {e}") from None
        side = side or int(obj.pretrained_cfg["input_size"][-1])
    elif kind == "transformers":
        try:
            from transformers import AutoModel
        except ImportError:
            raise ValueError(f"{args.model} needs transformers: pip install transformers") from None
        obj = AutoModel.from_pretrained(name)
        side = side or int(getattr(obj.config, "image_size", 224))
    else:
        from ..data.detect import load_callable

        obj = load_callable(args.model, "MODEL")()
    if hasattr(obj, "process_one_image"):
        return _estimator_inputs(args, obj)
    if not isinstance(obj, torch.nn.Module):
        raise ValueError(f"{args.model}: gave a {type(obj).__name__}; expected a module or a SAM 3D Body estimator")
    obj = obj.to(device).eval() or obj  # some train() and eval() return nothing
    if side is None:
        raise ValueError("--side: give the side of the crops in pixels; the model does not tell it")
    from ..pipelines import hosts

    found = hosts.image_crops([str(p) for p in args.data], args.boxes, args.limit or LIMIT, side)
    crops = found.crops.to(device, next(obj.parameters()).dtype)
    return Subject(obj, [crops[i : i + args.batch_size] for i in range(0, len(crops), args.batch_size)])


def _estimator_inputs(args: Args, obj: Any) -> Subject:
    import numpy as np

    from ..data.boxes import boxes_of, read_boxes
    from ..io.image import ImageError, find_images, read_image

    paths, errors = find_images(args.data)
    if errors or not paths:
        raise ImageError(errors[0] if errors else "no image")
    paths = paths[: args.limit or LIMIT]
    images = [read_image(p) for p in paths]  # RGB, as estimators take arrays
    if args.boxes is None:
        boxes = [np.array([[0, 0, i.shape[1], i.shape[0]]], np.float32) for i in images]
    else:
        table = read_boxes(args.boxes)
        boxes = [np.array(boxes_of(table, p) or [], np.float32).reshape(-1, 4) for p in paths]
        images = [i for i, b in zip(images, boxes) if len(b)]
        boxes = [b for b in boxes if len(b)]
        if not images:
            raise ImageError(f"{args.boxes}: no box for any of the images")
    return Subject(obj, images, boxes)
