"""What runs inside accelerated blocks: the token state of one forward pass and the class that blocks change into.

In: the arguments of a block's call; out: what the block returns, with fewer tokens in between. The last block gives
every token of the grid its group's row back, so that whatever follows sees the map that it expects. One forward pass
at a time per model: the state lives beside the blocks.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ..layers.mask_tome import MergeConfig, TokenState, match_tokens, merge_by_plan
from ..ops import merge
from .blocks import Family, Refused

UNMERGE = ("copy", "residual")


class Runtime:
    """One per accelerated model, shared by its blocks.

    Attributes:
        keep: patch tokens left at the end; None, or as many as there are, runs the original blocks. per_block: most
        merges in one
            block; None is 40 / 192 of the patches. coverage: person share of every patch token [B, N0] of the next
            passes.
        state, owner: of the last pass: sizes, and the row [B, N0] that every patch token ended in.
    """

    def __init__(self, family: Family, depth: int, prefix: int | None, unmerge: str, prop_attn: bool, own: bool):
        if unmerge not in UNMERGE:
            raise ValueError(f"accelerate: unmerge must be one of {UNMERGE}, got {unmerge!r}")
        self.family, self.depth, self.prefix, self.unmerge, self.prop_attn = family, depth, prefix, unmerge, prop_attn
        self.own_attention = own
        self.keep: int | float | None = None
        self.per_block: int | None = None
        self.merging = MergeConfig(keep=1)
        self.coverage: Tensor | None = None
        self.state = TokenState()
        self.owner: Tensor | None = None
        self.running = False
        self._table: Tensor | None = None
        self._offset: Tensor | None = None
        self._front = 0
        self._schedule: tuple[int, ...] = ()
        self._schedules: dict[tuple, tuple[MergeConfig, tuple[int, ...]]] = {}

    def settings(self, patches: int, prefix: int) -> tuple[MergeConfig, tuple[int, ...]]:
        """Merging and merges per block for a grid of `patches`."""
        key = (patches, prefix, self.keep, self.per_block)
        if key not in self._schedules:
            keep = tokens_kept(self.keep, patches)
            per_block = max(1, round(patches * 40 / 192)) if self.per_block is None else self.per_block
            merging = MergeConfig(keep=keep + prefix, per_block=per_block, prop_attn=self.prop_attn)
            schedule = (0,) * self.depth if keep >= patches else merging.schedule(patches + prefix, self.depth, prefix)
            self._schedules[key] = merging, schedule
        return self._schedules[key]

    def start(self, x: Tensor, table: Tensor | None) -> None:
        """Block 0: a new pass."""
        front = self.prefix if self.prefix is not None else 0 if table is None else x.shape[1] - table.shape[-2]
        patches = x.shape[1] - front
        self.merging, self._schedule = self.settings(patches, front)
        self.running = any(self._schedule)
        self._front, self.owner, self._offset = front, None, None
        coverage = self.coverage if self.running else None
        if coverage is not None:
            if coverage.shape != (x.shape[0], patches):
                raise ValueError(
                    f"accelerate: the mask gives coverage {list(coverage.shape)}, the model has "
                    f"{[x.shape[0], patches]} patch tokens"
                )
            coverage = coverage.to(x.device)
            coverage = torch.cat((coverage.new_zeros(x.shape[0], front), coverage), 1)
        self.state, self._table = TokenState(coverage), table

    def forward(self, block: Any, index: int, x: Tensor) -> Tensor:
        table, state = self._table, self.state
        log_size = state.log_size if self.prop_attn else None
        x, k = self.family.attend(block, x, table, log_size)
        if self._schedule[index]:
            x = self._merge(x, k.mean(1), self._schedule[index])
        x = self.family.second(block, x)
        return self._spread(x) if index == self.depth - 1 else x

    def _merge(self, x: Tensor, metric: Tensor, r: int) -> Tensor:
        front, state = self._front, self.state
        plan = match_tokens(metric, r, state.coverage, self.merging, front)
        size, before = state.size, x
        x = merge_by_plan(plan, x, state, self.merging)
        joined = plan.owner[:, front:] - front
        if self._table is not None:
            table = self._table if self._table.dim() == 3 else self._table.expand(x.shape[0], -1, -1)
            weight = None if size is None else size[:, front:]
            inner = plan._replace(owner=joined, num_out=plan.num_out - front)
            self._table = merge(inner, table, mode="wavg", size=weight).x
        if self.unmerge == "residual":
            moved = (before - x.gather(1, plan.owner[..., None].expand_as(before)))[:, front:]
            if self.owner is not None:
                moved = moved.gather(1, self.owner[..., None].expand(-1, -1, moved.shape[2]))
            self._offset = moved if self._offset is None else self._offset + moved
        self.owner = joined if self.owner is None else joined.gather(1, self.owner)
        return x

    def _spread(self, x: Tensor) -> Tensor:
        """Back to the grid: every patch token gets its group's row (and, with "residual", its own difference to it)."""
        if self.owner is None:
            return x
        front = self._front
        patches = x[:, front:].gather(1, self.owner[..., None].expand(-1, -1, x.shape[2]))
        if self._offset is not None:
            patches = patches + self._offset
        self._offset = None
        return torch.cat((x[:, :front], patches), 1)


def tokens_kept(keep: int | float | None, patches: int) -> int:
    """Number of patch tokens of a budget given as a number, as a fraction below 1, or as None (all)."""
    if keep is None:
        return patches
    return min(patches, max(1, round(keep * patches)) if isinstance(keep, float) and keep < 1 else int(keep))


@functools.cache
def accelerated(base: type) -> type:
    """Subclass of a block's class that merges tokens; with nothing to merge the original forward runs."""

    class Accelerated(base):  # type: ignore[misc, valid-type]
        def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
            runtime: Runtime = self.token_runtime
            index = self.token_index
            if index == 0:
                if isinstance(x, list):
                    raise Refused(
                        "accelerate: lists of inputs (several crops in one pass) do not go with token merging"
                    )
                if self.training:
                    raise Refused("accelerate: the model is in training mode; call eval() or remove()")
                runtime.start(x, runtime.family.table(args, kwargs))
            if not runtime.running and not runtime.own_attention:
                return super().forward(x, *args, **kwargs)
            return runtime.forward(self, index, x)

    Accelerated.__name__ = Accelerated.__qualname__ = f"Accelerated{base.__name__}"
    return Accelerated


def patch(blocks: Any, runtime: Runtime) -> None:
    """Changes the class of every block; modules, weights and hooks stay."""
    for i, block in enumerate(blocks):
        block.__class__ = accelerated(type(block))  # type: ignore[arg-type]  # a class is hashable; mypy looks at its instances
        block.token_runtime, block.token_index = runtime, i


def unpatch(blocks: Any) -> None:
    for block in blocks:
        if hasattr(block, "token_runtime"):
            block.__class__ = type(block).__bases__[0]
            del block.token_runtime, block.token_index
