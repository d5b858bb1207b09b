"""One row of the study: trained on cached features, evaluated, counted; everything about it ends in one JSON file.

In: a Row and a Protocol (.rows.py), data (.features.py). The loop is the package's (train/loop.py): it
checkpoints, and a killed row goes on with the same loss curve.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss
from torch.utils.flop_counter import FlopCounterMode

from tore_fast.body import load_body
from tore_fast.eval.synthetic import HeldOutErrors
from tore_fast.geometry.camera import project_weak
from tore_fast.geometry.procrustes import similarity_align
from tore_fast.geometry.rotation import axis_angle_to_matrix
from tore_fast.io.atomic import write_text
from tore_fast.io.weights import read_weights
from tore_fast.layers.mesh import MeshUpsample
from tore_fast.models._count import count_backbone
from tore_fast.ops import csr_matrix
from tore_fast.train.config import Task, TrainConfig
from tore_fast.train.loop import train

from .features import load_or_make, study_body
from .rows import CHANNELS, GRID, Protocol, Row, build

NOISE_LEVELS = (0.05, 0.075, 0.1)  # of the NSR's joint features at test time (figure D6)
NOISE_IMAGES = 400  # of the held-out set "easy"
SPLITS = ("easy", "hard")


class Study:
    """What all rows of a protocol share: body, images, true vertices of the held-out sets."""

    def __init__(self, protocol: Protocol, cache: Path, device: str = "cpu", log: Callable[[str], None] = print):
        self.protocol, self.device, self.log = protocol, device, log
        self._truth: dict[str, Tensor] = {}
        body = load_body("free")
        self.data = {split: load_or_make(protocol, body, cache, split, log) for split in ("train", *SPLITS)}
        body = study_body(body, protocol.vertices, self.data["train"]["coarse"][:400])
        picks = body.hierarchy.vertex_index(body.hierarchy.num_levels - 1, 2)
        for data in self.data.values():
            data["coarse"] = data["coarse"][:, picks]
        self.body = body.to(device)
        self.ups = [MeshUpsample(csr_matrix(up)).to(device) for up in reversed(body.hierarchy.ups)]

    def fine(self, coarse: Tensor) -> Tensor:  # [B, V, 3] -> [B, 6890, 3]
        for up in self.ups:
            coarse = up(coarse)
        return coarse

    @torch.inference_mode()
    def truth(self, split: str) -> Tensor:  # [N, 6890, 3]
        if split not in self._truth:
            data = self.data[split]
            parts = zip(data["pose"].split(50), data["betas"].split(50))
            self._truth[split] = torch.cat([self.body(a.to(self.device), b.to(self.device)).vertices for a, b in parts])
        return self._truth[split]

    @torch.inference_mode()
    def errors(
        self, model: nn.Module, split: str, nsr_noise: float = 0.0, images: int | None = None
    ) -> dict[str, float]:
        data, errors = self.data[split], HeldOutErrors(self.body, self.protocol.image_size, self.device)
        torch.manual_seed(0)  # of the noise
        count = min(len(data["camera"]), images or self.protocol.eval_images)
        tokens = []
        for start in range(0, count, 50):
            rows = slice(start, min(start + 50, count))
            out = model(data["features"][rows].to(self.device), nsr_noise)
            tokens.append(out.joints)
            errors.add(
                self.fine(out.vertices_coarse),
                out.camera,
                self.truth(split)[rows],
                data["camera"][rows].to(self.device),
            )
        tokens, truth = torch.cat(tokens), data["joints3d"][:count].to(self.device)
        aligned = (similarity_align(tokens, truth) - truth).norm(dim=-1).mean()
        return {**errors.result(), "token_pa_mpjpe_mm": 1000 * float(aligned)}  # of the joint tokens, not the mesh


class RowTask(Task):
    """Task of train/loop.py. Seed s draws the weights and the order of the images, the same order for every row."""

    best_metric = "easy_pa_mpjpe_mm"

    def __init__(self, study: Study, row: Row, seed: int):
        self.study, self.row = study, row
        torch.manual_seed(seed)
        self.model = build(row, study.protocol, study.body).to(study.device)
        data = study.data["train"]
        self.model.set_statistics(data)
        if row.family == "tcformer":  # HMR's regressor starts from the mean parameters
            pose6d = axis_angle_to_matrix(data["pose"])[..., :2].mean(0)
            self.model.net.regressor.set_mean(pose6d, data["betas"].mean(0), data["camera"].mean(0))
        count, size = len(data["camera"]), study.protocol.batch_size
        passes = -(-study.protocol.steps * row.budget * size // count)
        shuffle = torch.Generator().manual_seed(seed)
        self.order = torch.cat([torch.randperm(count, generator=shuffle) for _ in range(passes)])
        self.edges = torch.from_numpy(study.body.hierarchy.edges(study.body.hierarchy.num_levels - 1)).to(study.device)

    def batch(self, index: int, batch_size: int, step: int) -> dict[str, Tensor]:
        picked = self.order[index * batch_size : (index + 1) * batch_size]
        return {k: v[picked] for k, v in self.study.data["train"].items()}

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses and weights of train/mesh.py on the coarse mesh, the same for every row; the parameter head
        has its rotations and shape supervised besides, as the HMR family does."""
        out = model(batch["features"], self.row.train_noise) if self.row.train_noise else model(batch["features"])
        regressed = self.study.body.regress("h36m17", out.vertices_coarse)[:, :1]
        mesh_joints = self.study.body.regress("j14", out.vertices_coarse) - regressed
        parts = {
            "joints": l1_loss(out.joints, batch["joints3d"]) + l1_loss(mesh_joints, batch["joints3d"]),
            "mesh": l1_loss(out.vertices_coarse, batch["coarse"]),
            "edges": l1_loss(self._edges(out.vertices_coarse), self._edges(batch["coarse"])),
            "2d": sum(l1_loss(project_weak(j, out.camera), batch["joints2d"]) for j in (out.joints, mesh_joints)),
        }
        total = 10 * parts["joints"] + 10 * parts["mesh"] + 20 * parts["edges"] + parts["2d"]
        if out.rotmat is not None:
            parts["pose"] = (out.rotmat - axis_angle_to_matrix(batch["pose"])).square().mean()
            parts["betas"] = (out.betas - batch["betas"]).square().mean()
            total = total + 10 * parts["pose"] + 0.1 * parts["betas"]
        return total, {k: v.detach() for k, v in parts.items()}

    def _edges(self, coarse: Tensor) -> Tensor:  # [B, V, 3] -> [B, E, 3]
        return coarse[:, self.edges[:, 0]] - coarse[:, self.edges[:, 1]]

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        metrics = {f"{split}_{k}": v for split in SPLITS for k, v in self.study.errors(model, split).items()}
        if self.row.family == "tore" and (self.row.selector == "none" or self.row.keep == 0.8):
            for noise in (0.0, *NOISE_LEVELS):
                errors = self.study.errors(model, "easy", noise, NOISE_IMAGES)
                metrics |= {f"noise{100 * noise:g}_{k}": errors[f"{k}_mm"] for k in ("pa_mpjpe", "mpvpe")}
        return metrics


