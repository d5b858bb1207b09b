"""Training of an HMR2.0 regressor (models/smpl/hmr2.py) on synthetic crops of the free body, with HMR2.0's losses.

In: crops of data/synth/clips.py, poses of the prior and of motion files. Out: a Task for train/loop.py. The loss is
HMR2.0's (or CameraHMR's, by weights): L1 of 2D and 3D joints, squared errors of rotations and shape, an optional
adversarial prior; and, because there is no ViTPose to start from, train-only heat maps and body parts on the tokens.
Source: the training code of 4D-Humans and CameraHMR.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..body import Body
from ..data.mocap import read_motions
from ..data.synth.camera import CropView
from ..data.synth.clips import PersonCrops
from ..data.synth.motion import motion_rotations
from ..data.synth.poses import PoseBank
from ..eval.pose import mpjpe, p_mpjpe
from ..geometry.rotation import axis_angle_to_matrix
from ..geometry.warp import normalise_image
from ..io.weights import read_weights
from ..models.smpl.hmr2 import HMR2, cut_sides
from .checkpoint import save_atomically
from .config import Task
from .dense_supervision import DenseSupervision, dense_losses
from .pose_discriminator import PoseDiscriminator, adversarial_losses


@dataclass(frozen=True)
class HMRConfig:
    """Data and loss weights; HMR2.0's weights are 0.01, 0.05, 0.001, 0.001, 0.0005 (sums over an image's joints)."""

    joints_2d: float = 0.01
    """Weight of the projected joints. CameraHMR: 0.05."""
    joints_3d: float = 0.05
    """Weight of the root-relative joints."""
    orientation: float = 0.001
    """Weight of the body's own rotation."""
    pose: float = 0.001
    """Weight of the joints' rotations."""
    betas: float = 0.0005
    """Weight of the shape."""
    adversarial: float = 0.0
    """Weight of the pose discriminator. HMR2.0: 0.0005, with the motion files' poses as the real ones."""
    heatmap: float = 0.5
    """Train-only joint heat maps on the tokens; 0 with parts 0 leaves the heads out."""
    parts: float = 0.1
    """Weight of the train-only body parts."""
    difficulty: float = 0.1
    """Of views, occlusion and backgrounds, 0..1."""
    bank_share: float = 0.8
    """Images whose pose comes from the motion files, where there are some."""
    data_seed: int = 11
    """Of the rendered images; train.seed draws the weights."""
    cache: str = ""
    """Folder that keeps rendered batches, for further passes and runs; empty: every batch is new."""
    cache_batches: int = 700
    """Batches kept there; then they come round again."""
    eval_images: int = 256
    """Held-out images per evaluation."""


def pose_banks(path: str | Path, every: int = 10) -> tuple[PoseBank, PoseBank]:
    """Poses of motion files (ten a second) to train on, and held-out ones: of the test split, else of every `every`-th
    motion."""
    motions = read_motions(path)
    test = [i for i, m in enumerate(motions) if m.split == "test"] or list(range(0, len(motions), every))

    def bank(numbers: list[int]) -> PoseBank:
        return PoseBank(torch.cat([motion_rotations(motions[i], max(1, round(motions[i].fps / 10))) for i in numbers]))

    rest = [i for i in range(len(motions)) if i not in test]
    if not rest:
        raise ValueError(f"--poses {path}: {len(motions)} motions, all held out; nothing to train on")
    return bank(rest), bank(test)


