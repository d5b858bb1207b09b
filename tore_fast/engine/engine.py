"""`Engine`: one model on one device, prepared once, called with batches of any size.

    engine = tore_fast.Engine("fastmetro_tore_l_r50", batch=64)
    out = engine(crops)          # what the model returns, floating numbers in float32
    print(engine.report())       # what was done, and why not the rest

For all tasks. In: items of `input_shape(model)` as a batch; uint8 images are normalised on the device. The model's own
forward runs: in eval mode, prepared, batch norms folded, channels_last, weights in the compute type; on CUDA as a graph
per batch size.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .._device import pick_device
from ..geometry.warp import IMAGENET_MEAN, IMAGENET_STD
from ..layers.prepared import prepare
from ..models import load
from ..models._inputs import input_shape
from ..models._registry import facts_of
from ..ops._derived import stamp_of
from .fold import fold_batch_norms, has_batch_norms
from .precision import Choice, Tf32, autocast, cast_products, choose_precision
from .staging import SLOTS, Bucket, Cuda, Platform, Ticket, bucket_sizes, join, pad, split, take

MODES = ("auto", "eager", "graph", "compile")
BATCH = {"cuda": 64}  # largest bucket where none is asked for
CPU_BATCH = 8


@dataclass
class Report:
    """What an engine did and why not the rest; `str()` is for people."""

    model: str
    device: str
    precision: str
    precision_reason: str
    mode: str
    mode_reason: str
    buckets: tuple[int, ...]
    folded: int = 0  # batch norms
    cast: int = 0  # modules whose weights are in the compute type
    islands: int = 0  # modules of products that stay in float32
    captured: list[int] = field(default_factory=list)  # buckets with a graph or a compiled step
    threads: int = 0  # of the CPU
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        weights = f"weights of {self.cast} layers in {self.precision}, {self.islands} stay in float32"
        lines = [
            f"{self.model} on {self.device}",
            f"precision  {self.precision}: {self.precision_reason}" + (f"; {weights}" if self.cast else ""),
            f"mode       {self.mode}: {self.mode_reason}",
            f"batches    {', '.join(map(str, self.buckets))}"
            + (f"; ready: {', '.join(map(str, self.captured))}" if self.captured else ""),
            f"folded     {self.folded} batch norms into convolutions",
        ]
        if self.threads:
            lines.append(f"threads    {self.threads} (torch.set_num_threads)")
        return "\n".join([*lines, *(f"note       {n}" for n in self.notes)])


class Pending:
    """A batch that is being computed; `result()` waits for it."""

    def __init__(self, engine: Engine, parts: list[Any], counts: list[int]) -> None:
        self._engine, self._parts, self._counts = engine, parts, counts

    def result(self) -> Any:
        """What the model returns, on the device that the input came from.

        Raises:
            ValueError: the input held NaN or infinity.
        """
        pairs = [p.result() if isinstance(p, Ticket) else p for p in self._parts]
        self._parts = pairs
        if not all(bool(ok) for _, ok in pairs):
            raise ValueError(f"Engine: the input of {self._engine.name} holds NaN or infinity")
        return join([out for out, _ in pairs], self._counts)


class Engine:
    """A model prepared for inference.

    Args:
        model: a module of this package in eval mode, whose weights are copied; or a name, folder or file of
            `load`.
        device: "auto" takes a GPU where there is one.
        precision: "fp32", "tf32" (CUDA), "bf16", "fp16"; "auto": bf16 on a GPU that has it, on a CPU what was measured
            to be faster for the family (precision.py).
        batch: the largest step, or all step sizes (buckets), ascending; larger batches are cut. Default 64 on CUDA,
            else 8.
        mode: "graph" (CUDA), "compile", "eager"; "auto": graph on CUDA, eager elsewhere.
        own: the module may be changed instead of copied.
        follow: prepares anew by itself when the weights have changed, instead of refusing.
        overrides: config fields, where `model` is a name.

    Raises:
        ValueError: an unknown word, a batch below 1. RuntimeError: a model in training mode.

    Example:
        >>> engine = Engine("tore_default", device="cpu", precision="fp32")
        >>> engine(torch.zeros(2, 3, 112, 112)).vertices.shape
        torch.Size([2, 6890, 3])
    """

    def __init__(
        self,
        model: nn.Module | str | Path,
        device: str | torch.device = "auto",
        precision: str = "auto",
        batch: int | Sequence[int] | None = None,
        *,
        mode: str = "auto",
        own: bool = False,
        follow: bool = False,
        platform: Platform | None = None,
        **overrides: Any,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"Engine: mode must be one of {', '.join(MODES)}, got {mode!r}")
        self.device = torch.device(pick_device(str(device)))
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        if not isinstance(model, nn.Module):
            self.name, source, own = str(model), load(model, **overrides), True
        elif overrides:
            raise TypeError(f"Engine: {', '.join(overrides)}: config fields are for names, the model is built already")
        else:
            self.name, source = type(model).__name__, model
        if source.training:
            raise RuntimeError(f"Engine: {self.name} is in training mode; call eval() first")
        self.facts = facts_of(source)
        self.input_shape = input_shape(source)
        self.buckets = _buckets(batch, self.device)
        self._source = source
        self._own, self._follow = own, follow
        choice = choose_precision(precision, self.device, None if self.facts is None else self.facts.family)
        self._choice: Choice = choice
        self._platform = platform
        self._mode, reason = _pick_mode(mode, self.device, platform)
        if self._mode == "graph" and platform is None:
            self._platform = Cuda(self.device)
        self.report_ = Report(
            self.name,
            str(self.device),
            choice.word,
            choice.reason,
            self._mode,
            reason,
            self.buckets,
            threads=torch.get_num_threads() if self.device.type == "cpu" else 0,
        )
        self._may_fail = mode == "auto"
        self._ready: dict[tuple, Bucket] = {}
        self._call: Any = None
        self._prepare()

    # ---- before the first call

    def _prepare(self) -> None:
        network = self._source if self._own else copy.deepcopy(self._source)
        self.network = network.to(self.device, torch.float32).eval().requires_grad_(False)
        report = self.report_
        example = torch.randn((1, *self.input_shape), generator=torch.Generator().manual_seed(0)).to(self.device)
        with torch.no_grad(), Tf32(self._choice.word == "tf32"):
            if has_batch_norms(network):
                report.folded = fold_batch_norms(network, lambda: network(example))
            if len(self.input_shape) == 3:
                network.to(memory_format=torch.channels_last)
            if self._choice.dtype is not None:
                report.cast, report.islands = cast_products(
                    network, self._choice.dtype, self.device.type, lambda: network(example)
                )
            with autocast(self.device.type, self._choice.dtype):
                prepare(network)
        self._stamps = self._states()
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        unit = self.facts is not None and self.facts.pixels == "unit"
        self._scale = (torch.full((3,), 1 / 255) if unit else 1 / (255 * std)).to(self.device)[:, None, None]
        self._shift = (torch.zeros(3) if unit else -mean / std).to(self.device)[:, None, None]
        self._call = network
        if self._mode == "compile":
            self._call = torch.compile(network, dynamic=False)

    def refresh(self) -> None:
        """Prepares anew after the weights of the module it was made from have changed.

        An engine that was given the module (`own`, a name) keeps it as it is now and forgets what followed from it.
        """
        self._ready.clear()
        self.report_.captured.clear()
        if not self._own:
            self._prepare()
            return
        with torch.no_grad(), autocast(self.device.type, self._choice.dtype):
            prepare(self.network)
        self._stamps = self._states()

    def _states(self) -> tuple:
        return (_state_of(self._source), None if self._own else _state_of(self.network))

    def warm_up(self, *extra: Any, dtype: torch.dtype = torch.float32) -> Engine:
        """Makes every bucket ready now instead of at its first use. `extra`: further arguments of one item [1, ...]."""
        for size in self.buckets:
            item = torch.zeros((size, *self.input_shape), dtype=dtype)
            self(item, *(None if e is None else e.expand(size, *e.shape[1:]) for e in extra))
        return self

    def set_batch(self, batch: int | Sequence[int]) -> None:
        """Other step sizes from the next call on; those that are ready already stay."""
        self.buckets = self.report_.buckets = _buckets(batch, self.device)

    def context(self) -> torch.autocast:
        """For direct calls of parts of `network`: autocast to its compute type, which their weights have."""
        return autocast(self.device.type, self._choice.dtype)

    def report(self) -> Report:
        """What it did and why not the rest."""
        return self.report_

    # ---- calls

    def __call__(self, images: Any, *extra: Any) -> Any:
        """What the model returns for a batch, floating numbers in float32, on the device that the batch came from.

        Args:
            images: [B, *input_shape] floating point as the model takes it, or uint8 images 0..255 ([B, 3, H, W] or
                [B, H, W, 3]); tensor or array, on the CPU or this engine's device.
            extra: further arguments of the model's forward, tensors [B, ...] or None.

        Raises:
            TypeError, ValueError: another type, shape or device, an empty batch, NaN or infinity.
            RuntimeError: the weights have changed since they were prepared.
        """
        return self.submit(images, *extra).result()

    def submit(self, images: Any, *extra: Any) -> Pending:
        """Starts a batch and returns without waiting for it; on a CPU it is done then."""
        inputs: tuple[Any, ...] = self._checked(images, extra)
        count, parts, counts = len(inputs[0]), [], []
        for first, items, bucket in split(count, self.buckets):
            parts.append(self._step(tuple(None if t is None else t[first : first + items] for t in inputs), bucket))
            counts.append(items)
        return Pending(self, parts, counts)

    def stream(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Results of batches (each an array, a tensor, or a tuple of arguments) in order, with two of them in
        flight."""
        waiting: list[Pending] = []
        for batch in batches:
            waiting.append(self.submit(*(batch if type(batch) is tuple else (batch,))))
            if len(waiting) == SLOTS:
                yield waiting.pop(0).result()
        for pending in waiting:
            yield pending.result()

    def _step(self, inputs: tuple[Any, ...], bucket: int) -> Any:
        items = len(inputs[0])  # type: ignore[arg-type]
        on_device = inputs[0].device.type == "cuda"  # type: ignore[union-attr]
        if self._mode == "graph":
            ready = self._bucket(inputs, bucket)
            if ready is not None:
                if on_device:
                    out, ok = ready.run_on_device(tuple(pad(t, bucket) for t in inputs))
                    return take(out, items, bucket), ok
                return ready.submit(inputs, items)
        if self._mode == "compile":
            inputs = tuple(pad(t, bucket) for t in inputs)
            if bucket not in self.report_.captured:
                self.report_.captured.append(bucket)
        moved: tuple[Any, ...] = tuple(None if t is None else t.to(self.device, non_blocking=True) for t in inputs)
        out, ok = self._forward(*moved)
        out = take(out, items, len(moved[0]))  # type: ignore[arg-type]
        if not on_device and self.device.type != "cpu":
            out = tree_map(lambda t: t.cpu() if isinstance(t, Tensor) else t, out)
        return out, ok

    @torch.no_grad()
    def _forward(self, images: Tensor, *extra: Tensor | None) -> tuple[Any, Tensor]:
        """(results in float32, whether the input was finite): the step that is captured."""
        if images.dtype == torch.uint8:
            ok = images.new_ones((), dtype=torch.bool)
            images = images.float() * self._scale + self._shift
        else:
            ok = torch.isfinite(images).all()
        if images.dim() == 4 and len(self.input_shape) == 3:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast(self.device.type, self._choice.dtype), Tf32(self._choice.word == "tf32"):
            out = self._call(images, *extra)
        return tree_map(lambda t: t.float() if isinstance(t, Tensor) and t.is_floating_point() else t, out), ok

    def _bucket(self, inputs: tuple[Tensor | None, ...], size: int) -> Bucket | None:
        """The captured step of a size, captured now if need be; None where this model cannot be captured."""
        key = (size, *((None if t is None else (t.dtype, tuple(t.shape[1:]))) for t in inputs))
        if key not in self._ready:
            assert self._platform is not None
            filled = (pad(t, size) for t in inputs)
            example = tuple(None if t is None else t.to(self.device) for t in filled)
            try:
                self._ready[key] = Bucket(self._forward, example, size, self._platform)
            except RuntimeError as e:
                if not self._may_fail:
                    raise
                self._mode = self.report_.mode = "eager"
                self.report_.mode_reason = f"capturing {size} items failed: {str(e).splitlines()[0][:120]}"
                warnings.warn(f"Engine: {self.name} runs eagerly: {self.report_.mode_reason}", stacklevel=4)
                return None
            if size not in self.report_.captured:
                self.report_.captured.append(size)
        return self._ready[key]

    def _checked(self, images: Any, extra: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
        if self._stamps != self._states():
            if self._follow:
                self.refresh()
                return self._checked(images, extra)
            raise RuntimeError(
                f"Engine: weights of {self.name} have changed since they were prepared; call refresh() or make "
                "a new engine"
            )
        if self.network.training:
            raise RuntimeError(f"Engine: {self.name} was put in training mode; call engine.network.eval()")
        first = self._tensor("images", images)
        want = (*self.input_shape[1:], 3)
        if first.dtype == torch.uint8 and first.dim() == 4 and tuple(first.shape[1:]) == want:
            first = first.permute(0, 3, 1, 2)
        is_images = len(self.input_shape) == 3 and self.input_shape[0] == 3
        if not first.is_floating_point() and not (is_images and first.dtype == torch.uint8):
            kinds = "floating point or uint8" if is_images else "floating point"
            raise TypeError(f"Engine: the input of {self.name} must be {kinds}, got {first.dtype}")
        if first.is_floating_point():
            first = first.float()
        if tuple(first.shape[1:]) != self.input_shape and not self._takes_size(first):
            wanted = ", ".join(map(str, ("B", *self.input_shape)))
            raise ValueError(f"Engine: the input of {self.name} must be [{wanted}], got {list(first.shape)}")
        if len(first) == 0:
            raise ValueError(f"Engine: the batch for {self.name} is empty")
        rest = [None if e is None else self._tensor(f"argument {i}", e) for i, e in enumerate(extra, 1)]
        for i, e in enumerate(rest, 1):
            if e is not None and (e.dim() == 0 or len(e) != len(first)):
                raise ValueError(
                    f"Engine: argument {i} must have {len(first)} rows like the images, got {list(e.shape)}"
                )
            if e is not None and e.device != first.device:
                raise ValueError(f"Engine: argument {i} is on {e.device}, the images on {first.device}")
        return (first, *rest)

    def _takes_size(self, x: Tensor) -> bool:
        """Whether a model without one size (TCFormer, the detector, hosts) is given images of another that it takes."""
        cut = getattr(self.network.config, "img_size", None)  # hosts also take the crop without its sides
        if cut is not None and tuple(x.shape[1:]) == (3, *cut):
            return True
        own = any(hasattr(self.network.config, n) for n in ("img_size", "grid"))
        fixed = own or (self.facts is not None and self.facts.task not in ("keypoints", "classify", "smpl", "camera"))
        return not fixed and x.dim() == 4 and x.shape[1] == 3 and min(x.shape[2:]) > 0

    def _tensor(self, what: str, x: Any) -> Tensor:
        if isinstance(x, np.ndarray):
            x = torch.from_numpy(x if x.flags.writeable else x.copy())
        if not isinstance(x, Tensor):
            raise TypeError(f"Engine: {what} of {self.name} must be a tensor or an array, got {type(x).__name__}")
        if x.device != self.device and x.device.type != "cpu":
            raise ValueError(f"Engine: {what} are on {x.device}, the engine on {self.device}")
        return x.detach()


def _buckets(batch: int | Sequence[int] | None, device: torch.device) -> tuple[int, ...]:
    if batch is None:
        return bucket_sizes(BATCH.get(device.type, CPU_BATCH))
    if isinstance(batch, int):
        return bucket_sizes(batch)
    sizes = tuple(int(b) for b in batch)
    if not sizes or sizes[0] < 1 or any(a >= b for a, b in zip(sizes, sizes[1:])):
        raise ValueError(f"Engine: batch must be a number or ascending sizes of at least 1, got {list(batch)}")
    return sizes


def _pick_mode(mode: str, device: torch.device, platform: Platform | None) -> tuple[str, str]:
    if mode == "graph" and device.type != "cuda" and platform is None:
        raise ValueError(f"Engine: mode 'graph' needs a CUDA device, got {device}")
    if mode != "auto":
        return mode, "asked for"
    if device.type == "cuda":
        return "graph", "one CUDA graph per batch size"
    return "eager", "graphs are a thing of CUDA; steps are the batches as they come, up to the largest"


def _state_of(model: nn.Module) -> tuple:
    """Changes when a weight is replaced or written to, or when a host merges other tokens."""
    merging = getattr(getattr(model, "backbone", None), "merging", None)
    return (*stamp_of((*model.parameters(), *model.buffers())), merging)
