"""The handle that `accelerate` returns: budgets, masks, reports, comparison with the unmodified model, plans,
undoing."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ..layers.eclm import ECLMPlan
from ..layers.mask_tome import MergeConfig, mask_coverage
from . import measure
from .blocks import Refused
from .hosts import Host, fingerprint
from .macs import stack_macs
from .overrides import Overrides
from .plan import Plan
from .runtime import Runtime, patch, tokens_kept, unpatch
from .sam3d import Branch, Previous, is_sam3d
from .speedups import EXACT, NEAR, Autocast, FirstCamera, chosen, exact, near_exact
from .stack import merged_blocks

Budget = int | float | None
_UNSET: Any = object()


class Handle:
    """Control over an accelerated model; a context manager that takes everything off at its end.

    One forward pass at a time per model: the token state lives beside its blocks.
    """

    def __init__(
        self, host: Host, plan: Plan, masks: Any, dtype: torch.dtype | None, graph: bool, exact: Any, near: Any
    ) -> None:
        self.host, self.plan, self._dtype, self._graph = host, plan, dtype, graph
        self._original = host.blocks
        self._native_before = host.vit.merging if host.native else None
        self._branch: Branch | None = None
        self._puts = Overrides()
        self._previous: Previous | None = None
        self._on = False
        self.runtime: Runtime | None = None
        self._depth_plan = None if plan.groups is None else ECLMPlan(plan.groups)
        self._masks = masks
        self._exact_names = chosen(exact, EXACT, "exact")
        self._near_names = chosen(near, NEAR, "near-exact")
        self._install()

    def _install(self) -> None:
        host, plan = self.host, self.plan
        before = host.blocks
        try:
            if self._depth_plan is not None:
                made = merged_blocks(self._original, self._depth_plan, host.family, plan.layerscale)
                setattr(host.owner, host.attribute, made)
            if host.family is not None:
                own = plan.attention == "sdpa"
                self.runtime = Runtime(host.family, len(host.blocks), host.prefix, plan.unmerge, plan.prop_attn, own)
                exact(host, self._exact_names, self._puts)
                near_exact(host, self._near_names, self._puts)
                if is_sam3d(host.model):
                    self._follow()
                for vit in {id(v): v for v in (host.vit, host.owner)}.values():
                    for name in ("get_intermediate_layers", "forward_intermediates"):
                        if hasattr(vit, name):
                            self._puts.put(vit, name, LastOnly(getattr(vit, name), self.runtime))
                patch(host.blocks, self.runtime)
            elif self._near_names:
                near_exact(host, self._near_names, self._puts)
            self._budget()
            self._wrap()
        except Exception:
            self._puts.undo()
            if not host.native:
                unpatch(host.blocks)
            setattr(host.owner, host.attribute, before)
            raise
        self._on = True

    def _follow(self) -> None:
        """SAM 3D Body: budget and masks of every pass."""
        host, plan, model = self.host, self.plan, self.host.model
        assert self.runtime is not None and model is not None
        keep = (plan.keep_tokens, plan.keep_hand_tokens)
        if self._masks == "previous" and hasattr(host.root, "process_one_image"):
            self._previous = Previous(host.root.process_one_image)
            self._puts.put(host.root, "process_one_image", self._previous)
        self._branch = Branch(model, host, self.runtime, self._masks, keep, self._previous)
        self._puts.put(model, "forward_pose_branch", self._branch)

    def _wrap(self) -> None:
        """Autocast and CUDA graph around the ViT's forward."""
        if self._dtype is None and not self._graph:
            return
        vit, forward = self.host.vit, self.host.vit.forward
        if self._graph:
            forward = torch.compile(forward, mode="reduce-overhead")
        self._puts.put(vit, "forward", Autocast(forward, self.host.device.type, self._dtype))

    def _budget(self) -> None:
        plan, vit = self.plan, self.host.vit
        if self.runtime is not None:
            self.runtime.keep, self.runtime.per_block = plan.keep_tokens, plan.per_block
            if self._branch is not None:
                self._branch.keep = (plan.keep_tokens, plan.keep_hand_tokens)
            return
        if plan.keep_tokens is None:
            vit.merging = self._native_before
            return
        patches = vit.num_tokens
        keep = tokens_kept(plan.keep_tokens, patches)
        per_block = plan.per_block or max(1, round(patches * 40 / 192))
        vit.merging = None if keep >= patches else MergeConfig(keep=keep, per_block=per_block, prop_attn=plan.prop_attn)

    def _check_on(self) -> None:
        if not self._on:
            raise ValueError("accelerate: this handle was removed; call accelerate again")

    @property
    def size(self) -> Tensor | None:
        """Sizes [B, N] of the tokens that the last pass ended with, prefix tokens included; None if none merged."""
        return None if self.runtime is None else self.runtime.state.size

    @property
    def owner(self) -> Tensor | None:
        """[B, N0]: the row, of the last pass's tokens without prefix, that every patch token ended in."""
        return None if self.runtime is None else self.runtime.owner

    def set(self, keep_tokens: Any = _UNSET, per_block: int | None = _UNSET) -> None:
        """Other budgets from the next call on (number, fraction, None for all, or (body, hand) for SAM 3D Body)."""
        self._check_on()
        fields: dict[str, Any] = {}
        if keep_tokens is not _UNSET:
            fields["keep_tokens"], fields["keep_hand_tokens"] = budgets(keep_tokens, is_sam3d(self.host.model))
        if per_block is not _UNSET:
            fields["per_block"] = per_block
        self.plan = dataclasses.replace(self.plan, **fields)
        self._budget()

    def set_mask(self, mask: Tensor | None) -> None:
        """Person mask [B, H, W] of the next inputs, in the frame of the network's input; None is plain ToMe.

        Raises:
            ValueError: a host that takes the mask as an argument of its own, or SAM 3D Body (`masks=`).
        """
        self._check_on()
        if self.runtime is None:
            raise ValueError("set_mask: this model takes the person mask as the argument `mask` of its forward")
        if self._branch is not None:
            raise ValueError("set_mask: SAM 3D Body gives its own masks; choose them with accelerate(..., masks=)")
        self.runtime.coverage = None if mask is None else mask_coverage(mask, *self.host.window)

    def report(self, patches: int | None = None) -> dict[str, Any]:
        """What the model is and what was done: family, tokens, blocks, multiply-adds of the blocks, dtype, overrides.

        Args:
            patches: size of the grid; default the host's own, or that of the last pass. Without either, no counts.
        """
        self._check_on()
        host = self.host
        facts: dict[str, Any] = {
            "vit": type(host.vit).__name__,
            "family": "native" if host.family is None else host.family.name,
            "blocks": [len(self._original), len(host.blocks)],
            "prefix": host.prefix,
            "dtype": str(next(p for p in host.vit.parameters() if p.is_floating_point()).dtype).removeprefix("torch."),
            "keep_tokens": self.plan.keep_tokens,
            "exact": [n for n in self._puts.names if n in EXACT],
            "near_exact": [n for n in self._puts.names if n in NEAR],
            "patched": [f"{len(host.blocks)} blocks", *self._puts.attributes],
        }
        if patches is None:
            patches = self._patches()
        if patches is None:
            return facts
        front = host.prefix or 0
        n = patches + front
        merging = host.vit.merging if host.native else None
        if self.runtime is not None:
            schedule = self.runtime.settings(patches, front)[1]
        else:
            schedule = (0,) * len(host.blocks) if merging is None else merging.schedule(n, len(host.blocks))
        full = stack_macs(self._original, host.family, n, [0] * len(self._original))
        now = stack_macs(host.blocks, host.family, n, schedule)
        left, tokens = patches, []
        for r in schedule:
            left -= r
            tokens += [left] if r else []
        return {**facts, "tokens": [patches, *tokens], "gmacs": [full / 1e9, now / 1e9], "fewer_macs": full / now}

    def _patches(self) -> int | None:
        vit = self.host.vit
        if self.host.native:
            return int(vit.num_tokens)
        if self.runtime is not None and self.runtime.owner is not None:
            return int(self.runtime.owner.shape[1])
        found = getattr(getattr(vit, "patch_embed", None), "num_patches", None)
        return int(found) if found is not None else None

    def compare(self, images: Any, boxes: Any = None, **options: Any) -> dict[str, Any]:
        """Difference from the unmodified model on the user's own inputs; see `measure.compare`."""
        self._check_on()
        found = measure.compare(self, images, boxes, **options)
        self.plan = dataclasses.replace(self.plan, measured={**self.plan.measured, "compare": found})
        return found

    def benchmark(self, images: Any, boxes: Any = None, **options: Any) -> dict[str, Any]:
        """Times of the accelerated and the unmodified model, in turns; see `measure.benchmark`."""
        self._check_on()
        found = measure.benchmark(self, images, boxes, **options)
        self.plan = dataclasses.replace(self.plan, measured={**self.plan.measured, "benchmark": found})
        return found

    def pareto(self, images: Any, keep: Any, **options: Any) -> list[dict[str, Any]]:
        """Error against time for several budgets, smaller crops beside them; see `measure.pareto`."""
        self._check_on()
        found = measure.pareto(self, images, keep, **options)
        self.plan = dataclasses.replace(self.plan, measured={**self.plan.measured, "pareto": found})
        return found

    def save(self, path: str | Path) -> None:
        """plan.json: settings, measurements and the model's fingerprint; `accelerate(obj, plan=path)` applies it."""
        self.plan.save(path)

    def remove(self) -> None:
        """Back to the model as it was: classes, list of blocks, methods."""
        if not self._on:
            return
        host = self.host
        if host.native:
            host.vit.merging = self._native_before
        else:
            unpatch(host.blocks)
        self._puts.undo()
        setattr(host.owner, host.attribute, self._original)
        self._branch, self._previous, self._on = None, None, False

    def new_clip(self) -> None:
        """Forgets the previous frame and the first camera: the next image belongs to another video."""
        if self._previous is not None:
            self._previous.forget()
        camera = getattr(getattr(self.host.root, "fov_estimator", None), "get_cam_intrinsics", None)
        if isinstance(camera, FirstCamera):
            camera.forget()

    def original(self) -> Original:
        """Context in which the unmodified model runs."""
        return Original(self)

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()


