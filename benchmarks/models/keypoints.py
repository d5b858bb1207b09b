"""TCFormer forward passes and their clustering alone, against the operator sequence of the official eager code.

"clustering" cases time density, assignment and merging of the three CTMs on the tokens a forward pass really has; the
share of the clustering in a forward is the quotient of the two rows of a size. "ppt" cases are PPT-S, whole and pruned.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from tore_fast.models import create_model
from tore_fast.models._count import count_macs
from tore_fast.ops.dpc_knn_cluster_merge import dpc_knn_cluster_merge

from ..baselines import torch_products
from ..harness import Case, Contender
from . import _tcformer_official as official
from .mesh import reference_ops

SIZES = {  # name: model, (H, W), batches on CPU, batches on a GPU
    "light 224": ("tcformer_light", (224, 224), (1,), (1, 64)),
    "base 224": ("tcformer_base", (224, 224), (1, 4), (1, 64)),
    "large 224": ("tcformer_large", (224, 224), (1,), (64,)),
    "base wholebody 256x192": ("tcformer_base_wholebody", (256, 192), (1,), (1, 64)),
}


@functools.lru_cache(maxsize=2)
def build(name: str, device: str, dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    return create_model(name).to(device, dtype).eval()


def cases(device: str, dtype: torch.dtype, quick: bool) -> list[Case]:
    """Forward and clustering cases; 16-bit runs on a GPU only."""
    if device == "cpu" and dtype != torch.float32:
        return []
    out = []
    for name, (model, size, cpu, gpu) in SIZES.items():
        if quick and name != "base 224":
            continue
        for batch in (cpu if device == "cpu" else gpu)[: 1 if quick else None]:
            out.append(_forward(name, model, size, batch, device, dtype))
            if name.startswith("base"):
                out.append(_clustering(name, model, size, batch, device, dtype))
    if not quick:
        out += [
            _ppt(keep, batch, device, dtype) for keep in (1.0, 0.7) for batch in ((1,) if device == "cpu" else (1, 64))
        ]
    return out


def sized(device: str, dtype: torch.dtype, quick: bool) -> list[Callable[[int], Case]]:
    """The forward cases as functions of the batch."""
    if device == "cpu" and dtype != torch.float32:
        return []
    sizes = {n: SIZES[n] for n in ("base 224",)} if quick else SIZES
    return [lambda batch, n=n, m=m, hw=hw: _forward(n, m, hw, batch, device, dtype) for n, (m, hw, *_) in sizes.items()]


def _macs(model_name: str, size: tuple[int, int]):
    return count_macs(build(model_name, "cpu", torch.float32), torch.zeros(1, 3, *size), convention="tcformer")


def _images(batch: int, size: tuple[int, int], device: str, dtype: torch.dtype):
    return lambda g: (torch.randn(batch, 3, *size, generator=g, device=device).to(dtype),)


def _forward(name: str, model_name: str, size: tuple[int, int], batch: int, device: str, dtype: torch.dtype) -> Case:
    def ours(image):
        return build(model_name, device, dtype)(image)

    def theirs(image):
        run = official.heatmaps if "wholebody" in model_name else official.classify
        with torch_products():
            return run(build(model_name, device, dtype), image)

    compiled = torch.compile(lambda image: build(model_name, device, dtype)(image))
    return Case(
        op="tcformer",
        name=f"{name} batch {batch}",
        make_inputs=_images(batch, size, device, dtype),
        contenders=[
            Contender("official-style eager", theirs),
            Contender("tore_fast", ours, ours=True, headline=True),
            Contender("tore_fast, torch.compile", compiled, ours=True, heavy=True),
        ],
        device=device,
        dtype=dtype,
        macs=batch * _macs(model_name, size).total,
        items=batch,
        # one token that changes its cluster moves the result by more than rounding does
        error_limit=2e-3 if dtype == torch.float32 else 0.1,
    )


def _ppt(keep_ratio: float, batch: int, device: str, dtype: torch.dtype) -> Case:
    """PPT-S, the pruning comparison: all 256 patches kept, or 70 % at each of three layers (180, 126, 89)."""
    torch.manual_seed(0)
    model = create_model("ppt_s", keep_ratio=keep_ratio).to(device, dtype).eval()

    def reference(image):
        with reference_ops():
            return model(image)

    return Case(
        op="ppt",
        name=f"ppt_s 256x192 keep {keep_ratio:g} batch {batch}",
        make_inputs=_images(batch, (256, 192), device, dtype),
        contenders=[
            Contender("reference ops", reference, note="the same model on the package's plain torch references"),
            Contender("tore_fast", model, ours=True),
        ],
        device=device,
        dtype=dtype,
        items=batch,
        error_limit=2e-3 if dtype == torch.float32 else 0.1,
    )


def _clustering(name: str, model_name: str, size: tuple[int, int], batch: int, device: str, dtype: torch.dtype) -> Case:
    def inputs(generator):
        """(tokens, weights) of the three CTMs, caught in a forward pass."""
        model, caught, handles = build(model_name, device, dtype), [], []
        backbone = getattr(model, "backbone", model)
        for i in (1, 2, 3):
            handles.append(
                getattr(backbone, f"ctm{i}").register_forward_hook(
                    lambda m, args, out: caught.extend((out[1].x, out[1].score[..., 0].exp()))
                )
            )
        with torch.no_grad():
            backbone.forward_features(_images(batch, size, device, dtype)(generator)[0])
        for h in handles:
            h.remove()
        return tuple(caught)

    def ours(*tokens):
        # the call that layers/ctm.py makes: one launch on a GPU for up to 256 tokens
        return tuple(
            dpc_knn_cluster_merge(x, -(-x.shape[1] // 4), 5, w).merged for x, w in zip(tokens[::2], tokens[1::2])
        )

    def theirs(*tokens):
        out = []
        for x, w in zip(tokens[::2], tokens[1::2]):
            m = -(-x.shape[1] // 4)
            out.append(official.merge(x, official.cluster(x, m, 5), m, w[..., None])[0])
        return tuple(out)

    def check(got, want) -> float:
        """Cluster numbers are arbitrary: compares the merged tokens as sets, by sorted projections."""
        worst = 0.0
        for a, b in zip(got, want):
            a, b = a.double(), b.double()
            direction = torch.linspace(-1, 1, a.shape[2], dtype=torch.float64, device=a.device)
            a, b = (a @ direction).sort(1).values, (b @ direction).sort(1).values
            worst = max(worst, float((a - b).norm() / b.norm()))
        return worst

    return Case(
        op="tcformer clustering",
        name=f"{name} batch {batch}",
        make_inputs=inputs,
        contenders=[Contender("official-style eager", theirs), Contender("tore_fast", ours, ours=True)],
        device=device,
        dtype=dtype,
        macs=batch * _macs(model_name, size).clustering,
        items=batch,
        error_limit=2e-3 if dtype == torch.float32 else 0.1,
        check=check,
    )
