"""Image-to-mesh models: ours fused, ours as built, torch's masked attention, official-style eager; feature map or image in.

Feature-fed cases time the transformers alone (the trunk is the same for everyone); `r50` cases run from the image. Rows
come in pairs with and without TORE (GTR and ITP).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from tore_fast.layers.attention import dense_attention
from tore_fast.models import create_model, model_entry
from tore_fast.models._count import count_model
from tore_fast.ops import op_backends

from ..harness import Case, Contender

FEATURE_FED = ("fastmetro_s_r50", "fastmetro_tore_s_r50", "fastmetro_l_r50", "fastmetro_tore_l_r50", "metro_r50",
               "metro_tore_r50")  # fmt: skip
FROM_IMAGE = ("fastmetro_l_r50", "fastmetro_tore_l_r50", "tore_default")
BATCHES = {"cpu": (1, 8), "cuda": (1, 8, 64)}


@contextmanager
def reference_ops() -> Iterator[None]:
    """Inside the block every op of the package with `impl="auto"` runs its plain torch reference."""
    modules = [importlib.import_module(f"tore_fast.ops.{stem}") for stem in op_backends()]
    modules = [m for m in modules if hasattr(m, "choose")]
    kept = [m.choose for m in modules]
    for m in modules:
        m.choose = lambda *args: "reference"
    try:
        yield
    finally:
        for m, choose in zip(modules, kept):
            m.choose = choose


def cases(device: str, dtype: torch.dtype, quick: bool) -> Iterator[Case]:
    features = ("fastmetro_s_r50", "fastmetro_tore_l_r50") if quick else FEATURE_FED
    for batch in BATCHES[device][:1] if quick else BATCHES[device]:
        for name in features:
            yield _case(name, batch, device, dtype, image=False)
        for name in () if quick else FROM_IMAGE:
            yield _case(name, batch, device, dtype, image=True)


def sized(device: str, dtype: torch.dtype, quick: bool) -> Iterator[Callable[[int], Case]]:
    """The same cases as functions of the batch."""
    for name in ("fastmetro_tore_l_r50",) if quick else FEATURE_FED:
        yield lambda batch, name=name: _case(name, batch, device, dtype, image=False)
    for name in () if quick else FROM_IMAGE:
        yield lambda batch, name=name: _case(name, batch, device, dtype, image=True)


def _case(name: str, batch: int, device: str, dtype: torch.dtype, image: bool) -> Case:
    torch.manual_seed(0)
    model = create_model(name, **({} if image else {"backbone": None})).to(device, dtype).eval()
    fused = create_model(name, **({} if image else {"backbone": None})).to(device, dtype).eval()
    fused.load_state_dict(model.state_dict())
    fused.fuse()
    shape = model_entry(name).input_shape if image else (model.config.feature_dim, *model.config.grid)
    counts = count_model(name)

    def outputs(net):
        def run(x):
            out = net(x)
            return out.camera, out.joints, out.vertices

        return run

    masks: dict = {}

    def masked(x):
        with dense_attention(fused=True, masks=masks):
            return outputs(model)(x)

    def reference(x):
        with reference_ops():
            return outputs(model)(x)

    def eager(x):
        with dense_attention(masks=masks):
            return outputs(model)(x)

    contenders = [
        Contender("official-style eager", eager, note="explicit softmax over a dense mask, mean weights formed, learned queries per image"),
        Contender("reference ops", reference, note="the same model on the package's plain torch references"),
        Contender("masked SDPA", masked, note="torch's fused attention with a dense mask"),
        Contender("tore_fast", outputs(model), ours=True),
        Contender("tore_fast fused", outputs(fused), ours=True, note="model.fuse()", headline=True),
    ]
    if device == "cuda":
        contenders.append(
            Contender("tore_fast fused, compiled", torch.compile(outputs(fused), fullgraph=True, mode="reduce-overhead"),
                      ours=True, heavy=True)  # fmt: skip
        )
    macs = counts.macs if image else counts.macs - counts.backbone_macs
    return Case(
        op="hmr",
        name=f"{name}{'' if image else ' features'} b{batch}",
        make_inputs=lambda g: [torch.randn(batch, *shape, generator=g, device=device, dtype=dtype)],
        contenders=contenders,
        device=device,
        dtype=dtype,
        macs=float(macs) * batch,
        items=batch,
        error_limit={torch.float32: 2e-4}.get(dtype, 6e-2),
        params={"model": name, "batch": batch, "from": "image" if image else "features"},
    )
