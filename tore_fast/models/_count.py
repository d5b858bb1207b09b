"""Parameters and multiply-adds of models, by the conventions of the papers. One image or clip, one forward pass.

| convention | what counts | who prints it (as "GFLOPs") |
|---|---|---|
| "products" | matrix products and convolutions; masked attention and fixed sparse matrices as dense ones | FastMETRO,
TORE, METRO |
| "layers" | linear and convolution layers only, no attention products | HoT (with `paper_extra_macs`), FastHMR table 12
|
| "tcformer" | layers, bias of convolutions, 2 per element of a LayerNorm, attention 2 N Nk C, every token <-> map move
N0 (C + 4), a CTM N^2 C + N k + N^2 + N C; GELU and softmax are free | TCFormer |

"products" and "layers" compute nothing where the model is on the meta device. Used by `tore-fast list` and
docs/models.md; FLOPs of a single op in the usual sense: `torch.utils.flop_counter` knows our kernels (formulas in
ops/<stem>.py).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from ..layers.ctm import CTM
from ..layers.dynamic_block import ReducedAttention
from ..layers.linear import Linear
from ..layers.mesh import MeshUpsample
from ..layers.mta import MTA
from ..layers.token_conv import TokenConv
from ._registry import ModelEntry, model_entry
from .backbones import create_backbone

if TYPE_CHECKING:
    from .smpl.hmr2 import HMR2Config

UNUSED_OF_TRUNK = {"hrnet_w64": 2_049_000}  # the ImageNet classifier in the official files
_METRO_UPSAMPLING = 431 * 1723 + 1723 + 1723 * 6890 + 6890  # learned, body


class Counts(NamedTuple):
    params: int  # all that our model holds
    backbone_params: int
    unused_params: int  # further weights of the official file that no forward pass reads
    macs: int | None  # whole model, one image; None where they cannot be counted without running it
    backbone_macs: int | None
    paper_macs: int | None = None  # by the rule of the model's paper, where that is another than ours (`count_clip`)


class Macs(NamedTuple):
    """Multiply-adds; the total is what the convention counts."""

    main: int
    clustering: int = 0  # of the CTMs ("tcformer")

    @property
    def total(self) -> int:
        return self.main + self.clustering


@torch.no_grad()
def count_macs(model: nn.Module, *inputs: object, convention: str = "products") -> Macs:
    """Multiply-adds of one forward pass; the model is in training mode afterwards if it was before.

    Example:
        >>> from tore_fast.models import create_model
        >>> image = torch.zeros(1, 3, 224, 224)
        >>> round(count_macs(create_model("tcformer_light"), image, convention="tcformer").total / 1e9, 2)
        3.85
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"count_macs: convention must be one of {tuple(CONVENTIONS)}, got {convention!r}")
    training = model.training
    try:
        return CONVENTIONS[convention](model.eval(), inputs)
    finally:
        model.train(training)