class HMRTask(Task):
    """Task: model(crops) -> body parameters, against synthetic truth.

    Args:
        model: host. body: the free body.
        train_poses, test_poses: real motion for training and for the held-out images; None uses the prior alone.
    """

    best_metric = "mpjpe_mm"

    def __init__(
        self,
        model: HMR2,
        body: Body,
        config: HMRConfig,
        train_poses: PoseBank | None = None,
        test_poses: PoseBank | None = None,
        device: str = "cpu",
    ):
        self.config, self.body, self.device = config, body.to(device), device
        vit = model.backbone
        self.width = vit.cfg.img_size[1]
        dense = config.heatmap > 0 or config.parts > 0
        inner: nn.Module = model
        if dense:
            features = (vit.last_norm, vit.cfg.embed_dim, vit.cfg.grid)
            inner = DenseSupervision(model, body.num_joints, len(body.part_names), features)
        self.model = nn.ModuleDict({"host": inner})
        if config.adversarial:
            self.model["critic"] = PoseDiscriminator(body.num_joints - 1, body.num_betas)
        self.model.forward = lambda images: inner(images)  # what DDP and the loop call
        make = dict(
            difficulty=config.difficulty, device=device, bank_share=config.bank_share, margin=model.config.box_margin
        )
        size = vit.cfg.img_size[0]
        self.crops = PersonCrops(body, size, config.data_seed, pose_bank=train_poses, **make)
        self.held_out = PersonCrops(body, size, config.data_seed, split="test", pose_bank=test_poses, **make)
        self.real = train_poses

    def batch(self, index: int, batch_size: int, step: int) -> dict[str, Tensor]:
        if not self.config.cache:
            return self._render(index, batch_size)
        path = Path(self.config.cache) / f"{index % self.config.cache_batches:05d}-{batch_size}.pt"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            save_atomically(self._render(index % self.config.cache_batches, batch_size), path)
        return {k: v.to(self.device) for k, v in read_weights(path).items()}

    def _render(self, index: int, batch_size: int) -> dict[str, Tensor]:
        made = self.crops.batch(index, batch_size)
        batch = {k: made[k] for k in ("images", "mask", "pose", "betas", "translation", "crop")}
        if self.config.adversarial and self.real is not None:
            rows = torch.randint(len(self.real), (batch_size,), generator=torch.Generator().manual_seed(index))
            batch["real"] = self.real.poses[rows, 1:]
        return batch

    def truth(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Rotations [B, 24, 3, 3], joints [B, 24, 3] metres, their image points [B, 24, 2] in the crop's [-1, 1]."""
        rotations = axis_angle_to_matrix(batch["pose"])
        posed = self.body(rotations, batch["betas"], level=2)
        pelvis = self.body.regress("h36m17", posed.vertices)[:, :1]  # where the generator centres its bodies
        crop = batch["crop"]
        seen = CropView(batch["translation"], crop[:, :2], crop[:, 2:]).project(posed.joints - pelvis)
        return rotations, posed.joints, seen

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        c = self.config
        with torch.no_grad():
            rotations, joints, seen = self.truth(batch)
        made = model(normalise_image(batch["images"]))
        out = getattr(made, "out", made)
        own = self.body(out.rotations, out.betas, level=2).joints
        # HMR2.0's crop camera: points in units of the crop, -0.5..0.5
        in_view = own + out.cam_t[:, None]
        points = in_view[..., :2] / in_view[..., 2:].clamp(min=0.1) * (5000 / 256)
        parts = {
            "2d": c.joints_2d * (points - seen / 2).abs().sum((1, 2)).mean(),
            "3d": c.joints_3d * (own - own[:, :1] - joints + joints[:, :1]).abs().sum((1, 2)).mean(),
            "root": c.orientation * (out.rotations[:, 0] - rotations[:, 0]).square().sum((1, 2)).mean(),
            "pose": c.pose * (out.rotations[:, 1:] - rotations[:, 1:]).square().sum((1, 2, 3)).mean(),
            "betas": c.betas * (out.betas - batch["betas"]).square().sum(1).mean(),
        }
        if hasattr(made, "heatmaps"):
            # the sides of the square are cut before the tokens are made
            stretch = seen.new_tensor([batch["images"].shape[-1] / self.width, 1.0])
            heat, part = dense_losses(made, seen * stretch, cut_sides(batch["mask"], self.width))
            parts |= {"heatmap": c.heatmap * heat, "parts": c.parts * part}
        if c.adversarial:
            real = batch.get("real", rotations[:, 1:])
            parts_of: Any = self.model
            fool, critic = adversarial_losses(
                parts_of["critic"], (out.rotations[:, 1:], out.betas), (real, batch["betas"])
            )
            parts |= {"adversarial": c.adversarial * fool, "critic": critic}
        with torch.no_grad():
            error = (own - own[:, :1] - joints + joints[:, :1]).norm(dim=-1).mean() * 1000
        return sum(parts.values()), {**{k: v.detach() for k, v in parts.items()}, "train_mpjpe_mm": error}

    def model_to_export(self) -> nn.Module:
        parts_of: Any = self.model
        inner = parts_of["host"]
        return inner.model if isinstance(inner, DenseSupervision) else inner

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        rows: list[tuple[Tensor, Tensor]] = []
        for index in range(-(-self.config.eval_images // 64)):
            batch = self.held_out.batch(index, 64)
            _, joints, _ = self.truth(batch)
            made = model(normalise_image(batch["images"]))
            out = getattr(made, "out", made)
            own = self.body(out.rotations, out.betas, level=2).joints
            rows.append((own - own[:, :1], joints - joints[:, :1]))
        got, want = (torch.cat(r) for r in zip(*rows))
        mean = want.mean(0, keepdim=True).expand_as(want)
        return {
            "mpjpe_mm": 1000 * float(mpjpe(got, want).mean()),
            "pa_mpjpe_mm": 1000 * float(p_mpjpe(got, want).mean()),
            "mean_mpjpe_mm": 1000 * float(mpjpe(mean, want).mean()),
            "mean_pa_mpjpe_mm": 1000 * float(p_mpjpe(mean, want).mean()),
        }
