"""Image-to-mesh models: ours fused, ours as built, torch's masked attention, official-style eager; feature map or image
in.

Feature-fed cases time the transformers alone (the trunk is the same for everyone); cases from the image run the trunk,
too. METRO and FastMETRO stand there plain, with GTR, with ITP (three selectors, keep ratios .8 and .5) and with both.
Cases with ITP and those at the largest batch have two contenders only: torch's fused attention and products, and ours
fused.
"""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from tore_fast.models import MeshGraphormerConfig, METROConfig, create_model, model_entry
from tore_fast.models._count import count_backbone, count_model, shipped_counts
from tore_fast.ops import op_backends

from ..baselines import dense_attention, torch_products
from ..harness import Case, Contender


class Variant(NamedTuple):
    """A registered model, perhaps with another selector of image tokens, fed with images or with features."""

    name: str
    image: bool = False
    selector: str | None = None
    keep_ratio: float = 1.0

    @property
    def fields(self) -> dict:
        return {} if self.selector is None else {"selector": self.selector, "keep_ratio": self.keep_ratio}

    @property
    def label(self) -> str:
        itp = "" if self.selector is None else f" itp {self.selector} {self.keep_ratio:g}"
        return self.name + itp + ("" if self.image else " features")


FEATURE_FED = tuple(
    map(
        Variant,
        (
            "fastmetro_s_r50",
            "fastmetro_tore_s_r50",
            "fastmetro_l_r50",
            "fastmetro_tore_l_r50_gtr",
            "fastmetro_tore_l_r50",
            "metro_r50",
            "metro_tore_r50",
            "metro_tore_r50_itp20",
            "graphormer_h64",
            "fastmetro_s_r50_hand",
            "fastmetro_tore_s_r50_hand",
            "metro_r50_hand",
            "metro_tore_r50_hand",
        ),
    )
)
FROM_IMAGE = tuple(Variant(name, image=True) for name in ("fastmetro_l_r50", "fastmetro_tore_l_r50", "tore_default"))
ITP = tuple(  # without GTR; with it: "fastmetro_tore_*", "metro_tore_*_itp20"
    Variant(name, selector=selector, keep_ratio=keep)
    for name in ("fastmetro_l_r50", "metro_r50")
    for selector in ("soft", "cluster", "attention")
    for keep in (0.8, 0.5)
)
QUICK = (Variant("fastmetro_s_r50"), Variant("fastmetro_tore_l_r50"))
BATCHES = {"cpu": (1, 8), "cuda": (1, 8, 64)}


@contextmanager
def reference_ops() -> Iterator[None]:
    """Inside the block every op of the package with `impl="auto"` runs its plain torch reference, products torch's."""
    modules = [importlib.import_module(f"tore_fast.ops.{stem}") for stem in op_backends()]
    modules = [m for m in modules if hasattr(m, "choose")]
    kept = [m.choose for m in modules]
    for m in modules:
        m.choose = lambda *args: "reference"
    try:
        with torch_products():
            yield
    finally:
        for m, choose in zip(modules, kept):
            m.choose = choose


def cases(device: str, dtype: torch.dtype, quick: bool) -> Iterator[Case]:
    for batch in BATCHES[device][:1] if quick else BATCHES[device]:
        for variant in QUICK if quick else (*FEATURE_FED, *FROM_IMAGE, *ITP):
            yield _case(variant, batch, device, dtype, few=variant in ITP)


def sized(device: str, dtype: torch.dtype, quick: bool) -> Iterator[Callable[[int], Case]]:
    """The same cases as functions of the batch."""
    for variant in QUICK[1:] if quick else (*FEATURE_FED, *FROM_IMAGE, *ITP):
        yield functools.partial(_case, variant, device=device, dtype=dtype, few=True)


@functools.lru_cache(maxsize=1)
def _models(variant: Variant, device: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """The model as built and, with the same weights, prepared. Built when first called: a list of cases costs
    little."""
    torch.manual_seed(0)
    fed = {} if variant.image else {"backbone": None, "feature_dim": _trunk_channels(variant.name)}
    model = create_model(variant.name, **fed, **variant.fields).to(device, dtype).eval()
    return model, copy.deepcopy(model).prepare()


def _trunk_channels(name: str) -> int:
    c = model_entry(name).config
    return count_backbone(c.backbone, c.stride, c.dilated, *(n * c.stride for n in c.grid))[0]


def _input_shapes(variant: Variant) -> list[tuple[int, ...]]:
    """Of one item; Mesh Graphormer reads a pair of features."""
    entry = model_entry(variant.name)
    if variant.image:
        return [entry.input_shape]
    c, channels = entry.config, _trunk_channels(variant.name)
    if isinstance(c, MeshGraphormerConfig):
        return [(channels,), (c.grid_dim, *c.grid)]
    return [(channels, *c.grid)]


def _case(variant: Variant, batch: int, device: str, dtype: torch.dtype, few: bool) -> Case:
    config = type(model_entry(variant.name).config)
    counts = count_model(variant.name, **variant.fields) if variant.fields else shipped_counts()[variant.name]
    macs = counts.macs if variant.image else counts.macs - counts.backbone_macs
    shapes = _input_shapes(variant)
    masks: dict = {}

    def outputs(net: nn.Module, x: tuple):
        out = net(x if len(x) > 1 else x[0])
        return out.camera, out.joints, out.vertices

    def plain(*x):
        return outputs(_models(variant, device, dtype)[0], x)

    def fused(*x):
        return outputs(_models(variant, device, dtype)[1], x)

    def masked(*x):
        with dense_attention(fused=True, masks=masks):
            return plain(*x)

    def reference(*x):
        with reference_ops():
            return plain(*x)

    def eager(*x):
        with dense_attention(masks=masks):
            return plain(*x)

    @functools.cache
    def compiled_model():
        net = _models(variant, device, dtype)[1]
        return torch.compile(lambda *x: outputs(net, x), fullgraph=True, mode="reduce-overhead")

    contenders = [
        Contender(
            "masked SDPA",
            masked,
            note="torch's fused attention, with a dense mask where the mesh asks for one, and torch's products",
        ),
        Contender("tore_fast fused", fused, ours=True, note="model.prepare()", headline=True),
    ]
    if not few:
        note = "explicit softmax over a dense mask, mean weights formed, learned queries per image"
        contenders.insert(0, Contender("official-style eager", eager, note=note))
        if config is not METROConfig:  # it runs none of our ops: one contender per code path
            contenders.append(
                Contender("reference ops", reference, note="the same model on the package's plain torch references")
            )
        contenders.append(Contender("tore_fast", plain, ours=True))
    if device == "cuda":
        contenders.append(
            Contender("tore_fast fused, compiled", lambda *x: compiled_model()(*x), ours=True, heavy=True)
        )
    return Case(
        op="hmr",
        name=f"{variant.label} b{batch}",
        make_inputs=lambda g: [torch.randn(batch, *s, generator=g, device=device, dtype=dtype) for s in shapes],
        contenders=contenders,
        device=device,
        dtype=dtype,
        macs=float(macs) * batch,
        items=batch,
        error_limit={torch.float32: 2e-4}.get(dtype, 6e-2),
        params={
            "model": variant.name,
            **variant.fields,
            "batch": batch,
            "from": "image" if variant.image else "features",
        },
    )
