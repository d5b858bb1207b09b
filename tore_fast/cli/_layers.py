"""`tore-fast accelerate MODEL --search-layers`: finds mergeable layers of a model on your images (ECLM)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import arguments

if TYPE_CHECKING:
    from .accelerate import Args, Subject


def run(args: Args) -> int:
    """The search on an HMR2.0 or CameraHMR model of this package; writes trace.jsonl, plan.json and model/."""
    import math

    from tqdm import tqdm

    from .._device import pick_device
    from ..data.synth import rendered
    from ..geometry import camera
    from ..layers.eclm import ECLMPlan, describe
    from ..models._checkpoint import save
    from ..pipelines import hosts, merge
    from .accelerate import LIMIT_LAYERS

    with arguments():
        device = pick_device(args.device)
        args.check_limit()
        if bool(args.data) == (args.layers is not None):
            raise ValueError("--search-layers: give --data (to search) or --layers (to apply a plan)")
        name, model = hosts.load_host(str(args.checkpoint or args.model), overrides=args.config_fields())
        args.note_random("merged layers")
        if args.layers is not None:
            return _apply(args, merge, ECLMPlan.load(args.layers), model, name)
        inputs = [str(p) for p in args.data]
        labelled = len(inputs) == 1 and any(Path(inputs[0]).glob("*.npz"))
        if labelled and args.measure != "joints":
            raise ValueError("--measure: labelled clips give an error of joints")
        joints = hosts.body_joints(args.body, device) if args.measure == "joints" else None
        targets = None
        found: Any
        if labelled:
            if hasattr(model, "cam_model"):
                raise ValueError("labelled clips are for HMR2.0 (CameraHMR needs the camera of every image)")
            found = rendered.labelled_crops(inputs[0], args.limit or LIMIT_LAYERS, hosts.body_joints(args.body, "cpu"))
            targets = [found.joints[i : i + args.batch_size] for i in range(0, len(found.crops), args.batch_size)]
        else:
            found = hosts.image_crops(
                inputs, args.boxes, args.limit or LIMIT_LAYERS, model.config.img_size[0], model.config.box_margin
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


def search_elsewhere(args: Args, subject: Subject) -> int:
    """The search on a model of another project: writes plan.json, for `--layers` and `accelerate(obj, layers=)`."""
    from tqdm import tqdm

    from ..accelerate import find_host, search_layers
    from ..accelerate.measure import errors, run
    from ..layers.eclm import describe

    with arguments():
        host = find_host(subject.obj)
    estimator = hasattr(subject.obj, "process_one_image")
    unit = "mm" if estimator else "of the output"
    boxes = subject.boxes if estimator else [None] * len(subject.images)
    items = list(zip(subject.images, boxes))

    def predict(item: Any) -> Any:
        return run(subject.obj, [item[0]], None if item[1] is None else [item[1]])[0]

    layers = len(host.blocks)
    with args.progress(layers - 1, "step", "evaluations") as bar:

        def show(step: Any, number: int) -> None:
            bar.update(number - bar.n)
            mark = "merge" if step.accept else "stop"
            tqdm.write(f"  blocks {step.low:2d}..{step.high:2d}  error {step.error:8.4f} {mark}", file=sys.stderr)

        result = search_layers(host, predict, items, lambda a, b: errors(a, b)[0], args.tau, show)
    with args.folder() as out:
        result.plan.save(out / "plan.json")
    text = [f"{layers} -> {result.plan.num_layers} blocks, tau {args.tau} {unit}", *describe(result.plan)]
    facts = {"plan": str(args.out / "plan.json"), "unit": unit, "blocks": [layers, result.plan.num_layers]}
    args.say(facts, "\n  ".join(text) + f"\nwrote {args.out / 'plan.json'}")
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
