"""Error and time of an accelerated model beside the unmodified one, without labels, on the user's own inputs.

In: a handle and images; out: plain dicts for JSON. The error is the mean distance of 3D joints in millimetres where
the outputs have joints, else the relative difference of the output tensor.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .handle import Handle

MILLIMETRES = 1000.0


def mapped(out: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """An output (tensor, list, tuple, dict, named tuple) with every tensor changed."""
    if isinstance(out, Tensor):
        return change(out)
    if isinstance(out, dict):
        made = {k: mapped(v, change) for k, v in out.items()}
        return type(out)(made) if type(out) is not dict else made
    if isinstance(out, tuple) and hasattr(out, "_fields"):
        return type(out)(*(mapped(v, change) for v in out))
    if isinstance(out, list | tuple):
        return type(out)(mapped(v, change) for v in out)
    return out


def tensors(out: Any) -> Iterable[Tensor]:
    """All floating tensors of an output, in order."""
    if isinstance(out, Tensor):
        if out.is_floating_point():
            yield out
    elif isinstance(out, dict):
        for v in out.values():
            yield from tensors(v)
    elif isinstance(out, list | tuple):
        for v in out:
            yield from tensors(v)
    elif dataclasses.is_dataclass(out):
        for f in dataclasses.fields(out):
            yield from tensors(getattr(out, f.name))


def run(obj: Any, images: Any, boxes: Any = None) -> list[Any]:
    """One output per item: per image for an estimator, per batch [B, 3, H, W] (or tuple of arguments) for a module."""
    if hasattr(obj, "process_one_image"):
        places = [None] * len(images) if boxes is None else boxes
        return [
            obj.process_one_image(i) if b is None else obj.process_one_image(i, bboxes=b)
            for i, b in zip(images, places)
        ]
    if boxes is not None:
        raise ValueError("accelerate: boxes are for estimators; give a module crops")
    with torch.no_grad():
        return [obj(*batch) if isinstance(batch, tuple) else obj(batch) for batch in batches_of(images)]


def batches_of(images: Any) -> list[Any]:
    """A module's input as a list of batches; a tuple is the arguments of one call."""
    return [images] if isinstance(images, Tensor | tuple) else list(images)


def joints_of(out: Any) -> Tensor | None:
    """[B, J, 3] metres of SAM 3D Body's results, centred on the pelvis (between key points 9 and 10); else None."""
    people = out if isinstance(out, list) else [out]
    if not people or not all(isinstance(p, dict) and "pred_keypoints_3d" in p for p in people):
        return None
    points = torch.stack([torch.as_tensor(p["pred_keypoints_3d"]).float() for p in people])
    points = points.reshape(-1, *points.shape[-2:])
    return points - points[:, 9:11].mean(1, keepdim=True)


RIGHT, LEFT = slice(21, 42), slice(42, 63)  # a hand's key points among the 70, its wrist last


def parts_of(got: Any, want: Any) -> dict[str, float]:
    """Mean differences of SAM 3D Body's results by part: hands about their wrists and vertices about the pelvis in mm,
    key points in the image in pixels; what the results lack is left out."""
    found: dict[str, list[Tensor]] = {}
    for a, b in zip(got, want):

        def pair(key: str, a: Any = a, b: Any = b) -> tuple[Tensor, Tensor] | None:
            if key not in a or key not in b:
                return None
            return torch.as_tensor(a[key]).float(), torch.as_tensor(b[key]).float()

        points = pair("pred_keypoints_3d")
        if points is not None and points[0].shape[-2] == 70:
            gap = (
                [p[..., RIGHT, :] - p[..., 41:42, :] for p in points],
                [p[..., LEFT, :] - p[..., 62:63, :] for p in points],
            )
            hands = torch.cat([(x - y).norm(dim=-1).flatten() for x, y in gap])
            found.setdefault("hands_mm", []).append(MILLIMETRES * hands)
        skin = pair("pred_vertices")
        if skin is not None and points is not None:
            centred = [v - p[..., 9:11, :].mean(-2, keepdim=True) for v, p in zip(skin, points)]
            found.setdefault("vertices_mm", []).append(MILLIMETRES * (centred[0] - centred[1]).norm(dim=-1).flatten())
        flat = pair("pred_keypoints_2d")
        if flat is not None:
            found.setdefault("image_px", []).append((flat[0] - flat[1]).norm(dim=-1).flatten())
    return {k: float(torch.cat(v).mean()) for k, v in found.items()}


