"""Families without a benchmark of their own: the first registered model of each, prepared against as built.

A model that is added shows up here until somebody writes `benchmarks/models/<family>.py` or adds it to one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tore_fast.layers.prepared import prepare
from tore_fast.models import create_model, list_models, model_entry

from ..harness import Case, Contender

# families that keypoints.py, lifting.py, mesh.py and smpl.py measure
ELSEWHERE = {"fastmetro", "tore", "metro", "graphormer", "tcformer", "mixste", "mhformer", "motionbert", "fasthmr"}


def cases(device: str, dtype: torch.dtype, quick: bool) -> list[Case]:
    """One case a family, batch 1; 16-bit runs on a GPU only."""
    if device == "cpu" and dtype != torch.float32:
        return []
    first = {model_entry(name).family: name for name in reversed(list_models())}
    return [_case(name, device, dtype) for family, name in sorted(first.items()) if family not in ELSEWHERE]


def _case(name: str, device: str, dtype: torch.dtype) -> Case:
    shape = (1, *model_entry(name).input_shape)

    def runner(ready: Callable[[nn.Module], nn.Module]) -> Callable[[Tensor], tuple[Tensor, ...]]:
        made: list[nn.Module] = []  # built at the first call

        def run(x: Tensor) -> tuple[Tensor, ...]:
            if not made:
                torch.manual_seed(0)
                made.append(ready(create_model(name).to(device, dtype).eval()))
            with torch.inference_mode():
                return tuple(_tensors(made[0](x)))

        return run

    return Case(
        "others",
        f"{name} b1",
        lambda generator: (torch.rand(shape, generator=generator).to(device, dtype),),
        [Contender("as built", runner(lambda m: m)), Contender("ours prepared", runner(prepare), ours=True)],
        device=device,
        dtype=dtype,
    )


def _tensors(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    items = out.values() if isinstance(out, dict) else out if isinstance(out, (list, tuple)) else ()
    return [t for item in items for t in _tensors(item)]
