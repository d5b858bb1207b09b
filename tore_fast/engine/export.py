"""`export(model, "out.onnx")`: models as files that run without this package: ONNX, torch.export, AOTInductor,
TorchScript.

The whole model runs on plain torch operators (`ops.use("reference")`), so no file needs an operator of ours. What goes
in and comes out is written into the file's metadata and beside it as JSON: layout, mean and deviation, crop rule, axes,
units.
"""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Callable
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
from ..models._registry import Facts, facts_of
from ..version import __version__
from .fold import fold_batch_norms, has_batch_norms

KINDS = (".onnx", ".pt2", ".aoti", ".ts")
TASKS = ("mesh", "smpl", "lifting", "keypoints", "classify")
PRECISIONS = ("fp32", "fp16")
OPSET = 20
EXAMPLE = 2  # batch that a program with any batch is traced with: 1 would be taken for a constant
PROTOBUF = 2_000_000_000  # bytes that an ONNX file may have
Runner = Callable[[Tensor], list[np.ndarray]]
# Largest difference to eager, share of the mean size of an output. Another library sums in another order; 16 bits
# round.
LIMITS = {"fp32": 2e-3, "fp16": 5e-2}
CROPS = {
    "square": (
        "square about the middle of the box, 1.2 times its longer side; antialiased bilinear resize, as Pillow's; "
        "black outside"
    ),
    "hmr2": (
        "square about the middle of the box, of side max(height, 4/3 width); blurred against aliasing, then bilinear "
        "samples; black outside"
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
    "keypoints": "heat maps (of a quarter of the crop's size), or points in pixels of the crop",
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
    name: str | None = None,
    **overrides: Any,
) -> Exported:
    """Writes a model for other runtimes; the suffix says which: .onnx, .pt2 (torch.export), .aoti (AOTInductor), .ts
    (TorchScript, traced).

    Args:
        model: in eval mode, or a name, folder or file of `models.load`.
        dynamic_batch: any batch size instead of 1.
        precision: "fp32", or "fp16" for the weights (input and outputs stay float32).
        check: runs the file (ONNX: onnxruntime) on random input, with a dynamic batch at sizes 1 and 3, and compares
            with eager. TorchScript: runs the traced program, since no file of that kind is loaded here.
        name: what the contract calls the model; None: the given name, or the class.
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
    name = name or (type(model).__name__ if isinstance(model, nn.Module) else str(model))
    source = copy.deepcopy(model) if isinstance(model, nn.Module) else load(model, **overrides)
    facts = check_exportable(source, name)
    source = unprepare(source).cpu().float().eval().requires_grad_(False)
    shape = input_shape(source)
    generator = torch.Generator().manual_seed(0)
    example = torch.rand((EXAMPLE if dynamic_batch else 1, *shape), generator=generator)
    with torch.no_grad(), ops.use("reference"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = named_outputs(source(example))
        trials = [example] if not dynamic_batch else [example[:1], torch.rand((3, *shape), generator=generator)]
        wanted = [[t for _, t in named_outputs(source(x))] for x in trials] if check else []
        if has_batch_norms(source):
            fold_batch_norms(source, lambda: source(example))
        wrapped = _Named(source.half() if precision == "fp16" else source, precision == "fp16").eval()
        contract = _contract(name, facts, shape, dynamic_batch, precision, expected)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            run = _WRITERS[path.suffix](wrapped, example, path, contract, dynamic_batch)
        except Exception as e:
            if not _is_limit(e):
                raise
            raise ValueError(f"export: {name} cannot be written as {path.suffix}: {reason(e)}") from e
        write_text(path.with_suffix(path.suffix + ".json"), json.dumps(contract, indent=2) + "\n")
        if not check:
            return Exported(path, contract, None)
        run = run or (lambda x: run_file(path, x))
        names = [n for n, _ in expected]
        found = [(names, want, run(x)) for x, want in zip(trials, wanted)]
    return Exported(path, contract, _compare(path, found, precision))


def check_exportable(model: nn.Module, name: str) -> Facts:
    """Facts of a model that can be exported.

    Raises:
        ValueError: of another task, without what it needs to run on one input, or in training mode.
    """
    facts = facts_of(model)
    if facts is None or facts.task not in TASKS:
        raise ValueError(f"export: {name} is of task {getattr(facts, 'task', None)}; exported are {', '.join(TASKS)}")
    if facts.takes_camera and getattr(model, "cam_model", None) is None:
        raise ValueError(f"export: {name} has no field-of-view net, so an image alone is no input of it")
    if model.training:
        raise ValueError(f"export: {name} is in training mode; call eval() first")
    return facts


def _is_limit(error: Exception) -> bool:
    """Whether an error says that a program cannot be traced or written, and is no bug of ours or of the disk."""
    return isinstance(
        error, RuntimeError | torch._dynamo.exc.TorchDynamoException | torch.onnx.errors.OnnxExporterError
    )


def reason(error: BaseException) -> str:
    """One line of an exporter's error: that of its innermost cause, without colours and advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line]
    detail = next((line for line in lines if line.startswith("- ")), "")
    first = next(iter(lines), type(error).__name__)
    return f"{first} {detail}".strip()[:240]


def _need(package: str) -> None:
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise ImportError(f"export: ONNX needs {package}: pip install 'tore_fast[export]'")


def _contract(
    name: str, facts: Facts, shape: tuple[int, ...], dynamic: bool, precision: str, outputs: list[tuple[str, Tensor]]
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
    shapes = {"input": {0: torch.export.Dim.DYNAMIC}} if dynamic else None
    return torch.export.export(model, (example,), dynamic_shapes=shapes, strict=False)


def _onnx(model: nn.Module, example: Tensor, path: Path, contract: dict, dynamic: bool) -> None:
    from ._onnx_table import quiet, translations

    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    if size >= PROTOBUF:
        raise RuntimeError(f"{size / 1e9:.1f} GB of weights, an ONNX file holds 2 GB; precision fp16 halves them")
    with quiet():
        program = torch.onnx.export(
            _program(model, example, dynamic),
            input_names=["input"],
            output_names=[o["name"] for o in contract["outputs"]],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
            custom_translation_table=translations(),
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


def _torchscript(model: nn.Module, example: Tensor, path: Path, contract: dict, dynamic: bool) -> Runner:
    traced: Any = torch.jit.trace(model, (example,), check_trace=False)
    with replacing(path) as part:
        torch.jit.save(traced, str(part), _extra_files={"tore_fast.json": json.dumps(contract)})
    return lambda x: [t.numpy() for t in traced(x)]


_WRITERS: dict[str, Callable[..., Runner | None]] = {".onnx": _onnx, ".pt2": _pt2, ".aoti": _aoti, ".ts": _torchscript}


def run_file(path: str | Path, x: Tensor) -> list[np.ndarray]:
    """Outputs of an exported file, by the runtime its suffix means. Load only files you trust: .aoti holds code.

    Raises:
        ValueError: another suffix.
    """
    path = Path(path)
    if path.suffix not in (".onnx", ".pt2", ".aoti"):
        raise ValueError(f"run_file: expected .onnx, .pt2 or .aoti, got {path.name!r}")
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return session.run(None, {"input": x.numpy()})
    if path.suffix == ".pt2":
        return [t.numpy() for t in torch.export.load(path).module()(x)]
    return [t.numpy() for t in load_aoti(path)(x)]


def load_aoti(path: str | Path) -> Any:
    """The compiled model of a .aoti file; torch wants the suffix .pt2, so it reads a link. Load only files you trust:
    they hold compiled code."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "model.pt2"
        link.symlink_to(Path(path).resolve())
        return torch._inductor.aoti_load_package(str(link))


def _compare(
    path: Path, found: list[tuple[list[str], list[Tensor], list[np.ndarray]]], precision: str
) -> dict[str, float]:
    differences: dict[str, float] = {}
    for names, wanted, got in found:
        for name, want, have in zip(names, wanted, got, strict=True):
            if tuple(want.shape) != have.shape:
                raise ValueError(f"export: {path}: {name} is {list(have.shape)}, eager gives {list(want.shape)}")
            if want.is_floating_point():
                size = float(want.abs().mean()) + 1e-6
                difference = float(np.abs(want.numpy() - have).max()) / size
                worst = differences.get(name, 0.0)
                differences[name] = difference if np.isnan(difference) else max(worst, difference)
    far = {k: v for k, v in differences.items() if not v <= LIMITS[precision]}
    if far:
        text = ", ".join(f"{k} {v:.2g}" for k, v in far.items())
        raise ValueError(
            f"export: {path}: outputs differ from eager by more than {LIMITS[precision]:g} of their mean size: {text}"
        )
    return differences