class LastOnly:
    """Stands in for a method that returns maps of several blocks: while tokens merge only the last is whole."""

    def __init__(self, original: Any, runtime: Runtime) -> None:
        self.original, self.runtime = original, runtime

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        first = inspect.signature(self.original).parameters
        name = next(n for n in ("n", "indices") if n in first)
        wanted = kwargs.get(name, args[0] if args and name == list(first)[1] else first[name].default)
        depth = self.runtime.depth
        one = (
            wanted == 1
            if isinstance(wanted, int)
            else wanted is not None and {i % depth for i in wanted} == {depth - 1}
        )
        if self.runtime.keep is not None and not one:
            raise Refused(
                f"accelerate: only the last block's map can be had while tokens merge; ask for {name}=1, or set "
                "keep_tokens=None"
            )
        return self.original(x, *args, **kwargs)


class Original:
    """`with handle.original():` the unmodified model; afterwards the accelerated one again."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle

    def __enter__(self) -> None:
        self.coverage = None if self.handle.runtime is None else self.handle.runtime.coverage
        self.handle.remove()

    def __exit__(self, *_: object) -> None:
        self.handle._install()
        if self.handle.runtime is not None:
            self.handle.runtime.coverage = self.coverage


def budgets(keep: Any, two: bool) -> tuple[Budget, Budget]:
    """(body, hand) of what a user gave.

    Raises:
        ValueError: not positive, or a pair for a model with one kind of pass.
    """
    pair = isinstance(keep, tuple | list)
    if pair and (not two or len(keep) != 2):
        raise ValueError("accelerate: keep_tokens=(body, hand) is for SAM 3D Body; give one number or fraction")
    for value in keep if pair else (keep,):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
            raise ValueError(f"accelerate: keep_tokens must be a positive number, a fraction or None, got {value!r}")
    return (keep[0], keep[1]) if pair else (keep, keep)


def start(host: Host, layers: Any, plan_path: Any, keep: Any, fields: dict[str, Any], rest: dict[str, Any]) -> Handle:
    """The handle of `accelerate`'s arguments."""
    mark = fingerprint(host)
    if plan_path is not None:
        plan = Plan.load(plan_path)
        plan.check(mark, plan_path)
    else:
        groups = None
        if layers is not None:
            groups = (layers if isinstance(layers, ECLMPlan) else ECLMPlan.load(layers)).groups
        body, hand = budgets(keep, is_sam3d(host.model))
        plan = Plan(mark, body, hand, groups=groups, **fields)
    if plan.attention not in ("keep", "sdpa"):
        raise ValueError(f"accelerate: attention must be 'keep' or 'sdpa', got {plan.attention!r}")
    if host.native and plan.groups is not None and plan.layerscale != "fold":
        raise Refused("accelerate: this package's hosts have no layer scale")
    if rest["graph"] and not next(host.vit.parameters()).is_cuda:
        raise Refused("accelerate: graph=True needs the model on a CUDA device")
    return Handle(host, plan, **rest)


Read = Callable[[Any], Tensor]