def errors(got: Any, want: Any, read: Callable[[Any], Tensor] | None = None) -> tuple[Tensor, str]:
    """(error per image or person, unit) of two outputs.

    Args:
        read: output -> joints [B, J, 3] in metres, or any tensor [B, ...] of another rank.
    """
    if read is not None:
        a, b = read(got).float(), read(want).float()
        metres = a.dim() == 3 and a.shape[-1] == 3
    else:
        found = joints_of(got), joints_of(want)
        metres = found[0] is not None and found[1] is not None
        a, b = found if metres else (next(iter(tensors(got))).float(), next(iter(tensors(want))).float())  # type: ignore[assignment]
    if a.shape != b.shape and a.dim() == b.dim() == 4:  # maps of crops of two sizes
        a = F.interpolate(a, b.shape[-2:], mode="bilinear", align_corners=False)
    if a.shape != b.shape:
        raise ValueError(
            f"accelerate: outputs of other shapes, {list(a.shape)} and {list(b.shape)}; pass bboxes or read="
        )
    if metres:
        return (a - b).norm(dim=-1).mean(1) * MILLIMETRES, "mm"
    a, b = a.flatten(1), b.flatten(1)
    return (a - b).norm(dim=1) / b.norm(dim=1).clamp_min(1e-12), "relative"


def compare(
    handle: Handle,
    images: Any,
    boxes: Any = None,
    keep: Sequence[int | float] = (),
    read: Callable[[Any], Tensor] | None = None,
) -> dict[str, Any]:
    """Mean and worst difference from the unmodified model.

    Args:
        images: for an estimator a list of images (boxes: one array per image); for a module a batch [B, 3, H, W] or a
        list of
            them. keep: further budgets to try, one row each. read: which part of an output counts; see `errors`.

    Returns:
        {"unit", "rows": [{"keep_tokens", "mean", "worst", "per_image"}]}; the first row is the present setting. Rows of
        SAM 3D Body also have hands_mm, vertices_mm and image_px, as far as its results do.
    """
    obj = handle.host.root
    with handle.original():
        want = run(obj, images, boxes)
    before, rows, unit = handle.plan, [], ""
    try:
        for budget in (None, *keep):
            if budget is not None:
                handle.set(keep_tokens=budget)
            got = run(obj, images, boxes)
            parts = [errors(g, w, read) for g, w in zip(got, want)]
            values, unit = torch.cat([p[0] for p in parts]), parts[0][1]
            row = {
                "keep_tokens": handle.plan.keep_tokens,
                "mean": float(values.mean()),
                "worst": float(values.max()),
                "per_image": values.tolist(),
            }
            if unit == "mm" and read is None:
                row |= parts_of([p for people in got for p in people], [p for people in want for p in people])
            rows.append(row)
    finally:
        handle.plan = before
        handle._budget()
    return {"unit": unit, "rows": rows}


def _timed(obj: Any, images: Any, boxes: Any, cuda: bool) -> float:
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run(obj, images, boxes)
    if cuda:
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


