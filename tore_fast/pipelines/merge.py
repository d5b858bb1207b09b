"""ECLM on a real model: calibration images, errors, cached prefixes, resumable search, merged checkpoint.

In: a host (or any stack of residual blocks) and batches; out: the merged model and its plan. The search itself is
layers/eclm.py; `tore-fast accelerate --search-layers` (cli/_layers.py) is the command.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..geometry.rotation import geodesic_angle
from ..io.atomic import write_text
from ..layers.eclm import ECLMPlan, ECLMResult, Evaluation, Groups, cka_matrix, eclm_search, linear_cka, merge_tensors
from ..layers.mask_tome import TokenState
from ..models.smpl.hmr2 import cut_sides

MEASURES = ("joints", "angle")


def merged_block(blocks: nn.ModuleList, group: Sequence[int]) -> nn.Module:
    """One block with the merged parameters and buffers of a group (the block itself for a single layer)."""
    if len(group) == 1:
        return blocks[group[0]]
    block = copy.deepcopy(blocks[group[-1]])
    states = [blocks[i].state_dict() for i in group]
    block.load_state_dict({k: merge_tensors([s[k] for s in states]) for k in states[0]})
    return block


class StackCalibration:
    """Error of a model under any grouping of its blocks, on fixed batches.

    Args:
        blocks: the residual stack (never changed).
        enter: batch -> activations before block 0. step: (block, activations) -> activations.
        leave: (activations after the last block, batch) -> prediction.
        batches: calibration batches, passed to enter and leave as they are.
        measure: (prediction, target) -> error per item [B].
        targets: one per batch; None compares with the unmerged model's own predictions (error 0 at the start).
        cache_mb: activations kept. Blocks below the window never change, so their outputs are stored (every one, or
            every k-th if memory is short) and only what lies above is run again.
    """

    def __init__(
        self,
        blocks: nn.ModuleList,
        enter: Callable,
        leave: Callable,
        batches: Sequence,
        measure: Callable[[Tensor, Tensor], Tensor],
        targets: Sequence[Tensor] | None = None,
        step: Callable[[nn.Module, Tensor], Tensor] | None = None,
        cache_mb: float = 2048.0,
    ):
        if not len(batches):
            raise ValueError("StackCalibration: no calibration batch")
        self.blocks, self.enter, self.leave, self.measure = blocks, enter, leave, measure
        self.batches, self.step = batches, step or (lambda block, x: block(x))
        self._made: dict[tuple[int, ...], nn.Module] = {}
        self.evaluations = self.block_runs = 0
        self._stored: list[dict[int, Tensor]] = []
        own = self._fill_cache(cache_mb)
        self.targets = own if targets is None else targets
        if len(self.targets) != len(batches):
            raise ValueError(f"StackCalibration: {len(batches)} batches need as many targets, got {len(self.targets)}")

    @torch.no_grad()
    def _fill_cache(self, cache_mb: float) -> list[Tensor]:
        predictions, every = [], 1
        for n, batch in enumerate(self.batches):
            x = self.enter(batch)
            if n == 0:
                total = len(self.blocks) * len(self.batches) * x.numel() * x.element_size() / 2**20
                every = max(1, -(-int(total) // max(1, int(cache_mb))))
            stored = {}
            for i, block in enumerate(self.blocks):
                if i % every == 0:
                    stored[i] = x
                x = self.step(block, x)
            self._stored.append(stored)
            predictions.append(self.leave(x, batch))
        return predictions

    def module(self, group: tuple[int, ...]) -> nn.Module:
        if group not in self._made:
            # windows grow by one layer at a time; only the latest candidate of a window is worth keeping
            self._made = {g: m for g, m in self._made.items() if g[-1] != group[-1]}
            self._made[group] = merged_block(self.blocks, group)
        return self._made[group]

    @torch.no_grad()
    def error(self, groups: Groups) -> float:
        """Mean error of the grouped model over all items."""
        self.evaluations += 1
        first = next((i for i, g in enumerate(groups) if len(g) > 1), len(groups))
        total, count = 0.0, 0
        for batch, stored, target in zip(self.batches, self._stored, self.targets):
            start = max(i for i in stored if i <= min(first, max(stored)))
            x = stored[start]
            for group in groups[start:]:
                x = self.step(self.blocks[group[0]] if len(group) == 1 else self.module(group), x)
                self.block_runs += 1
            values = self.measure(self.leave(x, batch), target)
            total, count = total + float(values.double().sum()), count + values.numel()
        return total / count

    @torch.no_grad()
    def features(self, max_rows: int = 8192) -> list[Tensor]:
        """Output of every block [rows, C], tokens of all batches, about max_rows of them."""
        keep: list[list[Tensor]] = [[] for _ in self.blocks]
        share = max(1, max_rows // len(self.batches))
        for n, stored in enumerate(self._stored):
            x = stored[0]
            rows = torch.randperm(x.shape[0] * x.shape[1], generator=torch.Generator().manual_seed(n))[:share]
            for i, block in enumerate(self.blocks):
                x = self.step(block, x)
                keep[i].append(x.flatten(0, 1)[rows.to(x.device)].float().cpu())
        return [torch.cat(k) for k in keep]


def host_calibration(
    model: nn.Module,
    batches: Sequence[Tensor],
    joints: Callable[[Tensor, Tensor], Tensor] | None = None,
    measure: str = "joints",
    targets: Sequence[Tensor] | None = None,
    head_inputs: Sequence[dict] | None = None,
    cache_mb: float = 2048.0,
) -> StackCalibration:
    """Calibration of an HMR2 / CameraHMR host without token merging.

    Args:
        batches: normalised crops [B, 3, 256, 256] on the model's device.
        joints: (rotations [B, 24, 3, 3], betas [B, 10]) -> joints [B, J, 3] in metres (a body model); for "joints".
        measure: "joints" (mm, pelvis-aligned: MPJPE against `targets` [B, J, 3] in metres, or against the model's own
            joints) or "angle" (mean geodesic angle of the 24 rotations in degrees; no body needed).
        head_inputs: keyword arguments of the head per batch (CameraHMR: bbox_info).
    """
    if measure not in MEASURES:
        raise ValueError(f"host_calibration: measure must be one of {MEASURES}, got {measure!r}")
    if measure == "joints" and joints is None:
        raise ValueError("host_calibration: measure 'joints' needs the function joints(rotations, betas)")
    vit: Any = model.backbone
    head: Any = model.smpl_head
    extra = [{}] * len(batches) if head_inputs is None else head_inputs
    if len(extra) != len(batches):
        raise ValueError(f"host_calibration: {len(batches)} batches need as many head_inputs, got {len(extra)}")

    def enter(batch: tuple[Tensor, dict]) -> Tensor:
        return vit.embed(cut_sides(batch[0], vit.cfg.img_size[1]))

    def leave(x: Tensor, batch: tuple[Tensor, dict]) -> Tensor:
        out = head(vit.last_norm(x), **batch[1])
        if joints is None or measure == "angle":
            return out.rotations
        return joints(out.rotations, out.betas)

    def error(got: Tensor, want: Tensor) -> Tensor:
        if measure == "angle":
            return geodesic_angle(got, want.to(got)).rad2deg().mean(1)
        got, want = got - got[:, :1], (want - want[:, :1]).to(got)
        return (got - want).norm(dim=-1).mean(1) * 1000

    items = list(zip(batches, extra))
    return StackCalibration(vit.blocks, enter, leave, items, error, targets, lambda b, x: b(x, TokenState()), cache_mb)


def run_search(
    calibration: StackCalibration,
    folder: str | Path | None = None,
    tau: float = 0.1,
    tail_commit: bool = True,
    kappa: float | None = None,
    on_step: Callable[[Evaluation, int], None] | None = None,
) -> ECLMResult:
    """The search; with `folder` every evaluation is appended to trace.jsonl, and an interrupted run goes on from there.

    Args:
        kappa: skip windows whose lowest and highest block outputs have linear CKA below this (default: no filter).
    """
    layers = len(calibration.blocks)
    known: list[Evaluation] = []
    base = None
    log = None
    settings = {"layers": layers, "tau": tau, "kappa": kappa}
    if folder is not None:
        path = Path(folder) / "trace.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            # a kill can leave half a line; appending to it would spoil the next one too
            whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]
            write_text(path, "".join(whole))
            lines = [json.loads(line) for line in whole]
            if lines and lines[0].get("settings") != settings:
                raise ValueError(
                    f"{path}: belongs to a run with {lines[0].get('settings')}, this one has {settings}; "
                    "choose another folder"
                )
            base = lines[0]["base"] if lines else None
            known = [Evaluation(**line) for line in lines[1:]]
        log = path.open("a")
        if base is None:
            base = calibration.error(ECLMPlan.identity(layers).groups)
            log.write(json.dumps({"settings": settings, "base": base}) + "\n")
            log.flush()
    features = calibration.features() if kappa is not None else None

    def reject(low: int, high: int) -> bool:
        assert features is not None and kappa is not None
        return linear_cka(features[low], features[high]) < kappa

    def note(step: Evaluation, number: int) -> None:
        if log is not None and number > len(known):
            log.write(json.dumps(step._asdict()) + "\n")
            log.flush()
        if on_step is not None:
            on_step(step, number)

    try:
        return eclm_search(
            layers, calibration.error, tau, base, tail_commit, known, note, reject if features is not None else None
        )
    finally:
        if log is not None:
            log.close()


def apply_plan(model: Any, plan: ECLMPlan) -> Any:
    """A new host of the same class with the merged blocks (config.depth follows)."""
    config = dataclasses.replace(model.config, depth=plan.num_layers)
    merged = type(model)(config)
    merged.load_state_dict(plan.apply(model.state_dict()))
    return merged.to(next(model.parameters()).device).train(model.training)


def layer_similarity(calibration: StackCalibration) -> Tensor:
    """[L, L] linear CKA of all block outputs (FastHMR figure 2)."""
    return cka_matrix(calibration.features())
