"""Multiply-adds of a video pose host by the rule of the HoT paper: what its tables print, halved.

Rule: linear and convolution layers, and the pooling of the tokens that TPC chooses by; attention products,
norms and the clustering are free. TRA's query counts once per joint, as the official code computes it (ours: once).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from ._base import JOINTS, PrunableHost


class _LayerCounter(TorchFunctionMode):
    """Counts linear and convolution layers where they are called: which products they become depends on strides and gradients."""

    macs = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is F.linear:
            self.macs += out.numel() * args[0].shape[-1]
        elif function is F.conv1d:
            self.macs += out.numel() * args[1][0].numel()
        return out


@torch.no_grad()
def count_paper_macs(model: PrunableHost) -> int:
    """Multiply-adds for one clip of a model on the meta device.

    Example:
        >>> import torch
        >>> from tore_fast.models import create_model
        >>> with torch.device("meta"):
        ...     model = create_model("hot_mixste_243")
        >>> round(2 * count_paper_macs(model) / 1e9, 1)
        167.5
    """
    c, host = model.config, model.facts.family
    frames: int = c.frames  # type: ignore[attr-defined]
    x = torch.empty(1, frames, JOINTS, model.in_channels, device="meta")
    index = torch.empty(1, c.keep_frames, dtype=torch.int64, device="meta") if c.pruned else None
    with _LayerCounter() as counter:
        model.eval()(x, index=index)
    macs = counter.macs
    if host == "mhformer":  # its joints are merged before TPC and TRA
        return macs
    channels: int = c.channels  # type: ignore[attr-defined]
    if c.pruned and c.pruning == "tpc":
        macs += (JOINTS + 1) * frames * channels
    if c.recovery == "tra":
        macs += (JOINTS - 1) * channels**2 * c.output_frames
    if host != "mixste":  # two streams: fused by a layer of two outputs; ours is no layer and computes their difference
        first = c.depth if c.prune_block is None else c.prune_block  # type: ignore[attr-defined]
        seen = first * frames + (c.depth - first) * (c.keep_frames or 0)  # type: ignore[attr-defined]
        macs += 4 * channels * seen * JOINTS
    return macs
