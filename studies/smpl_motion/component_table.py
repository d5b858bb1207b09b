"""FastHMR's component table on rendered clips: base host, merged layers, merged tokens, motion decoder.

In: hosts, a motion decoder and the clips of data/synth/rendered.py; out: one row per variant with joint errors,
multiply-adds and time per frame. `studies/smpl_motion/run.py` makes the models and calls this. Source: FastHMR Table
12.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tore_fast.body import Body
from tore_fast.data.synth.rendered import ModelClip, clip_truth, read_clip, run_model
from tore_fast.eval.pose import mpjpe, p_mpjpe
from tore_fast.eval.protocols import acceleration_error
from tore_fast.models._count import count_host
from tore_fast.models.motion.fasthmr import FastHMRMotion, motion_rotations
from tore_fast.models.smpl.hmr2 import HMR2
from tore_fast.pipelines.hosts import RestSkeleton

SMOOTH_FRAMES = 2.0  # standard deviation of the plain smoothing that the motion decoder is compared with


def smooth(x: Tensor, sigma: float = SMOOTH_FRAMES) -> Tensor:  # [F, ...]
    """Gaussian over the first axis, edges mirrored."""
    radius = min(int(3 * sigma + 0.5), len(x) - 1)
    t = torch.arange(-radius, radius + 1, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (t / sigma) ** 2)
    rows = x.flatten(1).T[:, None]
    padded = torch.nn.functional.pad(rows, (radius, radius), mode="reflect") if radius else rows
    out = torch.nn.functional.conv1d(padded, (kernel / kernel.sum())[None, None])
    return out[:, 0].T.reshape(x.shape)


class JointErrors:
    """MPJPE, PA-MPJPE (mm) and acceleration error (mm per frame^2) of root-relative joints over clips."""

    def __init__(self) -> None:
        self.got: list[Tensor] = []
        self.want: list[Tensor] = []

    def add(self, got: Tensor, want: Tensor) -> None:
        """One clip, [F, J, 3] metres."""
        self.got.append(1000 * (got - got[:, :1]).double())
        self.want.append(1000 * (want - want[:, :1]).double())

    def result(self) -> dict[str, float]:
        got, want = torch.cat(self.got), torch.cat(self.want)
        clips = [str(k) for k, g in enumerate(self.got) for _ in range(len(g))]
        frames = [t for g in self.got for t in range(len(g))]
        return {
            "mpjpe_mm": float(mpjpe(got, want).mean()),
            "pa_mpjpe_mm": float(p_mpjpe(got, want).mean()),
            "accel_mm_per_frame2": acceleration_error(got.numpy(), want.numpy(), clips, frames)[0],
            "frames": float(len(got)),
        }


class ComponentTable:
    """Collects rows over a folder of clips.

    Args:
        body: for joints and IK (the clips' body). clips: files of write_clips.
    """

    def __init__(self, body: Body, clips: Sequence[Path], each: Callable[[Iterable], Iterable] = lambda x: x):
        self.body, self.rest, self.each = body, RestSkeleton(body), each
        self.clips = [read_clip(p) for p in clips]
        self.truth = []
        for clip in self.clips:
            rotations, betas = clip_truth(clip)
            self.truth.append(self.joints(rotations, betas))
        self.rows: list[dict] = []

    @torch.inference_mode()
    def joints(self, rotations: Tensor, betas: Tensor) -> Tensor:  # -> [F, 24, 3]
        return self.body(rotations, betas[:, : self.body.num_betas], level=self.body.hierarchy.num_levels - 1).joints

    def _add(self, name: str, joints: Sequence[Tensor], **facts) -> None:
        errors = JointErrors()
        for got, want in zip(joints, self.truth):
            errors.add(got, want)
        self.rows.append({"name": name, **facts, **errors.result()})

    def baseline(self) -> None:
        """The mean root-relative pose of the truth in every frame: what no model may fall short of."""
        every = torch.cat([t - t[:, :1] for t in self.truth])
        self._add("mean pose", [every.mean(0).expand_as(t) for t in self.truth])

    def predictions(self, host: HMR2, masks: str = "given") -> list[ModelClip]:
        """What a host says to every clip."""
        return [run_model(host, clip, masks) for clip in self.each(self.clips)]

    def host(self, name: str, host: HMR2, masks: str = "given", smoothed: str | None = None) -> list[ModelClip]:
        """A row for a host (betas: the median of the clip, as in the pipeline); returns what it predicted.

        Args:
            masks: "given" (the clip's), "ellipse" (in every crop) or "none" (plain ToMe); of use when tokens merge.
            smoothed: name of a further row, the same joints after a plain Gaussian over time.
        """
        start = time.process_time()
        made = self.predictions(host, masks)
        frames = sum(len(c.images) for c in self.clips)
        ms = 1000 * (time.process_time() - start) / frames
        linear, attention = count_host(host.config)
        joints = [self.joints(m.rotations, m.betas.median(0).values.expand_as(m.betas)) for m in made]
        facts = {"gmacs": (linear + attention) / 1e9, "blocks": host.config.depth, "tokens": _kept(host), "cpu_ms": ms}
        self._add(name, joints, **facts)
        if smoothed:
            self._add(smoothed, [smooth(j - j[:, :1]) for j in joints], **facts)
        return made

    @torch.inference_mode()
    def motion(
        self,
        name: str,
        host: HMR2,
        made: Sequence[ModelClip],
        motion: FastHMRMotion,
        overlap: int = 0,
        num_steps: int = 1,
    ) -> None:
        """A row for the motion decoder on a host's tokens (zero noise, IK with the median shape)."""
        posed, start = [], time.process_time()
        for m in made:
            pieces = motion.decode_stream(
                lambda a, b, t=m.tokens: t[a:b], len(m.tokens), overlap, noise="zeros", num_steps=num_steps
            )
            shape = m.betas.median(0).values
            rest = self.rest(shape[None])
            turned = torch.cat([motion_rotations(p, rest.expand(len(p.joints), -1, -1)) for _, p in pieces])
            posed.append((turned, shape.expand(len(turned), -1)))
        frames = sum(len(m.tokens) for m in made)
        base = next(r for r in self.rows if r.get("blocks") == host.config.depth and r["tokens"] == _kept(host))
        ms = base["cpu_ms"] + 1000 * (time.process_time() - start) / frames
        joints = [self.joints(*p) for p in posed]
        self._add(
            name,
            joints,
            gmacs=base["gmacs"] + motion_macs(motion, num_steps, overlap) / 1e9,
            blocks=base["blocks"],
            tokens=base["tokens"],
            cpu_ms=ms,
        )


def _kept(host: HMR2) -> int:
    n = host.backbone.num_tokens
    merging = host.backbone.merging
    return n if merging is None else n - sum(merging.schedule(n, host.config.depth))


def motion_macs(motion: FastHMRMotion, num_steps: int = 1, overlap: int = 0) -> float:
    """Multiply-adds per frame of the motion decoder on a long video, whose clips share `overlap` frames."""
    import copy

    from tore_fast.models._count import count_module

    c = motion.config
    tokens = torch.empty(1, c.frames, c.condition_dim, device="meta")
    _, macs = count_module(copy.deepcopy(motion), tokens, None, num_steps)
    return macs / (c.frames - overlap)


def markdown(rows: Sequence[dict]) -> str:
    """The table of docs/smpl.md."""
    head = ["", "blocks", "tokens", "MMACs / frame", "CPU ms / frame", "MPJPE mm", "PA-MPJPE mm", "accel mm/frame^2"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for r in rows:
        cells = [
            r["name"],
            r.get("blocks", "-"),
            r.get("tokens", "-"),
            f"{1000 * r['gmacs']:.0f}" if "gmacs" in r else "-",
        ]
        cells.append(f"{r['cpu_ms']:.2f}" if "cpu_ms" in r else "-")
        cells += [f"{r[k]:.1f}" for k in ("mpjpe_mm", "pa_mpjpe_mm", "accel_mm_per_frame2")]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)