def _products(model: nn.Module, inputs: tuple) -> Macs:
    sparse: list[int] = []

    def dense_product(module: MeshUpsample, args: Any, out: Any) -> None:
        rows, cols = module.matrix.shape
        sparse.append(rows * cols * args[0].shape[0] * args[0].shape[2])

    handles = [m.register_forward_hook(dense_product) for m in model.modules() if isinstance(m, MeshUpsample)]
    try:
        with FlopCounterMode(display=False) as counter:
            model(*inputs)
    finally:
        for h in handles:
            h.remove()
    return Macs(counter.get_total_flops() // 2 + sum(sparse))


class _LayerCounter(TorchFunctionMode):
    """Counts layers where they are called: which products they become depends on strides and gradients."""

    macs = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if function is F.linear:
            self.macs += out.numel() * args[0].shape[-1]
        elif function in (F.conv1d, F.conv2d):
            self.macs += out.numel() * args[1][0].numel()
        elif function is torch.addmm:  # a linear layer whose bias differs from row to row (ops.linear with a residual)
            self.macs += out.numel() * args[1].shape[-1]
        return out


def _layers(model: nn.Module, inputs: tuple) -> Macs:
    with _LayerCounter() as counter:
        model(*inputs)
    return Macs(counter.macs)


def _tcformer(model: nn.Module, inputs: tuple) -> Macs:
    total, clustering = [], []

    def conv(m: nn.Conv2d, _: Any, out: Any) -> None:
        per_pixel = m.weight.numel() + (m.out_channels if m.bias is not None else 0)
        total.append(per_pixel * out.shape[-2] * out.shape[-1])

    def linear(m: nn.Linear, args: Any, out: Any) -> None:
        total.append(args[0].numel() * m.out_features)

    def norm(m: nn.LayerNorm, args: Any, out: Any) -> None:
        total.append(2 * args[0].numel())

    def token_conv(m: TokenConv, args: Any, out: Any) -> None:
        tokens = args[0]
        sizes: Any = zip(tokens.map_size, m.padding, m.kernel_size, m.stride)
        h, w = ((s + 2 * p - k) // d + 1 for s, p, k, d in sizes)
        cells = tokens.idx_token.shape[1]
        total.append((m.weight.numel() + m.out_channels) * h * w + m.skip.weight.numel() * tokens.num_tokens)
        total.append(cells * (m.in_channels + 4) + cells * (m.out_channels + 4))

    def attention(m: ReducedAttention, args: Any, out: Any) -> None:
        y_query, y_key, keys, (h, w) = args
        r, channels = m.sr_ratio, y_query.shape[2]
        num_keys = y_key.shape[1] if r == 1 else (h // r) * (w // r)
        total.append(2 * y_query.shape[1] * num_keys * channels)
        if r > 1 and not keys.is_grid:
            total.append(keys.idx_token.shape[1] * (channels + 4))

    def ctm(m: CTM, args: Any, out: Any) -> None:
        n, channels = args[0].num_tokens, out[1].x.shape[2]
        clustering.append(n * n * channels + n * m.k + n * n + n * channels)

    def mta(m: MTA, args: Any, out: Any) -> None:
        pairs: Any = zip(args[0], m.lateral_convs)
        for i, (tokens, lateral) in enumerate(pairs):
            channels, cells = lateral.conv.out_channels, tokens.idx_token.shape[1]
            total.append((lateral.conv.weight.numel() + channels) * tokens.num_tokens)
            if i > 0:
                total.append(2 * cells * (channels + 4))  # moved up once, laid out as a map once

    # a Conv2d inside TokenConv or MTA's laterals never fires its own hook: both use the weights directly
    hooks: dict[type, Any] = {
        TokenConv: token_conv,
        nn.Conv2d: conv,
        nn.ConvTranspose2d: conv,
        nn.Linear: linear,
        Linear: linear,
        nn.LayerNorm: norm,
        ReducedAttention: attention,
        CTM: ctm,
        MTA: mta,
    }
    handles = []
    for m in model.modules():
        for kind, hook in hooks.items():
            if type(m) is kind:
                handles.append(m.register_forward_hook(hook))
    try:
        model(*inputs)
    finally:
        for h in handles:
            h.remove()
    return Macs(sum(total), clustering=sum(clustering))


CONVENTIONS: dict[str, Callable[[nn.Module, tuple], Macs]] = {
    "products": _products,
    "layers": _layers,
    "tcformer": _tcformer,
}


def count_module(model: nn.Module, *inputs: object) -> tuple[int, int]:
    """Parameters and multiply-adds ("products") of one forward pass of a module built on the meta device."""
    macs = count_macs(model.to("meta").requires_grad_(False), *inputs).total
    return sum(p.numel() for p in model.parameters()), macs


@functools.lru_cache
def count_backbone(name: str, stride: int, dilated: bool, height: int, width: int) -> tuple[int, int, int]:
    """Channels, parameters and multiply-adds of a trunk."""
    with torch.device("meta"):
        trunk: Any = create_backbone(name, stride, dilated=dilated)
        image = torch.empty(1, 3, height, width)
    return (trunk.num_channels, *count_module(trunk, image))


@functools.lru_cache
def count_model(name: str, **overrides: Any) -> Counts:
    """Counts of a registered model; `overrides` are config fields, of an image-to-mesh model those behind its trunk.

    Example:
        >>> round(count_model("fastmetro_l_r50").macs / 1e9, 2)
        10.85
    """
    entry = model_entry(name)
    if entry.task == "mesh":  # built without its trunk, which is counted once for all
        return _count_mesh_model(entry, entry.config, overrides)
    try:
        with torch.device("meta"):
            model = entry.build(**overrides)
    except NotImplementedError:  # a constructor that reads values (schedules); built for real then
        model = entry.build(**overrides)
    params = sum(p.numel() for p in model.parameters())
    try:
        if entry.family == "tcformer" and name.startswith("tcformer"):  # by the rules of the official counter
            image = torch.zeros(1, *entry.input_shape, device=next(model.parameters()).device)
            return Counts(params, 0, 0, count_macs(model, image, convention="tcformer").total, None)
        _, macs = count_module(model, torch.empty(1, *entry.input_shape, device="meta"))
    except (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError):
        macs = None  # the model takes something else than one tensor, or decides by values
    if entry.task == "lifting":
        return Counts(params, 0, 0, macs, None, count_clip(model))
    return Counts(params, 0, 0, macs, None)


def count_clip(model: Any) -> int:
    """Multiply-adds of a lifting model on the meta device by the rule of the HoT paper: what its tables print, halved.

    TRA's query counts once per joint, as the official code computes it (ours: once).
    """
    c = model.config
    x = torch.empty(1, c.frames, 17, model.in_channels, device="meta")
    index = torch.empty(1, c.keep_frames, dtype=torch.int64, device="meta") if c.pruned else None
    return count_macs(model, x, index, convention="layers").total + model.paper_extra_macs()


def count_host(config: HMR2Config) -> tuple[int, int]:
    """Multiply-adds of one crop through HMR2.0: (layers, which is what the paper counts; attention products).

    Example:
        >>> from tore_fast.models.smpl.hmr2 import HMR2Config
        >>> layers, attention = count_host(HMR2Config(depth=28, keep_tokens=90))
        >>> round(layers / 1e9, 1), round((layers + attention) / 1e9, 1)
        (52.9, 53.6)
    """
    from .smpl.hmr2 import HMR2

    with torch.device("meta"):
        model, crop = HMR2(config), torch.empty(1, 3, *config.img_size)
    with _LayerCounter() as layers:
        products = count_macs(model, crop).total
    return layers.macs, products - layers.macs


def _count_mesh_model(entry: ModelEntry, c: Any, overrides: dict) -> Counts:
    rows, cols = c.grid
    height, width = rows * c.stride, cols * c.stride
    channels, backbone_params, backbone_macs = count_backbone(c.backbone, c.stride, c.dilated, height, width)
    with torch.device("meta"):
        model: Any = entry.build(backbone=None, feature_dim=channels, **overrides)
    unused = model.unused_official_params() + UNUSED_OF_TRUNK.get(c.backbone, 0)
    params, macs = count_module(model, model.example_features(channels, rows, cols))
    return Counts(params + backbone_params, backbone_params, unused, macs + backbone_macs, backbone_macs)


def params_as_printed(entry: ModelEntry, counts: Counts) -> int | None:
    """Parameters counted the way the paper of `entry.paper` counts them; None where it prints none.

    FastMETRO, table 1: without the trunk. METRO and Mesh Graphormer: without the trunk but with weights that nothing
    reads; METRO without its up-sampling. All others: everything.
    """
    if entry.paper is None or entry.paper.params_m is None:
        return None
    if entry.family not in ("fastmetro", "metro", "graphormer"):
        return counts.params
    trunk = UNUSED_OF_TRUNK.get(entry.config.backbone, 0)
    upsampling = _METRO_UPSAMPLING if entry.family == "metro" else 0
    return counts.params - counts.backbone_params + counts.unused_params - trunk - upsampling


def shipped_counts() -> dict[str, Counts]:
    """Counts of every registered model as tools/models_page.py wrote them; the tests hold them to `count_model`."""
    text = (Path(__file__).parent / "assets" / "counts.json").read_text()
    return {name: Counts(*row) for name, row in json.loads(text).items()}
