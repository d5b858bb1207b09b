"""`tore-fast merge`: finds mergeable layers of an HMR2.0 or CameraHMR model on your images, writes the smaller
model."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from . import arguments
from ._options import ModelArgs, OutArgs, RunArgs

LIMIT = 1360  # crops of the paper's calibration


@dataclass(kw_only=True)
class Args(ModelArgs, RunArgs, OutArgs):
    """Merges layers of an HMR2.0 or CameraHMR model while an error on calibration images stays within tau (ECLM).

    The error is MPJPE against labels where the data has them, else the distance to the unmerged model's own joints. An
    interrupted run goes on where it stopped.
    """

    inputs: Annotated[Positional[list[str]], tyro.conf.arg(metavar="INPUT ...")] = field(default_factory=list)
    """Images or folders of images, one person each unless --boxes is given; or one folder of rendered clips
    (`tore-fast synth clips`), whose labels then give the error (MPJPE)."""
    plan: str | None = None
    """Apply this plan.json (of an earlier run, same depth) instead of searching; needs no images."""
    out: Path = Path("out_merge")
    """Folder for trace.jsonl, plan.json and the merged checkpoint (model/)."""
    boxes: str | None = None
    """JSON or CSV with boxes per image (image,x0,y0,x1,y1)."""
    tau: float = 0.1
    """Allowed rise of the error: mm for joints, degrees for angle."""
    measure: Literal["joints", "angle"] = "joints"
    """joints (mm, needs a body) or angle (degrees between rotations)."""
    body: str = "free"
    """Body for the joints: free, or a SMPL model file."""
    limit: int | None = LIMIT
    """Most crops used."""
    batch_size: int = 16
    fov: float = 55.0
    """Vertical field of view in degrees, for CameraHMR."""
    kappa: float | None = None
    """Skip windows whose outputs have linear CKA below this."""
    cka: bool = False
    """Also write cka.npy and, with matplotlib, cka.png (the paper's figure 2)."""
    as_printed: bool = False
    """Follow the printed algorithm, which forgets the last open window."""


def run(args: Args) -> int:
    import math

    from tqdm import tqdm

    from .._device import pick_device
    from ..data.synth import rendered
    from ..geometry import camera
    from ..layers.eclm import ECLMPlan, describe
    from ..models._checkpoint import save
    from ..pipelines import hosts, merge

    with arguments():
        device = pick_device(args.device)
        args.check_limit()
        if bool(args.inputs) == (args.plan is not None):
            raise ValueError("give images (to search) or --plan (to apply one)")
        name, model = hosts.load_host(str(args.checkpoint or args.model), overrides=args.config_fields())
        args.note_random("merged layers")
        if args.plan is not None:
            return _apply(args, merge, ECLMPlan.load(args.plan), model, name)
        labelled = len(args.inputs) == 1 and any(Path(args.inputs[0]).glob("*.npz"))
        if labelled and args.measure != "joints":
            raise ValueError("--measure: labelled clips give an error of joints")
        joints = hosts.body_joints(args.body, device) if args.measure == "joints" else None
        targets = None
        found: Any
        if labelled:
            if hasattr(model, "cam_model"):
                raise ValueError("labelled clips are for HMR2.0 (CameraHMR needs the camera of every image)")
            found = rendered.labelled_crops(args.inputs[0], args.limit or LIMIT, hosts.body_joints(args.body, "cpu"))
            targets = [found.joints[i : i + args.batch_size] for i in range(0, len(found.crops), args.batch_size)]
        else:
            found = hosts.image_crops(
                args.inputs, args.boxes, args.limit, model.config.img_size[0], model.config.box_margin
            )
    model = model.to(device).eval()
    model.set_merging(None)
    crops, starts = found.crops, range(0, len(found.crops), args.batch_size)
    batches = [crops[i : i + args.batch_size].to(device) for i in starts]
    head_inputs = None
    if hasattr(model, "cam_model"):
        focal = camera.focal_from_fov(math.radians(args.fov), found.image_size[:, 1])
        info = camera.bbox_info(found.box_center, found.box_size, found.image_size, focal).to(device)
        head_inputs = [{"bbox_info": info[i : i + args.batch_size]} for i in starts]
    calibration = merge.host_calibration(model, batches, joints, args.measure, targets, head_inputs)
    layers = len(model.backbone.blocks)
    unit = "mm" if args.measure == "joints" else "deg"
    out = args.out
    print(f"{name}: {layers} blocks, {len(crops)} crops, tau {args.tau} {unit}, {device}", file=sys.stderr)
    with args.progress(layers - 1, "step", "evaluations") as bar:

        def show(step: Any, number: Any) -> None:
            bar.update(number - bar.n)
            mark = "merge" if step.accept else "stop"
            line = f"  blocks {step.low:2d}..{step.high:2d}  error {step.error:8.4f} {unit}  {mark}"
            tqdm.write(line, file=sys.stderr)

        result = merge.run_search(calibration, out, args.tau, not args.as_printed, args.kappa, show)
    merged = merge.apply_plan(model, result.plan)
    result.plan.save(out / "plan.json")
    save(merged, out / "model", name, eclm=result.to_json())
    final = calibration.error(result.plan.groups)
    if args.cka:
        _write_cka(merge.layer_similarity(calibration), out)
    lines = [
        f"base error {result.base:.4f} {unit}; merged {final:.4f} {unit}; {layers} -> {result.plan.num_layers} blocks",
        *(f"  {line}" for line in describe(result.plan)),
        f"wrote {out / 'plan.json'}, {out / 'model'}",
    ]
    facts = {"model": str(out / "model"), "unit": unit, "base_error": result.base, "merged_error": final}
    args.say({**facts, "plan": str(out / "plan.json"), "blocks": [layers, result.plan.num_layers]}, "\n".join(lines))
    return 0


def _apply(args: Args, merge: Any, plan: Any, model: Any, name: str) -> int:
    from ..models._checkpoint import save

    merged = merge.apply_plan(model, plan)
    args.out.mkdir(parents=True, exist_ok=True)
    plan.save(args.out / "plan.json")
    save(merged, args.out / "model", name, eclm=plan.to_json())
    text = f"{plan.num_original} -> {plan.num_layers} blocks; wrote {args.out / 'model'}"
    args.say({"model": str(args.out / "model"), "blocks": [plan.num_original, plan.num_layers]}, text)
    return 0


def _write_cka(matrix: Any, out: Any) -> None:
    import numpy as np

    np.save(out / "cka.npy", matrix.numpy())
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        print("note: cka.png needs matplotlib; cka.npy is written", file=sys.stderr)
        return
    fig, ax = plt.subplots(figsize=(5, 4.4))
    lowest = (
        np.floor(10 * matrix.numpy().min()) / 10
    )  # residual blocks are all alike to some degree: 0..1 would show one colour
    shown = ax.imshow(matrix.numpy(), origin="lower", vmin=lowest, vmax=1, cmap="viridis")
    ax.set_xlabel("block")
    ax.set_ylabel("block")
    ax.set_title("linear CKA of block outputs")
    fig.colorbar(shown)
    fig.tight_layout()
    fig.savefig(out / "cka.png", dpi=120)
    plt.close(fig)
