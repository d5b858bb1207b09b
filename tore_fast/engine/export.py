"""`export(model, "out.onnx")`: models as files that run without this package: ONNX, torch.export or AOTInductor.

The whole model runs on plain torch operators (`ops.use("reference")`), so no file needs an operator of ours. What goes
in and comes out is written into the file's metadata and beside it as JSON: layout, mean and deviation, crop rule, axes,
units.
"""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import ops
from ..geometry.warp import IMAGENET_MEAN, IMAGENET_STD
from ..io.atomic import replacing, write_text
from ..layers.prepared import unprepare
from ..models import load
from ..models._inputs import input_shape
from ..models._registry import facts_of
from ..version import __version__
from .fold import fold_batch_norms, has_batch_norms

KINDS = (".onnx", ".pt2", ".aoti")
TASKS = ("mesh", "smpl", "lifting", "keypoints", "classify")
PRECISIONS = ("fp32", "fp16")
# Largest difference to eager, share of the mean size of an output. Another library sums in another order; 16 bits
# round.
LIMITS = {"fp32": 2e-3, "fp16": 5e-2}
CROPS = {
    "square": (
        "square about the middle of the box, 1.1 times its longer side, Pillow's antialiased bilinear resize; "
        "black outside"
    ),
    "hmr2": (
        "square about the middle of the box, of its longer side; blurred against aliasing, then bilinear samples; "
        "black outside"
    ),
    "topdown": "box of the input's aspect ratio, 1.25 times as large; bilinear samples; black outside",
    "letterbox": "whole image, longer side fitted, zeros around it",
    "roi": "turned square of the detector's circle round the body",
}
UNITS = {
    "mesh": (
        "metres; camera axes x right, y down, z away; camera (s, tx, ty): point of the crop in [-1, 1] is s * (xy + t)"
    ),
    "smpl": "rotation matrices [24, 3, 3] in camera axes, SMPL betas, camera (s, tx, ty) of the crop, cam_t in metres",
    "lifting": "metres; camera axes x right, y down, z forward",
    "keypoints": "heat maps of a quarter of the crop's size, or points in pixels of the crop",
    "classify": "logits",
}


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    contract: dict[str, Any]
    differences: dict[str, float] | None  # of each output to eager, share of its mean size; None where not checked


class _Named(nn.Module):
    """Plain tensors out, in float32, None left out."""

    def __init__(self, model: nn.Module, half: bool) -> None:
        super().__init__()
        self.model, self.half_in = model, half

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:  # noqa: A002 (the name in the file)
        out = self.model(input.half() if self.half_in else input)
        return tuple(t.float() if t.is_floating_point() else t for _, t in named_outputs(out))


def named_outputs(out: Any) -> list[tuple[str, Tensor]]:
    """(name, tensor) of what a model returns."""
    if isinstance(out, Tensor):
        return [("output", out)]
    fields = out._asdict().items() if hasattr(out, "_asdict") else enumerate(out)
    return [(str(k), v) for k, v in fields if isinstance(v, Tensor)]