def benchmark(handle: Handle, images: Any, boxes: Any = None, repeats: int = 5) -> dict[str, Any]:
    """Whole-call times in ms, unmodified and accelerated in turns, and the ratio of their medians.

    On CUDA also the peak memory. The stages inside (ViT, decoder) are the user's code: `vit_ms` is the time of the
    ViT's forward calls.
    """
    obj, host = handle.host.root, handle.host
    device = next(host.vit.parameters()).device
    cuda = device.type == "cuda"
    found: dict[str, list[float]] = {"original": [], "accelerated": []}
    vit: dict[str, list[float]] = {"original": [], "accelerated": []}
    peak: dict[str, float] = {}

    def once(kind: str, keep: bool) -> None:
        spent = [0.0]
        began = [0.0]

        def before(*_: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            began[0] = time.perf_counter()

        def after(*_: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            spent[0] += 1000 * (time.perf_counter() - began[0])

        hooks = host.vit.register_forward_pre_hook(before), host.vit.register_forward_hook(after)
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        try:
            total = _timed(obj, images, boxes, cuda)
        finally:
            for h in hooks:
                h.remove()
        if keep:
            found[kind].append(total)
            vit[kind].append(spent[0])
            if cuda:
                peak[kind] = torch.cuda.max_memory_allocated(device) / 2**20

    for i in range(repeats + 1):  # the first round warms up
        with handle.original():
            once("original", i > 0)
        once("accelerated", i > 0)
    out: dict[str, Any] = {"device": str(device), "repeats": repeats}
    for kind in found:
        out[kind] = {
            "ms": statistics.median(found[kind]),
            "ms_p90": sorted(found[kind])[math.ceil(0.9 * len(found[kind])) - 1],
            "ms_worst": max(found[kind]),
            "vit_ms": statistics.median(vit[kind]),
            **({"peak_mib": peak[kind]} if cuda else {}),
        }
    out["faster"] = out["original"]["ms"] / out["accelerated"]["ms"]
    return out


def pareto(
    handle: Handle,
    images: Any,
    keep: Sequence[int | float | None],
    crops: Sequence[float] = (),
    boxes: Any = None,
    read: Callable[[Any], Tensor] | None = None,
    repeats: int = 3,
) -> list[dict[str, Any]]:
    """Rows of error against time: the unmodified model, the given budgets, and smaller crops, the free alternative.

    Args:
        images, boxes, read: as in `compare`.
        keep: budgets; None is all tokens (with merged layers only those).
        crops: sides as parts of the present side. A size that the model refuses gives a row with "refused" instead of
            numbers; so does an estimator, which cuts its crops itself.

    Returns:
        [{"kind": "unmodified" | "crop" | "keep", "blocks", "error", "worst", "ms", "faster"}] with "part" or
        "keep_tokens"; times are medians of whole calls over all inputs.
    """
    obj, host = handle.host.root, handle.host
    inputs = images if hasattr(obj, "process_one_image") else batches_of(images)
    cuda = next(host.vit.parameters()).is_cuda
    with handle.original():
        want = run(obj, inputs, boxes)

    def measured(given: Any) -> dict[str, float]:
        parts = [errors(g, w, read)[0] for g, w in zip(run(obj, given, boxes), want)]  # the first run warms up
        values = torch.cat(parts)
        ms = statistics.median(_timed(obj, given, boxes, cuda) for _ in range(repeats))
        return {"error": float(values.mean()), "worst": float(values.max()), "ms": ms}

    with handle.original():
        blocks = len(host.blocks)
        rows: list[dict[str, Any]] = [{"kind": "unmodified", "blocks": blocks, **measured(inputs)}]
        for part in crops:
            row: dict[str, Any] = {"kind": "crop", "blocks": blocks, "part": part}
            try:
                if inputs is images and hasattr(obj, "process_one_image"):
                    raise ValueError("an estimator cuts its crops itself: change its image size and compare")
                row |= measured([_resized(b, part, host.window[1]) for b in inputs])
            except (ValueError, RuntimeError, AssertionError) as e:
                row["refused"] = str(e).splitlines()[0][:200] if str(e) else type(e).__name__
            rows.append(row)
    before = handle.plan
    try:
        for budget in keep:
            handle.set(keep_tokens=budget)
            rows.append({"kind": "keep", "blocks": len(host.blocks), "keep_tokens": budget, **measured(inputs)})
    finally:
        handle.plan = before
        handle._budget()
    for row in rows:
        if "ms" in row:
            row["faster"] = rows[0]["ms"] / row["ms"]
    return rows


def _resized(batch: Any, part: float, step: int) -> Any:
    if isinstance(batch, tuple):
        return (_resized(batch[0], part, step), *batch[1:])
    size = [max(step, round(s * part / step) * step) for s in batch.shape[-2:]]
    return F.interpolate(batch, size, mode="bilinear", antialias=True, align_corners=False)
