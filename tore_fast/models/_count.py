"""Parameters and multiply-adds of registered models, by the convention of the papers; nothing is computed (meta device).

Convention: matrix products and convolutions only, one image, masked attention and fixed sparse matrices
counted as dense, as the official code would spend them. The papers print these multiply-adds as "GFLOPs".
Used by `tore-fast list` and the README's table.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..layers.mesh import MeshUpsample
from ._registry import ModelEntry, model_entry
from .backbones import create_backbone

UNUSED_OF_TRUNK = {"hrnet_w64": 2_049_000}  # the ImageNet classifier in the official files
_METRO_UPSAMPLING = 431 * 1723 + 1723 + 1723 * 6890 + 6890  # learned, body


class Counts(NamedTuple):
    params: int  # all that our model holds
    backbone_params: int
    unused_params: int  # further weights of the official file that no forward pass reads
    macs: int | None  # whole model, one image; None where they cannot be counted without running it
    backbone_macs: int | None
    paper_macs: int | None = None  # by the rule of the model's paper, where that is another than ours (vpt_macs.py)


@torch.no_grad()
def count_module(model: nn.Module, *inputs: object) -> tuple[int, int]:
    """Parameters and multiply-adds of one forward pass of a module built on the meta device."""
    model = model.to("meta").requires_grad_(False).eval()
    sparse: list[int] = []

    def dense_product(module: MeshUpsample, args, out) -> None:
        rows, cols = module.matrix.shape
        sparse.append(rows * cols * args[0].shape[0] * args[0].shape[2])

    handles = [m.register_forward_hook(dense_product) for m in model.modules() if isinstance(m, MeshUpsample)]
    try:
        with FlopCounterMode(display=False) as counter:
            model(*inputs)
    finally:
        for h in handles:
            h.remove()
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2 + sum(sparse)


@functools.lru_cache
def count_backbone(name: str, stride: int, dilated: bool, height: int, width: int) -> tuple[int, int, int]:
    """Channels, parameters and multiply-adds of a trunk."""
    with torch.device("meta"):
        trunk = create_backbone(name, stride, dilated=dilated)
        image = torch.empty(1, 3, height, width)
    return (trunk.num_channels, *count_module(trunk, image))


@functools.lru_cache
def count_model(name: str, **overrides) -> Counts:
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
            from .keypoints._macs import count_macs

            return Counts(params, 0, 0, count_macs(model, entry.input_shape[1:]).total, None)
        _, macs = count_module(model, torch.empty(1, *entry.input_shape, device="meta"))
    except (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError):
        macs = None  # the model takes something else than one tensor, or decides by values
    if entry.task == "lifting":
        from .lifting._macs import count_paper_macs

        return Counts(params, 0, 0, macs, None, count_paper_macs(model))
    return Counts(params, 0, 0, macs, None)


def _count_mesh_model(entry: ModelEntry, c, overrides: dict) -> Counts:
    rows, cols = c.grid
    height, width = rows * c.stride, cols * c.stride
    channels, backbone_params, backbone_macs = count_backbone(c.backbone, c.stride, c.dilated, height, width)
    with torch.device("meta"):
        model = entry.build(backbone=None, feature_dim=channels, **overrides)
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
    """Counts of every registered model as tools/readme_models.py wrote them; the tests hold them to `count_model`."""
    text = (Path(__file__).parent / "assets" / "counts.json").read_text()
    return {name: Counts(*row) for name, row in json.loads(text).items()}
