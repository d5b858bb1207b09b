"""Layer merging of somebody's model in place: a new list with fewer blocks, the old one kept for undoing.

In: a `Host` and an `ECLMPlan`; out: the merged list. With layer scale, equation 4 is applied to the product of scale
and weights ("fold"), which is what the block computes, and the result is divided by the top block's scale again:
nothing becomes subnormal in 16 bits. Pairs take the upper block whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.eclm import ECLMPlan, ECLMResult, Evaluation, Groups, eclm_search, merge_tensors
from .blocks import Family
from .hosts import Host

State = dict[str, Tensor]


def merged_state(states: Sequence[State], family: Family | None, fold: bool = True) -> State:
    """State dict of one block that stands for a group (equation 4 of FastHMR), in the dtype of the last.

    Raises:
        ValueError: a NaN, as in buffers that were never initialised.
    """
    for state in states:
        bad = next((k for k, v in state.items() if v.is_floating_point() and v.isnan().any()), None)
        if bad is not None:
            raise ValueError(f"accelerate: {bad} holds NaN (never initialised?), so layers cannot be merged")
    if len(states) < 3:
        return {k: v.clone() for k, v in states[-1].items()}
    wide = [{k: v.float() if v.is_floating_point() else v for k, v in s.items()} for s in states]
    scaled: list[tuple[str, str]] = []
    for scale, products in family.folds if family is not None and fold else ():
        if scale not in wide[0]:
            continue
        for name in (f"{p}.{kind}" for p in products for kind in ("weight", "bias")):
            if name in wide[0]:
                scaled.append((scale, name))
                for s in wide:
                    s[name] = s[name] * s[scale].reshape(-1, *[1] * (s[name].dim() - 1))
    out = {k: merge_tensors([s[k] for s in wide]) for k in wide[0]}
    top = wide[-1]
    for scale, name in scaled:
        gamma = torch.where(top[scale] == 0, torch.ones_like(top[scale]), top[scale])
        out[scale] = gamma
        out[name] = out[name] / gamma.reshape(-1, *[1] * (out[name].dim() - 1))
    return {k: v.to(states[-1][k].dtype) for k, v in out.items()}


def merged_blocks(blocks: Any, plan: ECLMPlan, family: Family | None, layerscale: str = "fold") -> Any:
    """A list of the same type: untouched blocks shared, merged ones fresh copies.

    Raises:
        ValueError: the plan is for another depth.
    """
    if layerscale not in ("fold", "separate"):
        raise ValueError(f"accelerate: layerscale must be 'fold' or 'separate', got {layerscale!r}")
    if plan.num_original != len(blocks):
        raise ValueError(f"accelerate: the plan is for {plan.num_original} blocks, the model has {len(blocks)}")
    made = []
    for group in plan.groups:
        block = blocks[group[-1]]
        if len(group) > 1:
            block = copy.deepcopy(block)
            states = [blocks[i].state_dict() for i in group]
            block.load_state_dict(merged_state(states, family, layerscale == "fold"))
        made.append(block)
    return nn.Sequential(*made) if isinstance(blocks, nn.Sequential) else nn.ModuleList(made)


def search_layers(
    host: Host,
    predict: Callable[[Any], Tensor],
    batches: Sequence[Any],
    measure: Callable[[Tensor, Tensor], Tensor],
    tau: float = 0.1,
    on_step: Callable[[Evaluation, int], None] | None = None,
) -> ECLMResult:
    """Which blocks of a model can be merged, by its own outputs on calibration batches (FastHMR Algorithm 1).

    Args:
        predict: batch -> prediction of the model, tokens unmerged. measure: (prediction, the whole model's) -> error
        per item
            [B], e.g. millimetres. tau: largest mean error. on_step: called after each evaluation.

    Every evaluation runs the whole model; the model is as before when this returns.
    """
    whole = host.blocks
    with torch.no_grad():
        targets = [predict(b) for b in batches]

    @torch.no_grad()
    def error(groups: Groups) -> float:
        setattr(host.owner, host.attribute, merged_blocks(whole, ECLMPlan(groups), host.family))
        try:
            values = torch.cat([measure(predict(b), t).double().flatten() for b, t in zip(batches, targets)])
        finally:
            setattr(host.owner, host.attribute, whole)
        return float(values.mean())

    return eclm_search(len(whole), error, tau, 0.0, on_step=on_step)