def run_row(study: Study, name: str, row: Row, seed: int, runs: Path, results: Path) -> dict:
    """Trains and evaluates one row with one seed, or reads its result where it is finished already.

    Checkpoints go to `runs`/NAME_sSEED, the result (metrics, counts, protocol) to `results`/NAME_sSEED.json.
    """
    path = results / f"{name}_s{seed}.json"
    if path.exists():
        done = json.loads(path.read_text())
        # fields that came later have their defaults in an older file
        if Protocol(**done["protocol"]) != study.protocol or _facts(Row(**done["row"])) != _facts(row):
            raise ValueError(
                f"{path}: made with another protocol or row definition; remove it or name another --results"
            )
        return done
    p = study.protocol
    steps = p.steps * row.budget
    task = RowTask(study, row, seed)
    config = TrainConfig(
        out=str(runs / f"{name}_s{seed}"),
        steps=steps,
        batch_size=p.batch_size,
        lr=p.lr * row.lr_factor,
        warmup=p.warmup,
        weight_decay=p.weight_decay,
        clip_norm=p.clip_norm,
        ema=0.0,
        seed=seed,
        eval_every=steps,
        log_every=max(1, steps // 8),
        checkpoint_minutes=1.0,
    )
    counts = count(task, study)  # before training: a row that cannot be counted should fail at once
    last = Path(config.out) / "last.pt"
    if last.exists() and read_weights(last)["step"] == steps:  # killed between checkpoint and result
        task.model.load_state_dict(read_weights(last)["model"])
        metrics = task.evaluate(task.model.eval())
    else:
        started = time.process_time()
        metrics = train(task, config, study.log)
        counts["train_cpu_s"] = time.process_time() - started  # of the last, unbroken part of the run
    result = {
        "name": name,
        "seed": seed,
        "row": _facts(row),
        "protocol": dataclasses.asdict(p),
        **counts,
        **metrics,
        "torch": torch.__version__,
    }
    results.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(result, indent=1) + "\n")
    return result


def _facts(row: Row) -> dict:
    return {k: v for k, v in dataclasses.asdict(row).items() if k not in ("label", "full", "seeds", "later")}


def count(task: RowTask, study: Study) -> dict:
    """Parameters, multiply-adds (matmuls and convolutions of one image, masked attention as dense: the papers' rule)
    and
    training memory of the head: weights, gradients, two Adam moments, and what autograd keeps of one batch."""
    model, p = task.model, study.protocol
    batch = {k: v.to(study.device) for k, v in task.batch(0, p.batch_size, 0).items()}
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return t

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        total, _ = task.loss(model, batch, 0)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), *batch.values())}
    activations = sum(size for pointer, size in kept.items() if pointer not in own)
    del total
    weights = sum(t.numel() * t.element_size() for t in model.parameters())
    model.eval().requires_grad_(False)  # the counter's hooks stumble over parameters that want gradients
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, CHANNELS, *GRID, device=study.device))
    model.requires_grad_(True)
    _, _, trunk = count_backbone("regnety_004", p.image_size // GRID[0], False, p.image_size, p.image_size)
    return {
        "head_params": sum(t.numel() for t in model.parameters()),
        "head_macs": counter.get_total_flops() // 2,
        "trunk_macs": trunk,
        "train_activation_bytes": activations,
        "train_bytes": activations + 4 * weights,
    }
