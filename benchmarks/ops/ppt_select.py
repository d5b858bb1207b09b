"""ppt_select: positions of the highest scores in a fixed order, against torch's top-k and its stable sort."""

from __future__ import annotations

import torch
from torch import Tensor

from tore_fast.ops import ppt_select

from ..harness import Case, Contender

SHAPES = {  # batch, patches, kept: the three layers of PPT-S, patches of a larger image
    "cpu": ((1, 256, 180), (32, 180, 126), (32, 126, 89), (8, 1024, 717)),
    "cuda": ((64, 256, 180), (64, 180, 126), (64, 126, 89), (64, 1024, 717), (512, 256, 180)),
}


def cases(device: str, dtype: torch.dtype, quick: bool) -> list[Case]:
    """Scores are float32 whatever the type of the features."""
    if dtype != torch.float32:
        return []
    out = []
    for batch, patches, keep in SHAPES[device][:1] if quick else SHAPES[device]:

        def make(generator, shape=(batch, patches)):
            return [torch.rand(shape, device=device, generator=generator)]

        def exact(scores: Tensor, keep=keep) -> Tensor:
            return scores.sort(-1, descending=True, stable=True).indices[:, :keep]

        out.append(
            Case(
                "ppt_select",
                f"B{batch} P{patches} K{keep}",
                make,
                [
                    Contender("tore_fast", lambda s, keep=keep: ppt_select(s, keep), ours=True),
                    Contender("topk", lambda s, keep=keep: s.topk(keep, -1).indices, note="no order of equal scores"),
                    Contender("stable sort", exact),
                ],
                exact,
                False,
                device,
                dtype,
                bytes=batch * (patches * 4 + keep * 8),
                macs=0,
                items=batch,
            )
        )
    return out