def export(
    model: nn.Module | str | Path,
    path: str | Path,
    *,
    dynamic_batch: bool = False,
    precision: str = "fp32",
    check: bool = False,
    **overrides: Any,
) -> Exported:
    """Writes a model for other runtimes; the suffix says which: .onnx, .pt2 (torch.export), .aoti (AOTInductor).

    Args:
        model: in eval mode, or a name, folder or file of `models.load`.
        dynamic_batch: any batch size instead of 1.
        precision: "fp32", or "fp16" for the weights (input and outputs stay float32).
        check: runs the file (ONNX: onnxruntime) on random input and compares with eager.
        overrides: config fields, where `model` is a name.

    Raises:
        ValueError: unknown suffix or precision, a task that is not exported, a model that cannot be, or a file that
        differs.
        ImportError: onnxscript or onnxruntime is not installed.

    Example:
        >>> export("default", "tore.onnx", dynamic_batch=True, check=True)  # doctest: +SKIP
    """
    path = Path(path)
    if path.suffix not in KINDS:
        raise ValueError(f"export: suffix must be one of {', '.join(KINDS)}, got {path.name!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"export: precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if path.suffix == ".onnx":
        _need("onnxscript")
        if check:
            _need("onnxruntime")
    name = type(model).__name__ if isinstance(model, nn.Module) else str(model)
    source = copy.deepcopy(model) if isinstance(model, nn.Module) else load(model, **overrides)
    facts = facts_of(source)
    if facts is None or facts.task not in TASKS:
        raise ValueError(f"export: {name} is of task {getattr(facts, 'task', None)}; exported are {', '.join(TASKS)}")
    if source.training:
        raise ValueError(f"export: {name} is in training mode; call eval() first")
    source = unprepare(source).cpu().float().eval().requires_grad_(False)
    shape = input_shape(source)
    generator = torch.Generator().manual_seed(0)
    example = torch.rand((2 if dynamic_batch else 1, *shape), generator=generator)
    with torch.no_grad(), ops.use("reference"):
        expected = named_outputs(source(example))
        if has_batch_norms(source):
            fold_batch_norms(source, lambda: source(example))
        wrapped = _Named(source.half() if precision == "fp16" else source, precision == "fp16").eval()
        contract = _contract(name, facts, shape, dynamic_batch, precision, expected)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _WRITERS[path.suffix](wrapped, example, path, contract, dynamic_batch)
        except (RuntimeError, torch._dynamo.exc.TorchDynamoException, torch.onnx.errors.OnnxExporterError) as e:
            first = next((line for line in str(e).splitlines() if line.strip()), type(e).__name__)
            raise ValueError(f"export: {name} cannot be written as {path.suffix}: {first[:200]}") from e
    write_text(path.with_suffix(path.suffix + ".json"), json.dumps(contract, indent=2) + "\n")
    return Exported(path, contract, _compare(path, example, expected, precision) if check else None)


def _need(package: str) -> None:
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise ImportError(f"export: ONNX needs {package}: pip install 'tore_fast[export]'")


def _contract(
    name: str, facts: Any, shape: tuple[int, ...], dynamic: bool, precision: str, outputs: list[tuple[str, Tensor]]
) -> dict[str, Any]:
    batch: Any = "batch" if dynamic else 1
    given: dict[str, Any] = {"name": "input", "shape": [batch, *shape], "type": "float32"}
    if len(shape) == 3 and shape[0] == 3:
        unit = facts.pixels == "unit"
        given |= {
            "layout": "batch, RGB, rows, columns",
            "values": "0..1" if unit else "(v / 255 - mean) / std",
            "mean": [0.0] * 3 if unit else list(IMAGENET_MEAN),
            "std": [1.0] * 3 if unit else list(IMAGENET_STD),
            "crop": CROPS.get(facts.crop, "whole image"),
        }
    elif facts.task == "lifting":
        given["layout"] = (
            "batch, frames, 17 joints in H36M order, x y (confidence); x / width * 2 - 1, y with the same scale"
        )
    return {
        "tore_fast": __version__,
        "model": name,
        "family": facts.family,
        "task": facts.task,
        "weights": precision,
        "input": given,
        "outputs": [
            {"name": n, "shape": [batch, *t.shape[1:]], "type": str(t.dtype).removeprefix("torch.")} for n, t in outputs
        ],
        "units": UNITS[facts.task],
    }


def _program(model: nn.Module, example: Tensor, dynamic: bool) -> torch.export.ExportedProgram:
    shapes = {"input": {0: torch.export.Dim("batch", min=1, max=4096)}} if dynamic else None
    return torch.export.export(model, (example,), dynamic_shapes=shapes, strict=False)


def _onnx(model: nn.Module, example: Tensor, path: Path, contract: dict, dynamic: bool) -> None:
    names = [o["name"] for o in contract["outputs"]]
    program = torch.onnx.export(
        _program(model, example, dynamic), input_names=["input"], output_names=names, dynamo=True, verbose=False
    )
    assert program is not None  # dynamo=True returns it
    program.model.metadata_props["tore_fast"] = json.dumps(contract)
    with replacing(path) as part:
        program.save(part, external_data=False)


def _pt2(model: nn.Module, example: Tensor, path: Path, contract: dict, dynamic: bool) -> None:
    program = _program(model, example, dynamic)
    with replacing(path) as part, open(part, "wb") as f:
        torch.export.save(program, f, extra_files={"tore_fast.json": json.dumps(contract)})


def _aoti(model: nn.Module, example: Tensor, path: Path, contract: dict, dynamic: bool) -> None:
    import tempfile

    program = _program(model, example, dynamic)
    with tempfile.TemporaryDirectory() as folder:
        made = torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(Path(folder) / "model.pt2"),
            inductor_configs={"aot_inductor.metadata": {"tore_fast": json.dumps(contract)}},
        )
        with replacing(path) as part:
            Path(part).write_bytes(Path(made).read_bytes())


_WRITERS = {".onnx": _onnx, ".pt2": _pt2, ".aoti": _aoti}


def run_file(path: str | Path, x: Tensor) -> list[np.ndarray]:
    """Outputs of an exported file, by the runtime its suffix means."""
    path = Path(path)
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return session.run(None, {"input": x.numpy()})
    if path.suffix == ".pt2":
        return [t.numpy() for t in torch.export.load(path).module()(x)]
    return [t.numpy() for t in load_aoti(path)(x)]


def load_aoti(path: str | Path) -> Any:
    """The compiled model of a .aoti file; torch wants the suffix .pt2, so it reads a link. Load only files you trust:
    it
    holds compiled code."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "model.pt2"
        link.symlink_to(Path(path).resolve())
        return torch._inductor.aoti_load_package(str(link))


def _compare(path: Path, x: Tensor, expected: list[tuple[str, Tensor]], precision: str) -> dict[str, float]:
    found = run_file(path, x)
    differences = {}
    for (name, want), got in zip(expected, found, strict=True):
        if want.is_floating_point():
            size = float(want.abs().mean()) + 1e-6
            differences[name] = float(np.abs(want.numpy() - got).max()) / size
    far = {k: v for k, v in differences.items() if not v <= LIMITS[precision]}
    if far:
        text = ", ".join(f"{k} {v:.2g}" for k, v in far.items())
        raise ValueError(
            f"export: {path}: outputs differ from eager by more than {LIMITS[precision]:g} of their mean size: {text}"
        )
    return differences
